import type { MonoMs } from "../../../shared/core/ids.ts";

/** How long the past counts, ms: the weight of what happened falls to 1/e in it. */
const memoryMs = 2_000;
/** Time that the expected rate counts for before anything was measured, ms. */
const priorMs = 200;

/**
 * Worker time handed out per ms of time while requests wait: how fast the queue drains. Counts only time in which
 * somebody waited, since otherwise arrivals set the rate, not the workers.
 */
export class DrainRate {
  #served = 0;
  #elapsed = 0;
  #since: MonoMs | undefined;

  /** Tells whether somebody waits from now on. */
  waits(someone: boolean, now: MonoMs): void {
    this.#advance(now);
    this.#since = someone ? now : undefined;
  }

  /** A request of this cost was dispatched while somebody waited, ms. */
  served(costMs: number, now: MonoMs): void {
    if (this.#since === undefined) return;
    this.#advance(now);
    this.#served += costMs;
  }

  /** Worker ms per ms; `expected` is believed before there are measurements. Always > 0. */
  rate(expected: number, now: MonoMs): number {
    this.#advance(now);
    const prior = Math.max(expected, 1e-3);
    return Math.max(prior * 0.05, (this.#served + prior * priorMs) / (this.#elapsed + priorMs));
  }

  #advance(now: MonoMs): void {
    if (this.#since === undefined) return;
    const passed = now - this.#since;
    if (passed <= 0) return;
    const kept = Math.exp(-passed / memoryMs);
    this.#served *= kept;
    this.#elapsed = this.#elapsed * kept + memoryMs * (1 - kept);
    this.#since = now;
  }
}

/** Worker time asked for per ms, over the last few seconds. */
export class DemandRate {
  #asked = 0;
  #at: MonoMs | undefined;

  /** A request of this cost arrived, ms. */
  asked(costMs: number, now: MonoMs): void {
    this.#asked = this.#decayed(now) + costMs / memoryMs;
    this.#at = now;
  }

  /** Worker ms per ms. */
  rate(now: MonoMs): number {
    return this.#decayed(now);
  }

  #decayed(now: MonoMs): number {
    if (this.#at === undefined) return 0;
    return this.#asked * Math.exp(-Math.max(0, now - this.#at) / memoryMs);
  }
}
