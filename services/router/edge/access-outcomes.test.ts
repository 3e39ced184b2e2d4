import { describe, expect, test } from "vitest";
import { memberFacts, placeInput, routerCore } from "../../../test/support/router-builders.ts";
import { attributes, spanNames } from "../../shared/core/trace-catalogue.ts";
import { monoMs } from "../../shared/core/ids.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { createMetrics } from "../../shared/edge/metrics.ts";
import type { SpanAttributes, SpanOptions, Tracing } from "../../shared/edge/tracing.ts";
import { routerMetrics } from "../metrics.ts";
import type { AccessRecord } from "./access-log/access-record.ts";
import { AccessOutcomes } from "./access-outcomes.ts";
import type { PeerLinks } from "./peer-links.ts";

interface SeenSpan {
  readonly name: string;
  readonly options: SpanOptions;
  attributes: SpanAttributes;
  error?: string;
  endUnixUs?: number | undefined;
}

const traceId = "0af7651916cd43dd8448eb211c80319c";
const routeSpan = "b7ad6b7169203331";

/** A router that has placed one request, and what it does with records of it. */
function placed() {
  const spans: SeenSpan[] = [];
  const tracing: Tracing = {
    start(name, options = {}) {
      const span: SeenSpan = { name, options, attributes: {} };
      spans.push(span);
      return {
        context: { traceId, spanId: "0000000000000001", sampled: true },
        set: (more) => {
          span.attributes = { ...span.attributes, ...more };
        },
        event: () => undefined,
        fail: (error) => {
          span.error = error;
        },
        end: (endUnixUs) => {
          span.endUnixUs = endUnixUs;
        },
      };
    },
    stop: () => Promise.resolve(),
  };
  const core = routerCore();
  core.admit(memberFacts(0), 1, monoMs(0));
  core.admit(memberFacts(1), 2, monoMs(0));
  const decision = core.place(placeInput(), realClock.now());
  const forwarded: { readonly to: string; readonly kind: string }[] = [];
  const peers = {
    sendTo: (to: string, message: { $case: string }) => {
      forwarded.push({ to, kind: message.$case });
      return true;
    },
  } as unknown as PeerLinks;
  const outcomes = new AccessOutcomes({
    core,
    clock: realClock,
    tracing,
    metrics: createMetrics(routerMetrics).metrics,
    peers,
    decisionPrefix: "r0.1",
    settle: () => {
      core.takeEffects();
    },
  });
  const [chosen] = decision.candidates;
  const record = (over: Partial<AccessRecord> = {}): AccessRecord => ({
    decisionId: decision.id,
    requestId: "req-1",
    traceparent: `00-${traceId}-${routeSpan}-01`,
    predictedTtftMs: 30,
    workerId: decision.workerId ?? "",
    picked: decision.endpoints,
    cluster: "pool-default",
    codeDetails: "via_upstream",
    startUnixUs: decision.decidedUnixUs - 2_000,
    uploadMs: 1,
    upstreamStartMs: 3,
    responseHeadersMs: 41,
    ttftMs: 42.5,
    durationMs: 900,
    servedEndpoint: decision.endpoints[0] ?? "",
    status: 200,
    responseFlags: "",
    attempts: 1,
    responseBytes: 4_096,
    ...over,
  });
  return { outcomes, spans, record, decision, chosen, forwarded };
}

