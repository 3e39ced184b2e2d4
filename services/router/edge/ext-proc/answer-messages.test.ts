import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ProcessingResponse } from "../../../shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import type { ImmediateAnswer, RoutingAnswer } from "../../core/exchange/exchange.ts";
import { AnswerMessages, pieceHeadBytesMax, writePieceHead } from "./answer-messages.ts";
import {
  continueMessage,
  extendMessage,
  immediateMessage,
  pieceMessage,
  routeMessage,
  trailersMessage,
} from "./generated-messages.ts";

const messages = new AnswerMessages();

/** What the receiver sees of a message, and of the one that the generated code writes for the same answer. */
function same(written: Uint8Array, expected: ProcessingResponse): void {
  const generated = ProcessingResponse.encode(expected).finish();
  expect(ProcessingResponse.decode(written)).toEqual(ProcessingResponse.decode(generated));
}

const text = fc.oneof(
  fc.string({ maxLength: 60 }),
  fc.string({ unit: "binary", maxLength: 20 }),
  fc.string({ minLength: 100, maxLength: 20_000 }),
  fc.constantFrom("", "\ud800", "a\udc00b", "\ud83d\ude00", "größe"),
);
const name = fc.string({ unit: "grapheme-ascii", minLength: 1, maxLength: 40 });
const headers = fc.array(fc.tuple(name, text), { maxLength: 5 });
const namespace = fc.dictionary(name, text, { maxKeys: 5, noNullPrototype: true });
const route: fc.Arbitrary<RoutingAnswer> = fc.record({
  kind: fc.constant("route" as const),
  setHeaders: headers,
  removeHeaders: fc.array(name, { maxLength: 3 }),
  metadata: fc.dictionary(name, namespace, { maxKeys: 3, noNullPrototype: true }),
});
const immediate: fc.Arbitrary<ImmediateAnswer> = fc.record({
  kind: fc.constant("immediate" as const),
  status: fc.integer({ min: 100, max: 599 }),
  headers,
  body: text,
  details: text,
  grpcStatus: fc.integer({ min: 0, max: 16 }),
});

describe("answers mean what the generated code would have written", () => {
  test("routes", () => {
    fc.assert(
      fc.property(route, fc.constantFrom("requestHeaders", "requestBody"), (answer, to) => {
        same(messages.route(to, answer), routeMessage(to, answer));
      }),
      { numRuns: 500 },
    );
  });

  test("immediate answers", () => {
    fc.assert(
      fc.property(immediate, (answer) => {
        same(messages.immediate(answer), immediateMessage(answer));
      }),
      { numRuns: 500 },
    );
  });

  test("timeouts", () => {
    fc.assert(
      fc.property(fc.double({ min: 0, max: 1e8, noNaN: true }), (ms) => {
        same(messages.extendTimeout(ms), extendMessage(ms));
      }),
    );
    same(messages.extendTimeout(2_500), extendMessage(2_500));
  });

  test("headers and trailers that pass", () => {
    same(messages.continueHeaders(), continueMessage());
    same(messages.passTrailers(), trailersMessage());
  });

  test("body pieces, written around the bytes in place", () => {
    const lengths = [0, 1, 100, 127, 128, 300, 16_383, 16_384, 61_999, 62_000, 2_097_152];
    for (const length of lengths) {
      for (const endOfStream of [false, true]) {
        const bytes = new Uint8Array(pieceHeadBytesMax + length + 5).fill(0xee);
        const piece = bytes.subarray(pieceHeadBytesMax, pieceHeadBytesMax + length).fill(length);
        const at = writePieceHead(bytes, pieceHeadBytesMax, length, endOfStream);
        expect(at).toBeGreaterThanOrEqual(0);
        const written = bytes.subarray(at, pieceHeadBytesMax + length);
        same(written, pieceMessage(piece, endOfStream));
        expect(bytes.subarray(pieceHeadBytesMax + length).every((b) => b === 0xee)).toBe(true);
      }
    }
  });
});
