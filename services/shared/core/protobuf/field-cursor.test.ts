import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { FieldCursor } from "./field-cursor.ts";
import { ShapeChecker, messageShape } from "./message-shape.ts";
import { structShape } from "./well-known-shapes.ts";

function walk(bytes: Uint8Array, from = 0, to = bytes.length): unknown[] {
  const cursor = new FieldCursor();
  cursor.enter(bytes, from, to);
  const seen: unknown[] = [];
  while (cursor.next()) {
    const { field, wire, value } = cursor;
    seen.push(wire === 0 ? [field, value] : [field, [...bytes.subarray(cursor.from, cursor.to)]]);
  }
  return cursor.odd ? [...seen, "odd"] : seen;
}

describe("FieldCursor", () => {
  test("passes what an encoder wrote", () => {
    const field = fc.tuple(
      fc.integer({ min: 1, max: 2 ** 28 - 1 }),
      fc.oneof(fc.maxSafeNat(), fc.nat(300), fc.uint8Array({ maxLength: 200 })),
    );
    fc.assert(
      fc.property(fc.array(field, { maxLength: 8 }), (fields) => {
        const writer = new BinaryWriter();
        for (const [number, value] of fields) {
          if (typeof value === "number") writer.tag(number, WireType.Varint).uint64(value);
          else writer.tag(number, WireType.LengthDelimited).bytes(value);
        }
        expect(walk(writer.finish())).toEqual(
          fields.map(([number, v]) => [number, typeof v === "number" ? v : [...v]]),
        );
      }),
      { numRuns: 500 },
    );
  });

  test("fixed numbers have their bytes", () => {
    expect(walk(Uint8Array.of(0x0d, 1, 2, 3, 4, 0x11, 1, 2, 3, 4, 5, 6, 7, 8))).toEqual([
      [1, [1, 2, 3, 4]],
      [2, [1, 2, 3, 4, 5, 6, 7, 8]],
    ]);
  });

  test.each<[string, number[]]>([
    ["field number 0", [0x02, 0x00]],
    ["a group", [0x0b, 0x0c]],
    ["wire type 6", [0x0e]],
    ["a number that is cut off", [0x08, 0x80]],
    ["a number longer than needed", [0x08, 0x80, 0x00]],
    ["a number of 2^53 and more", [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]],
    ["bytes beyond the end", [0x0a, 0x02, 0x00]],
    ["half of a fixed number", [0x0d, 1, 2]],
    ["a tag above 2^31", [0x88, 0x80, 0x80, 0x80, 0x08]],
  ])("%s is odd", (_name, bytes) => {
    expect(walk(Uint8Array.from(bytes)).at(-1)).toBe("odd");
  });

  test("sees nothing beyond its message", () => {
    expect(walk(Uint8Array.of(0x08, 1, 0x08, 2, 0x08, 3), 2, 4)).toEqual([[1, 2]]);
    expect(walk(Uint8Array.of(0x08, 0x81, 0x01), 0, 2)).toEqual(["odd"]);
  });
});

describe("ShapeChecker", () => {
  const shapes = new ShapeChecker();
  const shape = messageShape({ 1: "varint", 2: messageShape({ 1: "bytes" }) });
  const check = (...bytes: number[]): boolean =>
    shapes.isOrdinary(shape, Uint8Array.from(bytes), 0, bytes.length);

  test("takes known fields of their type and unknown ones of any", () => {
    expect(check()).toBe(true);
    expect(check(0x08, 1, 0x12, 2, 0x0a, 0, 0x18, 1, 0x25, 1, 2, 3, 4)).toBe(true);
    expect(check(0x0a, 0)).toBe(false);
    expect(check(0x12, 2, 0x08, 0)).toBe(false);
    expect(check(0x12, 2, 0x0a, 1, 0)).toBe(false);
  });

  test("leaves deep nesting to others", () => {
    const nested = (levels: number): number[] => {
      let list: number[] = [];
      for (let i = 0; i < levels; i++) list = wrapped(0x32, wrapped(0x0a, list));
      return wrapped(0x0a, [0x12, ...wrapped(0, list).slice(1)]);
    };
    const check = (bytes: number[]): boolean =>
      shapes.isOrdinary(structShape, Uint8Array.from(bytes), 0, bytes.length);
    expect(check(nested(5))).toBe(true);
    expect(check(nested(20))).toBe(false);
  });
});

function wrapped(tag: number, bytes: readonly number[]): number[] {
  const { length } = bytes;
  return length < 128
    ? [tag, length, ...bytes]
    : [tag, (length & 127) | 128, length >> 7, ...bytes];
}
