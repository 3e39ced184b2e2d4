// The console speaks OTLP: what the OpenTelemetry SDK and vLLM send arrives unchanged at the query API.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";
import { JsonTraceSerializer, ProtobufTraceSerializer } from "@opentelemetry/otlp-transformer";
import { resourceFromAttributes } from "@opentelemetry/resources";
import {
  InMemorySpanExporter,
  SimpleSpanProcessor,
  TracerProvider,
  type ReadableSpan,
} from "@opentelemetry/sdk-trace";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ConsoleConfig } from "../../services/console/config.ts";
import type { SpanRecord } from "../../services/console/core/span-record.ts";
import { startConsole, type RunningConsole } from "../../services/console/edge/console.ts";
import type { TraceSummary } from "../../services/console/edge/trace-store.ts";
import { traceCommand } from "../../services/cli/edge/trace-command.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import {
  attributes,
  checkAgainstCatalogue,
  spanNames,
} from "../../services/shared/core/trace-catalogue.ts";
import { startTracing } from "../../services/shared/edge/tracing.ts";
import { ExportTraceServiceResponse } from "../../services/shared/gen/opentelemetry/proto/collector/trace/v1/trace_service.ts";

let running: RunningConsole;

async function startWith(overrides: Record<string, unknown>): Promise<RunningConsole> {
  const config = ConsoleConfig.parse({
    httpPort: 0,
    otlp: { grpcPort: 0, httpPort: 0, messageBytesMax: 1_048_576, reflection: false },
    store: { stateDir: "memory" },
    ...overrides,
  });
  return startConsole(config, { log: pino({ level: "silent" }), clock: realClock });
}

beforeEach(async () => {
  running = await startWith({});
});
afterEach(async () => {
  await running.stop();
});

/** What the query API may answer: a trace, a list, or an error. */
interface Answer {
  readonly traceId: string;
  readonly spans: readonly SpanRecord[];
  readonly traces: readonly TraceSummary[];
  readonly error: { readonly code: string; readonly message: string };
}

async function ask(path: string): Promise<{ status: number; body: Answer }> {
  running.flush();
  const response = await fetch(`http://127.0.0.1:${String(running.ports.http)}${path}`);
  return { status: response.status, body: (await response.json()) as Answer };
}

function post(body: Uint8Array | string, headers: Record<string, string>): Promise<Response> {
  return fetch(`http://127.0.0.1:${String(running.ports.otlpHttp)}/v1/traces`, {
    method: "POST",
    body: typeof body === "string" ? body : Buffer.from(body),
    headers,
  });
}

const startMs = 1_795_401_052_993.5;

/** Two finished spans made with the SDK: a failed parent, and a child with every kind of value, an event and a link. */
function sdkSpans(): { spans: ReadableSpan[]; traceId: string } {
  const memory = new InMemorySpanExporter();
  const provider = new TracerProvider({
    resource: resourceFromAttributes({ "service.name": "router", "kvmesh.clock.offset_ms": 1.5 }),
    spanProcessors: [new SimpleSpanProcessor({ exporter: memory })],
  });
  const tracer = provider.getTracer("kvmesh");
  const parent = tracer.startSpan(
    spanNames.route,
    {
      kind: SpanKind.SERVER,
      startTime: startMs,
      attributes: {
        [attributes.decisionId]: "r0.17.42",
        [attributes.requestId]: "3f1c/odd id",
        [attributes.routeOutcome]: "no_endpoint",
      },
    },
    ROOT_CONTEXT,
  );
  const { traceId } = parent.spanContext();
  const child = tracer.startSpan(
    spanNames.routeScore,
    {
      startTime: startMs + 1,
      attributes: {
        text: "käse",
        whole: 42,
        fraction: 0.25,
        yes: true,
        words: ["a", "b"],
        numbers: [1, 2.5],
      },
      links: [{ context: { traceId: "ab".repeat(16), spanId: "cd".repeat(8), traceFlags: 1 } }],
    },
    trace.setSpan(ROOT_CONTEXT, parent),
  );
  child.addEvent("noted", { n: 1 }, startMs + 1.5);
  child.end(startMs + 2);
  parent.setStatus({ code: SpanStatusCode.ERROR, message: "no worker" });
  parent.end(startMs + 3);
  return { spans: memory.getFinishedSpans(), traceId };
}

