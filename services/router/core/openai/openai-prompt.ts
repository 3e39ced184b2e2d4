import type { ChatPrompt, ScannedChat, ScannedPrompt } from "./scanned-body.ts";

/** Where the prompt's tokens come from. */
export type OpenAiPrompt =
  | { readonly kind: "text"; readonly text: string }
  /** Several in one request, as for embeddings: the first decides what is cached, all of them are work. */
  | { readonly kind: "texts"; readonly texts: readonly string[] }
  | { readonly kind: "tokens"; readonly ids: readonly number[] }
  | { readonly kind: "chat"; readonly chat: ChatPrompt }
  /** The same two, not yet taken out of the body. */
  | { readonly kind: "scanned_text"; readonly text: ScannedPrompt }
  | { readonly kind: "scanned_chat"; readonly chat: ScannedChat }
  /** Nothing that can be hashed; placed by load. */
  | { readonly kind: "load_only"; readonly reason: LoadOnlyReason };

/** Why a prompt is not read as tokens. */
export type LoadOnlyReason =
  | "other_path"
  | "no_body"
  | "body_truncated"
  | "multimodal"
  | "custom_template"
  /** A conversation, or a part of it, that only the engine has. */
  | "stored_conversation"
  | "prompt_embeddings"
  | "no_tokenizer"
  | "no_chat_template"
  | "unsupported_tokenizer"
  /** Its text was to be encoded by the tokenizer's thread, which had too much to do, */
  | "tokenizer_busy"
  /** broke down, */
  | "tokenizer_lost"
  /** takes no text that long, */
  | "tokenizer_limit"
  /** or refused it. */
  | "tokenizer_refused";
