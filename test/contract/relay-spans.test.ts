import { setTimeout } from "node:timers/promises";
import { credentials, Metadata } from "@grpc/grpc-js";
import { afterEach, describe, expect, test } from "vitest";
import type { Placer, PlaceAsk } from "../../services/relay/edge/placer.ts";
import type {
  Placement,
  RelayEngine,
} from "../../services/shared/core/placement-token/placement.ts";
import { attributes } from "../../services/shared/core/trace-catalogue.ts";
import { InferenceClient } from "../../services/shared/gen/kvmesh/inference/v1/inference.ts";
import { parseTraceparent } from "../../services/shared/edge/tracing.ts";
import { startScriptedEngine, type ScriptedEngine } from "../support/relay-engines.ts";
import { generate, idsOf } from "../support/relay-oracle.ts";
import {
  legAt,
  post,
  readStream,
  startTestRelay,
  type Answer,
  type TestRelay,
} from "../support/relay-requests.ts";
import { ScriptedRouter } from "../support/relay-router.ts";
import { SpanCollector, type SeenSpan } from "../support/relay-spans.ts";

/* The spans of requests that pass a relay, over real sockets: which there are, whose children, and what they say. */

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
/** The proxy's try, which is the relay's caller, and the router's decision. */
const egressId = "00f067aa0ba902b7";
const routeId = "53995c3f42cd8ad8";
const contextOf = (spanId: string, flags = "01"): string => `00-${traceId}-${spanId}-${flags}`;

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

interface Fleet {
  readonly spans: SpanCollector;
  readonly relay: TestRelay;
  readonly engines: readonly [ScriptedEngine, ScriptedEngine, ScriptedEngine];
  /** What the relay asked its router. */
  readonly asked: PlaceAsk[];
  /** How long its router takes, ms. */
  placeMs: number;
}

/** A relay that traces, and three engines; requests that lose theirs go to the last one. */
async function start(options: { traced?: boolean; router?: ScriptedRouter } = {}): Promise<Fleet> {
  const spans = new SpanCollector();
  const prefill = await startScriptedEngine({ cachedTokens: 5 });
  const decode = await startScriptedEngine({ cachedTokens: 3, peers: () => [prefill] });
  const third = await startScriptedEngine();
  const asked: PlaceAsk[] = [];
  const placer: Placer = {
    place: async (ask) => {
      asked.push(ask);
      if (fleet.placeMs > 0) await setTimeout(fleet.placeMs);
      const legs = [legAt(third.address, "whole")];
      return { kind: "placed", token: relay.sign(ask.body, { legs }) };
    },
  };
  const { router } = options;
  const relay = await startTestRelay({
    ...(router === undefined
      ? { placer }
      : { settings: { routers: { list: [`127.0.0.1:${String(router.port)}`] } } }),
    ...(options.traced === false ? {} : { tracing: spans.tracing }),
  });
  open.push(prefill, decode, third, { close: () => relay.stop() });
  const fleet: Fleet = { spans, relay, engines: [prefill, decode, third], asked, placeMs: 0 };
  return fleet;
}

const prompt = "Why is the sky blue?";
const bodyOf = (over: Record<string, unknown> = {}): string =>
  JSON.stringify({
    model: "m",
    prompt,
    max_tokens: 40,
    ignore_eos: true,
    stream: true,
    stream_options: { include_usage: true },
    ...over,
  });
const expected = [...generate({ promptIds: idsOf(prompt), tokensMax: 40, ignoreEos: true })]
  .map(({ text }) => text)
  .join("");
const guard = { freezeItlMultiple: 20, freezeMsMin: 2_000, migrationsMax: 3 };

