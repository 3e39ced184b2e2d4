/**
 * Columns of `WorkerColumns`. Load columns hold straight lines over time: the value at `now` is
 * base + rate × (now − `linesFrom`), valid until `linesUntil`. Times and durations in ms, lengths in tokens.
 */
export const column = {
  /** When the lines were drawn. */
  linesFrom: 0,
  /** First moment at which they hold no more; −Infinity when the worker's book has changed since. */
  linesUntil: 1,
  prefillFreeAt: 2,
  decoding: 3,
  contextTokens: 4,
  /** Tokens a ms that running answers grow by: contexts by it, what is left of them by its negative. */
  answerRate: 5,
  tokensLeft: 6,
  openRequests: 7,
  foreignRequests: 8,
  overdueMs: 9,
  c0: 10,
  c1: 11,
  c2: 12,
  d0: 13,
  d1: 14,
  d2: 15,
  /** NaN before the first answer. */
  outputTokensMean: 16,
  /** 0 when unknown. */
  capacityTokens: 17,
  /** 0 when unknown. */
  stepTokensMax: 18,
  /** Prompts of this length or longer are not taken; Infinity when unknown. */
  promptTokensLimit: 19,
  /** Slot in the KV index, −1 without one. */
  slot: 20,
  /** Place in `workerStates`. */
  state: 21,
} as const;

/** Whether a worker takes requests, and if not, why. One that is away probably still serves. */
export const workerStates = ["takes", "away", "not_ready", "wrong_role"] as const;

/** Numbers of one row; a multiple of eight, so that a row fills whole cache lines. */
export const rowLength = 24;

const rowsAtStart = 64;

/**
 * Numbers about workers, one row each, in one array: what a placement reads of a thousand workers lies in 190 KB that it
 * reads from front to back. Rows are given out by number and stay where they are; `values` is another array after growth.
 */
export class WorkerColumns {
  values = new Float64Array(rowsAtStart * rowLength);
  readonly #free: number[] = [];
  #next = 0;

  /** Rows that have ever been in use at once. */
  get rowCount(): number {
    return this.#next;
  }

  /** A row of zeros. */
  take(): number {
    const row = this.#free.pop() ?? this.#next++;
    if ((row + 1) * rowLength > this.values.length) {
      const grown = new Float64Array(this.values.length * 2);
      grown.set(this.values);
      this.values = grown;
    }
    this.values.fill(0, row * rowLength, (row + 1) * rowLength);
    return row;
  }

  /** Gives a row back. */
  release(row: number): void {
    this.#free.push(row);
  }
}
