import type { MonoMs } from "../../../shared/core/ids.ts";
import type { CounterDelta } from "./worker-model.ts";

/**
 * Shortest time whose counters teach, ms. In a shorter one an engine finishes no request or makes few steps, which
 * says little of their means.
 */
const windowMsMin = 450;

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

/** Joins reports that come in short intervals to intervals long enough to learn from. */
export class CounterWindow {
  #from: { readonly counters: EngineCounters; readonly at: MonoMs } | undefined;

  /** Takes the counters of a report; gives what the engine did since the interval began when that is long enough. */
  take(counters: EngineCounters, at: MonoMs, capacityTokens: number): CounterDelta | undefined {
    const from = this.#from;
    if (from !== undefined && at - from.at < windowMsMin) return undefined;
    this.#from = { counters, at };
    return from === undefined ? undefined : counterDelta(from.counters, counters, capacityTokens);
  }
}

/** Tokens and requests that the engine has done since its start: grows whenever it makes progress. */
export function workDone(counters: EngineCounters): number {
  return counters.promptTokens + counters.generatedTokens + counters.finishedRequests;
}

/** Share of looked-up tokens that the engine found in its cache since its start; 0 before any. */
export function hitRatio(counters: EngineCounters): number {
  return counters.prefixQueryTokens > 0 ? counters.prefixHitTokens / counters.prefixQueryTokens : 0;
}
