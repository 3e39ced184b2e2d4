import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { BlockContents } from "./block-contents.ts";
import { fillBlockContent, isBlockContent, partialBlockKey } from "./block-content.ts";

const word = fc.integer({ min: 0, max: 0xffff_ffff });
const key = fc.record({ low: word, high: word });

describe("content of a block", () => {
  test("is the same everywhere and at any time", () => {
    const words = new Uint32Array(8);
    fillBlockContent(words, { low: 0x1234_5678, high: 0x9abc_def0 });
    // Engines of different builds must agree: a change here is a new protocol version.
    expect([...words]).toEqual([
      2_259_822_004, 2_914_895_997, 787_934_185, 1_045_982_986, 2_191_282_806, 2_197_694_116,
      2_197_682_092, 1_151_331_350,
    ]);
  });

  test("made in pieces at segment borders is the same as made whole", () => {
    fc.assert(
      fc.property(key, fc.integer({ min: 1, max: 5 }), fc.nat(8_000), (of, from, extra) => {
        const size = (from * 4_096 + extra + 4) & ~3;
        const whole = new Uint32Array(size);
        fillBlockContent(whole, of);
        const piece = new Uint32Array(size - from * 4_096);
        fillBlockContent(piece, of, from * 4_096);
        expect(piece).toEqual(whole.subarray(from * 4_096));
      }),
      { numRuns: 30 },
    );
  });

  test("of another key, or with any bit turned over, is told apart", () => {
    fc.assert(
      fc.property(key, key, fc.nat(64 * 32 - 1), (a, b, bit) => {
        const words = new Uint32Array(64);
        fillBlockContent(words, a);
        expect(isBlockContent(words, a, 0)).toBe(true);
        expect(isBlockContent(words, b, 0)).toBe(a.low === b.low && a.high === b.high);
        words[bit >> 5] = (words[bit >> 5] as number) ^ (1 << (bit & 31));
        expect(isBlockContent(words, a, 0)).toBe(false);
      }),
    );
  });

  test("of a block that is not full depends on every token, their number and the block before", () => {
    const tokens = Uint32Array.from({ length: 15 }, (_, i) => 100 + i);
    const of = (parent: { low: number; high: number }, list: Uint32Array, to: number): string =>
      JSON.stringify(partialBlockKey(parent, list, 0, to));
    const root = { low: 0, high: 0 };
    const seen = new Set([of(root, tokens, 15), of({ low: 1, high: 0 }, tokens, 15)]);
    seen.add(of({ low: 0, high: 1 }, tokens, 15));
    for (let to = 1; to < 15; to++) seen.add(of(root, tokens, to));
    for (let i = 0; i < 15; i++) {
      const other = tokens.slice();
      other[i] = 7;
      seen.add(of(root, other, 15));
    }
    expect(seen.size).toBe(3 + 14 + 15);
  });
});

describe("what physical blocks hold", () => {
  test("stays readable after release and is gone once the block is handed out again", () => {
    const contents = new BlockContents(4);
    contents.write(2, 11, 22);
    expect(contents.keyOf(2)).toEqual({ low: 11, high: 22 });
    expect(contents.taintOf(2, 11, 22)).toBe(0);
    contents.overwrite(2);
    expect(contents.taintOf(2, 11, 22)).not.toBe(0);
  });

  test("two overwrites differ, so that what is read late depends on when", () => {
    const contents = new BlockContents(4);
    contents.overwrite(1);
    const first = contents.keyOf(1);
    contents.overwrite(1);
    expect(contents.keyOf(1)).not.toEqual(first);
  });
});
