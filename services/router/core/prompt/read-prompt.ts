import { hashBlocks } from "../../../shared/core/block-hash.ts";
import type { LoadOnlyReason, OpenAiPrompt } from "../openai/openai-prompt.ts";
import type { ChatPrompt } from "../openai/scanned-body.ts";
import type { ModelRuntime, PromptTemplate } from "./model-runtime.ts";

/** A prompt as tokens and block hashes. */
export interface TokenisedPrompt {
  /** Prompt length, tokens; an estimate when `loadOnly` is set. */
  readonly tokens: number;
  /** Sequence hashes of the full blocks as (lo, hi) pairs. */
  readonly hashes: Uint32Array;
  /** Why there are no hashes. */
  readonly loadOnly: LoadOnlyReason | undefined;
}

/** Bytes of a JSON body per prompt token where nothing better is known. */
const bytesPerToken = 4;
const none = new Uint32Array(0);

/** A prompt that cannot be read: no hashes, a length estimated from the body's size. */
export function loadOnlyPrompt(reason: LoadOnlyReason, bodyBytes: number): TokenisedPrompt {
  return { tokens: Math.ceil(bodyBytes / bytesPerToken), hashes: none, loadOnly: reason };
}

function tokenIds(
  prompt: OpenAiPrompt,
  runtime: ModelRuntime,
): { readonly ids: Uint32Array | readonly number[] } | { readonly reason: LoadOnlyReason } {
  switch (prompt.kind) {
    case "tokens":
      return { ids: prompt.ids };
    case "load_only":
      return { reason: prompt.reason };
    case "text":
      if (runtime.tokenizer === undefined) return { reason: missing(runtime) };
      return { ids: runtime.tokenizer.encode(prompt.text) };
    case "texts":
      // Only the first is hashed.
      if (runtime.tokenizer === undefined) return { reason: missing(runtime) };
      return { ids: runtime.tokenizer.encode(prompt.texts[0] ?? "") };
    case "chat": {
      if (runtime.tokenizer === undefined) return { reason: missing(runtime) };
      if (runtime.template === undefined) return { reason: "no_chat_template" };
      return { ids: runtime.tokenizer.encode(rendered(prompt.chat, runtime.template)) };
    }
    case "scanned_text": {
      if (runtime.tokenizer === undefined) return { reason: missing(runtime) };
      const { text } = prompt;
      // Half a surrogate pair has no UTF-8.
      const spelled = text.text.surrogates ? text.whole() : text.texts.unescape(text.text);
      return { ids: runtime.tokenizer.encode(spelled) };
    }
    case "scanned_chat": {
      if (runtime.tokenizer === undefined) return { reason: missing(runtime) };
      if (runtime.template === undefined) return { reason: "no_chat_template" };
      const chat = prompt.chat.whole();
      return { ids: runtime.tokenizer.encode(rendered(chat, runtime.template)) };
    }
  }
}

function rendered(chat: ChatPrompt, template: PromptTemplate): string {
  return template.render(chat.messages, {
    addGenerationPrompt: chat.addGenerationPrompt,
    continueFinalMessage: chat.continueFinalMessage,
    kwargs: chat.templateKwargs,
    ...(chat.tools === undefined ? {} : { tools: chat.tools }),
  });
}

function lengthOf(texts: readonly string[], { tokenizer }: ModelRuntime): number {
  return texts.reduce((tokens, text) => tokens + (tokenizer?.encode(text).length ?? 0), 0);
}

function missing(runtime: ModelRuntime): LoadOnlyReason {
  return runtime.unsupported ? "unsupported_tokenizer" : "no_tokenizer";
}

/**
 * Tokenises and hashes a prompt. Throws `invalid_request` when the chat template refuses the messages.
 * What cannot be read as tokens is placed by load, with the reason.
 */
export function readPrompt(
  prompt: OpenAiPrompt,
  bodyBytes: number,
  runtime: ModelRuntime | undefined,
  blockSizeTokens: number,
): TokenisedPrompt {
  if (runtime === undefined) {
    return loadOnlyPrompt(prompt.kind === "load_only" ? prompt.reason : "no_tokenizer", bodyBytes);
  }
  if (prompt.kind === "scanned_chat" && runtime.tokenizer !== undefined) {
    const read = runtime.chats?.read(prompt.chat, runtime.root, blockSizeTokens);
    if (read !== undefined) return { ...read, loadOnly: undefined };
  }
  const read = tokenIds(prompt, runtime);
  if ("reason" in read) return loadOnlyPrompt(read.reason, bodyBytes);
  const more = prompt.kind === "texts" ? lengthOf(prompt.texts.slice(1), runtime) : 0;
  return {
    tokens: read.ids.length + more,
    hashes: hashBlocks(runtime.root, read.ids, blockSizeTokens),
    loadOnly: undefined,
  };
}