function send(
  { relay, engines: [first, second] }: Fleet,
  options: {
    readonly body?: string;
    readonly kind?: RelayEngine;
    /** Runs whole on the first engine, guarded. */
    readonly guarded?: boolean;
    readonly placement?: Partial<Placement>;
    readonly headers?: Record<string, string>;
    readonly onText?: (text: string, leave: () => void) => void;
  } = {},
): Promise<Answer> {
  const { body = bodyOf(), kind = "vllm" } = options;
  const legs =
    options.guarded === true
      ? [legAt(first.address, "whole", kind)]
      : [legAt(first.address, "prefill", kind), legAt(second.address, "decode", kind)];
  const token = relay.sign(body, {
    legs,
    traceparent: contextOf(routeId),
    tenant: "acme",
    ...(options.guarded === true ? { guard } : {}),
    forecast: {
      promptTokens: 20,
      cachedTokens: 5,
      prefillMs: 30,
      transferMs: 10,
      transferBytes: 4_096,
      ttftMs: 50,
      itlMs: 2,
    },
    ...options.placement,
  });
  const headers = {
    "x-kvmesh-placement": token,
    "x-request-id": "req-1",
    traceparent: contextOf(egressId),
    ...options.headers,
  };
  return post(relay.relay.httpPort, "/v1/completions", body, headers, options.onText);
}

/** Names by parent, one line for each span, in order of start. */
function linesOf(spans: readonly SeenSpan[]): string[] {
  const byId = new Map(spans.map((span) => [span.spanId, span]));
  return spans
    .map(
      ({ name, parentId }) => `${byId.get(parentId ?? "")?.name ?? parentId ?? "none"} > ${name}`,
    )
    .sort();
}

const parentIdOf = (engine: ScriptedEngine, request = 0): string | undefined => {
  const header = engine.seen[request]?.headers["traceparent"];
  return parseTraceparent(typeof header === "string" ? header : undefined)?.spanId;
};

const one = (spans: SpanCollector, name: string): SeenSpan => {
  const [span, ...more] = spans.named(name);
  if (span === undefined || more.length > 0) {
    throw new Error(`${String(more.length + (span === undefined ? 0 : 1))} spans ${name}`);
  }
  return span;
};

const pairTree = [
  `${egressId} > kvmesh.request`,
  "kvmesh.request > kvmesh.decode",
  "kvmesh.request > kvmesh.kv.transfer",
  "kvmesh.request > kvmesh.prefill",
  "kvmesh.request > kvmesh.stream",
];

/** The root's parts of the time to the first byte. */
const partsOf = ({ attributes: of }: SeenSpan): Record<string, number> =>
  Object.fromEntries(
    ["relay", "prefill", "transfer", "decode", "retry"].map((name) => [
      name,
      of[`kvmesh.ttft.${name}_ms`] as number,
    ]),
  );
const sumOf = (parts: Record<string, number>): number =>
  Object.values(parts).reduce((sum, ms) => sum + ms, 0);

