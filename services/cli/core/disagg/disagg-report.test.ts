import { describe, expect, test } from "vitest";
import type { RequestRecord } from "../replay/outcome.ts";
import { summariseRun } from "../replay/result.ts";
import { disaggLoads, kneesOf, type DisaggLoad } from "./disagg-loads.ts";
import { disaggProfile } from "./disagg-profile.ts";
import {
  comparisonLines,
  disaggJson,
  freeShare,
  type DisaggComparison,
  type DisaggRun,
} from "./disagg-report.ts";

const { fleet, scale } = disaggProfile({ modelDir: "/model", blockBytes: 1_024 });
const [load] = disaggLoads as readonly [DisaggLoad];

/** A run in which `kept` of ten requests keep their targets. */
function run(kept: number, over: { pairs?: number; cpu?: number } = {}): DisaggRun {
  const records = Array.from({ length: 10 }, (_, index): RequestRecord => ({
    index,
    dueMs: 20_000 + index,
    lateMs: 1,
    isWarmup: false,
    error: undefined,
    errorDetail: undefined,
    status: 200,
    ttftMs: index < kept ? 1_000 : 9_000,
    tpotMs: 14,
    endMs: 30_000,
    promptTokens: 12_000,
    cachedTokens: 0,
    outputTokens: 343,
    outputTokensAsked: 343,
    chunkCount: 343,
    worker: "127.0.0.1:9100",
    decision: "r.1.1",
  }));
  const result = summariseRun(records, {
    workload: load.name,
    url: "http://127.0.0.1:8081",
    model: "m",
    api: "completions",
    rateFactor: 1,
    ratePerSecond: 1,
    durationMs: 30_000,
    warmupMs: 20_000,
    eventLoopDelayMsP99: 1,
    cpuMs: 300,
    wallMs: 30_000,
    machineCpuRatio: over.cpu ?? 0.4,
    targets: load.targets,
    stopped: false,
  });
  const { pairs = 0 } = over;
  return {
    result: { ...result, unpicked: 0 },
    counts: {
      pairs,
      placed: 10,
      kvBytes: pairs * 768_000,
      kvBadBlocks: 0,
      routerCores: 0.01,
      relayCores: null,
      engineCores: 0.2,
      envoyCores: 0.05,
    },
  };
}

function comparison(over: Partial<DisaggComparison["runs"]> = {}): DisaggComparison {
  return {
    load,
    knees: kneesOf(load, fleet),
    rate: 1.76,
    runs: {
      aggregated: run(4),
      disaggregated: run(8, { pairs: 10 }),
      "free choice": run(8, { pairs: 9 }),
      ...over,
    },
  };
}

describe("freeShare", () => {
  test("compares free choice with the better of the forced modes", () => {
    expect(freeShare(comparison())).toBe(1);
    expect(freeShare(comparison({ "free choice": run(4) }))).toBe(0.5);
    expect(freeShare(comparison({ aggregated: run(10) }))).toBe(0.8);
  });

  test("is 1 where nothing has any goodput", () => {
    const none = { aggregated: run(0), disaggregated: run(0), "free choice": run(0) };
    expect(freeShare(comparison(none))).toBe(1);
  });
});

describe("comparisonLines", () => {
  const cells = (lines: readonly string[], label: string): string[] | undefined =>
    lines
      .find((line) => line.trimStart().startsWith(label))
      ?.trim()
      .split(/ {2,}/);

  test("prints the three modes side by side, and what cannot be known as missing", () => {
    const lines = comparisonLines(comparison());
    expect(lines[0]).toContain("first token within 3,000 ms, then one every 15 ms");
    expect(cells(lines, "goodput")).toEqual(["goodput, requests/s", "0.40", "0.80", "0.80"]);
    expect(cells(lines, "kept both")?.slice(1)).toEqual(["40.0 %", "80.0 %", "80.0 %"]);
    expect(cells(lines, "run as pairs")?.slice(1)).toEqual(["0.0 %", "100.0 %", "90.0 %"]);
    expect(cells(lines, "KV moved")?.slice(1)).toEqual(["0.0", "7.7", "6.9"]);
    expect(cells(lines, "relay")?.slice(1)).toEqual(["–", "–", "–"]);
    expect(lines).toContain("free choice has 100.0 % of the better one's goodput");
  });

  test("says when free choice falls short, and why a run is not valid", () => {
    const lines = comparisonLines(comparison({ "free choice": run(4, { cpu: 0.95 }) }));
    expect(lines).toContain("free choice has 50.0 % of the better one's goodput, below 95.0 %");
    expect(lines.at(-1)).toBe("free choice: not valid: machine CPU 95 % is above 80 %");
    expect(cells(lines, "valid")?.slice(1)).toEqual(["yes", "yes", "no"]);
  });
});

test("disaggJson has one flat figure for each, and is valid only when every run is", () => {
  const json = disaggJson([comparison()], scale);
  expect(json).toMatchObject({
    schema: 1,
    demo: "disagg",
    valid: true,
    requests: 30,
    errors: 0,
    unpicked: 0,
    loads: [
      {
        inputTokens: 12_000,
        freeShare: 1,
        modes: { disaggregated: { goodputPerSecond: 0.8, pairRatio: 1, itlMsMean: 14 } },
      },
    ],
  });
  const invalid = comparison({ aggregated: run(4, { cpu: 0.95 }) });
  expect(disaggJson([comparison(), invalid], scale)["valid"]).toBe(false);
});
