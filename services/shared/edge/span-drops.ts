import { ExportResultCode, type ExportResult } from "@opentelemetry/core";
import {
  BatchSpanProcessor,
  type ReadableSpan,
  type Span,
  type SpanExporter,
  type SpanProcessor,
} from "@opentelemetry/sdk-trace";
import type { Context } from "@opentelemetry/api";

/** Limits of a queue of finished spans. */
export interface SpanQueueLimits {
  /** Spans that wait; further ones are dropped. */
  readonly spansMax: number;
  readonly batchSpansMax: number;
  /** How long spans are gathered, ms. */
  readonly delayMs: number;
  /** How long one batch may take, ms. */
  readonly exportMsMax: number;
}

/**
 * Queue of finished spans in front of an exporter: sends them in batches, and counts those that never arrive, because the
 * queue was full or the exporter failed.
 */
export class SpanQueue implements SpanProcessor {
  readonly #inner: BatchSpanProcessor;
  readonly #spansMax: number;
  #waiting = 0;
  #dropped = 0;

  constructor(exporter: SpanExporter, limits: SpanQueueLimits) {
    this.#spansMax = limits.spansMax;
    this.#inner = new BatchSpanProcessor({
      exporter: this.#counted(exporter),
      scheduledDelayMillis: limits.delayMs,
      maxQueueSize: limits.spansMax,
      maxExportBatchSize: limits.batchSpansMax,
      exportTimeoutMillis: limits.exportMsMax,
    });
  }

  /** Spans that were made and never arrived. */
  get dropped(): number {
    return this.#dropped;
  }

  onStart(span: Span, parentContext: Context): void {
    this.#inner.onStart(span, parentContext);
  }

  onEnd(span: ReadableSpan): void {
    if (this.#waiting >= this.#spansMax) {
      this.#dropped++;
      return;
    }
    this.#waiting++;
    this.#inner.onEnd(span);
  }

  forceFlush(): Promise<void> {
    return this.#inner.forceFlush();
  }

  shutdown(): Promise<void> {
    return this.#inner.shutdown();
  }

  #counted(exporter: SpanExporter): SpanExporter {
    return {
      export: (spans, done) => {
        this.#waiting -= spans.length;
        exporter.export(spans, (result: ExportResult) => {
          if (result.code !== ExportResultCode.SUCCESS) this.#dropped += spans.length;
          done(result);
        });
      },
      shutdown: () => exporter.shutdown(),
    };
  }
}