describe("a pair", () => {
  test.each<[RelayEngine, string | undefined]>([
    ["vllm", "nixl"],
    ["sglang", undefined],
    ["tensorrt-llm", undefined],
  ])(
    "%s: legs, transfer and stream below the request, engines below their legs",
    async (kind, transport) => {
      const fleet = await start();
      const [prefill, decode] = fleet.engines;
      prefill.faults = { firstMs: 40 };
      decode.faults = { firstMs: kind === "sglang" ? 70 : 25, tokenMs: 1 };
      const answer = await send(fleet, { kind });
      expect(readStream(answer.text).text).toBe(expected);
      const { spans } = fleet;
      expect(linesOf(spans.spans)).toEqual(pairTree);
      expect(spans.problems()).toEqual([]);
      expect(new Set(spans.spans.map((span) => span.traceId))).toEqual(new Set([traceId]));
      const request = one(spans, "kvmesh.request");
      expect(request.links).toEqual([routeId]);
      expect(request.attributes).toMatchObject({
        [attributes.requestId]: "req-1",
        [attributes.requestOutcome]: "done",
        [attributes.requestMode]: "pair",
        [attributes.requestAttempt]: 1,
        [attributes.requestPlacements]: 1,
        [attributes.guardState]: "off",
        [attributes.guardReason]: "not_asked",
        [attributes.traceSpansExpected]: 5,
        [attributes.predictedTtftMs]: 50,
      });
      expect(request.attributes[attributes.tenantClass]).toMatch(/^[0-9a-f]{16}$/);
      expect(parentIdOf(prefill)).toBe(one(spans, "kvmesh.prefill").spanId);
      expect(parentIdOf(decode)).toBe(one(spans, "kvmesh.decode").spanId);

      const parts = partsOf(request);
      const stream = one(spans, "kvmesh.stream");
      const ttftMs = stream.attributes[attributes.streamTtftMs] as number;
      expect(sumOf(parts)).toBeCloseTo(ttftMs, 6);
      expect(parts["prefill"]).toBeGreaterThanOrEqual(35);
      expect((parts["transfer"] ?? 0) + (parts["decode"] ?? 0)).toBeGreaterThanOrEqual(10);
      expect(parts["decode"]).toBeCloseTo(2, 6);
      expect(parts["retry"]).toBe(0);
      // Wall times are set anew by up to 2 ms.
      expect(Math.abs(stream.startMs - request.startMs - ttftMs)).toBeLessThan(3);

      expect(one(spans, "kvmesh.prefill").attributes).toMatchObject({
        [attributes.predictedCachedTokens]: 5,
        [attributes.predictedPrefillMs]: 30,
        [attributes.httpResponseStatusCode]: 200,
        [attributes.legOutcome]: "done",
        [attributes.legRole]: "prefill",
        ...(kind === "sglang"
          ? {}
          : { [attributes.observedCachedTokens]: 5, [attributes.differenceCause]: "none" }),
      });
      const transfer = one(spans, "kvmesh.kv.transfer");
      expect(transfer.attributes).toMatchObject({
        [attributes.kvSource]: `w-${prefill.address}`,
        [attributes.kvDestination]: `w-${decode.address}`,
        [attributes.kvBytes]: 4_096,
        [attributes.kvOutcome]: "complete",
        [attributes.predictedTransferMs]: 10,
        ...(kind === "vllm" ? { [attributes.kvBlocks]: 3 } : {}),
        ...(transport === undefined ? {} : { [attributes.kvTransport]: transport }),
      });
      const observedMs = transfer.attributes[attributes.observedTransferMs] as number;
      expect(observedMs).toBeCloseTo(parts["transfer"] ?? 0, 6);
      expect(Math.abs(transfer.endMs - transfer.startMs - observedMs)).toBeLessThan(3);
      const told = fleet.relay.notices.filter(({ leg, ended }) => leg === "decode" && ended);
      expect(told.map(({ transferMs }) => transferMs)).toEqual([observedMs]);

      expect(one(spans, "kvmesh.decode").attributes).toMatchObject({
        [attributes.genAiUsageInputTokens]: idsOf(prompt).length,
        [attributes.genAiUsageOutputTokens]: 40,
        [attributes.legAttempt]: 1,
      });
      expect(stream.events.map(({ name }) => name)).toEqual(["first_token", "usage"]);
      expect(stream.attributes).toMatchObject({
        [attributes.streamTokens]: 40,
        [attributes.streamMigrations]: 0,
        [attributes.streamBytes]: Buffer.byteLength(answer.text),
      });
      expect(stream.attributes[attributes.streamItlP50Ms]).toBeGreaterThan(0.5);
    },
  );

  test("an answer that prefill made has no transfer and no decode", async () => {
    const fleet = await start();
    let ending = "";
    for (let i = 0; ending === ""; i++) {
      const [first] = generate({ promptIds: idsOf(`p${String(i)}`), tokensMax: 4 });
      if (first?.finishReason === "stop") ending = `p${String(i)}`;
    }
    await send(fleet, {
      kind: "tensorrt-llm",
      body: bodyOf({ prompt: ending, ignore_eos: false }),
    });
    expect(linesOf(fleet.spans.spans)).toEqual([
      pairTree[0],
      "kvmesh.request > kvmesh.prefill",
      "kvmesh.request > kvmesh.stream",
    ]);
    expect(fleet.spans.problems()).toEqual([]);
    expect(sumOf(partsOf(one(fleet.spans, "kvmesh.request")))).toBeCloseTo(
      one(fleet.spans, "kvmesh.stream").attributes[attributes.streamTtftMs] as number,
      6,
    );
  });

  test("a prefill that fails is a failed span, and decode says why it computed the prompt", async () => {
    const fleet = await start();
    fleet.engines[0].faults = { status: 503, firstMs: 20 };
    await send(fleet);
    const { spans } = fleet;
    expect(linesOf(spans.spans)).toEqual(pairTree.filter((line) => !line.includes("transfer")));
    expect(spans.problems()).toEqual([]);
    expect(one(spans, "kvmesh.prefill").attributes).toMatchObject({
      [attributes.errorType]: "upstream_status",
      [attributes.httpResponseStatusCode]: 503,
      [attributes.legOutcome]: "engine_error",
    });
    expect(one(spans, "kvmesh.decode").attributes).toMatchObject({
      [attributes.legLocalPrefill]: "prefill_failed",
      [attributes.legOutcome]: "done",
    });
    expect(one(spans, "kvmesh.request").attributes[attributes.errorType]).toBeUndefined();
    expect(partsOf(one(spans, "kvmesh.request"))["retry"]).toBeGreaterThanOrEqual(18);
  });

  test("a transfer that fails is a failed span between two tries of decode", async () => {
    const fleet = await start();
    fleet.engines[1].faults = { pullFails: true };
    const answer = await send(fleet);
    expect(readStream(answer.text).text).toBe(expected);
    const { spans } = fleet;
    expect(spans.problems()).toEqual([]);
    expect(one(spans, "kvmesh.kv.transfer").attributes).toMatchObject({
      [attributes.errorType]: "kv_transfer_failed",
      [attributes.kvBlocks]: 3,
    });
    const [first, second, ...more] = spans.named("kvmesh.decode");
    expect(more).toEqual([]);
    expect(first?.attributes[attributes.errorType]).toBe("upstream_status");
    expect(second?.links).toEqual([first?.spanId]);
    expect(second?.attributes).toMatchObject({
      [attributes.legAttempt]: 2,
      [attributes.legLocalPrefill]: "transfer_failed",
    });
    expect([parentIdOf(fleet.engines[1], 0), parentIdOf(fleet.engines[1], 1)]).toEqual([
      first?.spanId,
      second?.spanId,
    ]);
    const request = one(spans, "kvmesh.request");
    const ttftMs = one(spans, "kvmesh.stream").attributes[attributes.streamTtftMs] as number;
    expect(sumOf(partsOf(request))).toBeCloseTo(ttftMs, 6);
    expect(request.attributes[attributes.traceSpansExpected]).toBe(spans.spans.length);
  });

  test("a client that leaves is an event of the stream, and the error of its request", async () => {
    const fleet = await start();
    fleet.engines[1].faults = { tokenMs: 10 };
    await send(fleet, {
      onText: (text, leave) => {
        if (text.includes("data:")) leave();
      },
    });
    await expect.poll(() => fleet.spans.named("kvmesh.request").length).toBe(1);
    const { spans } = fleet;
    expect(linesOf(spans.spans)).toEqual(pairTree);
    expect(spans.problems()).toEqual([]);
    expect(one(spans, "kvmesh.stream").events.map(({ name }) => name)).toContain("client_cancel");
    for (const name of ["kvmesh.request", "kvmesh.stream", "kvmesh.decode"]) {
      expect(one(spans, name).attributes[attributes.errorType], name).toBe("client_cancel");
    }
  });
});

