import type { AnyValue, KeyValue } from "../../shared/gen/opentelemetry/proto/common/v1/common.ts";
import type { Span } from "../../shared/gen/opentelemetry/proto/trace/v1/trace.ts";
import type { AttributeValue, Attributes, SpanRecord } from "../core/span-record.ts";

/** Bounds of one stored span; what is past them is cut and counted in `truncated`. */
export interface SpanLimits {
  readonly valueLengthMax: number;
  readonly attributesMax: number;
  readonly eventsMax: number;
  readonly linksMax: number;
}

/** Longest span, event, scope and attribute name, UTF-16 units. */
const nameLengthMax = 256;
/** Depth of lists and maps in a value; deeper ones become null. */
const depthMax = 4;
/** Last moment that SQLite's 64-bit integers hold: the year 2262. */
const unixNsMax = 9_223_372_036_854_775_807n;

// Indexed by the wire's numbers; a newer sender may use one that is not here.
const kinds: readonly (SpanRecord["kind"] | undefined)[] = [
  "internal",
  "internal",
  "server",
  "client",
  "producer",
  "consumer",
];
const statuses: readonly (SpanRecord["status"]["code"] | undefined)[] = ["unset", "ok", "error"];

/** Counts what the limits cut from one span. */
class Cutter {
  readonly limits: SpanLimits;
  cuts = 0;

  constructor(limits: SpanLimits) {
    this.limits = limits;
  }

  text(value: string, lengthMax: number): string {
    if (value.length <= lengthMax) return value;
    this.cuts += 1;
    return `${value.slice(0, lengthMax - 1)}…`;
  }

  value(any: AnyValue | undefined, depth: number): AttributeValue {
    const value = any?.value;
    switch (value?.$case) {
      case undefined:
        return null;
      case "stringValue":
        return this.text(value.value, this.limits.valueLengthMax);
      case "boolValue":
        return value.value;
      case "doubleValue":
        return Number.isFinite(value.value) ? value.value : String(value.value);
      case "intValue": {
        const number = Number(value.value);
        return Number.isSafeInteger(number) ? number : value.value.toString();
      }
      case "bytesValue":
        return this.text(value.value.toString("base64"), this.limits.valueLengthMax);
      case "arrayValue": {
        if (depth >= depthMax) return this.#cut();
        return this.#first(value.value.values).map((item) => this.value(item, depth + 1));
      }
      case "kvlistValue":
        return depth >= depthMax ? this.#cut() : this.attributes(value.value.values, depth + 1);
    }
  }

  attributes(list: readonly KeyValue[], depth = 0): Attributes {
    const out: Record<string, AttributeValue> = {};
    for (const { key, value } of this.#first(list)) {
      // Assigning this one name would change the object's prototype.
      if (key === "__proto__") this.cuts += 1;
      else out[this.text(key, nameLengthMax)] = this.value(value, depth);
    }
    return out;
  }

  first<T>(list: readonly T[], max: number): readonly T[] {
    if (list.length <= max) return list;
    this.cuts += list.length - max;
    return list.slice(0, max);
  }

  #first<T>(list: readonly T[]): readonly T[] {
    return this.first(list, this.limits.attributesMax);
  }

  #cut(): null {
    this.cuts += 1;
    return null;
  }
}

/** Attributes of a resource, cut to the limits; made once for all its spans. */
export function toResource(list: readonly KeyValue[], limits: SpanLimits): Attributes {
  return new Cutter(limits).attributes(list);
}

function isZero(id: Uint8Array): boolean {
  for (const byte of id) if (byte !== 0) return false;
  return true;
}

/** What is wrong with a span as a whole, as a sentence; `undefined` when it can be stored. */
export function invalidSpan(span: Span): string | undefined {
  if (span.traceId.length !== 16 || isZero(span.traceId)) {
    return `trace_id must be 16 bytes, not all zero; got ${span.traceId.length.toString()}`;
  }
  if (span.spanId.length !== 8 || isZero(span.spanId)) {
    return `span_id must be 8 bytes, not all zero; got ${span.spanId.length.toString()}`;
  }
  if (span.parentSpanId.length !== 0 && span.parentSpanId.length !== 8) {
    return `parent_span_id must be 8 bytes or empty; got ${span.parentSpanId.length.toString()}`;
  }
  if (span.startTimeUnixNano > unixNsMax || span.endTimeUnixNano > unixNsMax) {
    return "times must be before the year 2262";
  }
  return undefined;
}

/** A valid span (`invalidSpan`) as a record within the limits. An end before the start becomes the start. */
export function toSpanRecord(
  span: Span,
  from: { readonly resource: Attributes; readonly scope: string },
  limits: SpanLimits,
): SpanRecord {
  const cutter = new Cutter(limits);
  const end =
    span.endTimeUnixNano < span.startTimeUnixNano ? span.startTimeUnixNano : span.endTimeUnixNano;
  const hex = (id: Buffer): string => id.toString("hex");
  const record = {
    traceId: hex(span.traceId),
    spanId: hex(span.spanId),
    parentSpanId: isZero(span.parentSpanId) ? "" : hex(span.parentSpanId),
    name: cutter.text(span.name, nameLengthMax),
    kind: kinds[span.kind] ?? "internal",
    startUnixNs: span.startTimeUnixNano.toString(),
    endUnixNs: end.toString(),
    status: {
      code: statuses[span.status?.code ?? 0] ?? "unset",
      message: cutter.text(span.status?.message ?? "", limits.valueLengthMax),
    },
    attributes: cutter.attributes(span.attributes),
    events: cutter.first(span.events, limits.eventsMax).map((event) => ({
      name: cutter.text(event.name, nameLengthMax),
      timeUnixNs: event.timeUnixNano.toString(),
      attributes: cutter.attributes(event.attributes),
    })),
    links: cutter.first(span.links, limits.linksMax).map((link) => ({
      traceId: hex(link.traceId),
      spanId: hex(link.spanId),
      attributes: cutter.attributes(link.attributes),
    })),
    resource: from.resource,
    scope: cutter.text(from.scope, nameLengthMax),
  };
  const bySender = span.droppedAttributesCount + span.droppedEventsCount + span.droppedLinksCount;
  return { ...record, truncated: bySender + cutter.cuts };
}
