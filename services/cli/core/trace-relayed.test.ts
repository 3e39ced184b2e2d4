import { describe, expect, test } from "vitest";
import { attributes } from "../../shared/core/trace-catalogue.ts";
import { checkComplete, findRoles } from "./trace-roles.ts";
import { parseTrace, type ViewTrace } from "./trace-tree.ts";
import { ttftParts } from "./trace-ttft.ts";
import { renderTrace } from "./trace-view.ts";

interface SpanInput {
  readonly id: string;
  readonly parent?: string;
  readonly name: string;
  readonly from: number;
  readonly to: number;
  readonly process?: string;
  readonly attributes?: Record<string, unknown>;
}

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
const epochNs = 1_795_401_052_000_000_000n;

function traceOf(inputs: readonly SpanInput[]): ViewTrace {
  const at = (ms: number): string => String(epochNs + BigInt(Math.round(ms * 1e6)));
  return parseTrace({
    traceId,
    droppedSpans: 0,
    spans: inputs.map((input) => ({
      traceId,
      spanId: input.id,
      parentSpanId: input.parent ?? "",
      name: input.name,
      startUnixNs: at(input.from),
      endUnixNs: at(input.to),
      status: { code: "unset", message: "" },
      attributes: input.attributes ?? {},
      events: [],
      links: [],
      resource: { "service.name": input.process ?? "kvmesh-router" },
    })),
  });
}

/** A pair through a relay: 900 ms to the first token, all of it explained. */
function paired(): SpanInput[] {
  const relay = "kvmesh-relay";
  return [
    { id: "in", name: "ingress", from: 0, to: 5_000, process: "envoy" },
    {
      id: "ep",
      parent: "in",
      name: "async envoy.service.ext_proc.v3.ExternalProcessor.Process egress",
      from: 1,
      to: 12,
      process: "envoy",
    },
    {
      id: "rt",
      parent: "ep",
      name: "kvmesh.route",
      from: 2,
      to: 12,
      attributes: {
        [attributes.routeOutcome]: "picked",
        [attributes.routeMode]: "pd",
        [attributes.routePrefillWorkerId]: "w0",
        [attributes.workerId]: "w2",
        [attributes.predictedTtftMs]: 850,
        [attributes.traceSpansExpected]: 6,
      },
    },
    { id: "bo", parent: "rt", name: "kvmesh.route.body", from: 2, to: 4 },
    { id: "to", parent: "rt", name: "kvmesh.route.tokenize", from: 4, to: 8 },
    { id: "lo", parent: "rt", name: "kvmesh.route.lookup", from: 8, to: 9 },
    { id: "sc", parent: "rt", name: "kvmesh.route.score", from: 9, to: 12 },
    { id: "up", parent: "in", name: "router relays egress", from: 13, to: 5_000, process: "envoy" },
    {
      id: "re",
      parent: "up",
      name: "kvmesh.request",
      from: 14,
      to: 4_999,
      process: relay,
      attributes: {
        [attributes.ttftRelayMs]: 3,
        [attributes.ttftPrefillMs]: 760,
        [attributes.ttftTransferMs]: 85,
        [attributes.ttftDecodeMs]: 37,
        [attributes.ttftRetryMs]: 0,
        [attributes.traceSpansExpected]: 5,
      },
    },
    {
      id: "pf",
      parent: "re",
      name: "kvmesh.prefill",
      from: 16,
      to: 776,
      process: relay,
      attributes: {
        [attributes.workerId]: "w0",
        [attributes.predictedPrefillMs]: 750,
        [attributes.observedPrefillMs]: 760,
      },
    },
    {
      id: "kv",
      parent: "re",
      name: "kvmesh.kv.transfer",
      from: 776,
      to: 861,
      process: relay,
      attributes: {
        [attributes.kvSource]: "w0",
        [attributes.kvDestination]: "w2",
        [attributes.kvBytes]: 768_000,
        [attributes.kvOverlapRatio]: 0,
        [attributes.predictedTransferMs]: 79,
        [attributes.observedTransferMs]: 85,
        [attributes.kvOutcome]: "done",
      },
    },
    {
      id: "de",
      parent: "re",
      name: "kvmesh.decode",
      from: 777,
      to: 4_999,
      process: relay,
      attributes: { [attributes.workerId]: "w2" },
    },
    { id: "e0", parent: "pf", name: "llm_request", from: 17, to: 775, process: "engine" },
    { id: "e2", parent: "de", name: "llm_request", from: 778, to: 4_998, process: "engine" },
    {
      id: "ho",
      parent: "e2",
      name: "kvmesh.kv.hop",
      from: 779,
      to: 858,
      process: "engine",
      attributes: { [attributes.kvBytes]: 768_000, [attributes.kvGbps]: 0.00972 },
    },
    {
      id: "st",
      parent: "re",
      name: "kvmesh.stream",
      from: 899,
      to: 4_999,
      process: relay,
      attributes: { [attributes.streamTtftMs]: 885 },
    },
    {
      id: "se",
      parent: "rt",
      name: "kvmesh.serve",
      from: 12,
      to: 5_000,
      attributes: {
        [attributes.observedTtftMs]: 900,
        [attributes.serveAttempts]: 1,
        [attributes.serveAsPicked]: true,
      },
    },
  ];
}