describe("a guarded stream", () => {
  test("that goes on elsewhere is one trace of linked tries", async () => {
    const fleet = await start();
    fleet.engines[0].faults = { breakAfter: 17, tokenMs: 1 };
    const answer = await send(fleet, { guarded: true });
    expect(readStream(answer.text)).toMatchObject({ text: expected, done: true });
    const { spans, asked } = fleet;
    expect(spans.problems()).toEqual([]);
    expect(linesOf(spans.spans)).toEqual([
      `${egressId} > kvmesh.request`,
      "kvmesh.request > kvmesh.decode",
      "kvmesh.request > kvmesh.decode",
      "kvmesh.request > kvmesh.stream",
    ]);
    const request = one(spans, "kvmesh.request");
    const [first, second] = spans.named("kvmesh.decode");
    expect(first?.attributes).toMatchObject({
      [attributes.errorType]: "engine_crash",
      [attributes.legOutcome]: "lost",
      [attributes.legRole]: "whole",
    });
    const offset = second?.attributes[attributes.resumeTokenOffset];
    expect(second?.links).toEqual([first?.spanId]);
    expect(offset).toBeGreaterThanOrEqual(16);
    expect(parentIdOf(fleet.engines[2])).toBe(second?.spanId);
    expect(request.attributes).toMatchObject({
      [attributes.guardState]: "on",
      [attributes.streamMigrations]: 1,
      [attributes.requestPlacements]: 2,
      [attributes.requestOutcome]: "done",
    });
    const moved = one(spans, "kvmesh.stream").events.filter(({ name }) => name === "migrated");
    expect(moved).toMatchObject([
      {
        attributes: {
          [attributes.workerId]: `w-${fleet.engines[2].address}`,
          [attributes.resumeTokenOffset]: offset,
          "kvmesh.migration.cause": "lost",
        },
      },
    ]);
    expect(one(spans, "kvmesh.stream").attributes[attributes.streamTokens]).toBe(40);
    // The router that is asked for another engine decides in the same trace.
    expect(asked.map(({ fields }) => new Map(fields).get("traceparent"))).toEqual([
      contextOf(request.spanId),
    ]);
  });

  test("that stands still says so, with who was waited for", async () => {
    const fleet = await start();
    const [engine] = fleet.engines;
    engine.faults = { tokenMs: 2, stallAfter: 20, stallMs: 500 };
    await send(fleet, { guarded: true });
    const stream = one(fleet.spans, "kvmesh.stream");
    const stalls = stream.events.filter(({ name }) => name === "stall");
    expect(stalls.length).toBeGreaterThanOrEqual(1);
    expect(stalls[0]?.attributes["kvmesh.stall.side"]).toBe("engine");
    expect(stream.attributes[attributes.streamStallEngineMs]).toBeGreaterThan(450);
    expect(stream.attributes[attributes.streamStallClientMs]).toBe(0);
  });
});

