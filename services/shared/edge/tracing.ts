import {
  ROOT_CONTEXT,
  SpanKind,
  SpanStatusCode,
  TraceFlags,
  trace,
  type Context,
  type Span,
  type Tracer,
} from "@opentelemetry/api";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-grpc";
import { TraceState } from "@opentelemetry/core";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { NodeSDK } from "@opentelemetry/sdk-node";
import { AlwaysOnSampler, ParentBasedSampler } from "@opentelemetry/sdk-trace";
import { productVersion } from "./log.ts";
import { SpanQueue } from "./span-drops.ts";

/** A W3C trace context. */
export interface TraceContext {
  /** 32 hex digits. */
  readonly traceId: string;
  /** 16 hex digits. */
  readonly spanId: string;
  readonly sampled: boolean;
  /** `tracestate` as it came. */
  readonly traceState?: string;
}

/** A value of a span attribute. */
export type AttributeValue = string | number | boolean | readonly string[] | readonly number[];

/** Attribute values by name; names come from the trace catalogue. */
export type SpanAttributes = Readonly<Record<string, AttributeValue | undefined>>;

/** A span that is being recorded. All calls after `end` are ignored. */
export interface MeshSpan {
  readonly context: TraceContext;
  set(attributes: SpanAttributes): void;
  /** Adds an event, now or at the given wall time. */
  event(name: string, attributes?: SpanAttributes, unixUs?: number): void;
  /** Marks the span failed with an `error.type` of the closed list. */
  fail(errorType: string): void;
  /** Ends the span, now or at the given wall time. */
  end(unixUs?: number): void;
}

/** Options of a span. */
export interface SpanOptions {
  readonly parent?: TraceContext | undefined;
  readonly kind?: "internal" | "server" | "client";
  readonly attributes?: SpanAttributes;
  readonly links?: readonly TraceContext[];
  /** Wall time of the start, microseconds since 1970; now when absent. */
  readonly startUnixUs?: number;
}

/** Spans of one process. Never throws, never delays its caller; what cannot be exported is dropped. */
export interface Tracing {
  /** Starts a span, or returns `undefined` without creating anything when tracing is off or the parent is unsampled. */
  start(name: string, options?: SpanOptions): MeshSpan | undefined;
  /** Exports what is pending, at most 2 s, and stops. */
  stop(): Promise<void>;
  /** Spans that were made and never arrived at the endpoint; absent where nothing is sent. */
  droppedSpans?(): number;
}

const traceparentPattern = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/**
 * Parses a W3C `traceparent`; `undefined` for anything malformed, all-zero ids, version ff, and trailing
 * parts in version 00 (Trace Context §3.2).
 */
export function parseTraceparent(
  text: string | undefined,
  traceState?: string,
): TraceContext | undefined {
  const match = traceparentPattern.exec(text ?? "");
  if (match === null) return undefined;
  const [, version, traceId = "", spanId = "", flags = "00", rest] = match;
  if (version === "ff" || (version === "00" && rest !== undefined)) return undefined;
  if (/^0+$/.test(traceId) || /^0+$/.test(spanId)) return undefined;
  const sampled = (parseInt(flags, 16) & 1) === 1;
  return traceState === undefined || traceState === ""
    ? { traceId, spanId, sampled }
    : { traceId, spanId, sampled, traceState };
}

/** The context as a `traceparent` value. */
export function formatTraceparent(context: TraceContext): string {
  return `00-${context.traceId}-${context.spanId}-${context.sampled ? "01" : "00"}`;
}

const kinds = {
  internal: SpanKind.INTERNAL,
  server: SpanKind.SERVER,
  client: SpanKind.CLIENT,
} as const;

function parentContext(parent: TraceContext | undefined): Context {
  if (parent === undefined) return ROOT_CONTEXT;
  const spanContext = {
    traceId: parent.traceId,
    spanId: parent.spanId,
    traceFlags: parent.sampled ? TraceFlags.SAMPLED : TraceFlags.NONE,
    isRemote: true,
  };
  return trace.setSpanContext(
    ROOT_CONTEXT,
    parent.traceState === undefined
      ? spanContext
      : { ...spanContext, traceState: new TraceState(parent.traceState) },
  );
}

