import type { CandidateInput, CostTerm, PlacementRequest } from "./candidate.ts";
import { estimate, type Estimate } from "./estimate.ts";

/** What a policy makes of one candidate. */
export interface Score {
  readonly terms: readonly CostTerm[];
  /** Times that the reservation and the prediction use, whatever the policy ranks by. */
  readonly expected: Estimate;
}

/** Ranks candidates; the lowest sum of terms wins. Deterministic given `turn`. */
export interface PlacementPolicy {
  readonly name: PolicyName;
  /** Whether it looks at matched blocks. */
  readonly usesOverlap: boolean;
  /** `position` and `count` are the candidate's place in the list sorted by id; `turn` counts decisions. */
  score(
    candidate: CandidateInput,
    request: PlacementRequest,
    order: { readonly position: number; readonly count: number; readonly turn: number },
  ): Score;
}

/** Policies by the names that settings use. */
export const policyNames = ["kv", "kv-blind", "round-robin", "least-requests"] as const;

/** One of `policyNames`. */
export type PolicyName = (typeof policyNames)[number];

function expectedCompletion(expected: Estimate): CostTerm[] {
  return [
    { name: "queue", ms: expected.queueMs },
    { name: "stall", ms: expected.stallMs },
    { name: "prefill", ms: expected.prefillMs },
    { name: "decode", ms: expected.decodeMs },
    { name: "slowdown", ms: expected.slowdownMs },
    { name: "eviction", ms: expected.evictionMs },
  ];
}

/** The candidate as if nothing of the prompt were cached anywhere. */
function withoutOverlap(candidate: CandidateInput): CandidateInput {
  return { ...candidate, matchedBlocks: 0, matchedTokens: 0 };
}

const kv: PlacementPolicy = {
  name: "kv",
  usesOverlap: true,
  score(candidate, request) {
    const expected = estimate(candidate, request);
    return { terms: expectedCompletion(expected), expected };
  },
};

/** The same cost with the overlap terms zero. */
const kvBlind: PlacementPolicy = {
  name: "kv-blind",
  usesOverlap: false,
  score(candidate, request) {
    const expected = estimate(withoutOverlap(candidate), request);
    return { terms: expectedCompletion(expected), expected: estimate(candidate, request) };
  },
};

const roundRobin: PlacementPolicy = {
  name: "round-robin",
  usesOverlap: false,
  score(candidate, request, { position, count, turn }) {
    const wait = (position - (turn % count) + count) % count;
    return { terms: [{ name: "turn", ms: wait }], expected: estimate(candidate, request) };
  },
};

const leastRequests: PlacementPolicy = {
  name: "least-requests",
  usesOverlap: false,
  score(candidate, request) {
    const open = candidate.load.openRequests + candidate.foreignRequests;
    return { terms: [{ name: "open", ms: open }], expected: estimate(candidate, request) };
  },
};

/** Every policy by name. */
export const policies: Readonly<Record<PolicyName, PlacementPolicy>> = {
  kv,
  "kv-blind": kvBlind,
  "round-robin": roundRobin,
  "least-requests": leastRequests,
};

/** Whether a text names a policy. */
export function isPolicyName(text: string): text is PolicyName {
  return (policyNames as readonly string[]).includes(text);
}