function expectSdkTrace(body: Answer, traceId: string): void {
  expect(body.traceId).toBe(traceId);
  const [parent, child] = body.spans;
  expect(parent).toMatchObject({
    traceId,
    parentSpanId: "",
    name: "kvmesh.route",
    kind: "server",
    startUnixNs: "1795401052993500000",
    endUnixNs: "1795401052996500000",
    status: { code: "error", message: "no worker" },
    resource: { "service.name": "router", "kvmesh.clock.offset_ms": 1.5 },
    scope: "kvmesh",
    truncated: 0,
  });
  expect(child).toMatchObject({
    parentSpanId: parent?.spanId,
    name: "kvmesh.route.score",
    kind: "internal",
    attributes: {
      text: "käse",
      whole: 42,
      fraction: 0.25,
      yes: true,
      words: ["a", "b"],
      numbers: [1, 2.5],
    },
    events: [{ name: "noted", timeUnixNs: "1795401052995000000", attributes: { n: 1 } }],
    links: [{ traceId: "ab".repeat(16), spanId: "cd".repeat(8), attributes: {} }],
  });
}

describe("OTLP over HTTP", () => {
  test("takes protobuf as the SDK encodes it, plain and gzip, and answers in protobuf", async () => {
    for (const gzip of [false, true]) {
      const { spans, traceId } = sdkSpans();
      const bytes = ProtobufTraceSerializer.serializeRequest(spans) as Uint8Array;
      const response = await post(gzip ? gzipSync(bytes) : bytes, {
        "content-type": "application/x-protobuf",
        ...(gzip ? { "content-encoding": "gzip" } : {}),
      });
      expect(response.status).toBe(200);
      expect(response.headers.get("content-type")).toBe("application/x-protobuf");
      const answer = ExportTraceServiceResponse.decode(
        new Uint8Array(await response.arrayBuffer()),
      );
      expect(answer.partialSuccess).toBeUndefined();
      expectSdkTrace((await ask(`/api/traces/${traceId}`)).body, traceId);
    }
  });

  test("takes JSON as the SDK encodes it, and answers in JSON", async () => {
    const { spans, traceId } = sdkSpans();
    const bytes = JsonTraceSerializer.serializeRequest(spans) as Uint8Array;
    const response = await post(gzipSync(bytes), {
      "content-type": "application/json",
      "content-encoding": "gzip",
    });
    expect(response.status).toBe(200);
    expect(await response.json()).toEqual({});
    expectSdkTrace((await ask(`/api/traces/${traceId}`)).body, traceId);
  });

  test("answers bad requests with a status that says how to mend them, and stays usable", async () => {
    const json = { "content-type": "application/json" };
    const cases: [Uint8Array | string, Record<string, string>, number, RegExp][] = [
      ["{", json, 400, /not JSON/],
      ["[]", json, 400, /resourceSpans/],
      ['{"resourceSpans":{}}', json, 400, /resourceSpans: must be a list, got object/],
      [
        '{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"xyz"}]}]}]}',
        json,
        400,
        /resourceSpans\[0\]\.scopeSpans\[0\]\.spans\[0\]\.traceId: must be hex digits/,
      ],
      ["{}", { "content-type": "text/plain" }, 415, /application\/x-protobuf or application\/json/],
      ["{}", { ...json, "content-encoding": "zstd" }, 400, /must be gzip or identity/],
      ["{}", { ...json, "content-encoding": "gzip" }, 400, /not gzip/],
      [" ".repeat(1_048_577), json, 413, /larger than 1048576 bytes/],
      [
        gzipSync(Buffer.alloc(4_000_000)),
        { ...json, "content-encoding": "gzip" },
        413,
        /larger than 1048576 bytes/,
      ],
    ];
    for (const [body, headers, status, message] of cases) {
      const response = await post(body, headers);
      expect({
        status: response.status,
        text: ((await response.json()) as { message: string }).message,
      }).toEqual({
        status,
        text: expect.stringMatching(message),
      });
    }
    const garbage = await post(Uint8Array.of(0x0a, 0xff, 0x01), {
      "content-type": "application/x-protobuf",
    });
    expect(garbage.status).toBe(400);
    expect(garbage.headers.get("content-type")).toBe("application/x-protobuf");
    const { spans, traceId } = sdkSpans();
    await post(ProtobufTraceSerializer.serializeRequest(spans) as Uint8Array, {
      "content-type": "application/x-protobuf",
    });
    expect((await ask(`/api/traces/${traceId}`)).status).toBe(200);
  });

  test("keeps the valid spans of a batch and says how many were not", async () => {
    const span = (spanId: string, traceId: string) => ({
      traceId,
      spanId,
      name: "x",
      kind: 1,
      startTimeUnixNano: "1",
      endTimeUnixNano: "2",
    });
    const spans = [
      span("11".repeat(8), "22".repeat(16)),
      span("00".repeat(8), "22".repeat(16)),
      span("11".repeat(8), ""),
    ];
    const response = await post(
      JSON.stringify({ resourceSpans: [{ scopeSpans: [{ spans }] }], unknownField: 1 }),
      { "content-type": "application/json" },
    );
    expect(await response.json()).toEqual({
      partialSuccess: {
        rejectedSpans: "2",
        errorMessage: expect.stringMatching(/2 invalid spans, first: span_id must be 8 bytes/),
      },
    });
    expect((await ask(`/api/traces/${"22".repeat(16)}`)).body.spans).toHaveLength(1);
  });
});

