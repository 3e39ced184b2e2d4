import { describe, expect, test } from "vitest";

import type { BlockIndex } from "./block-index.ts";
import { KvIndex } from "./kv-index.ts";
import { NaiveKvIndex } from "./naive-kv-index.ts";

/** `count` hashes of a made-up prompt: distinct for distinct (prompt, position). */
function prompt(id: number, count: number): Uint32Array {
  const hashes = new Uint32Array(2 * count);
  for (let i = 0; i < count; i++) {
    hashes[2 * i] = Math.imul(id * 65_537 + i, 0x9e3779b1);
    hashes[2 * i + 1] = Math.imul(id + 1, 0x85ebca6b) ^ i;
  }
  return hashes;
}

function depthsOf(index: BlockIndex, hashes: Uint32Array, workersMax: number): number[] {
  const depths = new Uint32Array(workersMax).fill(99);
  const deepest = index.matchPrefix(hashes, hashes.length / 2, depths);
  expect(deepest).toBe(Math.max(...depths));
  return [...depths];
}

const implementations: readonly (readonly [string, (workersMax: number) => BlockIndex])[] = [
  ["KvIndex", (workersMax) => new KvIndex({ workersMax, blocksMax: 100_000, setsMax: 1_000 })],
  ["NaiveKvIndex", (workersMax) => new NaiveKvIndex({ workersMax })],
];

describe.each(implementations)("%s as a block index", (_name, create) => {
  test("knows nothing when empty", () => {
    const index = create(3);
    expect(depthsOf(index, prompt(1, 4), 3)).toEqual([0, 0, 0]);
    expect(depthsOf(index, new Uint32Array(0), 3)).toEqual([0, 0, 0]);
    expect([index.blockCount, index.pairCount, index.blocksOf(2)]).toEqual([0, 0, 0]);
    expect(index.remove(0, prompt(1, 4))).toBe(0);
    expect(index.clear(0)).toBe(0);
  });

  test("gives each worker the number of leading blocks it holds", () => {
    const index = create(4);
    const hashes = prompt(1, 10);
    expect(index.store(0, hashes)).toBe(10);
    expect(index.store(1, hashes, 0, 6)).toBe(6);
    expect(index.store(2, hashes, 4, 6)).toBe(6);
    expect(depthsOf(index, hashes, 4)).toEqual([10, 6, 0, 0]);
    expect([index.blockCount, index.pairCount]).toEqual([10, 22]);
    expect([0, 1, 2, 3].map((slot) => index.blocksOf(slot))).toEqual([10, 6, 6, 0]);
  });

  test("stops at the first missing block although later ones are held", () => {
    const index = create(2);
    const hashes = prompt(1, 100);
    index.store(0, hashes);
    index.store(1, hashes);
    index.remove(0, hashes, 37, 1);
    expect(depthsOf(index, hashes, 2)).toEqual([37, 100]);
    index.remove(1, hashes, 37, 1);
    expect(depthsOf(index, hashes, 2)).toEqual([37, 37]);
    index.store(0, hashes, 37, 1);
    expect(depthsOf(index, hashes, 2)).toEqual([100, 37]);
  });

  test("counts a pair once, however often it is stored or removed", () => {
    const index = create(2);
    const hashes = prompt(1, 5);
    expect([index.store(0, hashes), index.store(0, hashes)]).toEqual([5, 0]);
    const twice = new Uint32Array([...hashes, ...hashes]);
    expect(index.store(1, twice)).toBe(5);
    expect([index.remove(1, twice), index.remove(1, hashes)]).toEqual([5, 0]);
    expect([index.blockCount, index.pairCount]).toEqual([5, 5]);
  });

  test("forgets a cleared worker at once and takes it back", () => {
    const index = create(3);
    const hashes = prompt(1, 50);
    index.store(0, hashes);
    index.store(1, hashes, 0, 20);
    expect(index.clear(0)).toBe(50);
    expect(depthsOf(index, hashes, 3)).toEqual([0, 20, 0]);
    expect([index.blockCount, index.pairCount, index.blocksOf(0)]).toEqual([20, 20, 0]);
    expect(index.contains(0, hashes[0] as number, hashes[1] as number)).toBe(false);
    expect(index.store(0, hashes, 0, 30)).toBe(30);
    expect(depthsOf(index, hashes, 3)).toEqual([30, 20, 0]);
    expect(index.clear(1)).toBe(20);
    expect(index.clear(0)).toBe(30);
    expect([index.blockCount, index.pairCount]).toEqual([0, 0]);
  });

  test("takes any 64-bit value as a hash, all zeros and all ones included", () => {
    const index = create(2);
    const odd = new Uint32Array([0, 0, 0, 1, 1, 0, 0xffffffff, 0xffffffff, 0, 0x80000000]);
    expect(index.contains(0, 0, 0)).toBe(false);
    expect(index.store(0, odd)).toBe(5);
    expect(depthsOf(index, odd, 2)).toEqual([5, 0]);
    expect(index.contains(0, 0xffffffff, 0xffffffff)).toBe(true);
    expect(index.contains(0, 0, 2)).toBe(false);
    expect(index.remove(0, odd, 0, 1)).toBe(1);
    expect(depthsOf(index, odd, 2)).toEqual([0, 0]);
    expect(index.contains(0, 0, 1)).toBe(true);
  });

  test("tells workers apart on both sides of a word of the bitset", () => {
    const slots = [0, 31, 32, 63, 64, 65, 95, 96, 129];
    const index = create(130);
    const hashes = prompt(1, 20);
    slots.forEach((slot, i) => index.store(slot, hashes, 0, i + 1));
    const expected = new Array<number>(130).fill(0);
    slots.forEach((slot, i) => (expected[slot] = i + 1));
    expect(depthsOf(index, hashes, 130)).toEqual(expected);
  });
});

