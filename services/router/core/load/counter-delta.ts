import type { CounterDelta } from "./worker-model.ts";

/** An engine's counters at one moment; they count from the engine's start. */
export interface EngineCounters {
  readonly running: number;
  readonly waiting: number;
  /** 0 to 1. */
  readonly kvUsageRatio: number;
  readonly prefixQueryTokens: number;
  readonly prefixHitTokens: number;
  readonly promptTokens: number;
  readonly generatedTokens: number;
  readonly finishedRequests: number;
  readonly interTokenSecondsSum: number;
  readonly interTokenCount: number;
}

/** What an engine did between two reports; `undefined` when a counter went back (the engine restarted). */
export function counterDelta(
  before: EngineCounters,
  after: EngineCounters,
  capacityTokens: number,
): CounterDelta | undefined {
  const gaps = after.interTokenCount - before.interTokenCount;
  const generated = after.generatedTokens - before.generatedTokens;
  const prompt = after.promptTokens - before.promptTokens;
  const hits = after.prefixHitTokens - before.prefixHitTokens;
  const finished = after.finishedRequests - before.finishedRequests;
  if (gaps < 0 || generated < 0 || prompt < 0 || hits < 0 || finished < 0) return undefined;
  const seconds = after.interTokenSecondsSum - before.interTokenSecondsSum;
  const usage = (before.kvUsageRatio + after.kvUsageRatio) / 2;
  return {
    interTokenMs: gaps > 0 ? (seconds * 1_000) / gaps : 0,
    interTokenCount: gaps,
    running: (before.running + after.running) / 2,
    contextTokens: usage * capacityTokens,
    computedTokens: Math.max(0, prompt - hits),
    finished,
    generatedTokens: generated,
  };
}

/** Share of looked-up tokens that the engine found in its cache since its start; 0 before any. */
export function hitRatio(counters: EngineCounters): number {
  return counters.prefixQueryTokens > 0 ? counters.prefixHitTokens / counters.prefixQueryTokens : 0;
}
