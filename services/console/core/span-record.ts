/** Value of an attribute as it is stored: what JSON can hold. 64-bit integers outside ±2^53 are decimal text. */
export type AttributeValue =
  | string
  | number
  | boolean
  | null
  | readonly AttributeValue[]
  | { readonly [key: string]: AttributeValue };

/** Attributes by name. */
export type Attributes = Readonly<Record<string, AttributeValue>>;

/** Something that happened within a span. */
export interface SpanEvent {
  readonly name: string;
  /** Nanoseconds since 1970, decimal. */
  readonly timeUnixNs: string;
  readonly attributes: Attributes;
}

/** A span that this one has to do with. */
export interface SpanLink {
  readonly traceId: string;
  readonly spanId: string;
  readonly attributes: Attributes;
}

/** One span as it is stored and as the API answers it. */
export interface SpanRecord {
  /** 32 hex digits. */
  readonly traceId: string;
  /** 16 hex digits. */
  readonly spanId: string;
  /** 16 hex digits; empty at a root. */
  readonly parentSpanId: string;
  readonly name: string;
  /** OpenTelemetry span kind, lower case. */
  readonly kind: "internal" | "server" | "client" | "producer" | "consumer";
  /** Nanoseconds since 1970, decimal: JSON numbers cannot hold them. */
  readonly startUnixNs: string;
  /** See `startUnixNs`. Never before the start. */
  readonly endUnixNs: string;
  readonly status: { readonly code: "unset" | "ok" | "error"; readonly message: string };
  readonly attributes: Attributes;
  readonly events: readonly SpanEvent[];
  readonly links: readonly SpanLink[];
  /** Attributes of the process. */
  readonly resource: Attributes;
  /** Component that made the span. */
  readonly scope: string;
  /** Attributes, events and links left out or cut, by the sender or by the limits here. */
  readonly truncated: number;
}

/** What the store's trace list needs to know of a span; absent facts stay as other spans of the trace say. */
export interface SpanFacts {
  readonly decisionId: string | undefined;
  readonly requestIds: readonly string[];
  readonly model: string | undefined;
  readonly outcome: string | undefined;
  readonly workerId: string | undefined;
  readonly ttftMs: number | undefined;
  readonly predictedTtftMs: number | undefined;
  readonly durationMs: number | undefined;
  /** The span is a routing decision. */
  readonly isRoute: boolean;
  /** The span failed. */
  readonly failed: boolean;
  /** The span has no parent, or is Envoy's first. */
  readonly rootName: string | undefined;
}

/** A span ready to be written: its row, with the JSON made once, when it arrived. */
export interface QueuedSpan {
  readonly traceId: string;
  readonly spanId: string;
  readonly startUnixNs: bigint;
  readonly endUnixNs: bigint;
  /** `SpanRecord` as JSON. */
  readonly json: string;
  readonly facts: SpanFacts;
}
