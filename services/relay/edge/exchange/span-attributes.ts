import { createHash } from "node:crypto";
import { parseEndpoint } from "../../../shared/core/endpoint.ts";
import type {
  Placement,
  PlacementForecast,
  RelayEngine,
} from "../../../shared/core/placement-token/placement.ts";
import { attributes } from "../../../shared/core/trace-catalogue.ts";
import type { SpanAttributes } from "../../../shared/edge/tracing.ts";
import { kindOfPath } from "../../core/body/relayed-body.ts";
import type { EngineAdapter } from "../../core/engines/engine-adapter.ts";
import type { ClientRequest } from "../client-exchange.ts";
import type { LegRecord } from "../leg-record.ts";
import { known } from "./stream-span.ts";

/** A time within this share of what was predicted, or within so many ms of it, was predicted well. */
const closeRatio = 0.25;
const closeMs = 5;

/** A stream that another relay began. */
export interface ResumedTrace {
  /** W3C context of its request there; empty when it was not traced. */
  readonly traceparent: string;
  /** Tokens that the client has of it. */
  readonly tokens: number;
}

/** Whether a time came about as predicted. Both ms. */
export function isClose(observedMs: number, predictedMs: number): boolean {
  return Math.abs(observedMs - predictedMs) <= Math.max(closeMs, closeRatio * predictedMs);
}

/** What is known of a request when it comes. */
export function identityAttributes(
  client: ClientRequest,
  placement: Placement,
  resumed: ResumedTrace | undefined,
): SpanAttributes {
  const { decisionId, model, pool, tenant, forecast } = placement;
  const attempt = Number(client.header("x-envoy-attempt-count") ?? "1");
  return {
    [attributes.decisionId]: decisionId,
    [attributes.requestId]: client.header("x-request-id") ?? decisionId,
    [attributes.requestAttempt]: Number.isInteger(attempt) && attempt > 0 ? attempt : 1,
    [attributes.genAiOperationName]:
      kindOfPath(client.path) === "chat" ? "chat" : "text_completion",
    [attributes.genAiRequestModel]: model === "" ? undefined : model,
    [attributes.poolId]: pool,
    [attributes.tenantClass]: tenant === "" ? undefined : hashed(tenant),
    [attributes.predictedTtftMs]: forecast.ttftMs,
    [attributes.resumeTokenOffset]: resumed?.tokens,
  };
}

/** A tenant as traces name it. */
function hashed(tenant: string): string {
  return createHash("sha256").update(tenant).digest("hex").slice(0, 16);
}

/** What is known of a leg when it is sent. */
export function legAttributes(
  { leg, slot }: LegRecord,
  forecast: PlacementForecast,
): SpanAttributes {
  const endpoint = parseEndpoint(leg.address);
  return {
    [attributes.workerId]: leg.workerId,
    [attributes.serverAddress]: endpoint?.host,
    [attributes.serverPort]: endpoint?.port,
    [attributes.engineName]: leg.engine,
    [attributes.legRole]: leg.role,
    [attributes.legDpRank]: leg.dpRank,
    [attributes.predictedCachedTokens]: predictedCached(leg.role, forecast),
    [attributes.predictedPrefillMs]: slot === "prefill" ? forecast.prefillMs : undefined,
    [attributes.predictedItlMs]: slot === "answer" ? forecast.itlMs : undefined,
  };
}

/** Of a pair only the engine that prefills is believed to have some of the prompt. */
function predictedCached(role: string, forecast: PlacementForecast): number | undefined {
  return role === "decode" ? undefined : Math.round(forecast.cachedTokens);
}

/** What every leg's answer says, beside what was predicted. */
function answered({ leg, status, usage }: LegRecord, forecast: PlacementForecast): SpanAttributes {
  const cached = known(usage.cachedTokens);
  const predicted = predictedCached(leg.role, forecast);
  const isCompared = cached !== undefined && predicted !== undefined;
  const difference = isCompared ? cached - predicted : undefined;
  return {
    [attributes.httpResponseStatusCode]: status === 0 ? undefined : status,
    [attributes.observedCachedTokens]: cached,
    [attributes.differenceCachedTokens]: difference,
    [attributes.differenceCause]:
      difference === undefined ? undefined : difference === 0 ? "none" : "unknown",
  };
}

/** What a prefill leg came to, at `now`. */
export function prefillAttributes(
  record: LegRecord,
  forecast: PlacementForecast,
  now: number,
): SpanAttributes {
  const observedMs = now - record.startedAt;
  return {
    ...answered(record, forecast),
    [attributes.observedPrefillMs]: observedMs,
    [attributes.differencePrefillMs]: observedMs - forecast.prefillMs,
  };
}

/** What an answering leg came to. `meanGapMs`: between the pieces of its stream. */
export function answerAttributes(
  record: LegRecord,
  forecast: PlacementForecast,
  meanGapMs: number | undefined,
): SpanAttributes {
  const { firstByteAt, startedAt, usage } = record;
  return {
    ...answered(record, forecast),
    [attributes.legFirstByteMs]: firstByteAt === 0 ? undefined : firstByteAt - startedAt,
    [attributes.genAiUsageInputTokens]: known(usage.promptTokens),
    [attributes.genAiUsageOutputTokens]: known(usage.generatedTokens),
    [attributes.observedItlMs]: meanGapMs,
  };
}

/** KV on its way between the legs of a placement; `observedMs` when it arrived. */
export function transferAttributes(
  { legs, forecast }: Placement,
  adapters: Readonly<Record<RelayEngine, EngineAdapter>>,
  observedMs: number | undefined,
): SpanAttributes {
  const [source, destination] = legs;
  const adapter = source === undefined ? undefined : adapters[source.engine];
  const { transferMs: predictedMs, transferBytes } = forecast;
  const bytes = Math.round(transferBytes);
  const common = {
    [attributes.kvSource]: source?.workerId,
    [attributes.kvDestination]: destination?.workerId,
    [attributes.kvSourceTier]: "device",
    [attributes.kvDestinationTier]: "device",
    [attributes.kvTransport]: adapter?.transport,
    [attributes.kvBytes]: bytes,
    [attributes.predictedTransferMs]: predictedMs,
    [attributes.predictedTransferBytes]: bytes,
  };
  if (observedMs === undefined) return common;
  const isHidden = adapter?.order === "concurrent" && predictedMs > 0;
  return {
    ...common,
    [attributes.observedTransferMs]: observedMs,
    [attributes.differenceTransferMs]: observedMs - predictedMs,
    [attributes.differenceCause]: isClose(observedMs, predictedMs) ? "none" : "link",
    // What prefill hid took no time that could be seen.
    [attributes.kvGbps]: !isHidden && observedMs > 0 ? bytes / observedMs / 1e6 : undefined,
    [attributes.kvOverlapRatio]: isHidden ? Math.max(0, 1 - observedMs / predictedMs) : 0,
  };
}
