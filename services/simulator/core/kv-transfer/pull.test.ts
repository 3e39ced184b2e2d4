import { crc32 } from "node:zlib";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { fillBlockContent, segmentBytes } from "./block-content.ts";
import { chunkBlocksMax, chunkBytesMax, type Frame } from "./frames.ts";
import { PullAssembly } from "./pull-assembly.ts";
import { chunkBytesFor, planChunks, type ChunkPlan } from "./pull-plan.ts";

type Chunk = Extract<Frame, { kind: "chunk" }>;
const size = fc.oneof(
  fc.integer({ min: 1, max: 300 }).map((units) => units * 16),
  fc.integer({ min: 10, max: 60 }).map((kib) => kib * 16_384 + 16),
);

const keysOf = (count: number): Uint32Array =>
  Uint32Array.from({ length: count * 2 }, (_, i) => Math.imul(i + 1, 0x9e3779b1));

/** What a sender makes of one chunk; `foreign` blocks hold something else. */
function chunkOf(plan: ChunkPlan, keys: Uint32Array, foreign: ReadonlySet<number>): Chunk {
  const each = plan.contentBytes / plan.blockCount / 4;
  const words = new Uint32Array(plan.contentBytes / 4);
  const checksums = new Uint32Array(plan.blockCount);
  for (let i = 0; i < plan.blockCount; i++) {
    const block = plan.firstBlock + i;
    const part = words.subarray(i * each, (i + 1) * each);
    const low = (keys[block * 2] as number) ^ (foreign.has(block) ? 1 : 0);
    const key = { low, high: keys[block * 2 + 1] as number };
    fillBlockContent(part, key, plan.offsetBytes / 4);
    checksums[i] = crc32(new Uint8Array(part.buffer, part.byteOffset, part.byteLength));
  }
  return { kind: "chunk", id: 1, ...plan, checksums, words };
}

const assemblyOf = (keys: Uint32Array, bytesPerBlock: number): PullAssembly =>
  new PullAssembly({ keys, bytesPerBlock, checksum: crc32 });

describe("a plan of chunks", () => {
  test("covers every byte once, in order, within the limits", () => {
    fc.assert(
      fc.property(
        size,
        fc.integer({ min: 0, max: 40 }),
        fc.nat(30_000_000),
        (bytes, count, rate) => {
          let next = 0;
          for (const plan of planChunks(count, bytes, chunkBytesFor(rate))) {
            expect(plan.firstBlock * bytes + plan.offsetBytes).toBe(next);
            expect(plan.offsetBytes % segmentBytes).toBe(0);
            expect(plan.contentBytes).toBeLessThanOrEqual(chunkBytesMax);
            expect(plan.blockCount).toBeLessThanOrEqual(chunkBlocksMax);
            next += plan.contentBytes;
          }
          expect(next).toBe(count * bytes);
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe("the assembly of a pull", () => {
  test("finds exactly the blocks that were damaged, and those that hold something else", () => {
    fc.assert(
      fc.property(
        size,
        fc.integer({ min: 1, max: 12 }),
        fc.uniqueArray(fc.nat(11), { maxLength: 3 }),
        fc.uniqueArray(fc.nat(11), { maxLength: 3 }),
        fc.nat(),
        (bytes, count, damagedList, foreignList, bit) => {
          const keys = keysOf(count);
          const damaged = new Set(damagedList.filter((block) => block < count));
          const foreign = new Set(
            foreignList.filter((block) => block < count && !damaged.has(block)),
          );
          const assembly = assemblyOf(keys, bytes);
          for (const plan of planChunks(count, bytes)) {
            const chunk = chunkOf(plan, keys, foreign);
            const each = chunk.words.length / plan.blockCount;
            for (const block of damaged) {
              const place = block - plan.firstBlock;
              if (place < 0 || place >= plan.blockCount) continue;
              const at = place * each + ((bit >> 5) % each);
              chunk.words[at] = (chunk.words[at] as number) ^ (1 << (bit & 31));
            }
            assembly.take(chunk);
          }
          expect(assembly.isComplete).toBe(true);
          expect(assembly.receivedBytes).toBe(count * bytes);
          const result = assembly.result();
          const good = Math.min(count, ...damaged);
          expect(result.damagedBlocks).toBe(damaged.size);
          expect(result.goodBlocks).toBe(good);
          expect([...result.foreign.keys()].sort()).toEqual(
            [...foreign].filter((block) => block < good).sort(),
          );
        },
      ),
      { numRuns: 40 },
    );
  });

  test("cut off keeps the whole blocks that came", () => {
    const keys = keysOf(9);
    const assembly = assemblyOf(keys, 99_984);
    const own = [...planChunks(9, 99_984)];
    expect(own.length).toBeGreaterThan(3);
    for (const plan of own.slice(0, 2)) assembly.take(chunkOf(plan, keys, new Set()));
    expect(assembly.isComplete).toBe(false);
    expect(assembly.result().goodBlocks).toBe(own[2]!.firstBlock);
  });

  test("refuses a chunk that is not the next one", () => {
    const keys = keysOf(4);
    const [plan] = [...planChunks(4, 64)];
    const assembly = assemblyOf(keys, 64);
    assembly.take(chunkOf(plan!, keys, new Set()));
    expect(() => {
      assembly.take(chunkOf(plan!, keys, new Set()));
    }).toThrow(/was due/);
    const other = assemblyOf(keysOf(2), 64);
    expect(() => {
      other.take(chunkOf(plan!, keys, new Set()));
    }).toThrow(/was due/);
  });
});
