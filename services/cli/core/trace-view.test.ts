import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { attributes } from "../../shared/core/trace-catalogue.ts";
import { checkComplete, findRoles } from "./trace-roles.ts";
import { parseTrace, spanForest } from "./trace-tree.ts";
import { ttftParts } from "./trace-ttft.ts";
import { renderTrace } from "./trace-view.ts";

interface SpanInput {
  readonly id: string;
  readonly parent?: string;
  readonly name: string;
  readonly from: number;
  readonly to: number;
  readonly attributes?: Record<string, unknown>;
  readonly resource?: Record<string, unknown>;
  readonly links?: { traceId: string; spanId: string }[];
  readonly status?: { code: string; message: string };
}

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
const epochNs = 1_795_401_052_000_000_000n;

function span(input: SpanInput) {
  const at = (ms: number): string => String(epochNs + BigInt(Math.round(ms * 1e6)));
  return {
    traceId,
    spanId: input.id,
    parentSpanId: input.parent ?? "",
    name: input.name,
    kind: "internal",
    startUnixNs: at(input.from),
    endUnixNs: at(input.to),
    status: input.status ?? { code: "unset", message: "" },
    attributes: input.attributes ?? {},
    events: [],
    links: input.links ?? [],
    resource: input.resource ?? { "service.name": "kvmesh-router", "service.instance.id": "r0" },
    scope: "kvmesh",
    truncated: 0,
  };
}

const envoy = { "service.name": "gateway" };
const engine = { "service.name": "engine", "service.instance.id": "w2" };

/** A picked request: 60 ms to the first token, all of it explained. */
function wholeRequest(): SpanInput[] {
  return [
    { id: "in", name: "ingress", from: 0, to: 400, resource: envoy },
    {
      id: "ep",
      parent: "in",
      name: "async envoy.service.ext_proc.v3.ExternalProcessor.Process egress",
      from: 1,
      to: 12,
      resource: envoy,
    },
    {
      id: "rt",
      parent: "ep",
      name: "kvmesh.route",
      from: 2,
      to: 11,
      attributes: {
        [attributes.decisionId]: "r0.17.42",
        [attributes.requestId]: "req-7",
        [attributes.routeOutcome]: "picked",
        [attributes.workerId]: "w2",
        [attributes.genAiRequestModel]: "qwen3",
        [attributes.predictedTtftMs]: 50,
        [attributes.predictedCachedTokens]: 1_024,
        [attributes.traceSpansExpected]: 6,
      },
      links: [{ traceId: "ab".repeat(16), spanId: "cd".repeat(8) }],
    },
    { id: "bo", parent: "rt", name: "kvmesh.route.body", from: 2, to: 6 },
    { id: "to", parent: "rt", name: "kvmesh.route.tokenize", from: 6, to: 8 },
    { id: "lo", parent: "rt", name: "kvmesh.route.lookup", from: 8, to: 9 },
    {
      id: "sc",
      parent: "rt",
      name: "kvmesh.route.score",
      from: 9,
      to: 10,
      attributes: {
        [attributes.routeCandidates]: 3,
        [attributes.routeFiltered]: ["draining=1"],
        [attributes.candidateId]: ["w2", "w1"],
        [attributes.candidateTotalMs]: [48.5, 90],
        [attributes.candidateMatchedTokens]: [1_024, 0],
        [attributes.routeMarginMs]: 41.5,
      },
    },
    {
      id: "up",
      parent: "in",
      name: "router pool-default egress",
      from: 13,
      to: 400,
      resource: envoy,
    },
    {
      id: "en",
      parent: "up",
      name: "llm_request",
      from: 15,
      to: 398,
      resource: engine,
      attributes: {
        [attributes.engineTtftSeconds]: 0.044,
        [attributes.engineQueueSeconds]: 0.01,
        [attributes.enginePrefillSeconds]: 0.03,
      },
    },
    {
      id: "se",
      parent: "rt",
      name: "kvmesh.serve",
      from: 11,
      to: 400,
      attributes: {
        [attributes.observedTtftMs]: 60,
        [attributes.observedCachedTokens]: 1_008,
        [attributes.differenceCause]: "queue",
        [attributes.serveAttempts]: 1,
        [attributes.serveAsPicked]: true,
        [attributes.httpResponseStatusCode]: 200,
      },
    },
  ];
}

const traceOf = (inputs: readonly SpanInput[], droppedSpans = 0) =>
  parseTrace({ traceId, droppedSpans, spans: inputs.map(span) });