describe("OTLP over gRPC", () => {
  test("takes the spans that our own processes export", async () => {
    const tracing = startTracing({
      service: "router",
      instance: "r0",
      endpoint: `http://127.0.0.1:${String(running.ports.grpc)}`,
    });
    const parent = { traceId: "0a".repeat(16), spanId: "0b".repeat(8), sampled: true };
    const route = tracing.start(spanNames.route, {
      parent,
      kind: "server",
      attributes: {
        [attributes.decisionId]: "r0.1.1",
        [attributes.requestId]: "req-1",
        [attributes.routeOutcome]: "picked",
        [attributes.predictedTtftMs]: 40,
      },
    });
    route?.end();
    await tracing.stop();
    const { body } = await ask("/api/by-decision/r0.1.1");
    expect(body.spans).toHaveLength(1);
    expect(body.spans[0]).toMatchObject({
      traceId: parent.traceId,
      parentSpanId: parent.spanId,
      attributes: { [attributes.predictedTtftMs]: 40 },
    });
    expect(checkAgainstCatalogue(body.spans)).toEqual([]);
    expect((await ask("/api/by-request/req-1")).body.traceId).toBe(parent.traceId);
    expect((await ask("/api/traces/last")).body.traceId).toBe(parent.traceId);
  });
});

/** A line of the recording. */
interface Recorded {
  readonly resource: Record<string, unknown>;
  readonly scope: string;
  readonly name: string;
  readonly kind: number;
  readonly trace_id: string;
  readonly span_id: string;
  readonly parent: string;
  readonly start: number;
  readonly end: number;
  readonly attrs: Record<string, unknown>;
  readonly status: number;
}

