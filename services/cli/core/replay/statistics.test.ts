import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { summarise } from "./statistics.ts";

describe("summarise", () => {
  test("uses nearest ranks", () => {
    const values = Array.from({ length: 200 }, (_, i) => 200 - i);
    expect(summarise(values)).toEqual({
      count: 200,
      mean: 100.5,
      p50: 100,
      p90: 180,
      p99: 198,
      max: 200,
    });
    expect(summarise([7])).toEqual({ count: 1, mean: 7, p50: 7, p90: 7, p99: 7, max: 7 });
  });

  test("says nothing about nothing", () => {
    expect(summarise([])).toEqual({
      count: 0,
      mean: null,
      p50: null,
      p90: null,
      p99: null,
      max: null,
    });
  });

  test("a quantile is the smallest value with at least that share at or below it", () => {
    fc.assert(
      fc.property(
        fc.array(fc.double({ noNaN: true, min: -1e6, max: 1e6 }), { minLength: 1 }),
        (values) => {
          const p90 = summarise(values).p90!;
          const atOrBelow = values.filter((value) => value <= p90).length;
          const below = values.filter((value) => value < p90).length;
          expect(values).toContain(p90);
          expect(atOrBelow).toBeGreaterThanOrEqual(0.9 * values.length);
          expect(below).toBeLessThan(0.9 * values.length);
        },
      ),
    );
  });
});
