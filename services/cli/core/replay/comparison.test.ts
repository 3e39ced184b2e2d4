import { describe, expect, test } from "vitest";
import { comparisonJson, renderComparison } from "./comparison.ts";
import type { RequestRecord } from "./outcome.ts";
import { summariseRun, type ReplayResult, type RunFacts } from "./result.ts";

const facts: RunFacts = {
  workload: "agentic",
  url: "http://127.0.0.1:8080",
  model: "m",
  api: "completions",
  rateFactor: 15,
  ratePerSecond: 23.456,
  durationMs: 60_000,
  warmupMs: 20_000,
  eventLoopDelayMsP99: 1.5,
  cpuMs: 3_000,
  wallMs: 60_000,
  machineCpuRatio: 0.5,
  stopped: false,
};

function record(over: Partial<RequestRecord> = {}): RequestRecord {
  return {
    index: 0,
    dueMs: 30_000,
    lateMs: 1,
    isWarmup: false,
    error: undefined,
    errorDetail: undefined,
    status: 200,
    ttftMs: 40,
    tpotMs: 6,
    endMs: 30_500,
    promptTokens: 1_000,
    cachedTokens: 800,
    outputTokens: 20,
    outputTokensAsked: 20,
    chunkCount: 20,
    worker: "127.0.0.1:8100",
    decision: "r.1.1",
    ...over,
  };
}

const run = (records: readonly RequestRecord[], over: Partial<RunFacts> = {}): ReplayResult =>
  summariseRun(records, { ...facts, ...over });

describe("summariseRun", () => {
  test("leaves warm-up out of the statistics, but not out of the errors", () => {
    const result = run([
      record({ isWarmup: true, ttftMs: 9_000, cachedTokens: 0 }),
      record({ isWarmup: true, error: "http_503", errorDetail: "no", ttftMs: undefined }),
      record(),
      record({ ttftMs: 60, cachedTokens: 600, worker: undefined }),
    ]);
    expect(result).toMatchObject({
      requests: 4,
      requestsMeasured: 2,
      errors: 1,
      errorsByKind: { http_503: 1 },
      errorExamples: ["request 0: http_503: no"],
      hitTokenRatio: 0.7,
      workers: { "127.0.0.1:8100": 1, unknown: 1 },
      valid: true,
    });
    expect(result.ttftMs).toMatchObject({ count: 2, mean: 50, max: 60 });
    expect(result.generator).toMatchObject({ cpuCores: 0.05, cpuMsPerRequest: 750 });
  });

  test("counts as goodput what was answered within both targets, over the measured time", () => {
    const targets = { ttftMs: 50, itlMs: 7 };
    const result = run(
      [
        record({ isWarmup: true }),
        record(),
        record({ ttftMs: 51 }),
        record({ tpotMs: 7.1 }),
        record({ ttftMs: 50, tpotMs: undefined }),
        record({ error: "http_503", ttftMs: undefined, tpotMs: undefined }),
      ],
      { targets },
    );
    expect(result.goodput).toEqual({ targets, kept: 2, ratio: 0.4, perSecond: 0.05 });
    expect(run([record()]).goodput).toBeNull();
  });

  test("leaves failed requests out of the latencies", () => {
    const result = run([record(), record({ error: "truncated", ttftMs: 1 })]);
    expect(result.ttftMs).toMatchObject({ count: 1, mean: 40 });
  });

  test("weighs the hit ratio by tokens and only over answers that tell", () => {
    const result = run([
      record({ promptTokens: 100, cachedTokens: 100 }),
      record({ promptTokens: 900, cachedTokens: 0 }),
      record({ promptTokens: 900, cachedTokens: undefined }),
    ]);
    expect(result.hitTokenRatio).toBe(0.1);
    expect(run([record({ cachedTokens: undefined })]).hitTokenRatio).toBeNull();
  });

  test("counts answers without a decision as unpicked where some answer has one", () => {
    const plain = record({ decision: undefined });
    expect(run([record(), plain, plain]).unpicked).toBe(2);
    expect(run([plain]).unpicked).toBeNull();
    expect(run([record(), record({ status: undefined, decision: undefined })]).unpicked).toBe(0);
  });

  test.each([
    [[record()], { machineCpuRatio: 0.81 }, "machine CPU 81 % is above 80 %"],
    [[record()], { stopped: true }, "stopped before its end"],
    [[record({ error: "reset" })], {}, "no request after warm-up"],
    [[record({ lateMs: 51 })], {}, "51 ms late at p99"],
  ])("says why a run is not valid", (records, over, reason) => {
    const result = run(records, over);
    expect(result.valid).toBe(false);
    expect(result.invalidReasons.join()).toContain(reason);
  });

  test("does not judge the CPU where it is unknown", () => {
    expect(run([record()], { machineCpuRatio: null }).valid).toBe(true);
  });
});

