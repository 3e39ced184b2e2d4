import fc from "fast-check";
import { pino } from "pino";
import { beforeEach, describe, expect, test } from "vitest";
import { monoMs } from "../../../shared/core/ids.ts";
import { createMetrics } from "../../../shared/edge/metrics.ts";
import type {
  Answer,
  BodyMode,
  ExchangeEvent,
  ExchangeRequest,
} from "../../core/exchange/exchange.ts";
import { routerMetrics } from "../../metrics.ts";
import type { RequestContext } from "../request-context.ts";
import type { RequestDecider } from "../request-decider.ts";
import { ExchangeStream, type AnswerWriter } from "./exchange-stream.ts";

const route: Answer = { kind: "route", setHeaders: [], removeHeaders: [], metadata: {} };
const refusal: Answer = {
  kind: "immediate",
  status: 503,
  headers: [],
  body: "{}",
  details: "kvmesh_overloaded",
  grpcStatus: 8,
};

const headers = (
  bodyMode: BodyMode,
  over: Readonly<Record<string, string>> = {},
): ExchangeEvent => ({
  kind: "request_headers",
  headers: new Map(Object.entries({ ":method": "POST", ":path": "/p", ...over })),
  endOfStream: false,
  bodyMode,
});
const body = (text: string, endOfStream = true): ExchangeEvent => ({
  kind: "request_body",
  body: new TextEncoder().encode(text),
  endOfStream,
});

/** Writes a line for each answer. */
class Lines implements AnswerWriter {
  readonly lines: string[] = [];
  continueHeaders(): void {
    this.lines.push("continue");
  }
  answerHeaders(): void {
    this.lines.push("headers");
  }
  answerBody(): void {
    this.lines.push("body");
  }
  bodyPiece(piece: Uint8Array, endOfStream: boolean): void {
    this.lines.push(`piece ${new TextDecoder().decode(piece)}${endOfStream ? " end" : ""}`);
  }
  answerTrailers(): void {
    this.lines.push("trailers");
  }
  immediate(answer: Extract<Answer, { kind: "immediate" }>): void {
    this.lines.push(`immediate ${answer.status} ${answer.details}`);
  }
  extendTimeout(ms: number): void {
    this.lines.push(`extend ${ms}`);
  }
  isSending = false;
  end(): void {
    this.lines.push("end");
  }
  fail(reason: string): void {
    this.lines.push(`fail ${reason}`);
  }
}

/** Lets every request wait until the test answers it. */
class SlowDecider implements RequestDecider {
  readonly seen: { bytes: number; context: RequestContext }[] = [];
  cancelled = 0;
  answer: (answer: Answer) => void = () => undefined;

  decide(request: ExchangeRequest, context: RequestContext, answer: (answer: Answer) => void) {
    this.seen.push({ bytes: request.bodyBytes, context });
    this.answer = answer;
    return {
      waitMsMax: 1_500,
      cancel: () => {
        this.cancelled++;
      },
    };
  }
}

let decider: SlowDecider;
let writer: Lines;
let memory: { bytes: number };
let metrics: ReturnType<typeof createMetrics<typeof routerMetrics>>["metrics"];

function open(
  over: {
    readonly decider?: RequestDecider;
    readonly metadata?: Readonly<Record<string, string>>;
  } = {},
): ExchangeStream {
  return new ExchangeStream(
    { writer, metadata: new Map(Object.entries(over.metadata ?? {})) },
    {
      decider: over.decider ?? decider,
      clock: { now: () => monoMs(5), wallUnixUs: () => 7, sleep: () => Promise.resolve() },
      log: pino({ level: "silent" }),
      metrics,
      limits: { bodyBytesMax: 100, bodyMemoryBytesMax: 150 },
    },
    memory,
  );
}

beforeEach(() => {
  decider = new SlowDecider();
  writer = new Lines();
  memory = { bytes: 0 };
  metrics = createMetrics(routerMetrics).metrics;
});

async function ends(): Promise<Record<string, number>> {
  expect((await metrics.extProcStreams.get()).values[0]?.value).toBe(0);
  const { values } = await metrics.extProcEnds.get();
  return Object.fromEntries(values.map((v) => [String(v.labels["end"]), v.value]));
}

