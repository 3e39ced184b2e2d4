import { MeshError } from "../../../shared/core/errors.ts";

/** A request of a backend service, as far as an engine hears of it. */
export interface GenerateAsk {
  readonly model: string;
  readonly input:
    | { readonly kind: "text"; readonly text: string }
    | { readonly kind: "messages"; readonly messages: readonly ChatMessage[] }
    | { readonly kind: "token_ids"; readonly ids: readonly number[] };
  readonly session: string;
  readonly sampling: SamplingAsk;
}

/** One message of a chat. */
export interface ChatMessage {
  readonly role: string;
  readonly content: string;
}

/** How to sample; what is absent is the engine's default. */
export interface SamplingAsk {
  readonly tokensMax?: number | undefined;
  readonly tokensMin?: number | undefined;
  readonly temperature?: number | undefined;
  readonly topP?: number | undefined;
  readonly topK?: number | undefined;
  readonly seed?: bigint | undefined;
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly presencePenalty?: number | undefined;
  readonly frequencyPenalty?: number | undefined;
  readonly repetitionPenalty?: number | undefined;
  readonly ignoreEos?: boolean | undefined;
}

const stopsMax = 16;

/**
 * The body and path by which an engine is asked. Equal requests give equal bytes, which is what a resume token binds.
 * Throws `invalid_request` naming the field that cannot be served.
 */
export function generateBody(ask: GenerateAsk): { readonly path: string; readonly json: string } {
  const { model, input, session, sampling } = ask;
  if (model === "")
    throw new MeshError("invalid_request", "model: is required", { field: "model" });
  if (sampling.stop.length > stopsMax) {
    throw new MeshError("invalid_request", `sampling.stop: at most ${stopsMax} texts`, {
      field: "sampling.stop",
    });
  }
  const seed = sampling.seed === undefined ? undefined : Number(sampling.seed);
  if (seed !== undefined && !Number.isSafeInteger(seed)) {
    throw new MeshError("invalid_request", "sampling.seed: must lie within ±(2^53 − 1)", {
      field: "sampling.seed",
    });
  }
  const isChat = input.kind === "messages";
  const prompt =
    input.kind === "messages"
      ? { messages: input.messages }
      : { prompt: input.kind === "text" ? input.text : input.ids };
  const limit = isChat ? "max_completion_tokens" : "max_tokens";
  const body = {
    model,
    ...prompt,
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
    // Completions without a limit would end after 16 tokens.
    [limit]: sampling.tokensMax ?? (isChat ? undefined : null),
    min_tokens: sampling.tokensMin,
    temperature: sampling.temperature,
    top_p: sampling.topP,
    top_k: sampling.topK,
    seed,
    stop: sampling.stop.length === 0 ? undefined : sampling.stop,
    stop_token_ids: sampling.stopTokenIds.length === 0 ? undefined : sampling.stopTokenIds,
    presence_penalty: sampling.presencePenalty,
    frequency_penalty: sampling.frequencyPenalty,
    repetition_penalty: sampling.repetitionPenalty,
    ignore_eos: sampling.ignoreEos,
    prompt_cache_key: session === "" ? undefined : session,
  };
  return {
    path: isChat ? "/v1/chat/completions" : "/v1/completions",
    json: JSON.stringify(body),
  };
}