describe("engine spans", () => {
  const recorded = readFileSync(
    new URL("../fixtures/otlp/vllm-spans.jsonl", import.meta.url),
    "utf8",
  )
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Recorded);

  /** The recording as the engine sent it: numbers with a fraction or not, as Python types had it. */
  function otlpJson(): string {
    const value = (v: unknown, key: string) =>
      typeof v === "string"
        ? { stringValue: v }
        : /tokens$|\.n$/.test(key)
          ? { intValue: String(v) }
          : { doubleValue: v };
    const list = (o: Record<string, unknown>) =>
      Object.entries(o).map(([key, v]) => ({ key, value: value(v, key) }));
    const resourceSpans = recorded.map((s) => ({
      resource: { attributes: list(s.resource) },
      scopeSpans: [
        {
          scope: { name: s.scope },
          spans: [
            {
              traceId: s.trace_id,
              spanId: s.span_id,
              parentSpanId: s.parent,
              name: s.name,
              kind: s.kind,
              startTimeUnixNano: String(s.start),
              endTimeUnixNano: String(s.end),
              attributes: list(s.attrs),
              status: { code: s.status },
            },
          ],
        },
      ],
    }));
    return JSON.stringify({ resourceSpans });
  }

  test("agree with the catalogue and are found by the request id inside the engine's", async () => {
    await post(otlpJson(), { "content-type": "application/json" });
    const single = (await ask("/api/by-request/traced-1")).body;
    expect(single.spans).toHaveLength(1);
    expect(single.spans[0]?.parentSpanId).toBe("b7ad6b7169203331");
    const pair = (await ask("/api/by-request/pd-trace")).body;
    expect(pair.spans.map((s) => s.resource["service.name"]).sort()).toEqual(["vllm-d", "vllm-p"]);
    expect(checkAgainstCatalogue([...single.spans, ...pair.spans])).toEqual([]);
  });
});

describe("query API", () => {
  test("tells what is wrong with a query and how to mend it", async () => {
    const cases: [string, number, RegExp][] = [
      ["/api/traces?limit=0", 400, /limit=0: must be a whole number from 1 to 1000/],
      ["/api/traces?slow=fast", 400, /slow=fast: must be a number/],
      ["/api/traces?slwo=1", 400, /unknown parameter slwo; accepted: limit, slow/],
      ["/api/traces/abc", 400, /32 hex digits/],
      ["/api/traces/last", 404, /send a request through Envoy/],
      [`/api/traces/${"ab".repeat(16)}`, 404, /never received, or dropped/],
      ["/api/by-request/%zz", 400, /percent encoding/],
      ["/api/by-request/", 400, /1 to 200 characters/],
      ["/api/nothing", 404, /GET \/ lists/],
      ["/__proto__", 404, /GET \/ lists/],
    ];
    for (const [path, status, message] of cases) {
      const answer = await ask(path);
      expect({ path, status: answer.status, text: answer.body.error.message }).toEqual({
        path,
        status,
        text: expect.stringMatching(message),
      });
    }
    const put = await fetch(`http://127.0.0.1:${String(running.ports.http)}/api/traces`, {
      method: "DELETE",
    });
    expect(put.status).toBe(405);
  });

  test("lists traces newest first with what they are about, and slow ones alone when asked", async () => {
    for (const [n, ttft] of [30, 900].entries()) {
      const id = String(n).repeat(32).replaceAll("0", "9");
      const spans = [spanNames.route, spanNames.serve].map((name, i) => ({
        traceId: id,
        spanId: String(i + 1).repeat(16),
        name,
        kind: 1,
        startTimeUnixNano: `${String(n + 1)}000000000`,
        endTimeUnixNano: `${String(n + 1)}500000000`,
        attributes: [
          { key: attributes.decisionId, value: { stringValue: `r.1.${String(n)}` } },
          { key: attributes.genAiRequestModel, value: { stringValue: "m" } },
          { key: attributes.observedTtftMs, value: { doubleValue: ttft } },
        ],
      }));
      await post(JSON.stringify({ resourceSpans: [{ scopeSpans: [{ spans }] }] }), {
        "content-type": "application/json",
      });
    }
    const all = (await ask("/api/traces?limit=10")).body.traces;
    expect(all).toMatchObject([
      { traceId: "1".repeat(32), startUnixMs: 2_000, elapsedMs: 500, spans: 2, ttftMs: 900 },
      { traceId: "9".repeat(32), decisionId: "r.1.0", model: "m", ttftMs: 30, failed: false },
    ]);
    expect((await ask("/api/traces?slow=500")).body.traces).toHaveLength(1);
    expect((await ask("/api/traces?limit=1")).body.traces).toHaveLength(1);
  });

  test("answers / with the list of paths, and serves metrics and health", async () => {
    const base = `http://127.0.0.1:${String(running.ports.http)}`;
    expect(await (await fetch(base)).text()).toContain("GET /api/traces/last");
    expect(await (await fetch(`${base}/metrics`)).text()).toContain(
      "kvmesh_console_store_traces 0",
    );
    expect((await fetch(`${base}/healthz`)).status).toBe(200);
  });
});

