import type { WorkerId } from "../../../shared/core/ids.ts";
import type { StepModel } from "../../../shared/core/step-model.ts";
import type { WorkerLoad } from "../load/worker-book.ts";

/** One eligible worker with all that a policy may look at. */
export interface CandidateInput {
  readonly workerId: WorkerId;
  readonly endpoint: string;
  /** Leading mesh blocks of the prompt that it holds, as far as the index knows. */
  readonly matchedBlocks: number;
  /** Tokens of those that spare computing: at most the prompt less its last token. */
  readonly matchedTokens: number;
  readonly load: WorkerLoad;
  /** Requests that the engine reports beyond the book: traffic that does not pass this mesh. */
  readonly foreignRequests: number;
  readonly steps: StepModel;
  /** Blocks held and the most that fit; 0 when unknown. */
  readonly heldTokens: number;
  readonly capacityTokens: number;
  /** Most tokens the engine computes in one step; 0 when unknown. */
  readonly stepTokensMax: number;
  readonly suspect: boolean;
  readonly reportedRunning: number;
  readonly reportedWaiting: number;
  /** Share of its cache that running requests hold, 0 to 1. */
  readonly reportedKvUsageRatio: number;
  readonly reportedAgeMs: number;
}

/** The request as policies see it. */
export interface PlacementRequest {
  readonly promptTokens: number;
  readonly expectedOutputTokens: number;
  /** Worker that served the request's conversation last. */
  readonly home?: WorkerId | undefined;
  /** What going anywhere else costs then, ms. */
  readonly affinityMs?: number;
}

/** Names of cost terms, in the order in which they are shown. From `turn` on they belong to baselines and count no ms. */
export const costTerms = [
  "queue",
  "memory",
  "stall",
  "prefill",
  "tail",
  "decode",
  "slowdown",
  "eviction",
  "affinity",
  "turn",
  "open",
  "choice",
  "score",
  "prefill_blocks",
  "decode_blocks",
  "tree_blocks",
  "draw",
] as const;

/** One of `costTerms`. */
export type CostTermName = (typeof costTerms)[number];

/** One part of a cost. */
export interface CostTerm {
  readonly name: CostTermName;
  readonly ms: number;
}

/** A candidate with its cost. */
export interface ScoredCandidate extends CandidateInput {
  readonly terms: readonly CostTerm[];
  readonly costMs: number;
  readonly predictedTtftMs: number;
  /** Prefill time that a reservation here takes, ms. */
  readonly prefillMs: number;
  /** Time of the whole answer after its first token, ms. */
  readonly decodeMs: number;
}
