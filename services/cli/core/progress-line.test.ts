import { expect, test } from "vitest";
import { progressLine, rotated } from "./progress-line.ts";

const progress = {
  name: "kv",
  index: 1,
  count: 4,
  phase: "measuring",
  elapsedMs: 30_000,
  durationMs: 60_000,
  sent: 700,
  due: 1_440,
  open: 12,
  errors: 0,
};

test("a progress line says which run, how far, and what was sent", () => {
  expect(progressLine(progress, 200)).toBe(
    "[2/4] kv             ██████████░░░░░░░░░░ 30/60 s measuring, sent 700 of 1440, open 12, errors 0",
  );
  expect(progressLine(progress, 20)).toHaveLength(20);
  expect(progressLine({ ...progress, durationMs: 0 }, 200)).toContain(
    "░░░░░░░░░░░░░░░░░░░░ 30/0 s",
  );
});

test("rotation keeps order and members", () => {
  expect(rotated(["a", "b", "c"], 1)).toEqual(["b", "c", "a"]);
  expect(rotated(["a", "b", "c"], 5)).toEqual(["c", "a", "b"]);
  expect(rotated(["a", "b", "c"], -1)).toEqual(["c", "a", "b"]);
  expect(rotated([], 3)).toEqual([]);
});
