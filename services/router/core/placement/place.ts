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

/** Costs closer than this are a tie, ms: predictions are not better than that. */
const tieMs = 1e-6;

function compare(a: ScoredCandidate, b: ScoredCandidate): number {
  const cost = a.costMs - b.costMs;
  if (Math.abs(cost) > tieMs) return cost;
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
  const [first, second] = scored;
  if (first === undefined || second === undefined) {
    return { candidates: scored, marginMs: 0, tieBreak: "" };
  }
  const marginMs = second.costMs - first.costMs;
  const tied = marginMs <= tieMs;
  const tieBreak = !tied
    ? ""
    : first.load.openRequests !== second.load.openRequests
      ? "fewest_open"
      : "lowest_id";
  return { candidates: scored, marginMs, tieBreak };
}
