import type { CachedDifference, Decision } from "../decisions/decision.ts";
import { reusableTokens } from "../placement/row-ranking.ts";

/** What of a prompt its engine had cached. */
export interface ObservedCache {
  /** −1 when unknown. */
  readonly cachedTokens: number;
  /** How that differs from what was predicted, and why. */
  readonly cachedDifference: CachedDifference;
}

const unknown: ObservedCache = { cachedTokens: -1, cachedDifference: "unknown" };

/** Compares the leading blocks that an engine was seen to have cached, `undefined` for unknown, with the decision's. */
export function observedCache(
  decision: Decision,
  cachedBlocks: number | undefined,
  blockSizeTokens: number,
): ObservedCache {
  const reusable = reusableTokens(decision.promptTokens, blockSizeTokens);
  const isRead = decision.loadOnlyReason === "";
  // A prompt without a full block before its last token has nothing to reuse, whatever the engine did.
  const blocks = isRead && reusable === 0 ? 0 : cachedBlocks;
  if (blocks === undefined) return unknown;
  const cachedTokens = Math.min(blocks * blockSizeTokens, reusable);
  const predicted = decision.chosen?.matchedTokens ?? 0;
  if (cachedTokens === predicted) return { cachedTokens, cachedDifference: "none" };
  if (decision.chosen?.suspect === true) return { cachedTokens, cachedDifference: "index_gap" };
  return { cachedTokens, cachedDifference: cachedTokens > predicted ? "concurrent" : "evicted" };
}
