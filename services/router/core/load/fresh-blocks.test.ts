import fc from "fast-check";
import { expect, test } from "vitest";
import { FreshBlocks } from "./fresh-blocks.ts";

test("gives each block that it was filled with once, and no other", () => {
  const blocks = new FreshBlocks();
  const word = fc.integer({ min: 0, max: 3 }).map((n) => [0, 1, 64, 0xffff_ffff][n] as number);
  const pairs = fc.array(fc.tuple(word, word), { maxLength: 200 });
  fc.assert(
    fc.property(pairs, pairs, (held, asked) => {
      const left = new Set(held.map(String));
      blocks.fill(Uint32Array.from(held.flat()));
      expect(blocks.size).toBe(left.size);
      for (const [lo, hi] of asked) {
        expect(blocks.draw(lo, hi)).toBe(left.delete(String([lo, hi])));
        expect(blocks.size).toBe(left.size);
      }
    }),
  );
});

test("grows", () => {
  const blocks = new FreshBlocks();
  const many = Uint32Array.from({ length: 20_000 }, (_, i) => i * 64);
  blocks.fill(many);
  expect(blocks.size).toBe(10_000);
  for (let i = 0; i < many.length; i += 2) {
    expect(blocks.draw(many[i] as number, many[i + 1] as number)).toBe(true);
  }
  expect(blocks.size).toBe(0);
});
