import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { SeededRandom } from "../../../shared/core/random.ts";
import { RecursiveLeastSquares } from "./least-squares.ts";

function model(prior: readonly number[] = [5, 0.01]): RecursiveLeastSquares {
  return new RecursiveLeastSquares({ prior, scale: [1, 1_000], priorWeight: 2, forgetting: 0.995 });
}

describe("RecursiveLeastSquares", () => {
  test("starts at the prior", () => {
    expect([model().coefficient(0), model().coefficient(1)]).toEqual([5, 0.01]);
    expect(model().count).toBe(0);
  });

  test("learns the coefficients of noisy samples", () => {
    const random = new SeededRandom(3);
    const learned = model();
    for (let i = 0; i < 1_500; i++) {
      const x = 50 + random.next() * 4_000;
      const target = (12 + 0.035 * x) * (0.9 + 0.2 * random.next());
      learned.observe([1, x], target, target * 0.1);
    }
    expect(learned.coefficient(0)).toBeGreaterThan(8);
    expect(learned.coefficient(0)).toBeLessThan(16);
    expect(learned.coefficient(1)).toBeGreaterThan(0.0325);
    expect(learned.coefficient(1)).toBeLessThan(0.0375);
  });

  test("follows an engine that becomes slower", () => {
    const learned = model();
    for (let i = 0; i < 500; i++) learned.observe([1, (i % 40) * 100], 5 + (i % 40), 2);
    for (let i = 0; i < 1_500; i++) learned.observe([1, (i % 40) * 100], 10 + 3 * (i % 40), 2);
    expect(learned.coefficient(1)).toBeCloseTo(0.03, 3);
  });

  test("stays near the prior where few samples tell", () => {
    const learned = new RecursiveLeastSquares({
      prior: [5, 0.01],
      scale: [1, 1_000],
      priorWeight: 50,
      forgetting: 0.995,
    });
    learned.observe([1, 1_000], 150, 20);
    expect(learned.coefficient(1)).toBeLessThan(0.03);
  });

  test("never gives a negative coefficient, whatever the samples say", () => {
    const learned = model();
    for (let i = 0; i < 300; i++) learned.observe([1, i * 10], 500 - i, 1);
    expect(learned.coefficient(1)).toBe(0);
    expect(learned.coefficient(0)).toBeGreaterThan(0);
  });

  test("keeps its balance through days of the same sample", () => {
    const learned = model();
    for (let i = 0; i < 200_000; i++) learned.observe([1, 700], 12 + (i % 3), 1);
    for (let i = 0; i < 500; i++) learned.observe([1, (i % 50) * 80], 6 + (i % 50) * 0.8, 1);
    expect(learned.coefficient(0)).toBeCloseTo(6, 0);
    expect(learned.coefficient(1)).toBeCloseTo(0.01, 3);
  });

  test("recovers from garbage", () => {
    const garbage = [NaN, Infinity, -Infinity, 1e308, -1e308, 1e-308, 1e150, -1e150, 0, -5];
    fc.assert(
      fc.property(
        fc.array(
          fc.record({
            features: fc.tuple(fc.constantFrom(...garbage, 1), fc.constantFrom(...garbage, 1_000)),
            target: fc.constantFrom(...garbage, 15, 1e7),
            noise: fc.constantFrom(...garbage, 1),
          }),
          { maxLength: 20 },
        ),
        (samples) => {
          const learned = model();
          for (const { features, target, noise } of samples)
            learned.observe(features, target, noise);
          for (const i of [0, 1]) {
            expect(learned.coefficient(i)).toBeGreaterThanOrEqual(0);
            expect(Number.isFinite(learned.coefficient(i))).toBe(true);
          }
          for (let i = 0; i < 6_000; i++) learned.observe([1, (i % 40) * 100], 8 + 2 * (i % 40), 1);
          expect(learned.coefficient(0)).toBeCloseTo(8, 0);
          expect(learned.coefficient(1)).toBeCloseTo(0.02, 2);
        },
      ),
      { numRuns: 60 },
    );
  });
});
