import type { MonoMs } from "../../../../shared/core/ids.ts";

/** Time over which prompts for others count, ms: long against one prompt, short against changes of load. */
const memoryMs = 20_000;
/** Highest share: what is left is for the answers that run there all the same. */
const shareMax = 0.9;

interface Share {
  value: number;
  at: MonoMs;
}

/**
 * Which share of their time engines spend on prompts whose answers are decoded elsewhere: what was placed there lately, decaying
 * over 20 s. An answer that runs on such an engine stands still for that share. Without it an engine that computes prompts alone
 * looks idle to every next request, which then runs whole in the middle of them. Entries are one per row with pairs.
 */
export class PrefillShares {
  readonly #shares = new Map<number, Share>();

  /** A prompt of so many ms was placed on the engine of a row. */
  placed(row: number, prefillMs: number, now: MonoMs): void {
    const value = this.#decayed(row, now) + prefillMs / memoryMs;
    this.#shares.set(row, { value, at: now });
  }

  /** Share of the time of a row's engine, 0 to 0.9. */
  of(row: number, now: MonoMs): number {
    return this.#shares.size === 0 ? 0 : Math.min(shareMax, this.#decayed(row, now));
  }

  /** The engine of a row is gone. */
  forget(row: number): void {
    this.#shares.delete(row);
  }

  #decayed(row: number, now: MonoMs): number {
    const share = this.#shares.get(row);
    if (share === undefined) return 0;
    return share.value * Math.exp(-Math.max(0, now - share.at) / memoryMs);
  }
}
