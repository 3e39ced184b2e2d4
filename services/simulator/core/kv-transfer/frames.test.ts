import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { MeshError } from "../../../shared/core/errors.ts";
import {
  encodeFrame,
  frameHeadBytes,
  framePayloadBytesMax,
  FrameReader,
  layOutChunk,
  type Frame,
} from "./frames.ts";

type Small = Exclude<Frame, { kind: "chunk" }>;

const text = fc.string({ unit: "grapheme", maxLength: 60 });
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
const small: fc.Arbitrary<Small> = fc.oneof(
  fc.record({
    kind: fc.constant("hello" as const),
    version: u32,
    engineId: text,
    instance: text,
    fingerprint: text,
  }),
  fc
    .record({
      id: u32,
      mode: fc.constantFrom("blocks" as const, "handoff" as const, "room" as const),
      key: text,
      firstBlock: u32,
      list: fc.array(u32, { maxLength: 50 }),
    })
    .map(({ list, ...rest }) => ({
      kind: "pull" as const,
      ...rest,
      blockCount: list.length,
      blocks: Uint32Array.from(list),
    })),
  fc.record({
    kind: fc.constant("end" as const),
    id: u32,
    cachedTokens: u32,
    tokens: fc.array(u32, { maxLength: 5 }),
  }),
  fc.record({
    kind: fc.constant("done" as const),
    key: text,
    outcome: fc.constantFrom("pulled" as const, "aborted" as const),
  }),
  fc.record({ kind: fc.constant("heartbeat" as const), keys: fc.array(text, { maxLength: 9 }) }),
  fc.record({ kind: fc.constant("abort" as const), id: u32, reason: text }),
);

/** Feeds bytes in pieces of the given sizes, in turn, through one reused buffer. */
function readAll(bytes: Uint8Array, sizes: readonly number[]): Frame[] {
  const frames: Frame[] = [];
  const reader = new FrameReader((frame) => frames.push(frame));
  const buffer = new Uint8Array(Math.max(...sizes, 1));
  let at = 0;
  for (let i = 0; at < bytes.length; i++) {
    const size = Math.min(sizes[i % sizes.length] as number, bytes.length - at);
    buffer.set(bytes.subarray(at, at + size));
    reader.feed(buffer.subarray(0, size));
    buffer.fill(0xee);
    at += size;
  }
  return frames;
}

const join = (parts: readonly Uint8Array[]): Uint8Array =>
  Uint8Array.from(parts.flatMap((part) => [...part]));
const pieces = fc.array(fc.integer({ min: 1, max: 97 }), { minLength: 1, maxLength: 9 });

describe("frames", () => {
  test("come back equal, however the stream is cut", () => {
    fc.assert(
      fc.property(fc.array(small, { maxLength: 6 }), pieces, (frames, sizes) => {
        expect(readAll(join(frames.map(encodeFrame)), sizes)).toEqual(frames);
      }),
    );
  });

  test("of content come back with checksums and words", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 5 }),
        fc.integer({ min: 1, max: 9 }),
        pieces,
        (n, units, sizes) => {
          const contentBytes = n * units * 16;
          const room = layOutChunk({
            id: 7,
            firstBlock: 3,
            blockCount: n,
            offsetBytes: 0,
            contentBytes,
          });
          room.words.forEach((_, i) => (room.words[i] = i * 0x01010101));
          room.checksums.forEach((_, i) => (room.checksums[i] = 0xffff_fff0 + i));
          const seen: unknown[] = [];
          const reader = new FrameReader((frame) => {
            if (frame.kind !== "chunk") throw new Error(frame.kind);
            seen.push({ ...frame, checksums: [...frame.checksums], words: [...frame.words] });
          });
          for (let at = 0, i = 0; at < room.bytes.length; i++) {
            const size = sizes[i % sizes.length] as number;
            reader.feed(room.bytes.subarray(at, at + size));
            at += size;
          }
          expect(seen).toEqual([
            {
              kind: "chunk",
              id: 7,
              firstBlock: 3,
              blockCount: n,
              offsetBytes: 0,
              checksums: [...room.checksums],
              words: [...room.words],
            },
          ]);
        },
      ),
    );
  });

  test("that break the protocol end in a named error and grow nothing", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 400 }), pieces, (bytes, sizes) => {
        try {
          readAll(bytes, sizes);
        } catch (error) {
          expect(error).toBeInstanceOf(MeshError);
          expect((error as MeshError).code).toBe("invalid_request");
        }
      }),
      { numRuns: 500 },
    );
  });

  test("with a byte changed are another frame, an error, or still incomplete; nothing else", () => {
    fc.assert(
      fc.property(small, fc.nat(), fc.integer({ min: 1, max: 255 }), (frame, at, change) => {
        const bytes = encodeFrame(frame);
        bytes[at % bytes.length] = (bytes[at % bytes.length] as number) ^ change;
        try {
          expect(readAll(bytes, [64]).length).toBeLessThanOrEqual(1);
        } catch (error) {
          expect(error).toBeInstanceOf(MeshError);
        }
      }),
      { numRuns: 500 },
    );
  });

  test("too long are refused by their head, before any of it is kept", () => {
    const head = new Uint8Array(frameHeadBytes);
    new DataView(head.buffer).setUint32(0, framePayloadBytesMax + 1, true);
    expect(() => readAll(head, [4])).toThrow(/exceeds/);
    expect(() => encodeFrame({ kind: "abort", id: 1, reason: "x".repeat(5_000) })).toThrow(
      /too long/,
    );
  });

  test("a pull of 131,072 blocks fits", () => {
    const blocks = new Uint32Array(131_072);
    const frame = {
      kind: "pull" as const,
      id: 1,
      mode: "blocks" as const,
      key: "k",
      firstBlock: 0,
      blockCount: blocks.length,
      blocks,
    };
    expect(readAll(encodeFrame(frame), [65_536])).toEqual([frame]);
  });
});