function microsToTime(unixUs: number): [number, number] {
  const seconds = Math.floor(unixUs / 1_000_000);
  return [seconds, Math.round((unixUs - seconds * 1_000_000) * 1_000)];
}

function present(
  attributes: SpanAttributes,
): Record<string, string | number | boolean | string[] | number[]> {
  const out: Record<string, string | number | boolean | string[] | number[]> = {};
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined) continue;
    if (typeof value === "object") out[name] = value.slice();
    else out[name] = value;
  }
  return out;
}

function wrap(span: Span, traceState: string | undefined): MeshSpan {
  const { traceId, spanId } = span.spanContext();
  return {
    context: {
      traceId,
      spanId,
      sampled: true,
      ...(traceState === undefined ? {} : { traceState }),
    },
    set(attributes) {
      span.setAttributes(present(attributes));
    },
    event(name, attributes = {}, unixUs) {
      const time = unixUs === undefined ? undefined : microsToTime(unixUs);
      span.addEvent(name, present(attributes), time);
    },
    fail(errorType) {
      span.setAttribute("error.type", errorType);
      span.setStatus({ code: SpanStatusCode.ERROR, message: errorType });
    },
    end(unixUs) {
      span.end(unixUs === undefined ? undefined : microsToTime(unixUs));
    },
  };
}

/** Tracing that records nothing, for processes and tests without an endpoint. */
export const noTracing: Tracing = { start: () => undefined, stop: () => Promise.resolve() };

/**
 * Starts the OpenTelemetry SDK with an OTLP/gRPC exporter. `endpoint` such as `http://127.0.0.1:4317`;
 * without one, tracing is off. The queue holds 8,192 spans; more are dropped and counted.
 */
export function startTracing(options: {
  service: string;
  instance: string;
  endpoint: string | undefined;
}): Tracing {
  if (options.endpoint === undefined || options.endpoint === "") return noTracing;
  const exporter = new OTLPTraceExporter({ url: options.endpoint, timeoutMillis: 2_000 });
  const queue = new SpanQueue(exporter, {
    spansMax: 8_192,
    batchSpansMax: 512,
    delayMs: 500,
    exportMsMax: 2_000,
  });
  const sdk = new NodeSDK({
    autoDetectResources: false,
    resource: resourceFromAttributes({
      "service.name": `kvmesh-${options.service}`,
      "service.instance.id": options.instance,
      "service.version": productVersion(),
    }),
    sampler: new ParentBasedSampler({ root: new AlwaysOnSampler() }),
    spanProcessors: [queue],
    textMapPropagator: null,
    instrumentations: [],
    metricReaders: [],
    logRecordProcessors: [],
  });
  sdk.start();
  const tracing = tracingWith(trace.getTracer("kvmesh"), async () => {
    const bound = new Promise<void>((resolve) => {
      setTimeout(resolve, 2_000).unref();
    });
    await Promise.race([sdk.shutdown().catch(() => undefined), bound]);
  });
  return { ...tracing, droppedSpans: () => queue.dropped };
}

/** Tracing with a tracer of OpenTelemetry's; `stop` exports what is pending. */
export function tracingWith(tracer: Tracer, stop: () => Promise<void>): Tracing {
  return {
    start(name, spanOptions = {}) {
      const { parent, kind = "internal", attributes = {}, links = [], startUnixUs } = spanOptions;
      if (parent !== undefined && !parent.sampled) return undefined;
      const span = tracer.startSpan(
        name,
        {
          kind: kinds[kind],
          attributes: present(attributes),
          links: links.map((link) => ({
            context: {
              traceId: link.traceId,
              spanId: link.spanId,
              traceFlags: link.sampled ? 1 : 0,
            },
          })),
          ...(startUnixUs === undefined ? {} : { startTime: microsToTime(startUnixUs) }),
        },
        parentContext(parent),
      );
      return wrap(span, parent?.traceState);
    },
    stop,
  };
}