describe("a stream that is resumed", () => {
  test("links to the request that another relay began", async () => {
    const router = new ScriptedRouter();
    await router.start();
    open.push(router);
    const a = await start({ router });
    const spansB = new SpanCollector();
    const list = [`127.0.0.1:${String(router.port)}`];
    const b = await startTestRelay({
      keysFile: a.relay.keysFile,
      settings: { instance: "relay-b", routers: { list } },
      tracing: spansB.tracing,
    });
    open.push({ close: () => b.stop() });
    const hellos = () =>
      router.said.flatMap((said) => (said.$case === "hello" ? [said.value] : []));
    await expect.poll(() => hellos().length).toBe(2);
    const relays = hellos().map(({ instance, h2Address, epoch }) => ({
      instance,
      h2Address,
      epoch,
    }));
    const [engine] = a.engines;
    const member = {
      workerId: `w-${engine.address}`,
      address: engine.address,
      workerStartMs: 1n,
      engineLife: 1n,
      engine: "vllm",
      ready: true,
    };
    for (const stream of router.streams) {
      router.snapshot(stream, [member], { relays, relayCount: 2 });
    }
    engine.faults = { tokenMs: 5 };
    // Streams have names as soon as the relays know each other.
    let id = "";
    await expect
      .poll(
        async () => {
          a.spans.clear();
          await send(a, {
            guarded: true,
            onText: (text, leave) => {
              const whole = text.slice(0, text.lastIndexOf("\n\n") + 2);
              const { ids } = readStream(whole);
              if (ids.length < 12 && text.split("data:").length < 14) return;
              id = ids[ids.length - 1] ?? "";
              leave();
            },
          });
          return id === "" ? 0 : 1;
        },
        { timeout: 10_000 },
      )
      .toBe(1);
    await expect.poll(() => a.spans.named("kvmesh.request").length).toBe(1);
    const begun = one(a.spans, "kvmesh.request");
    const body = bodyOf();
    const token = b.sign(body, { legs: [legAt(engine.address, "whole")], guard });
    const other = "11111111111111111111111111111111";
    const answer = await post(b.relay.httpPort, "/v1/completions", body, {
      "x-kvmesh-placement": token,
      "x-kvmesh-resume": id,
      traceparent: `00-${other}-${egressId}-01`,
    });
    expect(readStream(answer.text).done).toBe(true);
    const resumed = one(spansB, "kvmesh.request");
    expect(resumed.traceId).toBe(other);
    expect(resumed.links).toEqual([begun.spanId]);
    expect(resumed.attributes[attributes.resumeTokenOffset]).toBeGreaterThan(5);
    expect(one(spansB, "kvmesh.decode").attributes[attributes.resumeTokenOffset]).toBe(
      resumed.attributes[attributes.resumeTokenOffset],
    );
    expect(spansB.problems()).toEqual([]);
  });
});

