import type { HashRoot } from "../../../shared/core/block-hash.ts";
import type { ScannedChat } from "../openai/scanned-body.ts";

/** A token that is looked for in text before anything else. */
export interface AddedToken {
  readonly id: number;
  readonly text: string;
}

/** Turns text into token ids exactly as the engine does. */
export interface PromptTokenizer {
  encode(text: string | Uint8Array, options?: { readonly special?: boolean }): Uint32Array;
  /**
   * As `encode`, in memory that is used again with the next call. `undefined` for a text that needs more work than merging
   * `mergesMax` unknown words, about 1 µs each, besides looking words up.
   */
  encodeScratch?(text: string | Uint8Array, mergesMax?: number): Uint32Array | undefined;
  /** Words that it had to merge so far. */
  readonly mergedWords?: number;
  /**
   * The tokens that are looked for in a text before anything else, if it says which: text between two of them is
   * tokenised by itself.
   */
  addedTokens?(): readonly AddedToken[];
  /** Bytes of its longest token; absent or 0 when it does not say. */
  readonly tokenSizeMax?: number;
}

/** Turns chat messages into the text that the engine tokenises. Throws `invalid_request` for what it refuses. */
export interface PromptTemplate {
  render(
    messages: readonly unknown[],
    options: {
      readonly tools?: unknown;
      readonly addGenerationPrompt?: boolean;
      readonly continueFinalMessage?: boolean;
      readonly kwargs?: Readonly<Record<string, unknown>>;
    },
  ): string;
}

/** Turns chats into block hashes without rendering them. */
export interface ScannedChatReader {
  /** Length, tokens, and block hashes of a chat; `undefined` when the template has to render it. */
  read(
    chat: ScannedChat,
    root: HashRoot,
    blockSizeTokens: number,
  ): { readonly tokens: number; readonly hashes: Uint32Array } | undefined;
}

/** A text that has been encoded elsewhere. */
export interface EncodedText {
  /** UTF-8. */
  readonly text: Uint8Array;
  readonly ids: Uint32Array;
}

/** Encodes elsewhere what a tokenizer has put off (see `DeferringTokenizer`). */
export interface TextEncoderLater {
  /** The tokenizer that puts texts off. */
  readonly tokenizer: {
    begin(given?: readonly EncodedText[]): void;
    takeDeferred(): Uint8Array<ArrayBuffer> | undefined;
  };
  /** Rejects with an error that has a `code` when the ids do not come within `deadlineMs` or are not wanted any more. */
  encodeLater(
    text: Uint8Array,
    options: { readonly deadlineMs: number; readonly signal: AbortSignal },
  ): Promise<Uint32Array>;
}

/** What is needed to turn a model's requests into block hashes. */
export interface ModelRuntime {
  /** Absent until the worker has delivered it, or when its family is not supported. */
  readonly tokenizer: PromptTokenizer | undefined;
  /** Set when the tokenizer's family is not supported. */
  readonly unsupported: boolean;
  /** Encodes what `tokenizer` puts off; absent when it puts nothing off. */
  readonly later?: TextEncoderLater | undefined;
  readonly template: PromptTemplate | undefined;
  /** Absent for templates or tokenizers that it does not fit. */
  readonly chats?: ScannedChatReader | undefined;
  readonly addsSpecialTokens: boolean;
  readonly root: HashRoot;
}
