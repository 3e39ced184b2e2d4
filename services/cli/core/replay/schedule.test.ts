import { describe, expect, test } from "vitest";
import type { Workload } from "../../../shared/core/workload/workload.ts";
import { buildSchedule } from "./schedule.ts";

const workload: Workload = {
  name: "w",
  description: "d",
  licence: "l",
  source: "s",
  blockTokens: 16,
  requests: [0, 300, 600, 900].map((atMs) => ({
    atMs,
    inputTokens: 1,
    outputTokens: 1,
    blockIds: [],
  })),
};

describe("buildSchedule", () => {
  test("divides times by the rate factor and marks the first share as warm-up", () => {
    const schedule = buildSchedule(workload, {
      rateFactor: 3,
      durationMs: undefined,
      warmupRatio: 1 / 3,
    });
    expect([...schedule.dueMs]).toEqual([0, 100, 200, 300]);
    expect(schedule).toMatchObject({ durationMs: 300, warmupMs: 100 });
    expect(schedule.ratePerSecond).toBeCloseTo(4 / 0.3, 6);
  });

  test("takes what is due within the duration", () => {
    const schedule = buildSchedule(workload, { rateFactor: 1, durationMs: 700, warmupRatio: 0 });
    expect([...schedule.dueMs]).toEqual([0, 300, 600]);
  });

  test.each([
    [{ rateFactor: 0 }, "rate factor 0 must be above 0"],
    [{ rateFactor: Number.NaN }, "must be above 0"],
    [{ warmupRatio: 1 }, "warm-up share 1"],
    [{ durationMs: 0 }, "duration 0 ms"],
    [{ durationMs: 5_000 }, "lasts 1 s at rate factor 1, less than the 5 s asked for"],
  ])("refuses %j", (options, message) => {
    expect(() =>
      buildSchedule(workload, {
        rateFactor: 1,
        durationMs: undefined,
        warmupRatio: 0,
        ...options,
      }),
    ).toThrow(message);
  });

  test("refuses a workload without requests", () => {
    expect(() =>
      buildSchedule(
        { ...workload, requests: [] },
        { rateFactor: 1, durationMs: undefined, warmupRatio: 0 },
      ),
    ).toThrow("has no request");
  });
});
