import type { FleetRecord } from "./fleet.ts";

/** Summary of a set of values, ms; all but `count` are `null` when there are none. */
export interface FleetSummary {
  readonly count: number;
  readonly mean: number | null;
  readonly p50: number | null;
  readonly p90: number | null;
  readonly p99: number | null;
  readonly max: number | null;
}

/** Figures of one run; latencies in ms from when a request was due, measured requests only. */
export interface FleetResult {
  readonly workload: string;
  readonly policy: string;
  readonly rateFactor: number;
  readonly ratePerSecond: number;
  readonly durationMs: number;
  readonly warmupMs: number;
  /** Requests due, warm-up included. */
  readonly requests: number;
  readonly requestsMeasured: number;
  /** Requests without an answer, warm-up included. */
  readonly errors: number;
  readonly ttftMs: FleetSummary;
  readonly tpotMs: FleetSummary;
  readonly durationOfRequestMs: FleetSummary;
  readonly hitTokenRatio: number | null;
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** Measured requests by engine. */
  readonly workers: Readonly<Record<string, number>>;
}

/** What a summary needs beside the records. */
export interface FleetRunFacts {
  readonly workload: string;
  readonly policy: string;
  readonly rateFactor: number;
  readonly ratePerSecond: number;
  readonly durationMs: number;
  readonly warmupMs: number;
  /** When the run began on the fleet's clock. */
  readonly startMs: number;
}

/** Mean and nearest-rank quantiles. */
export function summarise(values: readonly number[]): FleetSummary {
  const sorted = Float64Array.from(values).sort();
  const count = sorted.length;
  const at = (q: number): number | null => sorted[Math.max(1, Math.ceil(q * count)) - 1] ?? null;
  let sum = 0;
  for (const value of sorted) sum += value;
  const mean = count === 0 ? null : sum / count;
  return { count, mean, p50: at(0.5), p90: at(0.9), p99: at(0.99), max: sorted.at(-1) ?? null };
}

/** Sums a run up: figures over the answered requests that were due after warm-up, errors over all. */
export function summariseFleet(records: readonly FleetRecord[], facts: FleetRunFacts): FleetResult {
  const measured = records.filter((r) => r.dueMs - facts.startMs >= facts.warmupMs);
  const good = measured.filter((r) => r.outcome === "answered");
  const workers: Record<string, number> = {};
  let promptTokens = 0;
  let cachedTokens = 0;
  let outputTokens = 0;
  for (const record of good) {
    const name = `engine-${record.engine}`;
    workers[name] = (workers[name] ?? 0) + 1;
    promptTokens += record.promptTokens;
    cachedTokens += record.cachedTokens;
    outputTokens += record.outputTokens;
  }
  const { workload, policy, rateFactor, ratePerSecond, durationMs, warmupMs } = facts;
  return {
    workload,
    policy,
    rateFactor,
    ratePerSecond,
    durationMs,
    warmupMs,
    requests: records.length,
    requestsMeasured: measured.length,
    errors: records.filter((r) => r.outcome !== "answered").length,
    ttftMs: summarise(good.map((r) => r.firstTokenMs - r.dueMs)),
    tpotMs: summarise(
      good
        .filter((r) => r.outputTokens > 1)
        .map((r) => (r.endMs - r.firstTokenMs) / (r.outputTokens - 1)),
    ),
    durationOfRequestMs: summarise(good.map((r) => r.endMs - r.dueMs)),
    hitTokenRatio: promptTokens === 0 ? null : cachedTokens / promptTokens,
    promptTokens,
    outputTokens,
    workers,
  };
}
