import { AibrixPrefix } from "./baselines/aibrix-prefix.ts";
import { Dynamo } from "./baselines/dynamo.ts";
import { LlmD } from "./baselines/llm-d.ts";
import { leastRequests, PowerOfTwo, RandomChoice, roundRobin } from "./baselines/load-balancers.ts";
import { PrefixTrie } from "./baselines/prefix-trie.ts";
import { sessionHash } from "./baselines/session-hash.ts";
import { Smg } from "./baselines/smg.ts";
import type { CandidateInput } from "./candidate.ts";
import { affinityOf, estimate, preferences, termsOf, type CostWeights } from "./estimate.ts";
import type { PlacementPolicy, PolicyName } from "./policy.ts";

/** The candidate as if nothing of the prompt were cached anywhere. */
function withoutOverlap(candidate: CandidateInput): CandidateInput {
  return { ...candidate, matchedBlocks: 0, matchedTokens: 0 };
}

function kv(weights: CostWeights): PlacementPolicy {
  return {
    name: "kv",
    score: (candidates, request) =>
      candidates.map((candidate) => {
        const expected = estimate(candidate, request, weights);
        const affinityMs = affinityOf(candidate.workerId, request);
        return { terms: termsOf(expected, weights, affinityMs), expected };
      }),
  };
}

/** The same cost with the overlap terms zero. */
function kvBlind(weights: CostWeights): PlacementPolicy {
  return {
    name: "kv-blind",
    score: (candidates, request) =>
      candidates.map((candidate) => ({
        terms: termsOf(
          estimate(withoutOverlap(candidate), request, weights),
          weights,
          affinityOf(candidate.workerId, request),
        ),
      })),
  };
}

/**
 * A policy for one pool, with a state of its own where it keeps one. `seed` decides the draws of those that draw; routers
 * with different seeds draw independently of each other. `weights` are those of our own cost.
 */
export function createPolicy(
  name: PolicyName,
  seed: number,
  weights: CostWeights = preferences.balanced,
): PlacementPolicy {
  switch (name) {
    case "kv":
      return kv(weights);
    case "kv-blind":
      return kvBlind(weights);
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