describe("a call of Generate", () => {
  test("is below its caller's span, from its arrival on, and its router is asked in the same trace", async () => {
    const fleet = await start();
    fleet.placeMs = 60;
    const client = new InferenceClient(
      `127.0.0.1:${String(fleet.relay.relay.h2Port)}`,
      credentials.createInsecure(),
    );
    open.push(client);
    const metadata = new Metadata();
    metadata.set("traceparent", contextOf(egressId));
    const call = client.generate(
      {
        requestId: "",
        model: "m",
        input: { $case: "text", value: prompt },
        sampling: { tokensMax: 12, stop: [], stopTokenIds: [], ignoreEos: true },
        tenant: "",
        session: "",
        priority: "",
      },
      metadata,
    );
    await new Promise((resolve) => call.on("data", () => undefined).on("end", resolve));
    await expect.poll(() => fleet.spans.named("kvmesh.request").length).toBe(1);
    const { spans, asked } = fleet;
    expect(spans.problems()).toEqual([]);
    expect(linesOf(spans.spans)).toEqual([
      `${egressId} > kvmesh.request`,
      "kvmesh.request > kvmesh.decode",
      "kvmesh.request > kvmesh.stream",
    ]);
    expect(new Map(asked[0]?.fields).get("traceparent")).toBe(contextOf(egressId));
    const parts = partsOf(one(spans, "kvmesh.request"));
    expect(parts["relay"]).toBeGreaterThanOrEqual(55);
    expect(sumOf(parts)).toBeCloseTo(
      one(spans, "kvmesh.stream").attributes[attributes.streamTtftMs] as number,
      6,
    );
  });
});

