/** What one request of a run asks for. */
export interface BodyOptions {
  readonly api: "completions" | "chat";
  readonly model: string;
  /** Words of small letters and blanks alone, as `PromptText` makes them: put into JSON as they are. */
  readonly prompt: string;
  readonly outputTokens: number;
  /** Also asks for token ids, which vLLM gives with every chunk. */
  readonly withTokenIds: boolean;
}

/** Path of an API under the endpoint's root. */
export const apiPaths = {
  completions: "/v1/completions",
  chat: "/v1/chat/completions",
} as const;

/**
 * JSON body of a streamed request for exactly `outputTokens` tokens (`ignore_eos`), usage included.
 * Built by hand: the prompt needs no escapes, and looking for them costs more than all the rest.
 */
export function requestBody(options: BodyOptions): string {
  const { api, model, prompt, outputTokens, withTokenIds } = options;
  const content =
    api === "completions"
      ? `"prompt":"${prompt}"`
      : `"messages":[{"role":"user","content":"${prompt}"}]`;
  return (
    `{"model":${JSON.stringify(model)},"max_tokens":${outputTokens},"stream":true,` +
    `"stream_options":{"include_usage":true},"ignore_eos":true,"temperature":0,` +
    `${withTokenIds ? '"return_token_ids":true,' : ""}${content}}`
  );
}
