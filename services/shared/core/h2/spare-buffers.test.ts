import { describe, expect, test } from "vitest";
import { FrameOutput } from "./frame-output.ts";
import { SpareBuffers, spareBytesMin } from "./spare-buffers.ts";

describe("SpareBuffers", () => {
  test("passes on what was given back, where it is large enough", () => {
    const spares = new SpareBuffers(4 << 20);
    const first = spares.take(300_000);
    expect(first).toHaveLength(512 << 10);
    expect(spares.give(first)).toBe(true);
    expect(spares.take(600_000)).not.toBe(first);
    expect(spares.take(1)).toBe(first);
    expect(spares.idleBytes).toBe(0);
    expect(spares.take(1)).toHaveLength(spareBytesMin);
  });

  test("keeps no more than its total, and no small ones", () => {
    const spares = new SpareBuffers(600_000);
    expect(spares.give(new Uint8Array(1_000))).toBe(false);
    expect(spares.give(new Uint8Array(spareBytesMin))).toBe(true);
    expect(spares.give(new Uint8Array(1 << 20))).toBe(false);
    expect(spares.idleBytes).toBe(spareBytesMin);
  });

  test("an output that grows large does so in one of them, with what it held", () => {
    const spares = new SpareBuffers(4 << 20);
    const used = spares.take(1 << 20).fill(0xee);
    spares.give(used);
    const output = new FrameOutput(64, spares);
    const plain = new FrameOutput(64);
    for (const one of [output, plain]) {
      for (let i = 0; i < 60; i++) one.data(1, new Uint8Array(16_000).fill(i), 0, 16_000);
    }
    const { length } = output;
    expect(length).toBe(plain.length);
    const bytes = output.swap(new Uint8Array(64));
    expect(bytes).toBe(used);
    expect(spares.idleBytes).toBe(0);
    output.giveBack(bytes);
    expect(spares.idleBytes).toBe(used.length);
    const expected = plain.swap(new Uint8Array(64)).subarray(0, length);
    expect(Buffer.from(bytes.subarray(0, length)).equals(Buffer.from(expected))).toBe(true);
  });
});
