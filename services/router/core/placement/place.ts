import type { CandidateInput, ScoredCandidate } from "./candidate.ts";
import { estimate } from "./estimate.ts";
import type { PlacementPolicy, PolicyRequest, Score } from "./policy.ts";

/** Candidates in order of preference. */
export interface Ranking {
  /** Cheapest first; never empty when candidates were given. */
  readonly candidates: readonly ScoredCandidate[];
  /** Second cost minus first, ms; 0 with one candidate. */
  readonly marginMs: number;
  /** How a tie was settled; empty when there was none. */
  readonly tieBreak: "" | "fewest_open" | "lowest_id";
}

/** Costs are compared in steps of a nanosecond: predictions are not better than that. */
const ranksPerMs = 1e6;

/** What costs are compared by: equal for a tie. A cost that is no number comes last. */
export function costRank(costMs: number): number {
  const rank = Math.round(costMs * ranksPerMs);
  return Number.isNaN(rank) ? Infinity : rank;
}

function compare(a: ScoredCandidate, b: ScoredCandidate): number {
  const left = costRank(a.costMs);
  const right = costRank(b.costMs);
  if (left !== right) return left < right ? -1 : 1;
  const open = a.load.openRequests - b.load.openRequests;
  if (open !== 0) return open;
  return a.workerId < b.workerId ? -1 : a.workerId > b.workerId ? 1 : 0;
}

/**
 * Ranks workers for one request. Ties go to the fewest open requests, then to the lowest id, so that two
 * routers given the same view agree; the order in which candidates are listed never matters.
 * O(n log n) in the number of candidates.
 */
export function rank(
  candidates: readonly CandidateInput[],
  request: PolicyRequest,
  policy: PlacementPolicy,
): Ranking {
  const byId = [...candidates].sort((a, b) =>
    a.workerId < b.workerId ? -1 : a.workerId > b.workerId ? 1 : 0,
  );
  const scores = byId.length === 0 ? [] : policy.score(byId, request);
  const scored = byId.map((candidate, i): ScoredCandidate => {
    const { terms, expected = estimate(candidate, request) } = scores[i] as Score;
    let costMs = 0;
    for (const term of terms) costMs += term.ms;
    return {
      ...candidate,
      terms,
      costMs,
      predictedTtftMs: expected.queueMs + expected.stallMs + expected.prefillMs,
      prefillMs: expected.prefillMs,
      decodeMs: expected.decodeMs,
    };
  });
  scored.sort(compare);
  return { candidates: scored, ...margin(scored) };
}

/** How far the first of ranked candidates leads, and by what. */
export function margin(ranked: readonly ScoredCandidate[]): Pick<Ranking, "marginMs" | "tieBreak"> {
  const [first, second] = ranked;
  if (first === undefined || second === undefined) return { marginMs: 0, tieBreak: "" };
  const marginMs = Math.max(0, second.costMs - first.costMs);
  if (costRank(first.costMs) !== costRank(second.costMs)) return { marginMs, tieBreak: "" };
  const isByOpen = first.load.openRequests !== second.load.openRequests;
  return { marginMs, tieBreak: isByOpen ? "fewest_open" : "lowest_id" };
}
