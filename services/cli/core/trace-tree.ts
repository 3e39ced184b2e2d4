import { MeshError } from "../../shared/core/errors.ts";

/** A span as the view needs it: times in ms from the start of the trace, clock offsets already taken out. */
export interface ViewSpan {
  readonly spanId: string;
  readonly parentSpanId: string;
  readonly name: string;
  readonly service: string;
  readonly startMs: number;
  readonly endMs: number;
  readonly failed: boolean;
  readonly statusMessage: string;
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly events: readonly { readonly name: string; readonly atMs: number }[];
  readonly links: readonly { readonly traceId: string; readonly spanId: string }[];
  /** Milliseconds by which this span's host was ahead; 0 when unknown. */
  readonly clockOffsetMs: number;
}

/** A trace ready to be drawn; spans are in order of their start. */
export interface ViewTrace {
  readonly traceId: string;
  /** Start of the first span, milliseconds since 1970. */
  readonly startUnixMs: number;
  /** Length from the first start to the last end, ms. */
  readonly lengthMs: number;
  /** Spans that the store left out because the trace had too many. */
  readonly droppedSpans: number;
  readonly spans: readonly ViewSpan[];
}

/** A span with its children, in order of their start. */
export interface SpanNode {
  readonly span: ViewSpan;
  readonly children: readonly SpanNode[];
  /** The span names a parent that is not in the trace. */
  readonly orphan: boolean;
}

type Json = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function objects(value: unknown): readonly Json[] {
  return Array.isArray(value) ? value.filter(isObject) : [];
}

/** Text of a foreign process, without characters that would steer a terminal. */
export function plainText(value: unknown): string {
  return String(value).replace(/[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/gu, "�");
}

function text(value: unknown): string {
  return typeof value === "string" ? plainText(value) : "";
}

function nanos(value: unknown, what: string): bigint {
  if (typeof value === "string" && /^\d{1,20}$/u.test(value)) return BigInt(value);
  throw new MeshError("invalid_request", `trace: ${what} must be nanoseconds as text`, {
    field: what,
  });
}

function offsetOf(span: Json): number {
  const resource = isObject(span["resource"]) ? span["resource"] : {};
  const offset = resource["kvmesh.clock.offset_ms"];
  return typeof offset === "number" && Number.isFinite(offset) ? offset : 0;
}

function serviceOf(span: Json): string {
  const resource = isObject(span["resource"]) ? span["resource"] : {};
  const instance = text(resource["service.instance.id"]);
  const name = text(resource["service.name"]);
  // Instance ids that are UUIDs tell a reader nothing.
  return instance === "" || instance.length > 24 ? name : `${name} ${instance}`;
}

/**
 * The console's answer as a trace. A span's times are moved by its process's `kvmesh.clock.offset_ms`, so that spans of
 * different hosts can be compared. Throws `invalid_request` when it is not a trace.
 */
export function parseTrace(json: unknown): ViewTrace {
  if (!isObject(json) || typeof json["traceId"] !== "string" || !Array.isArray(json["spans"])) {
    throw new MeshError(
      "invalid_request",
      'not a trace: expected an object with "traceId" and "spans"',
    );
  }
  const raw = objects(json["spans"]).map((span) => ({
    span,
    start: nanos(span["startUnixNs"], "startUnixNs"),
    end: nanos(span["endUnixNs"], "endUnixNs"),
    offsetMs: offsetOf(span),
  }));
  const first = raw.reduce(
    (least, { start }) => (start < least ? start : least),
    raw[0]?.start ?? 0n,
  );
  const since = (time: bigint, offsetMs: number): number => Number(time - first) / 1e6 - offsetMs;
  const shift = raw.reduce(
    (least, { start, offsetMs }) => Math.min(least, since(start, offsetMs)),
    Infinity,
  );
  const origin = Number.isFinite(shift) ? shift : 0;
  const spans = raw.map(({ span, start, end, offsetMs }): ViewSpan => {
    const status = isObject(span["status"]) ? span["status"] : {};
    return {
      spanId: text(span["spanId"]),
      parentSpanId: text(span["parentSpanId"]),
      name: text(span["name"]),
      service: serviceOf(span),
      startMs: since(start, offsetMs) - origin,
      endMs: since(end, offsetMs) - origin,
      failed: status["code"] === "error",
      statusMessage: text(status["message"]),
      attributes: isObject(span["attributes"]) ? span["attributes"] : {},
      events: objects(span["events"]).map((event) => ({
        name: text(event["name"]),
        atMs: since(nanos(event["timeUnixNs"], "timeUnixNs"), offsetMs) - origin,
      })),
      links: objects(span["links"]).map((link) => ({
        traceId: text(link["traceId"]),
        spanId: text(link["spanId"]),
      })),
      clockOffsetMs: offsetMs,
    };
  });
  spans.sort((a, b) => a.startMs - b.startMs || (a.spanId < b.spanId ? -1 : 1));
  const dropped = json["droppedSpans"];
  return {
    traceId: text(json["traceId"]),
    startUnixMs: Number(first / 1_000n) / 1_000 + origin,
    lengthMs: spans.reduce((end, span) => Math.max(end, span.endMs), 0),
    droppedSpans: typeof dropped === "number" ? dropped : 0,
    spans,
  };
}

/**
 * The spans as trees. Spans without a parent in the trace are roots; so is one span of every ring of parents, which
 * no sound sender makes. Every span occurs exactly once.
 */
export function spanForest(spans: readonly ViewSpan[]): SpanNode[] {
  const ids = new Set(spans.map((span) => span.spanId));
  const childrenOf = new Map<string, ViewSpan[]>();
  const roots: ViewSpan[] = [];
  for (const span of spans) {
    if (span.parentSpanId === span.spanId || !ids.has(span.parentSpanId)) roots.push(span);
    else {
      const siblings = childrenOf.get(span.parentSpanId);
      if (siblings === undefined) childrenOf.set(span.parentSpanId, [span]);
      else siblings.push(span);
    }
  }
  const drawn = new Set<ViewSpan>();
  const grow = (span: ViewSpan): SpanNode => {
    drawn.add(span);
    const children: SpanNode[] = [];
    for (const child of childrenOf.get(span.spanId) ?? []) {
      if (!drawn.has(child)) children.push(grow(child));
    }
    return { span, children, orphan: span.parentSpanId !== "" && !ids.has(span.parentSpanId) };
  };
  const forest = roots.map(grow);
  for (const span of spans) if (!drawn.has(span)) forest.push(grow(span));
  return forest;
}

/** The attribute as a finite number; `undefined` otherwise. */
export function numberAt(span: ViewSpan | undefined, name: string): number | undefined {
  const value = span?.attributes[name];
  return typeof value === "number" && Number.isFinite(value) ? value : undefined;
}

/** The attribute as text that is safe to print; `undefined` when absent or empty. */
export function textAt(span: ViewSpan | undefined, name: string): string | undefined {
  const value = span?.attributes[name];
  return typeof value === "string" && value !== "" ? plainText(value) : undefined;
}

/** The attribute as a list; empty when absent. */
export function listAt(span: ViewSpan | undefined, name: string): readonly unknown[] {
  const value = span?.attributes[name];
  return Array.isArray(value) ? (value as readonly unknown[]) : [];
}
