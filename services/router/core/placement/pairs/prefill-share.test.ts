import { describe, expect, test } from "vitest";
import type { MonoMs } from "../../../../shared/core/ids.ts";
import { PrefillShares } from "./prefill-share.ts";

const at = (ms: number): MonoMs => ms as MonoMs;

describe("PrefillShares", () => {
  test("comes near the share of time that prompts really take, and fades without them", () => {
    const shares = new PrefillShares();
    // 750 ms of prompt every 1.2 s.
    for (let ms = 0; ms <= 120_000; ms += 1_200) shares.placed(3, 750, at(ms));
    const share = shares.of(3, at(120_000));
    expect(share).toBeGreaterThan(0.6);
    expect(share).toBeLessThan(0.68);
    expect(shares.of(3, at(140_000))).toBeCloseTo(share / Math.E, 6);
    expect(shares.of(4, at(120_000))).toBe(0);
  });

  test("never reaches the whole of an engine, and knows nothing of one that is gone", () => {
    const shares = new PrefillShares();
    for (let i = 0; i < 100; i++) shares.placed(0, 5_000, at(0));
    expect(shares.of(0, at(0))).toBe(0.9);
    shares.forget(0);
    expect(shares.of(0, at(0))).toBe(0);
  });

  test("takes a clock that stands still for no time at all", () => {
    const shares = new PrefillShares();
    shares.placed(0, 2_000, at(1_000));
    expect(shares.of(0, at(500))).toBeCloseTo(0.1, 9);
  });
});