describe("a request that waits", () => {
  test("BUFFERED: the timer is put off, the body is let go, and the answer ends the stream", async () => {
    const stream = open();
    stream.receive(headers("buffered"));
    stream.receive(body("0123456789"));
    expect(writer.lines).toEqual(["continue", "extend 1500"]);
    expect(memory.bytes).toBe(0);
    stream.receive(body(""));
    decider.answer(route);
    expect(writer.lines.slice(2)).toEqual(["body", "end"]);
    decider.answer(refusal);
    expect(writer.lines).toHaveLength(4);
    expect([stream.ended, decider.cancelled]).toEqual([true, 0]);
    expect(await ends()).toEqual({ answered: 1 });
  });

  test("duplex: no timer, the body is held for the echo and let go with the answer", () => {
    const stream = open();
    stream.receive(headers("full_duplex"));
    stream.receive(body("01234", false));
    stream.receive(body("56789"));
    expect([writer.lines, memory.bytes]).toEqual([[], 10]);
    decider.answer(route);
    expect(writer.lines).toEqual(["headers", "piece 01234", "piece 56789 end", "end"]);
    expect(memory.bytes).toBe(0);
  });

  test.each(["buffered", "full_duplex"] as const)(
    "%s: a refusal after the wait is the whole answer",
    (mode) => {
      const stream = open();
      stream.receive(headers(mode));
      stream.receive(body("x"));
      decider.answer(refusal);
      expect(writer.lines.slice(-2)).toEqual(["immediate 503 kvmesh_overloaded", "end"]);
      expect(stream.ended).toBe(true);
    },
  );

  test.each(["buffered", "full_duplex"] as const)(
    "%s: a client that leaves takes its request out of the wait, once",
    async (mode) => {
      const stream = open();
      stream.receive(headers(mode));
      stream.receive(body("x"));
      stream.closed();
      stream.closed();
      expect([decider.cancelled, memory.bytes]).toEqual([1, 0]);
      decider.answer(route);
      expect(writer.lines.at(-1)).toBe("end");
      expect(await ends()).toEqual({ cancelled: 1 });
    },
  );

  test("a peer that breaks the protocol meanwhile loses its place", async () => {
    const stream = open();
    stream.receive(headers("buffered"));
    stream.receive(body("x"));
    stream.receive(headers("buffered"));
    expect(writer.lines.at(-1)).toBe("fail request headers came twice");
    expect(decider.cancelled).toBe(1);
    decider.answer(route);
    expect(writer.lines.at(-1)).toBe("fail request headers came twice");
    expect(await ends()).toEqual({ protocol_error: 1 });
  });

  test("more body during the wait is neither counted nor refused", () => {
    const stream = open();
    stream.receive(headers("buffered"));
    stream.receive(body("x"));
    stream.receive(body("y".repeat(99)));
    stream.receive(body("y".repeat(99)));
    expect([writer.lines, memory.bytes]).toEqual([["continue", "extend 1500"], 0]);
  });
});

describe("memory for bodies", () => {
  test("is held until the last piece has been sent", () => {
    const stream = open();
    stream.receive(headers("full_duplex"));
    stream.receive(body("0123456789"));
    writer.isSending = true;
    decider.answer(route);
    expect([stream.ended, memory.bytes]).toEqual([true, 10]);
    stream.sent();
    stream.sent();
    expect(memory.bytes).toBe(0);
  });

  test("is let go when the peer sends what is no message", async () => {
    const stream = open();
    stream.receive(headers("full_duplex"));
    stream.receive(body("0123456789", false));
    stream.broken("no ProcessingRequest");
    stream.broken("again");
    expect([writer.lines, memory.bytes]).toEqual([["fail no ProcessingRequest"], 0]);
    expect(await ends()).toEqual({ protocol_error: 1 });
  });
});

