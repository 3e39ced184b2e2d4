import { describe, expect, test } from "vitest";
import { SeededRandom } from "../../../shared/core/random.ts";
import { TokenRing } from "./token-ring.ts";

describe("tokens in a ring", () => {
  test.each([10, 1_000, 20_000])("of %d are what was put there, or nothing", (capacity) => {
    const ring = new TokenRing(capacity);
    const random = new SeededRandom(3);
    const put: { place: number; ids: Uint32Array }[] = [];
    let held = 0;
    for (let i = 0; i < 500; i++) {
      const ids = Uint32Array.from({ length: random.int(capacity / 4) }, () => random.int(1 << 20));
      put.push({ place: ring.put(ids), ids });
      expect(ring.get(put.at(-1)?.place ?? -1, ids.length)).toEqual(ids);
      for (const { place, ids: wanted } of put.slice(-12)) {
        const got = ring.get(place, wanted.length);
        if (got === undefined) continue;
        held++;
        expect(got).toEqual(wanted);
      }
      expect(ring.bytes).toBeLessThanOrEqual(4 * capacity);
    }
    expect(held).toBeGreaterThan(1_000);
  });

  test("do not fit when they are too many", () => {
    const ring = new TokenRing(8);
    const place = ring.put(new Uint32Array(9));
    expect(ring.get(place, 9)).toBeUndefined();
  });
});
