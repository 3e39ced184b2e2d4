import { describe, expect, test } from "vitest";
import { SeededRandom } from "../../../shared/core/random.ts";
import { SeenTable } from "./seen-table.ts";

const hashed = (lo: number, size = 8) => ({ lo, hi: lo >> 3, check: 7, start: 0, end: size });

describe("numbers of things seen before", () => {
  test("are those of a map, while things come and go", () => {
    const table = new SeenTable();
    const random = new SeededRandom(1);
    const known = new Map<number, number>();
    for (let i = 0; i < 20_000; i++) {
      // Few values of few low bits: many meet in one slot.
      const of = random.int(2_000) << (4 * random.int(3));
      const number = table.find(hashed(of), 5);
      expect(number).toBe(known.get(of) ?? -1);
      if (number < 0) {
        const added = table.add(hashed(of), 5);
        expect([...known.values()]).not.toContain(added);
        known.set(of, added);
      }
      if (known.size > 300) {
        const dropped = table.drop();
        const [gone] = [...known].find(([, n]) => n === dropped) ?? [];
        expect(gone).toBeDefined();
        known.delete(gone as number);
      }
      expect(table.size).toBe(known.size);
    }
  });

  test("are let go of when they are not looked up", () => {
    const table = new SeenTable();
    const kept = table.add(hashed(0), 0);
    for (let i = 1; i < 1_000; i++) {
      table.add(hashed(i), 0);
      expect(table.find(hashed(0), 0)).toBe(kept);
      if (i > 10) expect(table.drop()).not.toBe(kept);
    }
  });

  test("differ by every part of the hash, by size and by domain", () => {
    const table = new SeenTable();
    const one = hashed(1);
    table.add(one, 0);
    for (const other of [{ lo: 2 }, { hi: 2 }, { check: 2 }, { end: 7 }]) {
      expect(table.find({ ...one, ...other }, 0)).toBe(-1);
    }
    expect(table.find(one, 1)).toBe(-1);
    expect(new SeenTable().drop()).toBe(-1);
  });
});
