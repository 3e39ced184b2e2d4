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
import type { PlaceInput } from "../core/placement/place-input.ts";
import type { PeerLinks } from "./peer-links.ts";
import { recordFromWire, recordToWire, timesToWire, tracedFromWire } from "./peer-wire.ts";

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
function placed(over: Partial<PlaceInput> = {}, reached = true) {
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
  const decision = core.place(placeInput(over), realClock.now());
  const forwarded: { readonly to: string; readonly kind: string }[] = [];
  const peers = {
    sendTo: (to: string, message: { $case: string }) => {
      forwarded.push({ to, kind: message.$case });
      return reached;
    },
  } as unknown as PeerLinks;
  const { metrics, registry } = createMetrics(routerMetrics);
  const outcomes = new AccessOutcomes({
    core,
    clock: realClock,
    tracing,
    metrics,
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
  return { outcomes, spans, record, decision, chosen, forwarded, core, registry };
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
      [attributes.answerForm]: "stream",
      [attributes.predictedTtftMs]: chosen?.predictedTtftMs,
      [attributes.observedTtftMs]: 42.5,
      [attributes.differenceTtftMs]: 42.5 - (chosen?.predictedTtftMs ?? 0),
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

  test("is left to the router that decided, which writes it as if the record had come to it", async () => {
    const { outcomes, spans, record, forwarded } = placed();
    outcomes.record(record({ decisionId: "r7.5.9" }));
    expect(forwarded).toEqual([{ to: "r7", kind: "observed" }]);
    expect(spans).toEqual([]);

    const direct = placed({ unixUs: 1_790_000_000_000_000 });
    direct.outcomes.record(direct.record());
    const told = placed({ unixUs: 1_790_000_000_000_000 });
    const sent = told.record();
    const closing = {
      decisionId: sent.decisionId,
      workerId: sent.workerId,
      observed: recordToWire(sent),
      times: timesToWire(sent),
    };
    told.outcomes.observed(
      sent.decisionId,
      recordFromWire(closing.observed),
      tracedFromWire(closing),
    );
    expect(told.spans).toEqual(direct.spans);
    expect(await told.registry.metrics()).toContain(
      "gen_ai_server_time_to_first_token_seconds_count 1",
    );
  });

  test("is written where the record came when the router that decided is gone", () => {
    const { outcomes, spans, record } = placed({}, false);
    outcomes.record(record({ decisionId: "r7.5.9" }));
    expect(spans[0]?.attributes).toMatchObject({
      [attributes.decisionId]: "r7.5.9",
      [attributes.answerForm]: "unknown",
    });
    // What only the owner knows is left out.
    expect(spans[0]?.attributes[attributes.predictedCachedTokens]).toBeUndefined();
    expect(spans[0]?.attributes[attributes.observedTtftMs]).toBeUndefined();
  });

  test.each(["whole", ""] as const)(
    "calls no byte of an answer asked for as '%s' a first token",
    async (answer) => {
      const { outcomes, spans, record, registry, decision } = placed({ answer });
      outcomes.record(record({ ttftMs: 900 }));
      expect(spans[0]?.attributes[attributes.answerForm]).toBe(answer === "" ? "unknown" : answer);
      expect(spans[0]?.attributes[attributes.observedTtftMs]).toBeUndefined();
      expect(spans[0]?.attributes[attributes.differenceTtftMs]).toBeUndefined();
      expect(decision.observed?.ttftMs).toBe(0);
      const text = await registry.metrics();
      expect(text).toContain("gen_ai_server_time_to_first_token_seconds_count 0");
      expect(text).toContain("kvmesh_router_ttft_error_ratio_count 0");
    },
  );
});
