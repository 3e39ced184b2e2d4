import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { BufferPool } from "../../../shared/core/h2/buffer-pool.ts";
import { pieceHeadBytesMax } from "./answer-messages.ts";
import { PooledBody } from "./pooled-body.ts";

const newPool = () => new BufferPool(1 << 30, 1 << 24);

describe("PooledBody", () => {
  test("joins its parts into one with room before it, and gives its buffer back", () => {
    const part = fc.tuple(fc.nat(20_000), fc.nat(255));
    const claim = fc.constantFrom(Number.NaN, 0, 10, 30_000, 1e12, -5);
    fc.assert(
      fc.property(fc.array(part, { maxLength: 8 }), claim, (parts, claimed) => {
        const pool = newPool();
        const body = new PooledBody(pool, () => claimed);
        const sent = parts.map(([length, value]) => new Uint8Array(length).fill(value));
        for (const one of sent) {
          const copy = one.slice();
          body.add(copy);
          copy.fill(0);
        }
        const whole = Buffer.concat(sent);
        expect(Buffer.concat(body.parts).equals(whole)).toBe(true);
        expect(body.parts.length).toBeLessThanOrEqual(1);
        for (const view of body.parts) {
          expect(view.byteOffset).toBeGreaterThanOrEqual(pieceHeadBytesMax);
        }
        body.release();
        body.release();
        expect([body.parts, pool.outBytes]).toEqual([[], 0]);
      }),
    );
  });

  test("believes a claimed length up to a megabyte, so that it need not grow", () => {
    const pool = newPool();
    const body = new PooledBody(pool, () => 500_000);
    body.add(new Uint8Array(10));
    expect(pool.outBytes).toBe(1 << 19);
    const liar = new PooledBody(pool, () => 1e12);
    liar.add(new Uint8Array(10));
    expect(pool.outBytes).toBeLessThanOrEqual((1 << 19) + (1 << 21));
  });

  test("may be filled again after it was released", () => {
    const body = new PooledBody(newPool(), () => Number.NaN);
    body.add(Uint8Array.of(1));
    body.release();
    body.add(Uint8Array.of(2, 3));
    expect(body.parts.map((part) => [...part])).toEqual([[2, 3]]);
  });
});
