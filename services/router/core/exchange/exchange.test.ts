import fc from "fast-check";
import { describe, expect, test } from "vitest";

import {
  Exchange,
  pieceBytesMax,
  type BodyMode,
  type ExchangeEffect,
  type ExchangeEvent,
  type ImmediateAnswer,
  type RoutingAnswer,
} from "./exchange.ts";

const headers = (bodyMode: BodyMode, endOfStream = false): ExchangeEvent => ({
  kind: "request_headers",
  headers: new Map([[":path", "/v1/completions"]]),
  endOfStream,
  bodyMode,
});
const body = (bytes: number | Uint8Array, endOfStream = false): ExchangeEvent => ({
  kind: "request_body",
  body: typeof bytes === "number" ? new Uint8Array(bytes).fill(7) : bytes,
  endOfStream,
});
const trailers: ExchangeEvent = { kind: "request_trailers" };
const response: ExchangeEvent = { kind: "other", name: "responseHeaders" };

const route: RoutingAnswer = {
  kind: "route",
  setHeaders: [["x-kvmesh-pool", "pool-default"]],
  removeHeaders: [],
  metadata: {},
};
const refusal: ImmediateAnswer = {
  kind: "immediate",
  status: 400,
  headers: [],
  body: "{}",
  details: "kvmesh_invalid_request",
  grpcStatus: 3,
};

const kinds = (effects: readonly ExchangeEffect[]): string[] => effects.map((e) => e.kind);

/** An exchange in each state of the table. */
const states = {
  headers: () => new Exchange(),
  "body, BUFFERED": () => after(headers("buffered")),
  "body, duplex": () => after(headers("full_duplex")),
  deciding: () => after(headers("buffered"), body(5, true)),
  done: () => {
    const exchange = after(headers("buffered"), body(5, true));
    exchange.decided(route);
    return exchange;
  },
};

function after(...events: readonly ExchangeEvent[]): Exchange {
  const exchange = new Exchange();
  for (const event of events) exchange.receive(event);
  return exchange;
}

describe("the table of an exchange", () => {
  test.each<[keyof typeof states, string, ExchangeEvent, string[]]>([
    ["headers", "headers, BUFFERED", headers("buffered"), ["continue_headers"]],
    ["headers", "headers, BUFFERED_PARTIAL", headers("buffered_partial"), ["continue_headers"]],
    ["headers", "headers, duplex", headers("full_duplex"), []],
    ["headers", "headers of a request without body", headers("buffered", true), ["decide"]],
    [
      "headers",
      "headers of a request without body, duplex",
      headers("full_duplex", true),
      ["decide"],
    ],
    ["headers", "headers, mode NONE", headers("none"), ["decide"]],
    ["headers", "headers, mode STREAMED", headers("unsupported"), ["fail"]],
    ["headers", "body", body(1), ["fail"]],
    ["headers", "trailers", trailers, ["fail"]],
    ["headers", "response headers", response, ["fail"]],
    ["body, BUFFERED", "headers", headers("buffered"), ["fail"]],
    ["body, BUFFERED", "body with the end mark", body(1, true), ["decide"]],
    ["body, BUFFERED", "body without it: trailers follow", body(1), ["decide"]],
    ["body, BUFFERED", "empty body", body(0, true), ["decide"]],
    ["body, BUFFERED", "trailers", trailers, []],
    ["body, BUFFERED", "response headers", response, ["fail"]],
    ["body, duplex", "headers", headers("full_duplex"), ["fail"]],
    ["body, duplex", "a piece", body(1), []],
    ["body, duplex", "the last piece", body(1, true), ["decide"]],
    ["body, duplex", "an empty last piece", body(0, true), ["decide"]],
    ["body, duplex", "trailers", trailers, ["decide"]],
    ["body, duplex", "response headers", response, ["fail"]],
    ["deciding", "headers", headers("buffered"), ["fail"]],
    ["deciding", "a repeated end of stream", body(0, true), []],
    ["deciding", "trailers", trailers, []],
    ["deciding", "response headers", response, ["fail"]],
    ["done", "headers", headers("buffered"), []],
    ["done", "body", body(1, true), []],
    ["done", "trailers", trailers, []],
    ["done", "response headers", response, []],
  ])("%s: %s", (state, _name, event, expected) => {
    const exchange = states[state]();
    const effects = exchange.receive(event);
    expect(kinds(effects)).toEqual(expected);
    const isDone = state === "done" || expected.includes("fail");
    expect(exchange.done).toBe(isDone);
    if (isDone) {
      expect(exchange.receive(body(1, true))).toEqual([]);
      expect(exchange.decided(route)).toEqual([]);
    }
  });

  test.each(["headers", "body, BUFFERED", "body, duplex", "done"] as const)(
    "%s: a decision that nothing asked for is ignored",
    (state) => {
      expect(states[state]().decided(route)).toEqual([]);
    },
  );

  test("deciding: a decision is answered once", () => {
    const exchange = states.deciding();
    expect(kinds(exchange.decided(route))).toEqual(["answer_body", "end"]);
    expect(exchange.done).toBe(true);
    expect(exchange.decided(route)).toEqual([]);
  });
});

