import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { hashBlocks, hashNextBlock, hashRoot, type HashRoot } from "./block-hash.ts";
import { SeededRandom } from "./random.ts";

const seed = Uint8Array.from({ length: 32 }, (_, i) => i * 11 + 3);
const root = hashRoot(seed, { model: "qwen3" });

const tokensArb = fc
  .array(fc.integer({ min: 0, max: 0xffff_ffff }), { maxLength: 200 })
  .map((ids) => Uint32Array.from(ids));
const blockSizeArb = fc.integer({ min: 1, max: 40 });

function bitCount(x: number): number {
  let n = 0;
  for (let rest = x >>> 0; rest !== 0; rest &= rest - 1) n++;
  return n;
}

function distance(x: Uint32Array, y: Uint32Array, at: number): number {
  return (
    bitCount((x[at] as number) ^ (y[at] as number)) +
    bitCount((x[at + 1] as number) ^ (y[at + 1] as number))
  );
}

/** How many 64-bit hashes equal another one. */
function countDuplicates(hashes: Uint32Array): number {
  const keys = new BigUint64Array(hashes.slice().buffer).sort();
  let duplicates = 0;
  for (let i = 1; i < keys.length; i++) if (keys[i] === keys[i - 1]) duplicates++;
  return duplicates;
}

describe("hashBlocks", () => {
  test("gives one pair per full block and nothing for the rest", () => {
    expect(hashBlocks(root, new Uint32Array(0), 16)).toHaveLength(0);
    expect(hashBlocks(root, new Uint32Array(15), 16)).toHaveLength(0);
    expect(hashBlocks(root, new Uint32Array(33), 16)).toHaveLength(4);
    expect(hashBlocks(root, [1, 2, 3], 1)).toHaveLength(6);
  });

  test("keeps its values, because replicas and workers of one deployment must agree", () => {
    expect([...hashBlocks(root, [1, 2, 3, 4, 5, 6, 7], 3)]).toEqual([
      3089493487, 1330580252, 627464688, 3065282039,
    ]);
    expect([...hashBlocks(root, [151_643, 872, 198], 1)]).toEqual([
      1735368293, 570966548, 1382833434, 2707986194, 4174276100, 1107639093,
    ]);
    expect([...hashBlocks(root, new Uint32Array(32), 16)]).toEqual([
      146188667, 2777904191, 4087776010, 3261531651,
    ]);
  });

  test("writes into a given buffer and returns the filled part of it", () => {
    const out = new Uint32Array(9).fill(7);
    const hashes = hashBlocks(root, new Uint32Array(40), 16, out);
    expect(hashes.buffer).toBe(out.buffer);
    expect(hashes).toEqual(hashBlocks(root, new Uint32Array(40), 16));
    expect([...out.subarray(4)]).toEqual([7, 7, 7, 7, 7]);
  });

  test("of a prefix is a prefix of the hashes, for any block size", () => {
    fc.assert(
      fc.property(tokensArb, blockSizeArb, fc.nat(200), (tokens, size, cut) => {
        const whole = hashBlocks(root, tokens, size);
        const part = hashBlocks(root, tokens.subarray(0, cut), size);
        expect(part).toEqual(whole.slice(0, part.length));
      }),
    );
  });

  test("is the same for arrays, typed arrays and views at an offset", () => {
    fc.assert(
      fc.property(tokensArb, blockSizeArb, (tokens, size) => {
        const shifted = new Uint32Array(tokens.length + 3);
        shifted.set(tokens, 3);
        const expected = hashBlocks(root, tokens, size);
        expect(hashBlocks(root, [...tokens], size)).toEqual(expected);
        expect(hashBlocks(root, shifted.subarray(3), size)).toEqual(expected);
      }),
    );
  });

  test("equals hashing block by block", () => {
    fc.assert(
      fc.property(tokensArb, blockSizeArb, (tokens, size) => {
        const hashes = hashBlocks(root, tokens, size);
        const pair = Uint32Array.of(root.lo, root.hi);
        for (let block = 0; 2 * block < hashes.length; block++) {
          const source = block % 2 === 0 ? tokens : [...tokens];
          hashNextBlock(pair[0] as number, pair[1] as number, source, block * size, size, pair);
          expect(pair).toEqual(hashes.slice(2 * block, 2 * block + 2));
        }
      }),
    );
  });

  test("depends on the order of tokens: no swap of two leaves the hash alone", () => {
    const tokens = Uint32Array.from({ length: 16 }, (_, i) => i + 100);
    const base = hashBlocks(root, tokens, 16);
    for (let i = 0; i < 16; i++) {
      for (let j = i + 1; j < 16; j++) {
        const swapped = tokens.slice();
        [swapped[i], swapped[j]] = [tokens[j] as number, tokens[i] as number];
        expect(distance(hashBlocks(root, swapped, 16), base, 0)).toBeGreaterThan(0);
      }
    }
  });

  test("flips about half of all bits for one flipped bit, at every token and bit position", () => {
    const random = new SeededRandom(5);
    for (const size of [1, 2, 7, 16, 32]) {
      let flippedTotal = 0;
      let trials = 0;
      for (let position = 0; position < size; position++) {
        for (let bit = 0; bit < 32; bit++) {
          let flipped = 0;
          const rounds = 32;
          for (let round = 0; round < rounds; round++) {
            const tokens = Uint32Array.from({ length: 2 * size }, () => random.int(151_936));
            const base = hashBlocks(root, tokens, size);
            tokens[position] = (tokens[position] as number) ^ (1 << bit);
            const other = hashBlocks(root, tokens, size);
            flipped += distance(base, other, 0);
            expect(distance(base, other, 2)).toBeGreaterThan(0);
          }
          expect(flipped / rounds).toBeGreaterThan(28);
          flippedTotal += flipped;
          trials += rounds;
        }
      }
      expect(Math.abs(flippedTotal / trials - 32)).toBeLessThan(0.5);
    }
  });

  test("has no duplicates over a million structured blocks", () => {
    const hashes = new Uint32Array(2 * 1_200_000);
    let at = 0;
    const tokens = new Uint32Array(16);
    const pair = new Uint32Array(2);
    const add = (): void => {
      hashNextBlock(root.lo, root.hi, tokens, 0, 16, pair);
      hashes.set(pair, 2 * at++);
    };
    // Counters in one position, in an even and an odd one, and in two of the same lane: every block
    // differs from many others in few low bits, which is where a weak mixer collides.
    for (let i = 0; i < 300_000; i++) {
      tokens[15] = i;
      add();
    }
    for (let i = 1; i <= 300_000; i++) {
      tokens[15] = 0;
      tokens[0] = i;
      add();
    }
    for (let i = 1; i <= 550; i++) {
      for (let j = 1; j <= 550 && at < 900_000; j++) {
        tokens.fill(0);
        tokens[4] = i;
        tokens[6] = j;
        add();
      }
    }
    for (let i = 1; i <= 550; i++) {
      for (let j = 1; j <= 550 && at < 1_200_000; j++) {
        tokens.fill(0);
        tokens[14] = i << 9;
        tokens[15] = j << 9;
        add();
      }
    }
    expect(at).toBe(1_200_000);
    expect(countDuplicates(hashes)).toBe(0);
    // Half of the hash alone behaves like 32 random bits: n²/2³³ ≈ 168 pairs expected.
    const low = hashes.filter((_, i) => i % 2 === 0).sort();
    let equal = 0;
    for (let i = 1; i < low.length; i++) if (low[i] === low[i - 1]) equal++;
    expect(equal).toBeGreaterThan(100);
    expect(equal).toBeLessThan(260);
  });

  test("of a repeated block never settles, whatever the token", () => {
    for (const token of [0, 1, 0xffff_ffff]) {
      const hashes = hashBlocks(root, new Uint32Array(16 * 100_000).fill(token), 16);
      expect(countDuplicates(hashes)).toBe(0);
    }
  });

  test("refuses a block size or a buffer that cannot work", () => {
    expect(() => hashBlocks(root, [1, 2], 0)).toThrow(/block size 0/);
    expect(() => hashBlocks(root, [1, 2], 1.5)).toThrow(/block size 1.5/);
    expect(() => hashBlocks(root, [1, 2], 1, new Uint32Array(3))).toThrow(/out holds/);
    expect(() => {
      hashNextBlock(0, 0, [1, 2, 3], 2, 2, new Uint32Array(2));
    }).toThrow(/outside/);
  });
});

