import { describe, expect, test } from "vitest";
import { decodeStepMs, prefillMs } from "../../../shared/core/step-model.ts";
import { readHashIdRows } from "../../../shared/core/workload/readers.ts";
import {
  comparedRate,
  disaggLoads,
  kneesOf,
  workloadLines,
  type DisaggLoad,
} from "./disagg-loads.ts";
import { disaggProfile, rolesOf } from "./disagg-profile.ts";

const { fleet, scale, engines, routerSettings } = disaggProfile({
  modelDir: "/model",
  blockBytes: 1_024,
});
const [long, short] = disaggLoads as readonly [DisaggLoad, DisaggLoad];

describe("kneesOf", () => {
  test("pairs carry more long prompts under a tight time per token, whole requests more long answers", () => {
    const tight = kneesOf(long, fleet);
    expect(tight.disaggregated / tight.aggregated).toBeGreaterThan(1.3);
    const loose = kneesOf(short, fleet);
    expect(loose.aggregated / loose.disaggregated).toBeGreaterThan(1.3);
    expect(comparedRate(tight)).toBe(tight.disaggregated);
    expect(comparedRate(loose)).toBe(loose.aggregated);
  });

  test("whole requests at their knee spend exactly the target on a token, prompts included", () => {
    const { aggregated } = kneesOf(long, fleet);
    const { stepModel: m, engines: count } = fleet;
    const perEngine = aggregated / count / 1_000;
    const batch = perEngine * long.outputTokens * long.targets.itlMs;
    const context = batch * (long.inputTokens + long.outputTokens / 2);
    const promptMs = prefillMs(m, long.inputTokens, 0) - m.c0;
    const busyMs = decodeStepMs(m, batch, context) + (batch * promptMs) / long.outputTokens;
    expect(busyMs).toBeCloseTo(long.targets.itlMs, 6);
  });

  test("a target that no step can keep leaves no rate, and none is below 0", () => {
    const impossible = { ...long, targets: { ttftMs: 100, itlMs: 1 } };
    expect(kneesOf(impossible, fleet)).toEqual({ aggregated: 0, disaggregated: 0 });
  });
});

describe("the profile", () => {
  test("divides block bytes and links by one factor, for engines and router alike", () => {
    expect(scale.factor).toBe(5_120);
    expect(scale.linkBytesPerS * scale.factor).toBe(50e9);
    const [engine] = engines as readonly { kv: { bytesPerBlock: number; link: object } }[];
    expect(engine?.kv.bytesPerBlock).toBe(1_024);
    expect(engine?.kv.link).toMatchObject({ bytesPerS: scale.linkBytesPerS });
    expect(routerSettings).toMatchObject({
      placement: { links: { sameHostBytesPerS: scale.linkBytesPerS } },
    });
    // 12,000 tokens of the real model are 3.9 GB, 79 ms at 50 GB/s.
    expect(12_000 * fleet.transferMsPerToken).toBeCloseTo((12_000 / 16) * (5_242_880 / 50e6), 6);
  });

  test("gives half of the engines to prompts of pairs, and leaves free choice whole requests everywhere", () => {
    expect(rolesOf("aggregated", fleet)).toEqual(["both", "both", "both", "both"]);
    expect(rolesOf("disaggregated", fleet)).toEqual(["prefill", "prefill", "decode", "decode"]);
    expect(rolesOf("free choice", fleet)).toEqual(["both", "both", "decode", "decode"]);
  });
});

describe("workloadLines", () => {
  const read = (text: string) =>
    readHashIdRows(text.split("\n"), {
      file: "load",
      meta: { name: "load", blockTokens: 16, description: "", licence: "", source: "" },
    });

  test("is a workload at the rate asked for, the same for the same seed, and longer than the run", () => {
    const of = { rate: 4, durationMs: 600_000, seed: 11 };
    const text = workloadLines(long, of);
    expect(workloadLines(long, of)).toBe(text);
    expect(workloadLines(long, { ...of, seed: 12 })).not.toBe(text);
    const { requests } = read(text);
    expect(requests.length).toBeGreaterThan(2_200);
    expect(requests.length).toBeLessThan(2_600);
    expect(requests.at(-1)?.atMs).toBeGreaterThan(600_000);
    expect(requests.every((one) => one.inputTokens === 12_000 && one.outputTokens === 343)).toBe(
      true,
    );
    expect(requests[0]?.blockIds).toHaveLength(0);
  });
});
