import type { WorkerId } from "../../../shared/core/ids.ts";
import type { StepModel } from "../../../shared/core/step-model.ts";
import type { WorkerLoad } from "../load/worker-book.ts";
import type { CandidateInput, CostTerm, ScoredCandidate } from "./candidate.ts";
import { ownTerms } from "./estimate.ts";

/** Where `RowCandidate` finds each of its numbers. */
export const candidateNumber = {
  matchedBlocks: 0,
  matchedTokens: 1,
  openRequests: 2,
  prefillBacklogMs: 3,
  queuedPrefillTokens: 4,
  decoding: 5,
  decodingContextTokens: 6,
  decodingTokensLeft: 7,
  overdueMs: 8,
  foreignRequests: 9,
  heldTokens: 10,
  capacityTokens: 11,
  stepTokensMax: 12,
  reportedRunning: 13,
  reportedWaiting: 14,
  reportedKvUsageRatio: 15,
  reportedAgeMs: 16,
  costMs: 17,
  predictedTtftMs: 18,
  prefillMs: 19,
  decodeMs: 20,
  /** 1 when its block view was being resynchronised. */
  suspect: 21,
  /** The first of `ownTerms`. */
  terms: 22,
} as const;

/** Numbers of one candidate. */
export const numberCount = candidateNumber.terms + ownTerms.length;
/** Half numbers keep the array one of plain doubles from the start; each is overwritten. */
const blank: readonly number[] = Array.from({ length: numberCount }, () => 0.5);

/** An array for the numbers of one candidate. */
export function blankNumbers(): number[] {
  return blank.slice();
}

/** A worker as candidates name it. */
export interface CandidateWorker {
  readonly workerId: WorkerId;
  readonly endpoint: string;
  readonly steps: StepModel;
}

/**
 * A candidate whose numbers lie in one array of doubles and whose lists are made when somebody asks: a decision keeps
 * dozens of candidates and nearly nobody reads more than the first. A tenth of what objects with all of it cost to
 * make, and a third of their memory.
 */
export class RowCandidate implements ScoredCandidate {
  readonly worker: CandidateWorker;
  readonly #n: readonly number[];
  #load: WorkerLoad | undefined;

  constructor(worker: CandidateWorker, numbers: readonly number[]) {
    this.worker = worker;
    this.#n = numbers;
  }

  /** Copies its numbers to `to[at]` and on. */
  numbersInto(to: Float64Array, at: number): void {
    const n = this.#n;
    for (let i = 0; i < numberCount; i++) to[at + i] = n[i] as number;
  }

  get workerId(): WorkerId {
    return this.worker.workerId;
  }

  get endpoint(): string {
    return this.worker.endpoint;
  }

  get suspect(): boolean {
    return this.#n[candidateNumber.suspect] === 1;
  }

  /** As they are known now. */
  get steps(): StepModel {
    return this.worker.steps;
  }

  get matchedBlocks(): number {
    return this.#n[candidateNumber.matchedBlocks] as number;
  }

  get matchedTokens(): number {
    return this.#n[candidateNumber.matchedTokens] as number;
  }

  get load(): WorkerLoad {
    this.#load ??= {
      openRequests: this.#n[candidateNumber.openRequests] as number,
      prefillBacklogMs: this.#n[candidateNumber.prefillBacklogMs] as number,
      queuedPrefillTokens: this.#n[candidateNumber.queuedPrefillTokens] as number,
      decoding: this.#n[candidateNumber.decoding] as number,
      decodingContextTokens: this.#n[candidateNumber.decodingContextTokens] as number,
      decodingTokensLeft: this.#n[candidateNumber.decodingTokensLeft] as number,
      overdueMs: this.#n[candidateNumber.overdueMs] as number,
    };
    return this.#load;
  }

  get foreignRequests(): number {
    return this.#n[candidateNumber.foreignRequests] as number;
  }

  get heldTokens(): number {
    return this.#n[candidateNumber.heldTokens] as number;
  }

  get capacityTokens(): number {
    return this.#n[candidateNumber.capacityTokens] as number;
  }

  get stepTokensMax(): number {
    return this.#n[candidateNumber.stepTokensMax] as number;
  }

  get reportedRunning(): number {
    return this.#n[candidateNumber.reportedRunning] as number;
  }

  get reportedWaiting(): number {
    return this.#n[candidateNumber.reportedWaiting] as number;
  }

  get reportedKvUsageRatio(): number {
    return this.#n[candidateNumber.reportedKvUsageRatio] as number;
  }

  get reportedAgeMs(): number {
    return this.#n[candidateNumber.reportedAgeMs] as number;
  }

  get costMs(): number {
    return this.#n[candidateNumber.costMs] as number;
  }

  get predictedTtftMs(): number {
    return this.#n[candidateNumber.predictedTtftMs] as number;
  }

  get prefillMs(): number {
    return this.#n[candidateNumber.prefillMs] as number;
  }

  get decodeMs(): number {
    return this.#n[candidateNumber.decodeMs] as number;
  }

  get terms(): readonly CostTerm[] {
    return ownTerms.map((name, i) => ({
      name,
      ms: this.#n[candidateNumber.terms + i] as number,
    }));
  }
}

/** What a candidate was scored by, each field its own, for policies that copy candidates. */
export function plainInput(candidate: CandidateInput): CandidateInput {
  return {
    workerId: candidate.workerId,
    endpoint: candidate.endpoint,
    matchedBlocks: candidate.matchedBlocks,
    matchedTokens: candidate.matchedTokens,
    load: candidate.load,
    foreignRequests: candidate.foreignRequests,
    steps: candidate.steps,
    heldTokens: candidate.heldTokens,
    capacityTokens: candidate.capacityTokens,
    stepTokensMax: candidate.stepTokensMax,
    suspect: candidate.suspect,
    reportedRunning: candidate.reportedRunning,
    reportedWaiting: candidate.reportedWaiting,
    reportedKvUsageRatio: candidate.reportedKvUsageRatio,
    reportedAgeMs: candidate.reportedAgeMs,
  };
}

/** A candidate with every field its own, to be copied with changes or compared. */
export function plainCandidate(candidate: ScoredCandidate): ScoredCandidate {
  const { terms, costMs, predictedTtftMs, prefillMs, decodeMs } = candidate;
  return { ...plainInput(candidate), terms, costMs, predictedTtftMs, prefillMs, decodeMs };
}
