import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { HpackDecoder } from "../../core/hpack/decoder.ts";
import { encodeGrpcMessage, parseGrpcTimeout, trailerBlock } from "./grpc-blocks.ts";

function fieldsOf(block: Uint8Array): Record<string, string> {
  const decoder = new HpackDecoder({ tableBytesMax: 4_096, listBytesMax: 65_536, fieldsMax: 99 });
  const list = decoder.decode(block, 0, block.length);
  return Object.fromEntries((list?.fields ?? []).map(({ name, value }) => [name, value]));
}

describe("grpc-timeout", () => {
  test.each([
    ["1H", 3_600_000],
    ["2M", 120_000],
    ["3S", 3_000],
    ["4m", 4],
    ["500u", 0.5],
    ["99999999n", 99.999_999],
    ["0S", 0],
  ])("%s is %d ms", (text, ms) => {
    expect(parseGrpcTimeout(text)).toBeCloseTo(ms, 9);
  });

  test.each(["", "1", "S", "1s", "-1S", "1.5S", "123456789S", "1S "])("%j is none", (text) => {
    expect(parseGrpcTimeout(text)).toBeUndefined();
  });
});

describe("grpc-message", () => {
  test("is visible ASCII that decodes to the text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), (text) => {
        const encoded = encodeGrpcMessage(text);
        expect(encoded).toMatch(/^[ -~]*$/);
        expect(decodeURIComponent(encoded)).toBe(text);
      }),
    );
  });

  test("is cut where it gets too long, between two characters of its encoded form", () => {
    for (let spaces = 0; spaces < 3; spaces++) {
      const text = " x".repeat(spaces) + "é".repeat(2_000);
      const message = fieldsOf(trailerBlock(13, text, [], true))["grpc-message"] ?? "";
      expect(message.length).toBeLessThanOrEqual(1_024);
      expect(message.length).toBeGreaterThan(1_000);
      expect(message).toMatch(/^(?:[ x]|%[0-9A-F]{2})*$/);
    }
  });
});

describe("trailers", () => {
  test("that come alone carry the answer's headers", () => {
    expect(fieldsOf(trailerBlock(5, "no such thing", [["a", "b"]], true))).toEqual({
      ":status": "200",
      "content-type": "application/grpc",
      "grpc-status": "5",
      "grpc-message": "no such thing",
      a: "b",
    });
  });

  test("of a call that went well are the status alone", () => {
    expect(fieldsOf(trailerBlock(0, undefined, [], false))).toEqual({ "grpc-status": "0" });
  });
});
