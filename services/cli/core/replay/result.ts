import { goodputOf, type Goodput, type LatencyTargets } from "./goodput.ts";
import type { RequestRecord } from "./outcome.ts";
import { summarise, type Summary } from "./statistics.ts";

/** Machine CPU use above which latencies say more about the machine than about the policy. */
export const machineCpuRatioMax = 0.8;

/** Lateness of the generator, p99, above which the offered load was not the workload's. */
export const lateMsP99Max = 50;

/** What the generator itself cost and how well it kept time. */
export interface GeneratorFacts {
  /** How long after its due time a request was sent, ms. */
  readonly lateMs: Summary;
  /** p99 of the event loop's delay, ms. */
  readonly eventLoopDelayMsP99: number;
  /** CPU of this process over the run, in cores. */
  readonly cpuCores: number;
  /** CPU of this process per request sent, ms; everything it did is in it. */
  readonly cpuMsPerRequest: number;
  /** The same per streamed chunk, µs. */
  readonly cpuUsPerChunk: number;
  readonly chunkCount: number;
}

/** One finished run. Latencies in ms from the scheduled time, measured requests only. */
export interface ReplayResult {
  readonly workload: string;
  readonly url: string;
  readonly model: string;
  readonly api: "completions" | "chat";
  readonly rateFactor: number;
  /** Requests per second that were due. */
  readonly ratePerSecond: number;
  readonly durationMs: number;
  readonly warmupMs: number;
  /** Requests due, warm-up included. */
  readonly requests: number;
  /** Requests after warm-up. */
  readonly requestsMeasured: number;
  /** Failed requests, warm-up included. */
  readonly errors: number;
  readonly errorsByKind: Readonly<Record<string, number>>;
  /** A few failures in full, for people. */
  readonly errorExamples: readonly string[];
  /**
   * Requests that no router placed, or `null` when the answers do not tell. The generator counts answers
   * without a decision header where some answer has one; a caller that reads the access log knows better
   * and may put its own figure here.
   */
  readonly unpicked: number | null;
  readonly ttftMs: Summary;
  readonly tpotMs: Summary;
  readonly durationOfRequestMs: Summary;
  /** What kept the targets that the run had; `null` without any. */
  readonly goodput: Goodput | null;
  /** Cached prompt tokens ÷ prompt tokens over the measured answers that say so; `null` when none does. */
  readonly hitTokenRatio: number | null;
  readonly promptTokens: number;
  readonly outputTokens: number;
  /** Answers without usage, whose tokens were counted by chunks. */
  readonly usageMissing: number;
  /** Answers with another number of tokens than asked for. */
  readonly lengthDiffers: number;
  /** Measured requests by the endpoint that served them. */
  readonly workers: Readonly<Record<string, number>>;
  readonly generator: GeneratorFacts;
  /** CPU use of the machine while requests were being sent, 0–1; `null` where the system does not tell. */
  readonly machineCpuRatio: number | null;
  readonly valid: boolean;
  /** Why the run proves nothing; empty when valid. */
  readonly invalidReasons: readonly string[];
}

/** What a summary needs beside the records. */
export interface RunFacts {
  readonly workload: string;
  readonly url: string;
  readonly model: string;
  readonly api: "completions" | "chat";
  readonly rateFactor: number;
  readonly ratePerSecond: number;
  readonly durationMs: number;
  readonly warmupMs: number;
  readonly eventLoopDelayMsP99: number;
  readonly cpuMs: number;
  readonly wallMs: number;
  readonly machineCpuRatio: number | null;
  /** Absent: nothing is counted. */
  readonly targets?: LatencyTargets | undefined;
  readonly stopped: boolean;
}

const examplesMax = 5;

function count(counts: Record<string, number>, key: string): void {
  counts[key] = (counts[key] ?? 0) + 1;
}

function defined(values: readonly (number | undefined)[]): number[] {
  return values.filter((value) => value !== undefined);
}