const draw = (inputs: readonly SpanInput[]): string =>
  renderTrace(traceOf(inputs), { width: 110, color: false });
const without = (...names: string[]): SpanInput[] =>
  wholeRequest().filter((input) => !names.includes(input.name));
const partsOf = (inputs: readonly SpanInput[]) => ttftParts(findRoles(traceOf(inputs)));

describe("parts of the time to first token", () => {
  test("add up to what Envoy observed when every span is there", () => {
    const ttft = partsOf(wholeRequest());
    expect(ttft.parts.map((part) => [part.name, Number(part.ms.toFixed(3))])).toEqual([
      ["client → router", 2],
      ["body wait", 4],
      ["tokenize", 2],
      ["lookup", 1],
      ["score", 1],
      ["router, the rest", 1],
      ["Envoy → engine", 4],
      ["engine queue", 10],
      ["engine prefill", 30],
      ["engine, the rest", 4],
      ["first token → first byte at Envoy", 1],
    ]);
    expect(ttft.routerMs).toBeCloseTo(9);
    expect(ttft.sumMs).toBeCloseTo(60);
    expect(ttft.unexplainedMs).toBeCloseTo(0);
  });

  test("leave what no span measured in the remainder and name it", () => {
    const ttft = partsOf(without("llm_request"));
    expect(ttft.sumMs).toBeCloseTo(11);
    expect(ttft.unexplainedMs).toBeCloseTo(49);
    expect(ttft.unexplained).toContain("no llm_request span");
    expect(partsOf(without("ingress")).unexplained).toContain("before the router");
  });

  test("say that clocks disagree instead of showing a negative stretch", () => {
    const skewed = wholeRequest().map((input) =>
      input.name === "llm_request" ? { ...input, from: 5, to: 388 } : input,
    );
    const ttft = partsOf(skewed);
    expect(ttft.parts.every((part) => part.ms >= 0)).toBe(true);
    expect(ttft.unexplained).toContain("clocks disagree at Envoy → engine");
    expect(ttft.unexplainedMs).toBeCloseTo(-6);
  });

  test("take a measured clock offset out before comparing hosts", () => {
    const ahead = wholeRequest().map((input) =>
      input.name === "llm_request"
        ? {
            ...input,
            from: 1_015,
            to: 1_398,
            resource: { ...engine, "kvmesh.clock.offset_ms": 1_000 },
          }
        : input,
    );
    expect(partsOf(ahead).unexplainedMs).toBeCloseTo(0);
    expect(draw(ahead)).toContain("clocks corrected: engine w2 +1000 ms");
  });

  test("count failed tries apart from the hop to the engine", () => {
    const retried = [
      ...without("router pool-default egress"),
      { id: "u1", parent: "in", name: "router pool-default egress", from: 12, to: 13 },
      { id: "up", parent: "in", name: "router pool-default egress", from: 14, to: 400 },
    ];
    const names = partsOf(retried).parts.map((part) => [part.name, Number(part.ms.toFixed(3))]);
    expect(names).toContainEqual(["1 failed tries", 2]);
    expect(names).toContainEqual(["Envoy → engine", 2]);
  });
});

describe("completeness", () => {
  const missing = (inputs: readonly SpanInput[], dropped = 0): readonly string[] => {
    const trace = traceOf(inputs, dropped);
    return checkComplete(trace, findRoles(trace)).missing;
  };

  test("finds nothing missing in a whole trace", () => {
    expect(missing(wholeRequest())).toEqual([]);
  });

  test.each([
    ["ingress", /ingress/],
    ["kvmesh.route.tokenize", /tokenize/],
    ["kvmesh.route.score", /score/],
    ["kvmesh.serve", /kvmesh\.serve/],
    ["llm_request", /engine failed or does not trace/],
    ["router pool-default egress", /1 of 1 upstream tries/],
  ])("names %s when it did not arrive", (name, expected) => {
    expect(missing(without(name)).join()).toMatch(expected);
  });

  test("counts with the router's own number, and tells what the store left out", () => {
    const more = wholeRequest().map((input) =>
      input.name === "kvmesh.route"
        ? { ...input, attributes: { ...input.attributes, [attributes.traceSpansExpected]: 8 } }
        : input,
    );
    expect(missing(more)).toEqual(["2 of 8 router spans"]);
    expect(missing(wholeRequest(), 5)).toEqual(["5 spans that the store left out"]);
  });

  test("expects no tokens of a request placed by load alone", () => {
    const loadOnly = without("kvmesh.route.tokenize", "kvmesh.route.lookup").map((input) =>
      input.name === "kvmesh.route"
        ? {
            ...input,
            attributes: {
              ...input.attributes,
              [attributes.routeLoadOnlyReason]: "images",
              [attributes.traceSpansExpected]: 4,
            },
          }
        : input,
    );
    expect(missing(loadOnly)).toEqual([]);
  });
});

