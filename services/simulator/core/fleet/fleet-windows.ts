import type { FleetRecord } from "./fleet.ts";
import { summariseFleet, type FleetResult } from "./fleet-result.ts";
import { runFleet, type FleetRunOptions } from "./fleet-run.ts";

/** Several runs over parts of one workload, each with empty engines and a seed of its own. */
export interface FleetWindowsOptions extends Omit<FleetRunOptions, "fromMs"> {
  /** Parts, spread evenly over the workload; one alone is its beginning. */
  readonly windows: number;
}

/**
 * Runs a policy over parts of a workload and sums all their requests up as one run, so that figures do not hang on what one
 * minute happens to bring. Throws `RangeError` when a part has no request.
 */
export function runWindows(options: FleetWindowsOptions): FleetResult {
  const { prepared, rateFactor, durationMs, warmupRatio, windows } = options;
  const wholeMs = (prepared.workload.requests.at(-1)?.atMs ?? 0) / rateFactor;
  const apartMs = Math.max(0, wholeMs - durationMs) / windows;
  const records: FleetRecord[] = [];
  let startMs = 0;
  let ratePerSecond = 0;
  for (let window = 0; window < windows; window++) {
    const fromMs = Math.floor((window * apartMs) / 1_000) * 1_000;
    const run = runFleet({ ...options, fromMs, seed: options.seed + window });
    // Every fleet begins at the same time of its own clock, so records of all can stand in one list.
    startMs = run.startMs;
    records.push(...run.records);
    ratePerSecond += run.result.ratePerSecond / windows;
  }
  return summariseFleet(records, {
    workload: prepared.workload.name,
    policy: options.policy,
    rateFactor,
    ratePerSecond,
    durationMs,
    warmupMs: durationMs * warmupRatio,
    startMs,
  });
}