describe("comparisonJson", () => {
  test("has exactly the fields of its schema", () => {
    const results = {
      "round-robin": run([record({ ttftMs: 166.6666, error: undefined })]),
      kv: run([record(), record({ isWarmup: true, error: "reset" })], { machineCpuRatio: 0.9 }),
    };
    expect(comparisonJson(results)).toEqual({
      schema: 1,
      workload: "agentic",
      rate: 23.46,
      valid: false,
      requests: 3,
      errors: 1,
      unpicked: 0,
      policies: {
        "round-robin": {
          ttftMsMean: 166.67,
          ttftMsP50: 166.67,
          ttftMsP99: 166.67,
          tpotMsMean: 6,
          hitTokenRatio: 0.8,
          workers: { "127.0.0.1:8100": 1 },
        },
        kv: {
          ttftMsMean: 40,
          ttftMsP50: 40,
          ttftMsP99: 40,
          tpotMsMean: 6,
          hitTokenRatio: 0.8,
          workers: { "127.0.0.1:8100": 1 },
        },
      },
    });
    expect(() => comparisonJson({})).toThrow("at least one run");
  });
});

describe("renderComparison", () => {
  const results = {
    "round-robin": run([
      record({ ttftMs: 297.4, tpotMs: 25, cachedTokens: 330, worker: "127.0.0.1:8101" }),
    ]),
    kv: run([record(), record({ error: "http_503", errorDetail: "x" })]),
  };

  test("puts the policies side by side", () => {
    expect(renderComparison(results, { color: false, width: 100 })).toMatchInlineSnapshot(`
      "                        round-robin      kv
      TTFT mean, ms                   297    40.0
           p50                        297    40.0
           p99                        297    40.0
      TPOT mean, ms                  25.0    6.00
           p50                       25.0    6.00
           p99                       25.0    6.00
      token hit ratio              33.0 %  80.0 %
      requests                          1       2
      errors                            0       1
      unplaced                          0       0
      machine CPU                  50.0 %  50.0 %
      generator late p99, ms         1.00    1.00
      generator loop p99, ms         1.50    1.50
      to 127.0.0.1:8100                 0       1
      to 127.0.0.1:8101                 1       0
      kv: errors: http_503 1"
    `);
  });

  test("marks the best cell alone, and adds no width", () => {
    const escape = "\u001b";
    const colored = renderComparison(results, { color: true, width: 100 });
    const [, ttftMean] = colored.split("\n");
    expect(ttftMean).toContain(`${escape}[1;32m40.0${escape}[0m`);
    expect(ttftMean).not.toContain(`${escape}[1;32m297`);
    const stripped = colored.replaceAll(new RegExp(`${escape}\\[[0-9;]*m`, "g"), "");
    expect(stripped).toBe(renderComparison(results, { color: false, width: 100 }));
  });

  test("stacks the policies on a narrow terminal", () => {
    const narrow = renderComparison(results, { color: false, width: 38 });
    expect(Math.max(...narrow.split("\n").map((line) => line.length))).toBeLessThanOrEqual(38);
    expect(narrow.match(/TTFT mean/g)).toHaveLength(2);
  });
});
