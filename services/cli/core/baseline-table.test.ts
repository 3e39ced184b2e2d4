import { describe, expect, test } from "vitest";

import { baselinesMarkdown, renderBaselines, type BaselineFigures } from "./baseline-table.ts";

const run = (
  workload: string,
  policy: string,
  ttft: number,
  over: Partial<BaselineFigures["result"]> & { load?: number } = {},
): BaselineFigures => {
  const { load = 1, ...result } = over;
  const summary = (mean: number) => ({ mean, p50: mean / 2, p99: mean * 10 });
  return {
    workload,
    load,
    policy,
    result: {
      ratePerSecond: 25.93,
      requestsMeasured: 4_016,
      errors: 0,
      ttftMs: summary(ttft),
      tpotMs: summary(8),
      durationOfRequestMs: summary(1_234),
      hitTokenRatio: 0.5,
      ...result,
    },
  };
};

describe("renderBaselines", () => {
  test("prints a table for each workload and load and marks the best", () => {
    const text = renderBaselines([
      run("agentic", "random", 120),
      run("agentic", "kv", 40, { hitTokenRatio: 0.86 }),
      run("agentic", "kv", 50, { load: 1.25, errors: 2 }),
    ]);
    const tables = text.split("\n\n").map((table) => table.split("\n"));
    expect(tables.map(([heading]) => heading)).toEqual([
      "agentic, load 1: 25.9 requests/s, 4,016 measured",
      "agentic, load 1.25: 25.9 requests/s, 4,016 measured",
    ]);
    const [, titles, random, kv] = tables[0] as string[];
    expect(titles?.trim().split(/ {2,}/)[0]).toBe("TTFT mean, ms");
    expect(random).toMatch(/^random +120 +60\.0 +1,200 +8\.0\* +80\.0\* +1,234\* +50\.0 %$/);
    expect(kv).toMatch(/^kv +40\.0\* +20\.0\* +400\* +8\.0\* +80\.0\* +1,234\* +86\.0 %\*$/);
    expect(tables[1]?.[2]).toMatch(/2 unanswered$/);
  });

  test("shows a dash where nothing was measured", () => {
    const none = { mean: null, p50: null, p99: null };
    const text = renderBaselines([run("agentic", "kv", 1, { ttftMs: none })]);
    expect(text.split("\n")[2]).toMatch(/^kv +– +– +– +8\.0\*/);
  });
});

describe("baselinesMarkdown", () => {
  test("has a row for each policy, workloads side by side, the best bold", () => {
    const text = baselinesMarkdown([
      run("agentic", "random", 120),
      run("agentic", "kv", 40, { hitTokenRatio: 0.86 }),
      run("conversation", "random", 2_000),
    ]);
    const cells = text.split("\n").map((line) =>
      line
        .slice(1, -1)
        .split("|")
        .map((cell) => cell.trim()),
    );
    expect(cells).toEqual([
      [
        "ms",
        "agentic: TTFT mean",
        "p99",
        "TPOT",
        "hit ratio",
        "conversation: TTFT mean",
        "p99",
        "TPOT",
        "hit ratio",
      ],
      expect.arrayContaining([expect.stringMatching(/^-+:?$/)]),
      [
        "random",
        "120",
        "1,200",
        "**8.0**",
        "50.0 %",
        "**2,000**",
        "**20,000**",
        "**8.0**",
        "**50.0 %**",
      ],
      ["kv", "**40.0**", "**400**", "**8.0**", "**86.0 %**", "–", "–", "–", "–"],
    ]);
    const lengths = new Set(text.split("\n").map((line) => line.length));
    expect(lengths.size).toBe(1);
  });
});