function whyInvalid(
  facts: RunFacts,
  { lateMs, measuredGood }: { lateMs: Summary; measuredGood: number },
): string[] {
  const reasons: string[] = [];
  if (facts.stopped) reasons.push("the run was stopped before its end");
  if (measuredGood === 0) reasons.push("no request after warm-up was answered");
  if (facts.machineCpuRatio !== null && facts.machineCpuRatio > machineCpuRatioMax) {
    reasons.push(
      `machine CPU ${(facts.machineCpuRatio * 100).toFixed(0)} % is above ${machineCpuRatioMax * 100} %`,
    );
  }
  if (lateMs.p99 !== null && lateMs.p99 > lateMsP99Max) {
    reasons.push(
      `the generator was ${lateMs.p99.toFixed(0)} ms late at p99, above ${lateMsP99Max} ms`,
    );
  }
  return reasons;
}

/** Sums one run up. Statistics are over measured requests that succeeded; errors count everywhere. */
export function summariseRun(records: readonly RequestRecord[], facts: RunFacts): ReplayResult {
  const measured = records.filter((record) => !record.isWarmup);
  const good = measured.filter((record) => record.error === undefined);
  const errorsByKind: Record<string, number> = {};
  const errorExamples: string[] = [];
  const workers: Record<string, number> = {};
  let decided = 0;
  let undecided = 0;
  let errors = 0;
  let chunkCount = 0;
  for (const record of records) {
    chunkCount += record.chunkCount;
    if (record.status !== undefined) {
      if (record.decision === undefined) undecided++;
      else decided++;
    }
    if (record.error === undefined) continue;
    errors++;
    count(errorsByKind, record.error);
    if (errorExamples.length < examplesMax) {
      errorExamples.push(`request ${record.index}: ${record.error}: ${record.errorDetail ?? ""}`);
    }
  }
  let promptTokens = 0;
  let outputTokens = 0;
  let cacheTold = 0;
  let cachedTokens = 0;
  let usageMissing = 0;
  let lengthDiffers = 0;
  for (const record of good) {
    count(workers, record.worker ?? "unknown");
    promptTokens += record.promptTokens ?? 0;
    outputTokens += record.outputTokens ?? 0;
    if (record.promptTokens === undefined) usageMissing++;
    if (record.outputTokens !== record.outputTokensAsked) lengthDiffers++;
    if (record.cachedTokens !== undefined && record.promptTokens !== undefined) {
      cacheTold += record.promptTokens;
      cachedTokens += record.cachedTokens;
    }
  }
  const lateMs = summarise(
    records.filter((record) => record.error !== "stopped").map((record) => record.lateMs),
  );
  const invalidReasons = whyInvalid(facts, { lateMs, measuredGood: good.length });
  return {
    workload: facts.workload,
    url: facts.url,
    model: facts.model,
    api: facts.api,
    rateFactor: facts.rateFactor,
    ratePerSecond: facts.ratePerSecond,
    durationMs: facts.durationMs,
    warmupMs: facts.warmupMs,
    requests: records.length,
    requestsMeasured: measured.length,
    errors,
    errorsByKind,
    errorExamples,
    unpicked: decided === 0 ? null : undecided,
    ttftMs: summarise(defined(good.map((record) => record.ttftMs))),
    tpotMs: summarise(defined(good.map((record) => record.tpotMs))),
    durationOfRequestMs: summarise(good.map((record) => record.endMs - record.dueMs)),
    goodput:
      facts.targets === undefined
        ? null
        : goodputOf(measured, facts.targets, facts.durationMs - facts.warmupMs),
    hitTokenRatio: cacheTold === 0 ? null : cachedTokens / cacheTold,
    promptTokens,
    outputTokens,
    usageMissing,
    lengthDiffers,
    workers: Object.fromEntries(Object.entries(workers).sort(([a], [b]) => (a < b ? -1 : 1))),
    generator: {
      lateMs,
      eventLoopDelayMsP99: facts.eventLoopDelayMsP99,
      cpuCores: facts.wallMs > 0 ? facts.cpuMs / facts.wallMs : 0,
      cpuMsPerRequest: records.length > 0 ? facts.cpuMs / records.length : 0,
      cpuUsPerChunk: chunkCount > 0 ? (facts.cpuMs * 1_000) / chunkCount : 0,
      chunkCount,
    },
    machineCpuRatio: facts.machineCpuRatio,
    valid: invalidReasons.length === 0,
    invalidReasons,
  };
}