describe("KvIndex at its limits", () => {
  test("drops and counts new blocks beyond blocksMax, and still shares the known ones", () => {
    const index = new KvIndex({ workersMax: 2, blocksMax: 8, setsMax: 4 });
    const hashes = prompt(1, 12);
    expect(index.store(0, hashes)).toBe(8);
    expect([index.droppedAtBlocksMax, index.lostPairsOf(0), index.lostPairsOf(1)]).toEqual([
      4, 4, 0,
    ]);
    expect(index.store(1, hashes)).toBe(8);
    expect(depthsOf(index, hashes, 2)).toEqual([8, 8]);
    index.remove(0, hashes, 0, 1);
    index.remove(1, hashes, 0, 1);
    expect(index.store(1, hashes, 8, 1)).toBe(1);
    expect(index.blockCount).toBe(8);
  });

  test("uses the room of cleared workers before it drops anything", () => {
    const index = new KvIndex({ workersMax: 9, blocksMax: 6_100, setsMax: 4 });
    index.store(0, prompt(0, 5_940));
    for (let round = 1; round < 2_000; round++) {
      // Eight workers leave in an order unlike the one in which they came, so that the table is full
      // of held blocks and the few that nobody holds any more lie anywhere.
      const slot = 1 + (((round * 40_503) >>> 7) % 8);
      index.clear(slot);
      const hashes = prompt(round, 20);
      let added = 0;
      for (let i = 0; i < 20; i++) added += index.store(slot, hashes, i, 1);
      expect(added).toBe(20);
      expect(depthsOf(index, hashes, 9)[slot]).toBe(20);
    }
    expect(index.droppedAtBlocksMax).toBe(0);
  });

  test("drops the new pair when its set of workers has no room", () => {
    const index = new KvIndex({ workersMax: 4, blocksMax: 100, setsMax: 1 });
    const [a, b] = [prompt(1, 3), prompt(2, 3)];
    for (const slot of [0, 1]) index.store(slot, a);
    expect(index.store(0, b)).toBe(3);
    expect(index.store(2, b)).toBe(0);
    expect([index.droppedAtSetsMax, index.lostPairsOf(2)]).toEqual([3, 3]);
    expect(depthsOf(index, b, 4)).toEqual([3, 0, 0, 0]);
    index.remove(1, a);
    expect(index.store(2, b)).toBe(3);
    index.clear(2);
    expect(index.lostPairsOf(2)).toBe(0);
  });

  test("keeps one holder and marks the others when a smaller set has no room", () => {
    const index = new KvIndex({ workersMax: 4, blocksMax: 100, setsMax: 2 });
    const hashes = prompt(1, 2);
    for (const slot of [0, 1, 2]) index.store(slot, hashes);
    index.store(3, prompt(2, 1));
    index.store(2, prompt(2, 1));
    expect(index.remove(0, hashes, 0, 1)).toBe(1);
    expect(depthsOf(index, hashes, 4)).toEqual([0, 2, 0, 0]);
    expect([0, 1, 2, 3].map((slot) => index.lostPairsOf(slot))).toEqual([0, 0, 1, 0]);
    expect(index.contains(2, hashes[2] as number, hashes[3] as number)).toBe(true);
    expect([0, 1, 2, 3].map((slot) => index.blocksOf(slot))).toEqual([1, 2, 2, 1]);
    expect(index.pairCount).toBe(6);
  });

  test("never runs out of sets through churn alone", () => {
    const index = new KvIndex({ workersMax: 64, blocksMax: 1_000, setsMax: 32 });
    const hashes = prompt(1, 4);
    for (let round = 0; round < 5_000; round++) {
      index.store((round * 37) % 64, hashes);
      if (round >= 9) index.remove(((round - 9) * 37) % 64, hashes);
    }
    expect(index.setCollections).toBeGreaterThan(10);
    expect([index.droppedAtSetsMax, index.pairCount]).toEqual([0, 36]);
  });

  test("stays within its sets when workers are cleared over and over", () => {
    const index = new KvIndex({ workersMax: 2, blocksMax: 50_000, setsMax: 1 });
    index.store(1, prompt(0, 20_000));
    for (let round = 1; round < 500; round++) {
      expect(index.store(0, prompt(round, 1))).toBe(1);
      expect(index.clear(0)).toBe(1);
    }
    expect([index.blockCount, index.droppedAtSetsMax]).toEqual([20_000, 0]);
    expect(index.setCount).toBeLessThanOrEqual(5);
  });

  test("frees what a cleared worker left when swept, and says when it is done", () => {
    const index = new KvIndex({ workersMax: 2, blocksMax: 10_000, setsMax: 4 });
    index.store(0, prompt(1, 3_000));
    index.store(1, prompt(1, 100));
    index.clear(0);
    expect(index.sweep(10)).toBe(false);
    expect(index.sweep(10_000)).toBe(true);
    expect(index.blockCount).toBe(100);
    expect(index.sweep(0)).toBe(true);
  });

  test("grows without losing a block, and reports what it takes", () => {
    const index = new KvIndex({ workersMax: 256, blocksMax: 300_000, setsMax: 1_000 });
    const small = index.bytes;
    for (let id = 0; id < 190; id++) index.store(id, prompt(id, 1_000));
    expect(index.blockCount).toBe(190_000);
    for (let id = 0; id < 190; id++) {
      const depths = new Uint32Array(256);
      expect(index.matchPrefix(prompt(id, 1_000), 1_000, depths)).toBe(1_000);
      expect(depths[id]).toBe(1_000);
    }
    expect(index.bytes).toBeGreaterThan(small);
    expect((index.bytes - small) / index.blockCount).toBeLessThan(32);
  });

  test.each([
    [{ workersMax: 0, blocksMax: 1, setsMax: 1 }, "workersMax"],
    [{ workersMax: 4_097, blocksMax: 1, setsMax: 1 }, "workersMax"],
    [{ workersMax: 1, blocksMax: 0, setsMax: 1 }, "blocksMax"],
    [{ workersMax: 1, blocksMax: 2 ** 27 + 1, setsMax: 1 }, "blocksMax"],
    [{ workersMax: 1, blocksMax: 1, setsMax: 0.5 }, "setsMax"],
  ])("refuses limits %o", (limits, name) => {
    expect(() => new KvIndex(limits)).toThrow(name);
  });

  test("refuses slots and ranges outside their bounds", () => {
    const index = new KvIndex({ workersMax: 2, blocksMax: 10, setsMax: 1 });
    const hashes = prompt(1, 2);
    for (const slot of [-1, 2, 0.5, Number.NaN]) {
      expect(() => index.store(slot, hashes)).toThrow("slot");
      expect(() => index.remove(slot, hashes)).toThrow("slot");
      expect(() => index.clear(slot)).toThrow("slot");
      expect(() => index.contains(slot, 1, 1)).toThrow("slot");
    }
    expect(() => index.store(0, hashes, 1, 2)).toThrow("whole pairs");
    expect(() => index.store(0, hashes, -1, 1)).toThrow("whole pairs");
    expect(() => index.store(0, new Uint32Array(3))).toThrow("whole pairs");
    expect(() => index.matchPrefix(hashes, 3, new Uint32Array(2))).toThrow("two words per block");
    expect(() => index.matchPrefix(hashes, 2, new Uint32Array(1))).toThrow("workersMax elements");
    expect(index.pairCount).toBe(0);
  });
});