describe("hashRoot", () => {
  const key = (r: HashRoot): string => `${String(r.hi)}:${String(r.lo)}`;

  test("separates seeds, models, adapters and salts, also where the joined text is equal", () => {
    const otherSeed = seed.slice();
    otherSeed[31] = (otherSeed[31] as number) ^ 1;
    const longerSeed = new Uint8Array(33);
    longerSeed.set(seed);
    const roots = [
      hashRoot(seed, { model: "ab" }),
      hashRoot(otherSeed, { model: "ab" }),
      hashRoot(longerSeed, { model: "ab" }),
      hashRoot(seed, { model: "ab", lora: "" }),
      hashRoot(seed, { model: "a", lora: "b" }),
      hashRoot(seed, { model: "", lora: "ab" }),
      hashRoot(seed, { model: "a", salt: "b" }),
      hashRoot(seed, { model: "ab", salt: "" }),
      hashRoot(seed, { model: "ab", salt: new Uint8Array(1) }),
    ];
    expect(new Set(roots.map(key)).size).toBe(roots.length);
    expect(key(hashRoot(seed, { model: "a", salt: "b" }))).toBe(
      key(hashRoot(seed, { model: "a", salt: new TextEncoder().encode("b") })),
    );
  });

  test("gives chains that share nothing when roots differ in one bit", () => {
    const tokens = Uint32Array.from({ length: 3_200 }, (_, i) => i % 50);
    for (let bit = 0; bit < 32; bit++) {
      const a = hashBlocks(root, tokens, 16);
      const b = hashBlocks({ lo: (root.lo ^ (1 << bit)) >>> 0, hi: root.hi }, tokens, 16);
      const c = hashBlocks({ lo: root.lo, hi: (root.hi ^ (1 << bit)) >>> 0 }, tokens, 16);
      let sum = 0;
      for (let at = 0; at < a.length; at += 2) sum += distance(a, b, at) + distance(a, c, at);
      expect(Math.abs(sum / a.length - 32)).toBeLessThan(1.5);
    }
  });

  test("refuses a seed shorter than 32 bytes", () => {
    expect(() => hashRoot(new Uint8Array(31), { model: "m" })).toThrow(/31 bytes/);
  });
});
