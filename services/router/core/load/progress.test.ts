import { describe, expect, test } from "vitest";

import { at } from "../../../../test/support/router-builders.ts";
import { Progress } from "./progress.ts";

/** Takes reports `[at, workDone, isBusy, expectedAt]` and gives how long the engine is overdue after each. */
function overdue(
  reports: readonly (readonly [number, number | undefined, boolean, number?])[],
): number[] {
  const progress = new Progress();
  return reports.map(([when, workDone, isBusy, expectedAt]) => {
    const expected = expectedAt === undefined ? undefined : at(expectedAt);
    progress.reported({ at: at(when), workDone, isBusy, expectedAt: expected });
    return progress.overdueMs;
  });
}

describe("Progress", () => {
  test("counts the time since the last work of an engine that has some to do", () => {
    expect(
      overdue([
        [100, 5, true],
        [200, 5, true],
        [700, 5, true],
        [800, 6, true],
        [900, 6, true],
      ]),
    ).toEqual([0, 100, 600, 0, 100]);
  });

  test("an engine at rest owes nothing, and what it gets then counts from when its first token is due", () => {
    expect(
      overdue([
        [100, 5, false],
        [9_000, 5, false],
        [9_100, 5, true, 9_400],
        [9_400, 5, true, 9_400],
        [9_900, 5, true, 9_400],
      ]),
    ).toEqual([0, 0, 0, 0, 500]);
  });

  test("a restarted engine's counters begin anew, which is a change", () => {
    expect(
      overdue([
        [100, 5, true],
        [900, 5, true],
        [1_000, 0, true],
      ]),
    ).toEqual([0, 800, 0]);
  });

  test("without counters nothing can be said", () => {
    expect(
      overdue([
        [100, undefined, true],
        [9_000, undefined, true],
      ]),
    ).toEqual([0, 0]);
  });

  test("nothing is known after a reset", () => {
    const progress = new Progress();
    for (const when of [100, 900]) {
      progress.reported({ at: at(when), workDone: 5, isBusy: true, expectedAt: undefined });
    }
    progress.reset();
    expect([progress.overdueMs, progress.seenAt]).toEqual([0, -Infinity]);
  });
});