describe("any order of events", () => {
  /** Lets requests wait or answers them at once, and knows who still waits. */
  class MixedDecider implements RequestDecider {
    atOnce = false;
    waiting = 0;
    pending: (() => void) | undefined;

    decide(_request: ExchangeRequest, _context: RequestContext, answer: (answer: Answer) => void) {
      if (this.atOnce) {
        answer(route);
        return undefined;
      }
      this.waiting++;
      const leave = (): void => {
        this.waiting--;
        this.pending = undefined;
      };
      this.pending = () => {
        leave();
        answer(route);
      };
      return { waitMsMax: 10, cancel: leave };
    }
  }

  const event = fc.oneof(
    fc.constantFrom<BodyMode>("none", "buffered", "full_duplex", "unsupported").map(headers),
    fc.tuple(fc.nat(60), fc.boolean()).map(([length, end]) => body("x".repeat(length), end)),
    fc.constant<ExchangeEvent>({ kind: "request_trailers" }),
    fc.constant<ExchangeEvent>({ kind: "other", name: "responseHeaders" }),
  );
  const step = fc.oneof(
    { weight: 5, arbitrary: event },
    { weight: 2, arbitrary: fc.constant("answer" as const) },
    { weight: 1, arbitrary: fc.constantFrom("closed" as const, "broken" as const) },
  );

  test("ends a stream once, holds no memory for it and leaves nobody waiting", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { maxLength: 8 }),
        fc.boolean(),
        fc.boolean(),
        async (steps, atOnce, isSending) => {
          const mixed = new MixedDecider();
          mixed.atOnce = atOnce;
          writer = new Lines();
          writer.isSending = isSending;
          memory = { bytes: 0 };
          metrics = createMetrics(routerMetrics).metrics;
          const stream = open({ decider: mixed });
          for (const one of steps) {
            if (one === "answer") mixed.pending?.();
            else if (one === "closed") stream.closed();
            else if (one === "broken") stream.broken("no message");
            else stream.receive(one);
            expect(memory.bytes).toBeGreaterThanOrEqual(0);
            expect(memory.bytes).toBeLessThanOrEqual(150);
          }
          const ended = writer.lines.findIndex((line) => line === "end" || line.startsWith("fail"));
          expect(ended === -1).toBe(!stream.ended);
          if (stream.ended) expect(ended).toBe(writer.lines.length - 1);
          stream.closed();
          stream.sent();
          expect([memory.bytes, mixed.waiting]).toEqual([0, 0]);
          expect(Object.values(await ends())).toEqual([1]);
        },
      ),
      { numRuns: 300 },
    );
  });
});

describe("what the decider is told", () => {
  const ids = { a: "a".repeat(32), b: "b".repeat(32), span: "c".repeat(16) };

  test("an answer given at once ends the stream inside the same call", () => {
    const stream = open({
      decider: {
        decide: (_request, _context, answer) => {
          answer(route);
          return undefined;
        },
      },
    });
    stream.receive(headers("buffered"));
    stream.receive(body("x"));
    expect(writer.lines).toEqual(["continue", "body", "end"]);
    expect(memory.bytes).toBe(0);
  });

  test("method, path, id, body mode and the number of chunks", () => {
    const stream = open();
    stream.limitTo(new Set(["a:1"]));
    stream.limitTo(new Set(["b:1"]));
    stream.receive(headers("full_duplex", { "x-request-id": "r" }));
    stream.receive(body("01", false));
    stream.receive(body("2"));
    expect(decider.seen).toEqual([
      {
        bytes: 3,
        context: {
          method: "POST",
          path: "/p",
          requestId: "r",
          parent: undefined,
          link: undefined,
          subset: new Set(["a:1"]),
          startedUnixUs: 7,
          bodyMode: "full_duplex",
          bodyChunks: 2,
        },
      },
    ]);
  });

  test("a request without id gets one", () => {
    const stream = open();
    stream.receive(headers("none"));
    expect(decider.seen[0]?.context.requestId).toMatch(/^[0-9a-f-]{36}$/);
  });

  test("the proxy's trace context is the parent, a client's other trace a link", () => {
    const proxy = { traceparent: `00-${ids.a}-${ids.span}-01`, tracestate: "k=v" };
    const client = { traceparent: `00-${ids.b}-${ids.span}-00` };
    open({ metadata: proxy }).receive(headers("none", client));
    open({ metadata: proxy }).receive(headers("none", { traceparent: proxy.traceparent }));
    open().receive(headers("none", client));
    expect(decider.seen.map(({ context }) => [context.parent, context.link])).toEqual([
      [
        { traceId: ids.a, spanId: ids.span, sampled: true, traceState: "k=v" },
        { traceId: ids.b, spanId: ids.span, sampled: false },
      ],
      [{ traceId: ids.a, spanId: ids.span, sampled: true, traceState: "k=v" }, undefined],
      [{ traceId: ids.b, spanId: ids.span, sampled: false }, undefined],
    ]);
  });
});

test.each([
  ["short", "r".repeat(256), true],
  ["too long to keep", "r".repeat(257), false],
  ["empty", "", false],
])("a request id that is %s", (_, id, isKept) => {
  const stream = open();
  stream.receive(headers("buffered", { "x-request-id": id }));
  stream.receive(body("x"));
  const requestId = decider.seen[0]?.context.requestId;
  if (isKept) expect(requestId).toBe(id);
  else expect(requestId).toMatch(/^[0-9a-f-]{36}$/);
});
