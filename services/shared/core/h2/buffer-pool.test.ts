import { describe, expect, test } from "vitest";
import { BufferPool } from "./buffer-pool.ts";

describe("BufferPool", () => {
  test.each([
    [0, 4_096],
    [4_096, 4_096],
    [4_097, 8_192],
    [65_536, 65_536],
    [1_000_000, 1 << 20],
  ])("a buffer for %i bytes has %i", (bytes, length) => {
    expect(new BufferPool(1 << 21, 0).take(bytes)).toHaveLength(length);
  });

  test("gives nothing beyond its budget, and again when something came back", () => {
    const pool = new BufferPool(16_384, 0);
    const first = pool.take(8_000)!;
    expect(pool.take(8_193)).toBeUndefined();
    expect(pool.outBytes).toBe(8_192);
    pool.give(first);
    expect(pool.outBytes).toBe(0);
    expect(pool.take(8_193)).toHaveLength(16_384);
  });

  test("reuses what came back, up to a total", () => {
    const pool = new BufferPool(1 << 20, 12_288);
    const buffers = [pool.take(1)!, pool.take(1)!, pool.take(1)!, pool.take(1)!];
    for (const buffer of buffers) pool.give(buffer);
    expect(pool.idleBytes).toBe(12_288);
    const again = [pool.take(1), pool.take(1), pool.take(1), pool.take(1)];
    expect(again.filter((buffer) => buffers.includes(buffer!))).toHaveLength(3);
    expect(new Set(again).size).toBe(4);
  });
});
