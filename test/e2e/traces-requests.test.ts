import { randomBytes, randomUUID } from "node:crypto";
import { Metadata } from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { checkComplete, findRoles, type TraceRoles } from "../../services/cli/core/trace-roles.ts";
import {
  numberAt,
  parseTrace,
  spanForest,
  type SpanNode,
  type ViewTrace,
} from "../../services/cli/core/trace-tree.ts";
import { ttftParts } from "../../services/cli/core/trace-ttft.ts";
import {
  attributes,
  checkAgainstCatalogue,
  type CheckedSpan,
} from "../../services/shared/core/trace-catalogue.ts";
import {
  createChannelCredentials,
  createChannelOptions,
} from "../../services/shared/edge/grpc-client.ts";
import {
  ExternalProcessorClient,
  type ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import { readError } from "../support/completion-answers.ts";
import { sendExchange, type WireAnswer } from "../support/http-client.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";
import { hotAddressOf, observedDecision } from "../support/router-books.ts";

let mesh: TestMesh;
beforeAll(async () => {
  // At the engines' own speed, so that times to the first token are long beside the clocks' grain.
  mesh = await startMesh({ console: true, settings: { engine: { speedup: 1 } } });
});
afterAll(async () => {
  await mesh.stop();
});

type Header = readonly [name: string, value: string];

/** A prompt of about 3,000 tokens that no other test sends. */
function longPrompt(): string {
  const name = randomBytes(4).toString("hex");
  return Array.from({ length: 900 }, (_, i) => `${name}${String(i)}`).join(" ");
}

async function send(options: {
  readonly headers?: readonly Header[];
  readonly prompt?: string;
  readonly body?: string;
}): Promise<WireAnswer> {
  const { headers = [], prompt = "Hello!" } = options;
  const body = JSON.stringify({
    model: mesh.model,
    prompt,
    stream: true,
    max_tokens: 32,
    ignore_eos: true,
  });
  return sendExchange({
    url: mesh.url,
    framing: "http1-length",
    path: "/v1/completions",
    headers,
    body: Buffer.from(options.body ?? body),
  });
}

/** The console's answer to a path; undefined when it holds no such trace. */
async function ask(path: string): Promise<unknown> {
  const response = await fetch(`${mesh.consoleUrl}/api/${path}`);
  if (response.status === 404) return undefined;
  expect(response.status).toBe(200);
  return response.json();
}

interface Traced {
  readonly trace: ViewTrace;
  readonly roles: TraceRoles;
  /** As the console gave them. */
  readonly spans: readonly CheckedSpan[];
}

/** Waits until a trace has everything that its own outcome promises. Envoy sends its spans up to a second late. */
async function completeTrace(path: string): Promise<Traced> {
  return eventually(
    `${path} is complete`,
    async () => {
      const json = await ask(path);
      if (json === undefined) throw new Error("not held");
      const trace = parseTrace(json);
      const roles = findRoles(trace);
      const { missing } = checkComplete(trace, roles);
      if (missing.length > 0) throw new Error(missing.join("; "));
      return { trace, roles, spans: (json as { spans: CheckedSpan[] }).spans };
    },
    40_000,
  );
}

/** The tree as lines of names, children indented below their parents in the order of their names. */
function linesOf(node: SpanNode, indent = ""): string[] {
  const children = node.children.toSorted((a, b) => (a.span.name < b.span.name ? -1 : 1));
  return [indent + node.span.name, ...children.flatMap((child) => linesOf(child, `${indent}  `))];
}

const extProcName = "async envoy.service.ext_proc.v3.ExternalProcessor.Process egress";
/** What every placed request looks like. */
const wholeTree = [
  "ingress",
  `  ${extProcName}`,
  "    kvmesh.route",
  "      kvmesh.route.body",
  "      kvmesh.route.lookup",
  "      kvmesh.route.score",
  "      kvmesh.route.tokenize",
  "      kvmesh.serve",
  "  router pool-default egress",
  "    llm_request",
];

/** One tree of the right shape, and nothing in it that the catalogue does not know. */
function expectWhole({ trace, spans }: Traced): SpanNode {
  const forest = spanForest(trace.spans);
  expect(forest.flatMap((node) => linesOf(node))).toEqual(wholeTree);
  expect(checkAgainstCatalogue(spans)).toEqual([]);
  expect(trace.droppedSpans).toBe(0);
  const [root] = forest;
  if (root === undefined) throw new Error("no root");
  return root;
}

const newTraceId = (): string => randomBytes(16).toString("hex");
const newSpanId = (): string => randomBytes(8).toString("hex");

/** Trace of a request whose client named none that counts. */
async function traceOf(answer: WireAnswer): Promise<Traced> {
  expect(answer.status).toBe(200);
  return completeTrace(`by-request/${answer.headers.get("x-request-id") ?? ""}`);
}

describe("the client's context", () => {
  test("present: the whole request is one tree below it, and explain names the trace", async () => {
    const [traceId, spanId] = [newTraceId(), newSpanId()];
    const answer = await send({ headers: [["traceparent", `00-${traceId}-${spanId}-01`]] });
    expect(answer.status).toBe(200);
    const traced = await completeTrace(`traces/${traceId}`);
    const root = expectWhole(traced);
    expect(root.span.parentSpanId).toBe(spanId);
    expect(traced.trace.traceId).toBe(traceId);
    expect(traced.roles.route?.links).toEqual([]);
    const id = answer.headers.get("x-request-id") ?? "";
    const decision = await observedDecision(mesh, id);
    expect(decision.traceId).toBe(traceId);
    expect(decision.traceparent).toBe(`00-${traceId}-${traced.roles.route?.spanId ?? ""}-01`);
    for (const path of [`by-request/${id}`, `by-decision/${decision.id}`]) {
      expect(await ask(path)).toMatchObject({ traceId });
    }
  });

  test("absent: the tree begins at Envoy", async () => {
    const traced = await traceOf(await send({}));
    expect(expectWhole(traced).span.parentSpanId).toBe("");
    expect(traced.roles.route?.links).toEqual([]);
  });

  test("malformed: as if absent", async () => {
    const ones = "1".repeat(16);
    const sound = `00-${newTraceId()}-${newSpanId()}-01`;
    const malformed: readonly (readonly Header[])[] = [
      [["traceparent", "nonsense"]],
      [["traceparent", ""]],
      [["traceparent", "00-abc-def-01"]],
      [["traceparent", `00-${"0".repeat(32)}-${ones}-01`]],
      [["traceparent", `00-${ones}${ones}-${"0".repeat(16)}-01`]],
      [["traceparent", `ff-${ones}${ones}-${ones}-01`]],
      [["traceparent", `00-${"z".repeat(32)}-${ones}-01`]],
      [["traceparent", `00-${"1".repeat(31)}-${ones}1-01`]],
      [["traceparent", `${sound}-more`]],
      [
        ["traceparent", sound],
        ["traceparent", `00-${newTraceId()}-${newSpanId()}-01`],
      ],
    ];
    const answers = await Promise.all(malformed.map((headers) => send({ headers })));
    const ids = new Set<string>();
    for (const [i, answer] of answers.entries()) {
      const traced = await traceOf(answer);
      expect([malformed[i], expectWhole(traced).span.parentSpanId]).toEqual([malformed[i], ""]);
      expect(traced.roles.route?.links).toEqual([]);
      ids.add(traced.trace.traceId);
    }
    expect(ids.size).toBe(malformed.length);
    expect(ids.has(sound.slice(3, 35))).toBe(false);
  });

  test("unsampled: no process writes a span", async () => {
    const traceId = newTraceId();
    const id = randomUUID();
    const headers: Header[] = [
      ["traceparent", `00-${traceId}-${newSpanId()}-00`],
      ["x-request-id", id],
    ];
    const answer = await send({ headers });
    expect(answer.status).toBe(200);
    const decision = await observedDecision(mesh, id);
    expect(decision).toMatchObject({ outcome: 1, traceId: "", traceparent: "" });
    // Spans of later requests have passed all the same queues by the time that these are complete.
    for (let i = 0; i < 2; i++) expectWhole(await traceOf(await send({})));
    expect(await ask(`traces/${traceId}`)).toBeUndefined();
    expect(await ask(`by-request/${id}`)).toBeUndefined();
    expect(await ask(`by-decision/${decision.id}`)).toBeUndefined();
  });

  test("another trace than a proxy's: it becomes a link, and the proxy's is the parent", async () => {
    const proxy = { traceId: newTraceId(), spanId: newSpanId() };
    const client = { traceId: newTraceId(), spanId: newSpanId() };
    await askAsProxy({ metadata: proxy, header: client });
    const traced = await eventually(
      "the route span has come",
      async () => {
        const json = await ask(`traces/${proxy.traceId}`);
        return json === undefined ? undefined : parseTrace(json);
      },
      40_000,
    );
    const { route } = findRoles(traced);
    expect(route?.parentSpanId).toBe(proxy.spanId);
    expect(route?.links).toEqual([client]);
    expect(await ask(`traces/${client.traceId}`)).toBeUndefined();
  });
});

interface Context {
  readonly traceId: string;
  readonly spanId: string;
}

/** Asks the router for the model list as a proxy does whose own trace is not the one in the client's header. */
async function askAsProxy(contexts: {
  readonly metadata: Context;
  readonly header: Context;
}): Promise<void> {
  const text = ({ traceId, spanId }: Context): string => `00-${traceId}-${spanId}-01`;
  const stub = new ExternalProcessorClient(
    hotAddressOf(mesh, "router-0"),
    createChannelCredentials(),
    createChannelOptions(),
  );
  const metadata = new Metadata();
  metadata.set("traceparent", text(contexts.metadata));
  const headers = {
    ":method": "GET",
    ":path": "/v1/models",
    traceparent: text(contexts.header),
    "x-request-id": randomUUID(),
  };
  const call = stub.process(metadata);
  const answered = new Promise<void>((resolve, reject) => {
    call.on("data", (response: ProcessingResponse) => {
      expect(response.response?.$case).toBe("immediateResponse");
      resolve();
    });
    call.on("error", reject);
  });
  call.write({
    request: {
      $case: "requestHeaders",
      value: {
        headers: {
          headers: Object.entries(headers).map(([key, value]) => ({
            key,
            value: "",
            rawValue: Buffer.from(value),
          })),
        },
        endOfStream: true,
      },
    },
    metadataContext: undefined,
    attributes: {},
    observabilityMode: false,
    protocolConfig: {
      requestBodyMode: 2,
      responseBodyMode: 0,
      sendBodyWithoutWaitingForHeaderResponse: false,
    },
  });
  await answered;
  call.end();
  stub.close();
}

describe("the client's request id", () => {
  test("stays what it is and keeps tracing on, whatever its form", async () => {
    const given = [
      "0a7fbbd5-5b51-4ab1-a9d5-8d0b6a4b9d11",
      "01932c07-9b5e-7e11-b0a4-3f1f0c6c2a11", // version 7: Envoy makes version 4
      "order_number_2026_11_24_with_a_longer".slice(0, 36), // as long as a UUID
      "order-7",
    ];
    const answers = await Promise.all(given.map((id) => send({ headers: [["x-request-id", id]] })));
    for (const [i, answer] of answers.entries()) {
      const id = given[i] ?? "";
      expect(answer.headers.get("x-request-id")).toBe(id);
      const traced = await traceOf(answer);
      expectWhole(traced);
      expect(traced.roles.route?.attributes[attributes.requestId]).toBe(id);
      expect((await observedDecision(mesh, id)).traceId).toBe(traced.trace.traceId);
    }
  });
});

describe("what a trace tells", () => {
  test("where the time to the first token went: the parts add up to what was observed", async () => {
    const answers = [await send({ prompt: longPrompt() }), await send({ prompt: "Hi." })];
    for (const answer of answers) {
      const traced = await traceOf(answer);
      expectWhole(traced);
      const parts = ttftParts(traced.roles);
      const names = parts.parts.map((part) => part.name);
      for (const name of ["client → router", "tokenize", "engine queue", "engine prefill"]) {
        expect(names).toContain(name);
      }
      const { observedMs = 0, sumMs, unexplained } = parts;
      expect(observedMs).toBeGreaterThan(0);
      expect([Math.abs(observedMs - sumMs) / observedMs < 0.05, unexplained]).toEqual([
        true,
        "rounding",
      ]);
    }
  });

  test("what was predicted, beside what came", async () => {
    const prompt = longPrompt();
    const answers = { cold: await send({ prompt }), warm: await send({ prompt }) };
    for (const [round, answer] of Object.entries(answers)) {
      const traced = await traceOf(answer);
      expectWhole(traced);
      const { serve, route, score } = traced.roles;
      const id = answer.headers.get("x-request-id") ?? "";
      const decision = await observedDecision(mesh, id);
      const chosen = decision.candidates[0];
      const at = (name: string): number | undefined => numberAt(serve, name);
      expect(at(attributes.predictedTtftMs)).toBeCloseTo(chosen?.predictedTtftMs ?? -1, 0);
      expect(at(attributes.observedTtftMs)).toBeCloseTo(decision.observed?.ttftMs ?? -1, 3);
      expect(at(attributes.differenceTtftMs)).toBeCloseTo(
        (at(attributes.observedTtftMs) ?? 0) - (at(attributes.predictedTtftMs) ?? 0),
        6,
      );
      const cached = at(attributes.observedCachedTokens) ?? -1;
      expect(at(attributes.predictedCachedTokens)).toBe(cached);
      expect(at(attributes.differenceCachedTokens)).toBe(0);
      expect(serve?.attributes[attributes.differenceCause]).toBe("none");
      if (round === "cold") expect(cached).toBe(0);
      else expect(cached).toBeGreaterThan(1_000);
      expect(serve?.attributes[attributes.serveAsPicked]).toBe(true);
      expect(route?.attributes[attributes.decisionId]).toBe(decision.id);
      expect(route?.attributes[attributes.workerId]).toBe(decision.workerId);
      expect(score?.attributes[attributes.candidateId]).toEqual(
        decision.candidates.map((one) => one.workerId),
      );
    }
  });

  test("why a request was refused: no try upstream, and the reason", async () => {
    const answer = await send({ body: '{"model":"nobody","prompt":"a"}' });
    expect(answer.status).toBe(404);
    expect(readError(answer).code).toBe("model_not_found");
    const id = answer.headers.get("x-request-id") ?? "";
    const traced = await completeTrace(`by-request/${id}`);
    expect(checkAgainstCatalogue(traced.spans)).toEqual([]);
    expect(spanForest(traced.trace.spans).flatMap((node) => linesOf(node))).toEqual(
      wholeTree.slice(0, 4),
    );
    expect(traced.roles.route?.attributes).toMatchObject({
      [attributes.routeOutcome]: "refused",
      [attributes.errorType]: "model_not_found",
    });
    expect(traced.roles.route?.failed).toBe(true);
  });

  test("that an engine cut the answer", async () => {
    for (const url of mesh.engineUrls) {
      await fetch(`${url}/sim/faults`, {
        method: "POST",
        body: JSON.stringify({ kind: "truncate_stream", count: 1 }),
      });
    }
    const answer = await send({});
    expect([answer.status, answer.complete]).toEqual([200, false]);
    const id = answer.headers.get("x-request-id") ?? "";
    const serve = await eventually(
      "the serve span has come",
      async () => {
        const json = await ask(`by-request/${id}`);
        return json === undefined ? undefined : findRoles(parseTrace(json)).serve;
      },
      40_000,
    );
    expect(serve.failed).toBe(true);
    expect(serve.attributes[attributes.errorType]).toBe("upstream_reset");
    expect(serve.attributes[attributes.serveResponseFlags]).toMatch(/UC|UPE|UR/);
  });
});