describe("kvmesh trace", () => {
  async function run(target: string, json = false): Promise<[number, string, string]> {
    let out = "";
    let err = "";
    running.flush();
    const code = await traceCommand({
      target,
      json,
      consoleUrl: `http://127.0.0.1:${String(running.ports.http)}/`,
      stdout: { write: (text: string) => (out += text) },
      stderr: { write: (text: string) => (err += text) },
    });
    return [code, out, err];
  }

  test("draws what the console holds, by every kind of id, and gives the JSON when asked", async () => {
    const { spans, traceId } = sdkSpans();
    await post(ProtobufTraceSerializer.serializeRequest(spans) as Uint8Array, {
      "content-type": "application/x-protobuf",
    });
    for (const target of ["last", traceId, traceId.toUpperCase(), "r0.17.42", "3f1c/odd id"]) {
      const [code, out, err] = await run(target);
      expect([target, code, err]).toEqual([target, 0, ""]);
      expect(out).toContain(`trace ${traceId}  2026-11-23T02:30:52.992Z`);
      expect(out).toContain("└─ kvmesh.route.score");
      expect(out).toContain("failed: kvmesh.route: no worker");
    }
    const [, json] = await run("last", true);
    expect(JSON.parse(json)).toMatchObject({ traceId, spans: [{ name: "kvmesh.route" }, {}] });
  });

  test("says in one line what is wrong", async () => {
    expect(await run("last")).toEqual([
      1,
      "",
      expect.stringMatching(/^kvmesh: no trace with .*\n$/),
    ]);
    expect(await run("nobody")).toEqual([
      1,
      "",
      "kvmesh: no trace with request or decision id nobody is held\n",
    ]);
    expect(await run("")).toEqual([2, "", expect.stringMatching(/1 to 200 characters/)]);
    const { http } = running.ports;
    await running.stop();
    expect(await run("last")).toEqual([
      1,
      "",
      expect.stringMatching(
        new RegExp(
          `^kvmesh: no console answers at http://127.0.0.1:${String(http)} .*kvmesh up.*\n$`,
        ),
      ),
    ]);
    running = await startWith({});
  });
});

test("a full queue refuses spans at once with a partial success, and counts them", async () => {
  await running.stop();
  running = await startWith({
    queue: { spansMax: 3 },
    store: { stateDir: "memory", flushIntervalMs: 10_000 },
  });
  const spans = [1, 2, 3, 4, 5].map((n) => ({
    traceId: "ef".repeat(16),
    spanId: String(n).repeat(16),
    name: "x",
    startTimeUnixNano: "1",
    endTimeUnixNano: "2",
  }));
  const response = await post(JSON.stringify({ resourceSpans: [{ scopeSpans: [{ spans }] }] }), {
    "content-type": "application/json",
  });
  expect(await response.json()).toEqual({
    partialSuccess: { rejectedSpans: "2", errorMessage: "queue full: 2 spans not kept" },
  });
  const metrics = await (
    await fetch(`http://127.0.0.1:${String(running.ports.http)}/metrics`)
  ).text();
  expect(metrics).toContain('kvmesh_console_spans_dropped_total{reason="queue_full"} 2');
  expect((await ask(`/api/traces/${"ef".repeat(16)}`)).body.spans).toHaveLength(3);
});
