import { attributeCatalogue, attributes } from "../../shared/core/trace-catalogue.ts";
import type {
  MeshSpan,
  SpanAttributes,
  SpanOptions,
  TraceContext,
  Tracing,
} from "../../shared/edge/tracing.ts";

/** Reasons that a router may give; any other one is a person's. */
const reasons: readonly string[] = attributeCatalogue.traceKeptFor.values ?? [];

/** Requests whose spans are kept as plain records after they are over. */
const tracesMax = 1_024;
/** Requests that were asked for before they were over. */
const wantedMax = 4_096;

interface PlainEvent {
  readonly name: string;
  readonly attributes: SpanAttributes;
  readonly unixUs: number | undefined;
}

/** A span as a plain record, which costs no span object unless its trace turns out to matter. */
class PlainSpan implements MeshSpan {
  readonly name: string;
  readonly options: SpanOptions;
  readonly context: TraceContext;
  readonly #attributes: Record<string, SpanAttributes[string]>;
  readonly #events: PlainEvent[] = [];
  #errorType = "";
  #endUs: number | undefined;

  constructor(name: string, options: SpanOptions, context: TraceContext) {
    this.name = name;
    this.options = options;
    this.context = context;
    this.#attributes = { ...options.attributes };
  }

  set(more: SpanAttributes): void {
    if (this.#endUs === undefined) Object.assign(this.#attributes, more);
  }

  event(name: string, eventAttributes: SpanAttributes = {}, unixUs?: number): void {
    this.#events.push({ name, attributes: eventAttributes, unixUs });
  }

  fail(errorType: string): void {
    this.#errorType = errorType;
  }

  end(unixUs?: number): void {
    this.#endUs ??= unixUs;
  }

  write(tracing: Tracing, options: SpanOptions): MeshSpan | undefined {
    const span = tracing.start(this.name, { ...options, attributes: this.#attributes });
    for (const event of this.#events) span?.event(event.name, event.attributes, event.unixUs);
    if (this.#errorType !== "") span?.fail(this.#errorType);
    return span;
  }

  get endUs(): number | undefined {
    return this.#endUs;
  }
}

/** The spans of one request that was not sampled: the first one is the parent of all others. */
export class LateTrace {
  readonly #parent: TraceContext;
  readonly #spans: PlainSpan[] = [];

  /** `parent`: the caller's context, not sampled. */
  constructor(parent: TraceContext) {
    this.#parent = parent;
  }

  start(name: string, options: SpanOptions): MeshSpan {
    // A context of its own, so that links to this span can be told from others when it is written.
    const span = new PlainSpan(name, options, { ...this.#parent });
    this.#spans.push(span);
    return span;
  }

  /** Writes everything as if it had been sampled; the root says that its caller's was not. */
  write(tracing: Tracing, reason: string): void {
    const written = new Map<TraceContext, TraceContext>();
    let root: MeshSpan | undefined;
    for (const span of this.#spans) {
      const parent = root?.context ?? { ...this.#parent, sampled: true };
      const links = span.options.links?.map((link) => written.get(link) ?? link);
      const made = span.write(tracing, {
        ...span.options,
        parent,
        ...(links === undefined ? {} : { links }),
      });
      if (made === undefined) return;
      written.set(span.context, made.context);
      if (root === undefined) {
        root = made;
        made.set({ [attributes.parentUnsampled]: true, [attributes.traceKeptFor]: reason });
      }
      made.end(span.endUs);
    }
  }
}

/**
 * Traces of requests that were not sampled, as plain records, oldest forgotten first: those that matter are written when
 * the request ends, others when a router asks for them.
 */
export class LateTraces {
  readonly #tracing: Tracing;
  readonly #onKept: (reason: string) => void;
  readonly #byDecision = new Map<string, LateTrace>();
  readonly #wanted = new Map<string, string>();

  constructor(tracing: Tracing, onKept: (reason: string) => void) {
    this.#tracing = tracing;
    this.#onKept = onKept;
  }

  /** A request is over. `reason`: why its trace matters; absent when nobody knows of one yet. */
  ended(decisionId: string, trace: LateTrace, reason: string | undefined): void {
    const why = reason ?? this.#wanted.get(decisionId);
    this.#wanted.delete(decisionId);
    if (why !== undefined) {
      this.#write(trace, why);
      return;
    }
    this.#byDecision.set(decisionId, trace);
    forgetOldest(this.#byDecision, tracesMax);
  }

  /** A router wants the traces of these decisions: those that are over are written now, others when they are. */
  keep(decisionIds: readonly string[], given: string): void {
    const reason = reasons.includes(given) ? given : "operator";
    for (const id of decisionIds) {
      const trace = this.#byDecision.get(id);
      if (trace === undefined) {
        this.#wanted.set(id, reason);
        forgetOldest(this.#wanted, wantedMax);
        continue;
      }
      this.#byDecision.delete(id);
      this.#write(trace, reason);
    }
  }

  #write(trace: LateTrace, reason: string): void {
    trace.write(this.#tracing, reason);
    this.#onKept(reason);
  }
}

function forgetOldest(map: Map<string, unknown>, sizeMax: number): void {
  if (map.size <= sizeMax) return;
  for (const oldest of map.keys()) {
    map.delete(oldest);
    return;
  }
}
