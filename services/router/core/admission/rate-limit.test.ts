import { describe, expect, test } from "vitest";
import { at } from "../../../../test/support/router-builders.ts";
import { RateLimits, type RateLimit } from "./rate-limit.ts";

const limits = (limit: RateLimit, bucketsMax = 100): RateLimits =>
  new RateLimits({ limitOf: (tenant) => (tenant === "free" ? undefined : limit), bucketsMax });

describe("RateLimits", () => {
  test("lets a burst of five seconds through, then the rate", () => {
    const l = limits({ requestsPerSecond: 2, tokensPerSecond: 0 });
    for (let i = 0; i < 10; i++) {
      expect(l.waitMs("t", at(0))).toBe(0);
      l.use("t", 0, at(0));
    }
    expect(l.waitMs("t", at(0))).toBe(500);
    expect(l.waitMs("t", at(499))).toBeCloseTo(1);
    expect(l.waitMs("t", at(500))).toBe(0);
  });

  test("lets a prompt larger than the bucket pass, and makes the tenant wait for it", () => {
    const l = limits({ requestsPerSecond: 0, tokensPerSecond: 1_000 });
    expect(l.waitMs("t", at(0))).toBe(0);
    l.use("t", 20_000, at(0));
    expect(l.waitMs("t", at(0))).toBe(15_000);
    expect(l.waitMs("t", at(15_000))).toBe(0);
  });

  test("limits nobody who has no limit, and each tenant for itself", () => {
    const l = limits({ requestsPerSecond: 0.2, tokensPerSecond: 0 });
    for (let i = 0; i < 50; i++) l.use("free", 1e9, at(0));
    expect(l.waitMs("free", at(0))).toBe(0);
    l.use("t", 0, at(0));
    expect(l.waitMs("t", at(0))).toBeGreaterThan(0);
    expect(l.waitMs("other", at(0))).toBe(0);
  });

  test("forgets the longest unused beyond its bound", () => {
    const l = limits({ requestsPerSecond: 0.2, tokensPerSecond: 0 }, 2);
    for (const tenant of ["a", "b", "c"]) l.use(tenant, 0, at(0));
    expect(l.waitMs("a", at(0))).toBe(0);
    expect(l.waitMs("c", at(0))).toBeGreaterThan(0);
  });
});
