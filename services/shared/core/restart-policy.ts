/** How often a process may die before its supervisor gives up on it. */
export interface RestartLimits {
  /** Delay before the first restart, ms; doubles with every death in the window. */
  readonly baseMs: number;
  /** Longest delay, ms. */
  readonly maxMs: number;
  /** Deaths are counted over this long, ms. */
  readonly windowMs: number;
  /** Deaths in the window after which the process is not started again. */
  readonly deathsMax: number;
}

/** What to do after a death. */
export type RestartVerdict =
  | { readonly kind: "restart"; readonly afterMs: number; readonly death: number }
  | { readonly kind: "give_up"; readonly deaths: number };

/** Limits of processes on one machine: quick at first, given up after five deaths in a minute. */
export const restartLimits: RestartLimits = {
  baseMs: 100,
  maxMs: 5_000,
  windowMs: 60_000,
  deathsMax: 5,
};

/**
 * Decides whether and when a dead process starts again. Deterministic; holds at most `deathsMax` times of death.
 * One instance per process.
 */
export class RestartPolicy {
  readonly #limits: RestartLimits;
  #deaths: number[] = [];

  constructor(limits: RestartLimits = restartLimits) {
    this.#limits = limits;
  }

  /** The process died at `nowMs` (monotonic) without being asked to. */
  died(nowMs: number): RestartVerdict {
    const { baseMs, maxMs, windowMs, deathsMax } = this.#limits;
    this.#deaths = this.#deaths.filter((at) => nowMs - at < windowMs);
    this.#deaths.push(nowMs);
    const deaths = this.#deaths.length;
    if (deaths >= deathsMax) return { kind: "give_up", deaths };
    return { kind: "restart", afterMs: Math.min(maxMs, baseMs * 2 ** (deaths - 1)), death: deaths };
  }
}
