/**
 * One extra part of a block's identity inside the engine. `text` is a LoRA name, a cache salt or (older
 * builds) a bare media hash; `media` is a media item and where it starts; `other` is anything else.
 */
export type ExtraKey =
  | { readonly kind: "text"; readonly text: string }
  | { readonly kind: "media"; readonly id: string }
  | { readonly kind: "other" };

/**
 * Blocks of one request that became full. `hashes` are engine hashes as pairs `[lo0, hi0, lo1, hi1, …]`,
 * consecutive in the prompt; `tokens` covers exactly them when the event can be chained.
 */
export interface StoredEvent {
  readonly kind: "stored";
  readonly hashes: Uint32Array;
  /** False at the start of a sequence; then both halves of the parent are 0. */
  readonly hasParent: boolean;
  readonly parentLo: number;
  readonly parentHi: number;
  readonly tokens: Uint32Array;
  /** Tokens per engine block, at least 1. */
  readonly blockSizeTokens: number;
  /** True when the engine keys its cache by token pairs; `tokens` then holds the first of each pair. */
  readonly bigram: boolean;
  readonly loraId: number | undefined;
  readonly loraName: string | undefined;
  /** Where the block lies, as the engine says it (`GPU`, `CPU`, …); undefined means device memory. */
  readonly medium: string | undefined;
  readonly locality: string | undefined;
  /** One entry per block, `undefined` for a block with none; the whole is undefined when no block has any. */
  readonly extraKeys: readonly (readonly ExtraKey[] | undefined)[] | undefined;
  readonly groupIndex: number | undefined;
  readonly specKind: string | undefined;
}

/** Blocks whose memory was taken for something else. */
export interface RemovedEvent {
  readonly kind: "removed";
  readonly hashes: Uint32Array;
  readonly medium: string | undefined;
  readonly locality: string | undefined;
  readonly groupIndex: number | undefined;
}

/** Every block of the engine is gone. */
export interface ClearedEvent {
  readonly kind: "cleared";
}

/** One event of an engine's KV cache, in one shape for all engines and versions. */
export type KvEvent = StoredEvent | RemovedEvent | ClearedEvent;

/** One published message: the events of one scheduler step. */
export interface KvEventBatch {
  /** Engine's wall clock when it published, seconds since 1970. */
  readonly publishedSeconds: number;
  /** Data-parallel rank, absent in old versions. */
  readonly dpRank: number | undefined;
  readonly events: readonly KvEvent[];
  /** Events of a type this reader does not know; they were skipped. */
  readonly unknownEventCount: number;
}

/** Why a payload was refused. */
export type DecodeFailureCode =
  | "truncated"
  | "trailing_bytes"
  | "wrong_type"
  | "bad_number"
  | "bad_text"
  | "missing_field"
  | "too_large"
  | "too_deep";

/** A refused payload: why, and at which byte. */
export interface DecodeFailure {
  readonly code: DecodeFailureCode;
  readonly offset: number;
}
