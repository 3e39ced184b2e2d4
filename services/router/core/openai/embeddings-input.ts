import { isTokenList, refuse, type Body } from "./body-fields.ts";
import type { OpenAiPrompt } from "./openai-prompt.ts";

/** The `input` of an embeddings request: a text, token ids, or a list of either. */
export function readEmbeddingsInput(body: Body): OpenAiPrompt {
  const input: unknown = body["input"];
  if (typeof input === "string") return { kind: "text", text: input };
  if (Array.isArray(input) && input.length > 0) {
    const list = input as readonly unknown[];
    const texts = list.filter((item) => typeof item === "string");
    if (texts.length === list.length) return { kind: "texts", texts };
    if (isTokenList(list)) return { kind: "tokens", ids: list };
    const lists = list.filter((item) => Array.isArray(item));
    if (lists.length === list.length && lists.every(isTokenList)) {
      return { kind: "tokens", ids: lists.flat() as readonly number[] };
    }
  }
  refuse("input", "must be a text, a list of texts, a list of token ids or a list of those");
}