describe("the kvmesh.serve span", () => {
  test("hangs below the route span, lasts from the decision to the answer's end, and says who served", () => {
    const { outcomes, spans, record, decision } = placed();
    outcomes.record(record());
    expect(spans).toHaveLength(1);
    const [span] = spans;
    expect(span?.name).toBe(spanNames.serve);
    expect(span?.options.parent).toMatchObject({ traceId, spanId: routeSpan });
    expect(span?.options.startUnixUs).toBe(decision.decidedUnixUs);
    expect(span?.endUnixUs).toBe(decision.decidedUnixUs - 2_000 + 900_000);
    expect(span?.error).toBeUndefined();
    const [host, port] = (decision.endpoints[0] ?? "").split(":");
    expect(span?.attributes).toMatchObject({
      [attributes.decisionId]: decision.id,
      [attributes.requestId]: "req-1",
      [attributes.workerId]: decision.workerId,
      [attributes.serverAddress]: host,
      [attributes.serverPort]: Number(port),
      [attributes.httpResponseStatusCode]: 200,
      [attributes.httpResponseBodySize]: 4_096,
      [attributes.serveAsPicked]: true,
      [attributes.serveAttempts]: 1,
      [attributes.serveClosedBy]: "access_log",
      [attributes.serveUploadMs]: 1,
      [attributes.serveUpstreamStartMs]: 3,
      [attributes.serveResponseHeadersMs]: 41,
    });
    expect(span?.attributes[attributes.serveResponseFlags]).toBeUndefined();
  });

  test("puts what was observed beside what was predicted", () => {
    const { outcomes, spans, record, chosen } = placed();
    outcomes.record(record());
    expect(spans[0]?.attributes).toMatchObject({
      [attributes.predictedTtftMs]: 30,
      [attributes.observedTtftMs]: 42.5,
      [attributes.differenceTtftMs]: 12.5,
      [attributes.observedDurationMs]: 900,
      [attributes.predictedCachedTokens]: chosen?.matchedTokens,
    });
  });

  test("says when another engine than the one picked served", () => {
    const { outcomes, spans, record, decision } = placed();
    const other = decision.endpoints[1] ?? "";
    expect(other).not.toBe("");
    outcomes.record(record({ servedEndpoint: other, attempts: 2 }));
    expect(spans[0]?.attributes).toMatchObject({
      [attributes.serveAsPicked]: false,
      [attributes.servePickedEndpoint]: decision.endpoints[0],
      [attributes.serveEndpoint]: other,
      [attributes.serveAttempts]: 2,
    });
  });

  test("has no observed times for a request that got no byte", () => {
    const { outcomes, spans, record } = placed();
    outcomes.record(record({ ttftMs: 0, servedEndpoint: "", status: 503, responseFlags: "UH" }));
    const [span] = spans;
    expect(span?.error).toBe("no_endpoint");
    expect(span?.attributes[attributes.observedTtftMs]).toBeUndefined();
    expect(span?.attributes[attributes.differenceTtftMs]).toBeUndefined();
    expect(span?.attributes[attributes.serverAddress]).toBeUndefined();
    expect(span?.attributes[attributes.serveResponseFlags]).toBe("UH");
  });

  test.each([
    ["DC", 0, "client_cancel"],
    ["SI", 200, "deadline_exceeded"],
    ["UF", 503, "upstream_reset"],
    ["", 500, "upstream_status"],
    ["", 400, undefined],
  ])("names the error of flags '%s' with status %i: %s", (responseFlags, status, error) => {
    const { outcomes, spans, record } = placed();
    outcomes.record(record({ responseFlags, status }));
    expect(spans[0]?.error).toBe(error);
  });

  test.each(["", "garbage"])("is not written with the trace context '%s'", (traceparent) => {
    const { outcomes, spans, record } = placed();
    outcomes.record(record({ traceparent }));
    expect(spans).toEqual([]);
  });

  test("is written for another router's decision too, which is told", () => {
    const { outcomes, spans, record, forwarded } = placed();
    outcomes.record(record({ decisionId: "r7.5.9" }));
    expect(forwarded).toEqual([{ to: "r7", kind: "observed" }]);
    const [span] = spans;
    expect(span?.attributes).toMatchObject({
      [attributes.decisionId]: "r7.5.9",
      [attributes.observedTtftMs]: 42.5,
    });
    // What only the owner knows is left out.
    expect(span?.attributes[attributes.predictedCachedTokens]).toBeUndefined();
  });
});
