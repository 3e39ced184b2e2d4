import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { BufferPool } from "../../services/shared/core/h2/buffer-pool.ts";
import { MessageReader } from "../../services/shared/core/h2/message-reader.ts";
import { BareConnection } from "../support/h2-connection.ts";
import {
  block,
  data,
  flags,
  frame,
  grpcMessage,
  headers,
  preface,
  requestFields,
  rst,
  settings,
  types,
  windowUpdate,
} from "../support/h2-frames.ts";

/** What a client does on one of its streams; `stream` is counted from 0. */
const action = fc.record({
  kind: fc.constantFrom(
    "open",
    "data",
    "padded",
    "end",
    "reset",
    "trailers",
    "ping",
    "settings",
    "window",
    "unknown",
    "priority",
    "wrong",
  ),
  stream: fc.nat(5),
  size: fc.oneof(fc.nat(60), fc.nat(3_000)),
});
type Action = typeof action extends fc.Arbitrary<infer T> ? T : never;

const openAs = ["whole", "continued", "padded", "priority"] as const;

/** Frames of a conversation that may hold mistakes; opened streams have ascending numbers. */
function conversation(actions: readonly Action[]): Buffer[] {
  const parts: Buffer[] = [preface, settings(), frame(types.settings, flags.ack, 0)];
  let opened = 0;
  for (const { kind, stream, size } of actions) {
    // Mostly a stream that is or was open: one that never was ends the conversation.
    const id = (opened === 0 || size === 59 ? stream : stream % opened) * 2 + 1;
    if (opened === 0 && kind !== "open" && size < 59) continue;
    switch (kind) {
      case "open": {
        const request = block([...requestFields("/p.S/M"), ["x-size", size.toString()]]);
        const next = opened++ * 2 + 1;
        const how = openAs[size % openAs.length];
        if (how === "whole") parts.push(headers(next, request));
        else if (how === "continued") {
          parts.push(frame(types.headers, 0, next, request.subarray(0, 20)));
          parts.push(frame(types.continuation, 0, next, request.subarray(20, 21)));
          parts.push(frame(types.continuation, flags.endHeaders, next, request.subarray(21)));
        } else if (how === "padded") {
          const padded = Buffer.concat([Buffer.from([9]), request, Buffer.alloc(9)]);
          parts.push(headers(next, padded, flags.padded));
        } else {
          const weighted = Buffer.concat([Buffer.from([0, 0, 0, 0, 16]), request]);
          parts.push(headers(next, weighted, flags.priority));
        }
        break;
      }
      case "data":
        parts.push(data(id, Buffer.alloc(size, size)));
        break;
      case "padded":
        parts.push(
          frame(
            types.data,
            flags.padded,
            id,
            Buffer.concat([Buffer.from([size % 40]), Buffer.alloc(size + (size % 40), 7)]),
          ),
        );
        break;
      case "end":
        parts.push(data(id, Buffer.alloc(size % 9, 1), flags.end));
        break;
      case "reset":
        parts.push(rst(id, 8));
        break;
      case "trailers":
        parts.push(headers(id, block([["x-trailer", "1"]]), flags.end));
        break;
      case "ping":
        parts.push(frame(types.ping, 0, 0, Buffer.alloc(8, size)));
        break;
      case "settings":
        parts.push(settings([4, size], [0xff, 1]));
        break;
      case "window":
        parts.push(windowUpdate(stream === 0 ? 0 : id, size + 1));
        break;
      case "unknown":
        parts.push(frame(0x21, 0xff, stream, Buffer.alloc(size % 50)));
        break;
      case "priority":
        parts.push(frame(types.priority, 0, id, [0, 0, 0, 0, 1]));
        break;
      case "wrong":
        if (size % 10 === 0) parts.push(frame(types.ping, 0, 0, [1, 2, 3]));
        break;
    }
  }
  return parts;
}

/** Everything that a conversation causes, when its bytes come in the given pieces. */
function outcome(pieces: readonly Uint8Array[]): {
  events: string[];
  frames: unknown[];
  end: unknown;
} {
  const bare = new BareConnection();
  for (const piece of pieces) bare.receive(piece);
  return { events: bare.events, frames: bare.frames(), end: bare.connection.end };
}

describe("a connection's bytes", () => {
  test("have the same outcome in any pieces", () => {
    fc.assert(
      fc.property(
        fc.array(action, { maxLength: 30 }),
        fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 50 }),
        (actions, sizes) => {
          const bytes = Buffer.concat(conversation(actions));
          const pieces: Buffer[] = [];
          for (let at = 0, i = 0; at < bytes.length; i++) {
            const size = sizes[i % sizes.length]!;
            pieces.push(bytes.subarray(at, at + size));
            at += size;
          }
          expect(outcome(pieces)).toEqual(outcome([bytes]));
        },
      ),
      { numRuns: 300 },
    );
  });

  test("have the same outcome split at each octet, and octet by octet", () => {
    const kinds = [
      "open",
      "data",
      "open",
      "padded",
      "ping",
      "open",
      "open",
      "window",
      "data",
      "settings",
      "end",
      "trailers",
      "reset",
      "priority",
    ] as const;
    const actions = kinds.map((kind, i) => ({ kind, stream: i % 4, size: i + 1 }));
    const bytes = Buffer.concat(conversation(actions));
    const whole = outcome([bytes]);
    expect(whole.events.filter((event) => event.startsWith("open"))).toHaveLength(4);
    for (let at = 1; at < bytes.length; at++) {
      expect(outcome([bytes.subarray(0, at), bytes.subarray(at)])).toEqual(whole);
    }
    expect(outcome([...bytes].map((octet) => Uint8Array.of(octet)))).toEqual(whole);
  });
});

describe("gRPC messages", () => {
  test("come out whole and in order, whatever the pieces, and leave no memory behind", () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.nat(20), fc.nat(70_000)), { maxLength: 8 }),
        fc.array(fc.integer({ min: 1, max: 40_000 }), { minLength: 1, maxLength: 20 }),
        (lengths, sizes) => {
          const messages = lengths.map((length, i) => Buffer.alloc(length, i + 1));
          const bytes = Buffer.concat(messages.map(grpcMessage));
          const pool = new BufferPool(1 << 20, 0);
          const got: Buffer[] = [];
          const reader = new MessageReader(pool, 1 << 20, {
            onMessage: (message) => got.push(Buffer.from(message)),
          });
          for (let at = 0, i = 0; at < bytes.length; i++) {
            const end = Math.min(bytes.length, at + sizes[i % sizes.length]!);
            expect(reader.read(bytes, at, end)).toBeUndefined();
            at = end;
          }
          expect(got.map(({ length }) => length)).toEqual(lengths);
          expect(Buffer.concat(got).equals(Buffer.concat(messages))).toBe(true);
          expect(reader.isBetween).toBe(true);
          expect(pool.outBytes).toBe(0);
        },
      ),
      { numRuns: 200 },
    );
  });
});
