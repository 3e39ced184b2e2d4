import type { HashRoot } from "../../../shared/core/block-hash.ts";

/** Turns text into token ids exactly as the engine does. */
export interface PromptTokenizer {
  encode(text: string, options?: { readonly special?: boolean }): Uint32Array;
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

/** What is needed to turn a model's requests into block hashes. */
export interface ModelRuntime {
  /** Absent until the worker has delivered it, or when its family is not supported. */
  readonly tokenizer: PromptTokenizer | undefined;
  /** Set when the tokenizer's family is not supported. */
  readonly unsupported: boolean;
  readonly template: PromptTemplate | undefined;
  readonly addsSpecialTokens: boolean;
  readonly root: HashRoot;
}
