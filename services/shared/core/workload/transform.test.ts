import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { relabel, scale, speed, spreadTicks, window } from "./transform.ts";
import { workloadFacts, type Workload, type WorkloadRequest } from "./workload.ts";

function workload(requests: readonly Partial<WorkloadRequest>[], blockTokens = 256): Workload {
  return {
    name: "t",
    description: "d",
    licence: "l",
    source: "s",
    blockTokens,
    requests: requests.map((request) => ({
      atMs: 0,
      inputTokens: 1,
      outputTokens: 1,
      blockIds: [],
      ...request,
    })),
  };
}

describe("scale", () => {
  test("divides lengths and blocks and keeps full blocks full", () => {
    const { blockTokens, requests } = scale(
      workload([{ inputTokens: 19_556, outputTokens: 1_275, blockIds: Array(76).fill(4) }]),
      16,
    );
    expect(blockTokens).toBe(16);
    expect(requests[0]).toMatchObject({ inputTokens: 1_222, outputTokens: 80 });
    expect(requests[0]?.blockIds).toHaveLength(76);
  });

  test("drops a partial block that rounds to nothing, and never goes below one token", () => {
    const { requests } = scale(
      workload([
        { inputTokens: 260, outputTokens: 3, blockIds: [1, 2] },
        { inputTokens: 3, blockIds: [1] },
      ]),
      16,
    );
    expect(requests[0]).toMatchObject({ inputTokens: 16, outputTokens: 1, blockIds: [1] });
    expect(requests[1]).toMatchObject({ inputTokens: 1, outputTokens: 1, blockIds: [1] });
  });

  test("refuses a divisor that does not divide the block", () => {
    expect(() => scale(workload([]), 3)).toThrow("does not divide the block size 256");
    expect(() => scale(workload([]), 0)).toThrow("must be above 0");
  });
});

test("window takes a half-open stretch and counts its times from the start", () => {
  const cut = window(workload([9, 10, 15, 20].map((atMs) => ({ atMs }))), {
    startMs: 10,
    durationMs: 10,
  });
  expect(cut.requests.map((request) => request.atMs)).toEqual([0, 5]);
});

test("speed divides arrival times and nothing else", () => {
  const fast = speed(workload([{ atMs: 30, inputTokens: 7 }]), 15);
  expect(fast.requests[0]).toMatchObject({ atMs: 2, inputTokens: 7 });
});

describe("spreadTicks", () => {
  const ticks = workload(
    [0, 0, 0, 3_000, 3_000, 9_000].map((atMs, i) => ({ atMs, inputTokens: i + 1 })),
  );

  test("keeps order, stays inside each tick, and is the same for the same seed", () => {
    const spread = spreadTicks(ticks, { seed: 3, tickMs: 3_000 });
    const times = spread.requests.map((request) => request.atMs);
    expect(times).toEqual([...times].sort((a, b) => a - b));
    expect(spread.requests.map((request) => request.inputTokens)).toEqual([1, 2, 3, 4, 5, 6]);
    times.forEach((atMs, i) => {
      const tick = ticks.requests[i]!.atMs;
      expect(atMs).toBeGreaterThanOrEqual(tick);
      expect(atMs).toBeLessThan(tick + 3_000);
    });
    expect(new Set(times).size).toBe(6);
    expect(spreadTicks(ticks, { seed: 3, tickMs: 3_000 })).toEqual(spread);
    expect(spreadTicks(ticks, { seed: 4, tickMs: 3_000 })).not.toEqual(spread);
  });
});

test("relabel renumbers one to one", () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.nat(0xffff_ffff), { minLength: 1, maxLength: 200 }),
      fc.integer(),
      (blockIds, seed) => {
        const renamed = relabel(workload([{ inputTokens: 1_000_000, blockIds }]), seed);
        expect(new Set(renamed.requests[0]!.blockIds).size).toBe(blockIds.length);
      },
    ),
  );
});

test("workloadFacts counts what one endless cache would hit, in whole leading blocks", () => {
  const facts = workloadFacts(
    workload(
      [
        { inputTokens: 40, outputTokens: 2, blockIds: [1, 2], session: "a" },
        { inputTokens: 40, outputTokens: 4, blockIds: [1, 3], session: "b", atMs: 500 },
        { inputTokens: 40, outputTokens: 6, blockIds: [9, 2], session: "a", atMs: 1_000 },
      ],
      16,
    ),
  );
  expect(facts).toMatchObject({
    requests: 3,
    sessions: 2,
    ratePerSecond: 3,
    inputTokensMean: 40,
    outputTokensMean: 4,
    contextTokensMax: 46,
    blocksUnique: 4,
    blockReferences: 6,
  });
  expect(facts.infiniteCacheHitRatio).toBeCloseTo(16 / 120, 10);
});