describe("drawing", () => {
  test("shows tree, parts, predictions, candidates, links and completeness", () => {
    expect(draw(wholeRequest())).toMatchSnapshot();
  });

  test("cannot be steered by text from other processes", () => {
    const evil = wholeRequest().map((input) =>
      input.name === "kvmesh.route"
        ? {
            ...input,
            attributes: {
              ...input.attributes,
              [attributes.genAiRequestModel]: "\u001b[2J\u0007\u202Eevil\nline",
            },
          }
        : input,
    );
    const text = draw(evil);
    expect(text).not.toMatch(/[\u001b\u0007\u202e]/);
    expect(text).toContain("�[2J��evil�line");
  });

  test("uses colours only when asked", () => {
    const trace = traceOf(wholeRequest());
    expect(renderTrace(trace, { width: 110, color: true })).toContain("\u001b[1m");
  });

  test.each([
    ["whole", "not streamed: its first byte came when all was done"],
    ["unknown", "whether its answer was streamed was not read"],
  ])("shows no first token where none is seen: answer %s", (form, why) => {
    const unseen = wholeRequest().map((input) => {
      if (input.name !== "kvmesh.serve") return input;
      const attributesSeen = Object.fromEntries(
        Object.entries(input.attributes ?? {}).filter(
          ([name]) =>
            name !== attributes.observedTtftMs && name !== attributes.observedCachedTokens,
        ),
      );
      return { ...input, attributes: { ...attributesSeen, [attributes.answerForm]: form } };
    });
    const text = draw(unseen);
    expect(text).not.toContain("first token → first byte at Envoy");
    expect(text).toContain(`observed at Envoy: not known (${why})`);
    expect(text).toContain(`time to first token not observed: ${why}`);
    expect(text).toContain("cached tokens not observed");
  });

  test("says that the client went away", () => {
    const left = wholeRequest().map((input) =>
      input.name === "kvmesh.serve"
        ? { ...input, attributes: { ...input.attributes, [attributes.errorType]: "client_cancel" } }
        : input,
    );
    expect(draw(left)).toContain("the client went away");
    expect(draw(wholeRequest())).not.toContain("the client went away");
  });

  test("says why a span failed", () => {
    const failed = wholeRequest().map((input) =>
      input.name === "kvmesh.serve"
        ? {
            ...input,
            status: { code: "error", message: "connection reset" },
            attributes: { ...input.attributes, [attributes.errorType]: "upstream_reset" },
          }
        : input,
    );
    expect(draw(failed)).toContain("failed: kvmesh.serve: upstream_reset, connection reset");
  });

  test("draws every span once whatever the parents are, and never throws", () => {
    const inputs = fc.uniqueArray(
      fc.record({
        id: fc.integer({ min: 0, max: 30 }).map(String),
        parent: fc.integer({ min: 0, max: 35 }).map(String),
        name: fc.constantFrom("ingress", "kvmesh.route", "kvmesh.serve", "llm_request", "x"),
        from: fc.double({ min: 0, max: 1e6, noNaN: true }),
        to: fc.double({ min: 0, max: 1e6, noNaN: true }),
        attributes: fc.dictionary(
          fc.constantFrom(...Object.values(attributes)),
          fc.oneof(fc.double(), fc.string(), fc.array(fc.double()), fc.constant(null)),
        ),
      }),
      { selector: (input) => input.id, maxLength: 30 },
    );
    fc.assert(
      fc.property(inputs, fc.integer({ min: 1, max: 300 }), (spans, width) => {
        const trace = traceOf(spans);
        const count = (nodes: ReturnType<typeof spanForest>): number =>
          nodes.reduce((sum, node) => sum + 1 + count([...node.children]), 0);
        expect(count(spanForest(trace.spans))).toBe(spans.length);
        expect(renderTrace(trace, { width, color: false })).toContain(traceId);
      }),
    );
  });
});