describe("whose trace it is", () => {
  test("without a caller's context the request is below the router's decision", async () => {
    const fleet = await start();
    await send(fleet, { headers: { traceparent: "" } });
    const request = one(fleet.spans, "kvmesh.request");
    expect([request.parentId, request.links]).toEqual([routeId, []]);
  });

  test("the proxy's further tries say which they are", async () => {
    const fleet = await start();
    await send(fleet, { headers: { "x-envoy-attempt-count": "2" } });
    const request = one(fleet.spans, "kvmesh.request");
    expect(request.attributes[attributes.requestAttempt]).toBe(2);
  });

  test("a relay that does not trace hands the caller's context on", async () => {
    const fleet = await start({ traced: false });
    await send(fleet, { headers: { tracestate: "a=b" } });
    expect([parentIdOf(fleet.engines[0]), parentIdOf(fleet.engines[1])]).toEqual([
      egressId,
      egressId,
    ]);
    expect(fleet.engines[1].seen[0]?.headers["tracestate"]).toBe("a=b");
  });

  test("of an unsampled request nothing is written, and engines hear that it is not", async () => {
    const fleet = await start();
    await send(fleet, { headers: { traceparent: contextOf(egressId, "00") } });
    expect(fleet.spans.spans).toEqual([]);
    expect(fleet.engines[1].seen[0]?.headers["traceparent"]).toBe(contextOf(egressId, "00"));
  });

  test("an unsampled request that fails, or moves, is written after all", async () => {
    const fleet = await start();
    fleet.engines[0].faults = { breakAfter: 10 };
    const headers = { traceparent: contextOf(egressId, "00") };
    await send(fleet, { guarded: true, headers });
    const { spans } = fleet;
    expect(spans.problems()).toEqual([]);
    expect(linesOf(spans.spans)).toEqual([
      `${egressId} > kvmesh.request`,
      "kvmesh.request > kvmesh.decode",
      "kvmesh.request > kvmesh.decode",
      "kvmesh.request > kvmesh.stream",
    ]);
    expect(one(spans, "kvmesh.request").attributes).toMatchObject({
      [attributes.parentUnsampled]: true,
      [attributes.traceKeptFor]: "migrated",
    });
    const [first, second] = spans.named("kvmesh.decode");
    expect(second?.links).toEqual([first?.spanId]);
    expect(await fleet.relay.metrics()).toContain(
      'kvmesh_relay_traces_kept_total{reason="migrated"} 1',
    );

    spans.clear();
    fleet.engines[0].faults = { status: 400 };
    fleet.engines[1].faults = { breakAfter: 3 };
    await send(fleet, { headers });
    expect(one(spans, "kvmesh.request").attributes).toMatchObject({
      [attributes.errorType]: "engine_crash",
      [attributes.traceKeptFor]: "failed",
    });
  });

  test("an unsampled request is written when a router asks for it, before its end or after", async () => {
    const router = new ScriptedRouter();
    await router.start();
    open.push(router);
    const fleet = await start({ router });
    await expect.poll(() => router.said.some(({ $case }) => $case === "load")).toBe(true);
    const [stream] = router.streams;
    if (stream === undefined) throw new Error("no stream");
    const headers = { traceparent: contextOf(egressId, "00") };
    const ask = (decisionId: string, reason: string): void => {
      router.send(stream, { $case: "keep", value: { decisionIds: [decisionId], reason } });
    };
    await send(fleet, { headers, placement: { decisionId: "router-0.1.late" } });
    expect(fleet.spans.spans).toEqual([]);
    ask("router-0.1.late", "slow");
    await expect.poll(() => fleet.spans.named("kvmesh.request").length).toBe(1);
    expect(one(fleet.spans, "kvmesh.request").attributes[attributes.traceKeptFor]).toBe("slow");
    expect(linesOf(fleet.spans.spans)).toEqual(pairTree);

    fleet.spans.clear();
    fleet.engines[0].faults = { firstMs: 150 };
    const answering = send(fleet, { headers, placement: { decisionId: "router-0.1.early" } });
    await expect.poll(() => fleet.engines[0].seen.length).toBe(2);
    ask("router-0.1.early", "a person's own words");
    await answering;
    await expect.poll(() => fleet.spans.named("kvmesh.request").length).toBe(1);
    expect(one(fleet.spans, "kvmesh.request").attributes[attributes.traceKeptFor]).toBe("operator");
  });
});
