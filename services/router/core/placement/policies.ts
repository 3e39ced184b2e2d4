import { AibrixPrefix } from "./baselines/aibrix-prefix.ts";
import { Dynamo } from "./baselines/dynamo.ts";
import { LlmD } from "./baselines/llm-d.ts";
import { leastRequests, PowerOfTwo, RandomChoice, roundRobin } from "./baselines/load-balancers.ts";
import { PrefixTrie } from "./baselines/prefix-trie.ts";
import { sessionHash } from "./baselines/session-hash.ts";
import { Smg } from "./baselines/smg.ts";
import type { CandidateInput, CostTerm } from "./candidate.ts";
import { decodeWeight, estimate, type Estimate } from "./estimate.ts";
import type { PlacementPolicy, PolicyName } from "./policy.ts";

/** A request that waits so long for its first token counts twice, one that waits longer more: nobody is left behind, ms. */
const tailMs = 3_000;

function expectedCompletion(expected: Estimate): CostTerm[] {
  const { queueMs, memoryMs, stallMs, prefillMs } = expected;
  const firstTokenMs = queueMs + memoryMs + stallMs + prefillMs;
  return [
    { name: "queue", ms: queueMs },
    { name: "memory", ms: memoryMs },
    { name: "stall", ms: stallMs },
    { name: "prefill", ms: prefillMs },
    { name: "tail", ms: (firstTokenMs * firstTokenMs) / tailMs },
    { name: "decode", ms: decodeWeight * expected.decodeMs },
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
  score: (candidates, request) =>
    candidates.map((candidate) => {
      const expected = estimate(candidate, request);
      return { terms: expectedCompletion(expected), expected };
    }),
};

/** The same cost with the overlap terms zero. */
const kvBlind: PlacementPolicy = {
  name: "kv-blind",
  score: (candidates, request) =>
    candidates.map((candidate) => ({
      terms: expectedCompletion(estimate(withoutOverlap(candidate), request)),
    })),
};

/**
 * A policy for one pool, with a state of its own where it keeps one. `seed` decides the draws of those that draw; routers
 * with different seeds draw independently of each other.
 */
export function createPolicy(name: PolicyName, seed: number): PlacementPolicy {
  switch (name) {
    case "kv":
      return kv;
    case "kv-blind":
      return kvBlind;
    case "round-robin":
      return roundRobin;
    case "random":
      return new RandomChoice(seed);
    case "least-requests":
      return leastRequests;
    case "power-of-two":
      return new PowerOfTwo(seed);
    case "session-hash":
      return sessionHash;
    case "prefix-trie":
      return new PrefixTrie(seed);
    case "dynamo":
      return new Dynamo(seed);
    case "llm-d":
      return new LlmD(seed);
    case "aibrix-prefix":
      return new AibrixPrefix(seed);
    case "smg":
      return new Smg(seed);
  }
}
