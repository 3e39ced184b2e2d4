import type { RequestRecord } from "./outcome.ts";

/** What a request must keep to count. */
export interface LatencyTargets {
  /** Longest time to the first token, from the scheduled time, ms. */
  readonly ttftMs: number;
  /** Longest mean time between tokens of one answer, ms. */
  readonly itlMs: number;
}

/** Requests that kept their targets. */
export interface Goodput {
  readonly targets: LatencyTargets;
  /** Measured requests that were answered within both. */
  readonly kept: number;
  /** Share of all measured requests, failed ones among them. */
  readonly ratio: number;
  /** Kept requests a second of the measured time. */
  readonly perSecond: number;
}

/** Counts what kept both targets; `measuredMs` is the time within which the measured requests were due. */
export function goodputOf(
  measured: readonly RequestRecord[],
  targets: LatencyTargets,
  measuredMs: number,
): Goodput {
  const kept = measured.filter(
    ({ error, ttftMs, tpotMs }) =>
      error === undefined &&
      ttftMs !== undefined &&
      ttftMs <= targets.ttftMs &&
      (tpotMs === undefined || tpotMs <= targets.itlMs),
  ).length;
  return {
    targets,
    kept,
    ratio: measured.length === 0 ? 0 : kept / measured.length,
    perSecond: measuredMs > 0 ? (kept * 1_000) / measuredMs : 0,
  };
}
