import { describe, expect, test } from "vitest";

import { at } from "../../../../test/support/router-builders.ts";
import {
  counterDelta,
  CounterWindow,
  hitRatio,
  workDone,
  type EngineCounters,
} from "./counter-delta.ts";

const counters = (over: Partial<EngineCounters> = {}): EngineCounters => ({
  running: 4,
  waiting: 1,
  kvUsageRatio: 0.2,
  prefixQueryTokens: 10_000,
  prefixHitTokens: 6_000,
  promptTokens: 10_000,
  generatedTokens: 2_000,
  finishedRequests: 10,
  interTokenSecondsSum: 20,
  interTokenCount: 1_990,
  ...over,
});

describe("counterDelta", () => {
  test("gives what the engine did between two reports, and what it held on average", () => {
    const after = counters({
      running: 6,
      kvUsageRatio: 0.4,
      prefixHitTokens: 6_800,
      promptTokens: 11_000,
      generatedTokens: 2_100,
      finishedRequests: 11,
      interTokenSecondsSum: 21,
      interTokenCount: 2_090,
    });
    const delta = counterDelta(counters(), after, 100_000);
    expect(delta).toMatchObject({
      interTokenCount: 100,
      running: 5,
      computedTokens: 200,
      finished: 1,
      generatedTokens: 100,
    });
    expect(delta?.interTokenMs).toBeCloseTo(10);
    expect(delta?.contextTokens).toBeCloseTo(30_000);
  });

  test("gives no gap when no token followed another", () => {
    expect(counterDelta(counters(), counters(), 1)?.interTokenMs).toBe(0);
  });

  test.each([
    "prefixHitTokens",
    "promptTokens",
    "generatedTokens",
    "finishedRequests",
    "interTokenCount",
  ] as const)("gives nothing when %s went back: the engine restarted", (field) => {
    expect(counterDelta(counters(), counters({ [field]: 0 }), 1)).toBeUndefined();
  });
});

test("the hit ratio is 0 before anything was looked up", () => {
  expect(hitRatio(counters({ prefixQueryTokens: 0, prefixHitTokens: 0 }))).toBe(0);
  expect(hitRatio(counters())).toBe(0.6);
});

describe("CounterWindow", () => {
  test("joins short intervals, so that no token of an interval without an end is lost", () => {
    const window = new CounterWindow();
    const seen = [0, 100, 200, 300, 400, 500, 600].map((when) =>
      window.take(counters({ generatedTokens: 2_000 + when }), at(when), 0),
    );
    expect(seen.map((delta) => delta?.generatedTokens)).toEqual([
      undefined,
      undefined,
      undefined,
      undefined,
      undefined,
      500,
      undefined,
    ]);
    expect(window.take(counters({ generatedTokens: 3_000 }), at(1_000), 0)).toMatchObject({
      generatedTokens: 500,
    });
  });

  test("begins anew when the counters went back", () => {
    const window = new CounterWindow();
    window.take(counters(), at(0), 0);
    expect(window.take(counters({ generatedTokens: 0 }), at(500), 0)).toBeUndefined();
    expect(window.take(counters({ generatedTokens: 7 }), at(1_000), 0)).toMatchObject({
      generatedTokens: 7,
    });
  });
});

test("any token or end is work done", () => {
  const before = workDone(counters());
  expect(workDone(counters({ generatedTokens: 2_001 }))).toBeGreaterThan(before);
  expect(workDone(counters({ promptTokens: 10_001 }))).toBeGreaterThan(before);
  expect(workDone(counters({ finishedRequests: 11 }))).toBeGreaterThan(before);
  expect(workDone(counters({ running: 5, waiting: 0 }))).toBe(before);
});
