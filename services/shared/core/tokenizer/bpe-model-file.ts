import type { SplitRules } from "./split-rules.ts";

/** One entry of `added_tokens`. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** A control token: recognised only when the caller allows it. */
  readonly special: boolean;
}

/** What we use of a `tokenizer.json`, checked. */
export interface BpeModelFile {
  readonly splitRules: SplitRules;
  /** Whether text is brought to NFC before it is split. */
  readonly normaliseNfc: boolean;
  /** Whether a word that is a vocabulary entry is that entry, whatever merging would give. */
  readonly ignoreMerges: boolean;
  /** Token text in the byte-level alphabet → id. */
  readonly vocabulary: ReadonlyMap<string, number>;
  /** Pairs in order of rank, in the byte-level alphabet. */
  readonly merges: readonly (readonly [string, string])[];
  readonly addedTokens: readonly AddedToken[];
  /** Ids the post-processor puts before a plain prompt. */
  readonly prefixIds: readonly number[];
}
