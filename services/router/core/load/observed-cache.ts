import type { CachedDifference, Decision } from "../decisions/decision.ts";
import { reusableTokens } from "../placement/row-ranking.ts";

/** What of a prompt its engine had cached. */
export interface ObservedCache {
  /** −1 when unknown. */
  readonly cachedTokens: number;
  /** How that differs from what was predicted, and why. */
  readonly cachedDifference: CachedDifference;
}

/** When nothing was seen of it. */
export const unknownCache: ObservedCache = { cachedTokens: -1, cachedDifference: "unknown" };

/** What shows how much of a prompt its engine had cached; `undefined` for what was not seen. */
export interface CacheEvidence {
  /** Leading blocks that it did not store anew, by its KV events. */
  readonly blocks: number | undefined;
  /** Tokens that its answer names, as its relay tells. */
  readonly toldTokens: number | undefined;
}

/** Compares what an engine was seen to have cached with what its decision predicted. KV events go before its own word. */
export function observedCache(
  decision: Decision,
  { blocks, toldTokens }: CacheEvidence,
  blockSizeTokens: number,
): ObservedCache {
  const reusable = reusableTokens(decision.promptTokens, blockSizeTokens);
  const isRead = decision.loadOnlyReason === "";
  const seen = blocks === undefined ? toldTokens : blocks * blockSizeTokens;
  // A prompt without a full block before its last token has nothing to reuse, whatever the engine did.
  const tokens = isRead && reusable === 0 ? 0 : seen;
  if (tokens === undefined) return unknownCache;
  const cachedTokens = Math.min(tokens, reusable);
  const predicted = decision.chosen?.matchedTokens ?? 0;
  if (cachedTokens === predicted) return { cachedTokens, cachedDifference: "none" };
  if (decision.chosen?.suspect === true) return { cachedTokens, cachedDifference: "index_gap" };
  return { cachedTokens, cachedDifference: cachedTokens > predicted ? "concurrent" : "evicted" };
}
