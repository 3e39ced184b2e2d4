import { MeshError } from "../../../shared/core/errors.ts";
import { isObject } from "../openai/body-fields.ts";
import type { OpenAiPrompt } from "../openai/openai-prompt.ts";
import { spelled, type ScannedText } from "../openai/scanned-body.ts";
import type { PromptTokenizer } from "./model-runtime.ts";

/** How much shorter canonical composition can make a text, UTF-16 units before to bytes after. */
const compositionRatio = 4;

const beyondAscii = /[^\u0000-\u007f]/u;

function* partsOf(content: unknown): Generator<string> {
  if (typeof content === "string") yield content;
  if (!Array.isArray(content)) return;
  for (const part of content as unknown[]) {
    if (typeof part === "string") yield part;
    else if (isObject(part) && typeof part["text"] === "string") yield part["text"];
  }
}

/** Texts that are in the prompt for certain: a template may leave out what others than the user said. */
function* certainTexts(prompt: OpenAiPrompt): Generator<string> {
  switch (prompt.kind) {
    case "text":
      yield prompt.text;
      break;
    case "scanned_text":
      yield spelled(prompt.text.bytes, prompt.text.text);
      break;
    case "chat":
      for (const { role, content } of prompt.chat.messages) {
        if (role === "user") yield* partsOf(content);
      }
      break;
    case "scanned_chat":
      for (const { role, content } of prompt.chat.messages) {
        if (role !== "user" || content === undefined) continue;
        const texts = Array.isArray(content) ? (content as readonly ScannedText[]) : [content];
        for (const text of texts) yield spelled(prompt.chat.bytes, text as ScannedText);
      }
      break;
    // Several texts are several prompts.
    case "texts":
    case "tokens":
    case "load_only":
      break;
  }
}

/**
 * Refuses a prompt that is too long whatever its tokens are, before a large body keeps the router from others: no token
 * stands for more than `tokenSizeMax` bytes. Costs nothing for bodies that could fit. Throws `context_length_exceeded`.
 */
export function refuseHopelessLength(
  prompt: OpenAiPrompt,
  sizes: { readonly bodyBytes: number; readonly contextMax: number },
  tokenizer: PromptTokenizer | undefined,
): void {
  const tokenSizeMax = tokenizer?.tokenSizeMax ?? 0;
  const { bodyBytes, contextMax } = sizes;
  if (tokenSizeMax === 0 || contextMax === 0 || bodyBytes <= contextMax * tokenSizeMax) return;
  let atLeast = 0;
  for (const text of certainTexts(prompt)) {
    const bytes = beyondAscii.test(text) ? text.length / compositionRatio : text.length;
    atLeast += Math.floor(bytes / tokenSizeMax);
  }
  if (atLeast < contextMax) return;
  throw new MeshError(
    "context_length_exceeded",
    `the prompt has at least ${atLeast} tokens; the model takes fewer than ${contextMax} with room for an answer`,
  );
}
