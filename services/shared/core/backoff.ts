import type { SeededRandom } from "./random.ts";

/** How a `Backoff` grows. */
export interface BackoffOptions {
  /** First delay, ms. */
  readonly baseMs: number;
  /** Longest delay, ms. */
  readonly maxMs: number;
  /** Share of the delay that is random, 0 to 1: 0.5 draws from half to the whole delay. */
  readonly jitterRatio: number;
  /** Source of the jitter. */
  readonly random: SeededRandom;
}

/** Doubling delays with jitter and a cap, for whoever tries again. Bound the tries by a deadline of their own. */
export class Backoff {
  readonly #options: BackoffOptions;
  #attempt = 0;

  constructor(options: BackoffOptions) {
    this.#options = options;
  }

  /** The next delay, ms. */
  next(): number {
    const { baseMs, maxMs, jitterRatio, random } = this.#options;
    const full = Math.min(maxMs, baseMs * 2 ** Math.min(this.#attempt, 30));
    this.#attempt++;
    return full * (1 - jitterRatio * random.next());
  }

  /** Back to the first delay, after a success. */
  reset(): void {
    this.#attempt = 0;
  }
}
