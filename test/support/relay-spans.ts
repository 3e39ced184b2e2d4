import {
  AlwaysOnSampler,
  InMemorySpanExporter,
  ParentBasedSampler,
  SimpleSpanProcessor,
  TracerProvider,
  type ReadableSpan,
} from "@opentelemetry/sdk-trace";
import { SpanKind } from "@opentelemetry/api";
import { checkAgainstCatalogue } from "../../services/shared/core/trace-catalogue.ts";
import { tracingWith, type Tracing } from "../../services/shared/edge/tracing.ts";

/** A finished span, as tests look at it. */
export interface SeenSpan {
  readonly name: string;
  readonly kind: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentId: string | undefined;
  readonly attributes: Readonly<Record<string, unknown>>;
  readonly events: readonly {
    readonly name: string;
    readonly attributes: Record<string, unknown>;
  }[];
  /** Span ids that it links to. */
  readonly links: readonly string[];
  readonly startMs: number;
  readonly endMs: number;
}

const millis = ([seconds, nanos]: readonly [number, number]): number => seconds * 1e3 + nanos / 1e6;

function seen(span: ReadableSpan): SeenSpan {
  const { traceId, spanId } = span.spanContext();
  return {
    name: span.name,
    kind: SpanKind[span.kind].toLowerCase(),
    traceId,
    spanId,
    parentId: span.parentSpanContext?.spanId,
    attributes: span.attributes,
    events: span.events.map(({ name, attributes }) => ({ name, attributes: { ...attributes } })),
    links: span.links.map(({ context }) => context.spanId),
    startMs: millis(span.startTime),
    endMs: millis(span.endTime),
  };
}

/** Tracing with the real SDK whose spans stay in memory. */
export class SpanCollector {
  readonly #exporter = new InMemorySpanExporter();
  readonly tracing: Tracing;

  constructor() {
    const provider = new TracerProvider({
      sampler: new ParentBasedSampler({ root: new AlwaysOnSampler() }),
      spanProcessors: [new SimpleSpanProcessor({ exporter: this.#exporter })],
    });
    this.tracing = tracingWith(provider.getTracer("test"), () => provider.shutdown());
  }

  /** Finished spans in the order of their starts. */
  get spans(): readonly SeenSpan[] {
    return this.#exporter
      .getFinishedSpans()
      .map(seen)
      .sort((a, b) => a.startMs - b.startMs);
  }

  /** Finished spans of a name. */
  named(name: string): readonly SeenSpan[] {
    return this.spans.filter((span) => span.name === name);
  }

  /** What is wrong with the spans by the catalogue. */
  problems(): readonly string[] {
    return checkAgainstCatalogue(this.spans);
  }

  clear(): void {
    this.#exporter.reset();
  }
}
