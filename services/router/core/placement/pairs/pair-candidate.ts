import type { WorkerId } from "../../../../shared/core/ids.ts";
import type { CandidateWorker } from "../row-candidate.ts";

/** Terms of a pair's cost, ms, in the order in which they are shown. The first five are of the prefill worker. */
export const pairTerms = [
  "queue",
  "memory",
  "stall",
  "prefill",
  "transfer_wait",
  "transfer",
  "decode_queue",
  "decode_memory",
  "decode_stall",
  "first_step",
  "tail",
  "decode",
  "slowdown",
  "eviction",
  "affinity",
  "itl",
] as const;

/** One of `pairTerms`. */
export type PairTermName = (typeof pairTerms)[number];

/** Where `PairCandidate` finds each of its numbers. */
export const pairNumber = {
  costMs: 0,
  predictedTtftMs: 1,
  prefillMatchedTokens: 2,
  decodeMatchedTokens: 3,
  transferBytes: 4,
  itlMs: 5,
  /** The first of `pairTerms`. */
  terms: 6,
} as const;

/** Numbers of one pair. */
export const pairNumberCount = pairNumber.terms + pairTerms.length;

const termAt: ReadonlyMap<PairTermName, number> = new Map(
  pairTerms.map((name, i) => [name, pairNumber.terms + i]),
);

/** Two workers and what serving a request with them is expected to take. Its numbers lie in one array of doubles. */
export class PairCandidate {
  readonly prefill: CandidateWorker;
  readonly decode: CandidateWorker;
  readonly #n: Float64Array;

  constructor(prefill: CandidateWorker, decode: CandidateWorker, numbers: Float64Array) {
    this.prefill = prefill;
    this.decode = decode;
    this.#n = numbers;
  }

  get prefillWorkerId(): WorkerId {
    return this.prefill.workerId;
  }

  get decodeWorkerId(): WorkerId {
    return this.decode.workerId;
  }

  get costMs(): number {
    return this.#n[pairNumber.costMs] as number;
  }

  get predictedTtftMs(): number {
    return this.#n[pairNumber.predictedTtftMs] as number;
  }

  /** Tokens of the prompt cached where it is computed. */
  get prefillMatchedTokens(): number {
    return this.#n[pairNumber.prefillMatchedTokens] as number;
  }

  /** Tokens of the prompt that need not be moved. */
  get decodeMatchedTokens(): number {
    return this.#n[pairNumber.decodeMatchedTokens] as number;
  }

  get transferBytes(): number {
    return this.#n[pairNumber.transferBytes] as number;
  }

  /** Expected time between tokens, ms; 0 for an answer of one token. */
  get itlMs(): number {
    return this.#n[pairNumber.itlMs] as number;
  }

  /** One term, ms. */
  term(name: PairTermName): number {
    return this.#n[termAt.get(name) ?? 0] as number;
  }

  /** From the decision to the end of its prefill leg, ms. */
  get prefillEndsInMs(): number {
    return this.term("queue") + this.term("stall") + this.term("prefill");
  }

  /** All terms in order. Their sum is the cost. */
  get terms(): readonly { readonly name: PairTermName; readonly ms: number }[] {
    return pairTerms.map((name, i) => ({ name, ms: this.#n[pairNumber.terms + i] as number }));
  }
}
