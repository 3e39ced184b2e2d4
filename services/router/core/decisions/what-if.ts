import type { ScoredCandidate } from "../placement/candidate.ts";
import { plainCandidate } from "../placement/row-candidate.ts";

/**
 * The candidates of a decision under other weights: each term is multiplied by its weight (1 when not named).
 * Cheapest first; ties keep the decision's own order.
 */
export function reweigh(
  candidates: readonly ScoredCandidate[],
  weights: ReadonlyMap<string, number>,
): ScoredCandidate[] {
  const weighed = candidates.map((candidate, index) => {
    const terms = candidate.terms.map((t) => ({
      name: t.name,
      ms: t.ms * (weights.get(t.name) ?? 1),
    }));
    const costMs = terms.reduce((sum, t) => sum + t.ms, 0);
    return { index, candidate: { ...plainCandidate(candidate), terms, costMs } };
  });
  weighed.sort((a, b) => a.candidate.costMs - b.candidate.costMs || a.index - b.index);
  return weighed.map((w) => w.candidate);
}