describe("a decision that takes time", () => {
  test.each([
    ["buffered", [headers("buffered"), body(5, true)]],
    ["buffered_partial", [headers("buffered_partial"), body(5)]],
    ["buffered, headers only", [headers("buffered", true)]],
    ["none", [headers("none")]],
  ] as const)("%s: puts the proxy's timer off once, then answers as usual", (_name, events) => {
    const exchange = after(...events);
    expect(exchange.waiting(2_500)).toEqual([{ kind: "extend_timeout", ms: 2_500 }]);
    expect(exchange.waiting(2_500)).toEqual([]);
    expect(exchange.receive(body(0, true))).toEqual([]);
    expect(kinds(exchange.decided(route)).at(-1)).toBe("end");
  });

  test("duplex: there is no timer to put off, and the body is kept for the echo", () => {
    const exchange = after(headers("full_duplex"), body(5, true));
    expect(exchange.waiting(2_500)).toEqual([]);
    expect(kinds(exchange.decided(route))).toEqual(["answer_headers", "body_piece", "end"]);
  });

  test.each(["headers", "body, BUFFERED", "body, duplex", "done"] as const)(
    "%s: there is nothing to wait for",
    (state) => {
      expect(states[state]().waiting(1_000)).toEqual([]);
    },
  );

  test("only a body that is sent back is kept", () => {
    const seen = (mode: BodyMode) => {
      const exchange = after(headers(mode));
      expect(exchange.takesBody).toBe(true);
      exchange.receive(body(5, true));
      return [exchange.takesBody, exchange.keepsBody];
    };
    expect(seen("buffered")).toEqual([false, false]);
    expect(seen("full_duplex")).toEqual([false, true]);
    expect(new Exchange().takesBody).toBe(false);
  });
});