const without = (...ids: string[]): SpanInput[] => paired().filter(({ id }) => !ids.includes(id));
const missingIn = (inputs: readonly SpanInput[]): readonly string[] => {
  const trace = traceOf(inputs);
  return checkComplete(trace, findRoles(trace)).missing;
};

describe("a request through a relay", () => {
  test("has parts of its time to first token that add up to what Envoy observed", () => {
    const ttft = ttftParts(findRoles(traceOf(paired())));
    expect(ttft.parts.map(({ name, ms }) => [name, Number(ms.toFixed(3))])).toEqual([
      ["client → router", 2],
      ["body wait", 2],
      ["tokenize", 4],
      ["lookup", 1],
      ["score", 3],
      ["router, the rest", 0],
      ["Envoy → relay", 2],
      ["relay", 3],
      ["prefill on w0", 760],
      ["KV transfer, what prefill did not hide", 85],
      ["first step on w2", 37],
      ["relay → first byte at Envoy", 1],
    ]);
    expect(ttft.unexplainedMs).toBeCloseTo(0);
  });

  test("shows legs that failed before, and names what the relay did not measure", () => {
    const retried = paired().map((input) =>
      input.id === "re"
        ? {
            ...input,
            attributes: {
              ...input.attributes,
              [attributes.ttftRetryMs]: 40,
              [attributes.ttftPrefillMs]: 720,
            },
          }
        : input,
    );
    const { parts, unexplainedMs } = ttftParts(findRoles(traceOf(retried)));
    expect(parts.find(({ name }) => name === "legs that failed")?.ms).toBe(40);
    expect(unexplainedMs).toBeCloseTo(0);
    const silent = ttftParts(findRoles(traceOf(without("st"))));
    expect(silent.unexplained).toContain("from the relay's first byte to the client");
  });

  test("is complete with all its spans, and says which side's are missing", () => {
    expect(missingIn(paired())).toEqual([]);
    expect(missingIn(without("kv"))).toEqual(["1 of 5 relay spans"]);
    expect(missingIn(without("re", "pf", "kv", "de", "st", "ho")).join()).toContain(
      "kvmesh.request (the relay's",
    );
    expect(missingIn(without("sc")).join()).toContain("kvmesh.route.score");
  });

  test("is drawn with both workers, what moved, and predicted beside observed", () => {
    const text = renderTrace(traceOf(paired()), { width: 120, color: false });
    expect(text).toContain("worker w0 → w2 through kvmesh-relay");
    expect(text).toMatch(/kvmesh\.kv\.transfer {2}w0 → w2, 768,000 bytes, 85\.0 ms, 0 % hidden/);
    expect(text).toMatch(/kvmesh\.kv\.hop {2}768,000 bytes, 79\.0 ms, 0\.00972 GB\/s/);
    expect(text).toMatch(/KV transfer {2,}79\.0 ms {2,}85\.0 ms {2,}\+6\.00 ms/);
    expect(text).toMatch(/prefill {2,}750 ms {2,}760 ms {2,}\+10\.0 ms/);
    expect(text).toContain("complete: yes");
  });
});
