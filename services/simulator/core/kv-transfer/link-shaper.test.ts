import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { monoMs } from "../../../shared/core/ids.ts";
import { LinkShaper } from "./link-shaper.ts";

describe("a shaped link", () => {
  test("takes size by speed, plus its delay, after one burst", () => {
    const link = new LinkShaper({ bytesPerS: 1_000_000, latencyMs: 5 }, 1_000);
    expect(link.send(1_000, monoMs(0))).toBe(5);
    expect(link.send(10_000, monoMs(0))).toBe(15);
    expect(link.send(10_000, monoMs(0))).toBe(25);
    // Idle time is not saved up beyond a burst.
    expect(link.send(11_000, monoMs(10_000))).toBe(10_015);
  });

  test("without a speed has its delay alone", () => {
    const link = new LinkShaper({ bytesPerS: 0, latencyMs: 7 });
    expect(link.send(1e9, monoMs(3))).toBe(10);
    expect(new LinkShaper({ bytesPerS: 0, latencyMs: 0 }).isShaped).toBe(false);
  });

  test("never carries more than speed × time + burst, keeps order, and loses no capacity while busy", () => {
    const message = fc.record({ bytes: fc.integer({ min: 1, max: 50_000 }), gap: fc.nat(30) });
    fc.assert(
      fc.property(fc.array(message, { minLength: 1, maxLength: 50 }), (messages) => {
        const link = new LinkShaper({ bytesPerS: 1_000_000, latencyMs: 3 }, 20_000);
        let now = 0;
        let last = -Infinity;
        const sent: { start: number; bytes: number; arrival: number }[] = [];
        for (const { bytes, gap } of messages) {
          now += gap;
          const arrival = link.send(bytes, monoMs(now));
          expect(arrival).toBeGreaterThanOrEqual(Math.max(last, now + 3));
          last = arrival;
          sent.push({ start: now, bytes, arrival });
        }
        // Over any stretch from the first message: bytes ≤ burst + rate × time.
        const first = sent[0]!.start;
        let total = 0;
        for (const { bytes, arrival } of sent) {
          total += bytes;
          expect(total).toBeLessThanOrEqual(20_000 + (arrival - 3 - first) * 1_000 + 1e-6);
        }
        const busy = sent.reduce((sum, { bytes }) => sum + bytes, 0) / 1_000;
        expect(last - 3).toBeLessThanOrEqual(now + busy + 1e-6);
      }),
    );
  });

  test("can change while it is used", () => {
    const link = new LinkShaper({ bytesPerS: 1_000, latencyMs: 0 }, 1);
    link.send(1_000, monoMs(0));
    link.reshape({ bytesPerS: 1_000_000, latencyMs: 1 });
    expect(link.send(1_000, monoMs(0))).toBeCloseTo(1_001, 0);
  });
});