describe("answers", () => {
  test.each(["buffered", "buffered_partial", "full_duplex", "none"] as const)(
    "a request without body is answered on its headers in mode %s",
    (mode) => {
      const exchange = after(headers(mode, true));
      expect(kinds(exchange.decided(route))).toEqual(["answer_headers", "end"]);
    },
  );

  test("a refusal is the whole answer in every mode", () => {
    for (const mode of ["buffered", "buffered_partial", "full_duplex"] as const) {
      expect(kinds(after(headers(mode), body(100_000, true)).decided(refusal))).toEqual([
        "immediate",
        "end",
      ]);
    }
  });

  test("duplex echoes an empty body as one empty piece with the end mark", () => {
    const effects = after(headers("full_duplex"), body(0, true)).decided(route);
    expect(effects.slice(1)).toEqual([
      { kind: "body_piece", piece: new Uint8Array(0), endOfStream: true },
      { kind: "end" },
    ]);
  });

  test("after trailers the last piece has no end mark; the answer to the trailers is the mark", () => {
    const effects = after(headers("full_duplex"), body(100_000), trailers).decided(route);
    expect(
      effects.map((e) => (e.kind === "body_piece" ? [e.piece.length, e.endOfStream] : e.kind)),
    ).toEqual(["answer_headers", [62_000, false], [38_000, false], "answer_trailers", "end"]);
    expect(kinds(after(headers("full_duplex"), trailers).decided(route))).toEqual([
      "answer_headers",
      "answer_trailers",
      "end",
    ]);
  });

  test("what BUFFERED_PARTIAL leaves unseen is known to be missing", () => {
    const request = (mode: BodyMode, end: boolean) => {
      const [effect] = after(headers(mode)).receive(body(5, end));
      return effect?.kind === "decide" ? effect.request : undefined;
    };
    expect(request("buffered_partial", false)).toMatchObject({ truncated: true, bodyBytes: 5 });
    expect(request("buffered_partial", true)).toMatchObject({ truncated: false });
    expect(request("buffered", false)).toMatchObject({ truncated: false });
  });

  test("whatever the pieces of a duplex body, the echo is the same bytes in pieces of at most 62,000, ended once", () => {
    const piece = fc
      .tuple(fc.oneof(fc.nat(300), fc.integer({ min: 61_900, max: 130_000 })), fc.nat(255))
      .map(([length, start]) => Uint8Array.from({ length }, (_, i) => (start + i) & 255));
    fc.assert(
      fc.property(
        fc.array(piece, { maxLength: 6 }),
        fc.boolean(),
        fc.boolean(),
        (pieces, hasTrailers, endsEmpty) => {
          const exchange = after(headers("full_duplex"));
          let decide: ExchangeEffect[] = [];
          pieces.forEach((bytes, i) => {
            const isLast = i === pieces.length - 1 && !endsEmpty && !hasTrailers;
            decide = exchange.receive(body(bytes, isLast));
          });
          if (hasTrailers) decide = exchange.receive(trailers);
          else if (endsEmpty || pieces.length === 0) decide = exchange.receive(body(0, true));
          const sent = Buffer.concat(pieces);
          expect(decide).toMatchObject([
            { kind: "decide", request: { bodyBytes: sent.length, truncated: false } },
          ]);
          expect(exchange.bodyBytes).toBe(sent.length);
          const effects = exchange.decided(route);
          const echoed = effects.flatMap((e) => (e.kind === "body_piece" ? [e] : []));
          expect(Buffer.concat(echoed.map((e) => e.piece)).equals(sent)).toBe(true);
          expect(Math.max(0, ...echoed.map((e) => e.piece.length))).toBeLessThanOrEqual(
            pieceBytesMax,
          );
          expect(echoed.map((e) => e.endOfStream).indexOf(true)).toBe(
            hasTrailers ? -1 : echoed.length - 1,
          );
          expect(effects.filter((e) => e.kind === "answer_trailers")).toHaveLength(
            hasTrailers ? 1 : 0,
          );
          expect(kinds(effects)[0]).toBe("answer_headers");
          expect(kinds(effects).at(-1)).toBe("end");
        },
      ),
      { numRuns: 60 },
    );
  });

  test("any order of messages ends in at most one answer or one failure", () => {
    const event = fc.oneof(
      fc
        .tuple(
          fc.constantFrom<BodyMode>(
            "none",
            "buffered",
            "buffered_partial",
            "full_duplex",
            "unsupported",
          ),
          fc.boolean(),
        )
        .map(([mode, end]) => headers(mode, end)),
      fc.tuple(fc.nat(3), fc.boolean()).map(([length, end]) => body(length, end)),
      fc.constant(trailers),
      fc.constant(response),
      fc.constant("decided" as const),
      fc.constant("waiting" as const),
    );
    fc.assert(
      fc.property(fc.array(event, { maxLength: 12 }), (events) => {
        const exchange = new Exchange();
        const all = events.flatMap((e) =>
          e === "decided"
            ? exchange.decided(route)
            : e === "waiting"
              ? exchange.waiting(100)
              : exchange.receive(e),
        );
        const count = (kind: ExchangeEffect["kind"]) => kinds(all).filter((k) => k === kind).length;
        expect(count("end") + count("fail")).toBeLessThanOrEqual(1);
        expect(count("decide")).toBeLessThanOrEqual(1);
        expect(count("extend_timeout")).toBeLessThanOrEqual(1);
        expect(count("answer_headers") + count("answer_body") + count("immediate")).toBe(
          count("end"),
        );
        expect(exchange.done).toBe(count("end") + count("fail") === 1);
        const ended = kinds(all).findIndex((k) => k === "end" || k === "fail");
        expect(ended === -1 || ended === all.length - 1).toBe(true);
      }),
      { numRuns: 1_000 },
    );
  });
});
