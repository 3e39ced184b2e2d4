import type { Workload } from "../../../shared/core/workload/workload.ts";

/** When each request of a run is due. */
export interface Schedule {
  /** Due time by the request's index in the workload, ms from the start of the run, ascending. */
  readonly dueMs: Float64Array;
  /** Length of the run, ms: what was asked for, or the whole workload. */
  readonly durationMs: number;
  /** Requests due before this are warm-up: sent and counted for errors, left out of the statistics. */
  readonly warmupMs: number;
  /** Requests per second over the run. */
  readonly ratePerSecond: number;
}

/** What a run takes of a workload. */
export interface ScheduleOptions {
  /** The workload's times are divided by this; above 0. */
  readonly rateFactor: number;
  /** Run length, ms; `undefined` is to the workload's end. */
  readonly durationMs: number | undefined;
  /** Share of the run that is warm-up, 0 to below 1. */
  readonly warmupRatio: number;
}

/**
 * Open-loop schedule: the workload's own arrival times, faster by `rateFactor`, whatever the answers do.
 * Throws `RangeError` when a figure is out of range, the run is empty, or it is longer than the workload.
 */
export function buildSchedule(workload: Workload, options: ScheduleOptions): Schedule {
  const { rateFactor, warmupRatio } = options;
  if (!(rateFactor > 0) || !Number.isFinite(rateFactor)) {
    throw new RangeError(`rate factor ${String(rateFactor)} must be above 0`);
  }
  if (!(warmupRatio >= 0 && warmupRatio < 1)) {
    throw new RangeError(`warm-up share ${String(warmupRatio)} must be at least 0 and below 1`);
  }
  const wholeMs = (workload.requests.at(-1)?.atMs ?? 0) / rateFactor;
  const durationMs = options.durationMs ?? wholeMs;
  if (options.durationMs !== undefined && !(options.durationMs > 0)) {
    throw new RangeError(`duration ${String(options.durationMs)} ms must be above 0`);
  }
  // A millisecond of grace: a run that ends with the last request is not too long.
  if (durationMs > wholeMs + 1) {
    throw new RangeError(
      `workload ${workload.name} lasts ${(wholeMs / 1_000).toFixed(0)} s at rate factor ${String(rateFactor)}, ` +
        `less than the ${(durationMs / 1_000).toFixed(0)} s asked for; lower the rate or the duration`,
    );
  }
  let count = 0;
  while (
    count < workload.requests.length &&
    (workload.requests[count] as { atMs: number }).atMs / rateFactor <= durationMs
  ) {
    count++;
  }
  if (count === 0) {
    throw new RangeError(
      `workload ${workload.name} has no request in the first ${durationMs.toFixed(0)} ms`,
    );
  }
  const dueMs = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    dueMs[i] = (workload.requests[i] as { atMs: number }).atMs / rateFactor;
  }
  return {
    dueMs,
    durationMs,
    warmupMs: durationMs * warmupRatio,
    ratePerSecond: durationMs > 0 ? (count / durationMs) * 1_000 : 0,
  };
}
