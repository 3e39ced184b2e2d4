import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import type { CandidateInput, CostTerm, PlacementRequest } from "./candidate.ts";
import type { Estimate } from "./estimate.ts";

/** Policies by the names that settings use. */
export const policyNames = [
  "kv",
  "kv-blind",
  "round-robin",
  "random",
  "least-requests",
  "power-of-two",
  "session-hash",
  "prefix-trie",
  "dynamo",
  "llm-d",
  "aibrix-prefix",
  "smg",
] as const;

/** One of `policyNames`. */
export type PolicyName = (typeof policyNames)[number];

/** Whether a text names a policy. */
export function isPolicyName(text: string): text is PolicyName {
  return (policyNames as readonly string[]).includes(text);
}

/** A request with all that a policy may look at beside the candidates. */
export interface PolicyRequest extends PlacementRequest {
  /** Sequence hashes of the full prompt blocks, (lo, hi) pairs; empty when the prompt was not read. */
  readonly hashes: Uint32Array;
  readonly blockSizeTokens: number;
  /** Key of the conversation that the request belongs to; empty when its caller names none. */
  readonly session: string;
  /** Requests placed in the pool before this one. */
  readonly turn: number;
  readonly now: MonoMs;
}

/** What a policy makes of one candidate. */
export interface Score {
  readonly terms: readonly CostTerm[];
  /** Times that the reservation and the prediction use, where the policy knows them; ours are taken otherwise. */
  readonly expected?: Estimate;
}

/** Where a request went. */
export interface Placed {
  readonly decisionId: string;
  readonly workerId: WorkerId;
  /** Leading blocks of the prompt that the KV index knew there. */
  readonly matchedBlocks: number;
  readonly predictedTtftMs: number;
}

/**
 * Ranks the workers of one pool; the lowest sum of terms wins. Deterministic: the same calls give the same answers,
 * whatever the order in which workers joined. One that keeps a state of its own learns of requests by the callbacks;
 * all of it is bounded, and gone when the pool gets another policy.
 */
export interface PlacementPolicy {
  readonly name: PolicyName;
  /** One score for each candidate, in their order, which is that of their ids. Changes nothing: dry runs ask too. */
  score(candidates: readonly CandidateInput[], request: PolicyRequest): readonly Score[];
  /** The request was placed and reserved. */
  placed?(request: PolicyRequest, placed: Placed): void;
  /** Its first token came, where somebody sees it. */
  firstToken?(decisionId: string): void;
  /** It ended, by whatever way its reservation was closed. */
  closed?(decisionId: string): void;
  /** A worker has left the pool for good. */
  workerLeft?(workerId: WorkerId): void;
}
