import { ExportResultCode, type ExportResult } from "@opentelemetry/core";
import { AlwaysOnSampler, TracerProvider, type SpanExporter } from "@opentelemetry/sdk-trace";
import { afterEach, describe, expect, test } from "vitest";
import { SpanQueue } from "./span-drops.ts";

const limits = { spansMax: 10, batchSpansMax: 4, delayMs: 5, exportMsMax: 1_000 };
const providers: TracerProvider[] = [];
afterEach(async () => {
  await Promise.all(providers.splice(0).map((provider) => provider.shutdown()));
});

/** A queue in front of an exporter that answers as told, and a way to end spans. */
function start(answer: (done: (result: ExportResult) => void) => void): {
  readonly queue: SpanQueue;
  readonly arrived: () => number;
  readonly end: (count: number) => void;
} {
  let arrived = 0;
  const exporter: SpanExporter = {
    export: (spans, done) => {
      answer((result) => {
        if (result.code === ExportResultCode.SUCCESS) arrived += spans.length;
        done(result);
      });
    },
    shutdown: () => Promise.resolve(),
  };
  const queue = new SpanQueue(exporter, limits);
  const provider = new TracerProvider({ sampler: new AlwaysOnSampler(), spanProcessors: [queue] });
  providers.push(provider);
  const tracer = provider.getTracer("test");
  return {
    queue,
    arrived: () => arrived,
    end: (count) => {
      for (let i = 0; i < count; i++) tracer.startSpan("one").end();
    },
  };
}

describe("spans that never arrive are counted", () => {
  test("none while the exporter keeps up, however many there are", async () => {
    const { queue, arrived, end } = start((done) => {
      done({ code: ExportResultCode.SUCCESS });
    });
    for (let i = 1; i <= 5; i++) {
      end(8);
      await expect.poll(arrived).toBe(8 * i);
    }
    expect(queue.dropped).toBe(0);
  });

  test("those that the queue has no room for", async () => {
    const waiting: (() => void)[] = [];
    const { queue, arrived, end } = start((done) => {
      waiting.push(() => {
        done({ code: ExportResultCode.SUCCESS });
      });
    });
    end(30);
    // Ten wait, beside a batch that is on its way.
    const { dropped } = queue;
    expect(dropped).toBeGreaterThanOrEqual(30 - limits.spansMax - limits.batchSpansMax);
    const deliver = (): number => {
      waiting.shift()?.();
      return arrived();
    };
    await expect.poll(deliver).toBe(30 - dropped);
    // There is room again.
    end(3);
    await expect.poll(deliver).toBe(33 - dropped);
    expect(queue.dropped).toBe(dropped);
  });

  test("those that the exporter could not send", async () => {
    const { queue, end } = start((done) => {
      done({ code: ExportResultCode.FAILED, error: new Error("nobody listens") });
    });
    end(6);
    await expect.poll(() => queue.dropped).toBe(6);
  });
});
