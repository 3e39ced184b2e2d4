import { numberCount, RowCandidate, type CandidateWorker } from "../placement/row-candidate.ts";
import type { ScoredCandidate } from "../placement/candidate.ts";

/** Candidates of a decision that have a row each; the rest of a long list is kept as objects. */
export const rowsPerDecision = 8;

/**
 * The first candidates of the decisions in a log, their numbers side by side in one array outside the heap: ten thousand
 * decisions of eight candidates are objects enough to keep a garbage collector busy, and nearly nobody asks for them
 * again. 19 MB at ten thousand decisions, touched as it fills.
 */
export class CandidateRows {
  readonly #numbers: Float64Array;
  /** Who each row is about. */
  readonly #workers: (CandidateWorker | undefined)[];

  constructor(decisionsMax: number) {
    const rows = decisionsMax * rowsPerDecision;
    this.#numbers = new Float64Array(rows * numberCount);
    this.#workers = Array.from({ length: rows }, () => undefined);
  }

  /** Keeps `candidates[0]` to `[rowsPerDecision - 1]` under a place of the log, instead of what was kept there. */
  put(place: number, candidates: readonly RowCandidate[]): void {
    const count = Math.min(candidates.length, rowsPerDecision);
    let row = place * rowsPerDecision;
    for (let i = 0; i < count; i++, row++) {
      const candidate = candidates[i] as RowCandidate;
      this.#workers[row] = candidate.worker;
      candidate.numbersInto(this.#numbers, row * numberCount);
    }
  }

  /** The first `count` candidates kept under a place, as they were. */
  read(place: number, count: number): ScoredCandidate[] {
    const from = place * rowsPerDecision;
    return Array.from({ length: count }, (_, i) => {
      const at = (from + i) * numberCount;
      const worker = this.#workers[from + i] as CandidateWorker;
      return new RowCandidate(worker, Array.from(this.#numbers.subarray(at, at + numberCount)));
    });
  }
}
