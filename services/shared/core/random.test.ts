import { describe, expect, test } from "vitest";
import { Backoff } from "./backoff.ts";
import { SeededRandom } from "./random.ts";

describe("SeededRandom", () => {
  test("gives the same draws for the same seed and others for another", () => {
    const draws = (seed: number): number[] => {
      const random = new SeededRandom(seed);
      return Array.from({ length: 8 }, () => random.next());
    };
    expect(draws(7)).toEqual(draws(7));
    expect(draws(7)).not.toEqual(draws(8));
  });

  test("forks depend on the name, not on draws made before", () => {
    const parent = new SeededRandom(3);
    const before = parent.fork("links").next();
    parent.next();
    expect(parent.fork("links").next()).toBe(before);
    expect(parent.fork("clients").next()).not.toBe(before);
  });

  test("is about uniform", () => {
    const random = new SeededRandom(1);
    const counts = new Array<number>(10).fill(0);
    for (let i = 0; i < 10_000; i++) {
      const bucket = random.int(10);
      counts[bucket] = (counts[bucket] ?? 0) + 1;
    }
    expect(Math.min(...counts)).toBeGreaterThan(850);
    expect(Math.max(...counts)).toBeLessThan(1_150);
  });
});

describe("Backoff", () => {
  test("doubles up to the cap, stays within the jitter, and starts again after a reset", () => {
    const backoff = new Backoff({
      baseMs: 100,
      maxMs: 1_000,
      jitterRatio: 0.5,
      random: new SeededRandom(1),
    });
    const delays = Array.from({ length: 40 }, () => backoff.next());
    delays.forEach((delay, i) => {
      const full = Math.min(1_000, 100 * 2 ** Math.min(i, 30));
      expect(delay).toBeGreaterThanOrEqual(full / 2);
      expect(delay).toBeLessThanOrEqual(full);
    });
    backoff.reset();
    expect(backoff.next()).toBeLessThanOrEqual(100);
  });
});
