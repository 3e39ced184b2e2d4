/**
 * Columns of `WorkerColumns`. Times and durations in ms, lengths in tokens. What the load book believes of a worker are
 * straight lines over time: a value is base + rate × (now − `linesFrom`) until `linesUntil`. What holds at one moment for one
 * request stands in the last columns, where whoever asks puts it.
 */
export const column = {
  /** When the lines were drawn. */
  linesFrom: 0,
  /** First moment at which they hold no more; −Infinity when the worker's book has changed since. */
  linesUntil: 1,
  prefillFreeAt: 2,
  decoding: 3,
  contextBase: 4,
  /** Tokens a ms that running answers grow by: contexts by it, what is left of them by its negative. */
  answerRate: 5,
  tokensLeftBase: 6,
  queuedBase: 7,
  queuedRate: 8,
  openRequests: 9,
  foreignRequests: 10,
  overdueMs: 11,
  /** What the engine said last. */
  kvUsageRatio: 12,
  waiting: 13,
  c0: 14,
  c1: 15,
  c2: 16,
  d0: 17,
  d1: 18,
  d2: 19,
  /** NaN before the first answer. */
  outputTokensMean: 20,
  /** 0 when unknown. */
  capacityTokens: 21,
  /** 0 when unknown. */
  stepTokensMax: 22,
  /** Prompts of this length or longer are not taken; Infinity when unknown. */
  promptTokensLimit: 23,
  /** Slot in the KV index, −1 without one. */
  slot: 24,
  /** Place in `workerStates`. */
  state: 25,
  matchedTokens: 26,
  heldTokens: 27,
  backlogMs: 28,
  queuedTokens: 29,
  contextTokens: 30,
  tokensLeft: 31,
} as const;

/** Whether a worker takes requests, and if not, why. One that is away probably still serves. */
export const workerStates = ["takes", "away", "not_ready", "wrong_role"] as const;

/** Numbers of one row; a multiple of eight, so that a row fills whole cache lines. */
export const rowLength = 32;

const rowsAtStart = 64;

/**
 * Numbers about workers, one row each, in one array: what a placement reads of a thousand workers lies in 256 KB that it
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
