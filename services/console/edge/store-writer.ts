import type { Logger } from "pino";
import type { Metrics } from "../../shared/edge/metrics.ts";
import type { SpanQueue } from "../core/span-queue.ts";
import type { consoleMetrics } from "../metrics.ts";
import { isDamage } from "./store-file.ts";
import type { TraceStore } from "./trace-store.ts";

/** Moves spans from the queue to the store in batches. */
export interface StoreWriter {
  /** The store now in use; another one after a damaged file was moved aside. */
  readonly store: TraceStore;
  /** The last batch was written, or none was tried yet. */
  readonly healthy: boolean;
  /** Writes until the queue is empty. Used at shutdown and by tests. */
  flush(): void;
  /** Stops the timer, writes what is left, closes the store. */
  stop(): void;
}

/**
 * Writes one batch every interval, and the next at once in a turn of its own while a full batch waits, so that
 * receivers are served in between. A batch that cannot be written is dropped and counted; a damaged file is replaced.
 */
export function startStoreWriter(options: {
  readonly queue: SpanQueue;
  readonly openStore: () => TraceStore;
  readonly batchSpansMax: number;
  readonly flushIntervalMs: number;
  readonly metrics: Metrics<typeof consoleMetrics>;
  readonly log: Logger;
  readonly unixMs: () => number;
}): StoreWriter {
  const { queue, metrics, log } = options;
  let store = options.openStore();
  let failing = false;
  let timer: NodeJS.Timeout | undefined;
  let immediate: NodeJS.Immediate | undefined;

  const report = (): void => {
    metrics.queueSpans.set(queue.size);
    metrics.queueBytes.set(queue.bytes);
    metrics.storeTraces.set(store.traces);
    metrics.storeBytes.set(store.bytes);
  };

  const fail = (error: unknown, spans: number): void => {
    metrics.spansDropped.inc({ reason: "write_failed" }, spans);
    if (isDamage(error)) {
      store.close();
      store = options.openStore();
    } else if (!failing) {
      // Once per change of state: a full disk would otherwise fill the log as well.
      log.error({ event: "store_write_failed", err: error }, "cannot write traces, dropping them");
    }
    failing = true;
  };

  const writeBatch = (): void => {
    const batch = queue.take(options.batchSpansMax);
    if (batch.length === 0) return;
    const endTimer = metrics.writeSeconds.startTimer();
    try {
      const result = store.write(batch, options.unixMs());
      metrics.spansStored.inc(result.stored);
      metrics.spansDropped.inc({ reason: "duplicate" }, result.duplicates);
      metrics.spansDropped.inc({ reason: "trace_full" }, result.overfull);
      metrics.tracesEvicted.inc({ bound: "traces" }, result.evictedByTraces);
      metrics.tracesEvicted.inc({ bound: "bytes" }, result.evictedByBytes);
      if (failing) log.info({ event: "store_write_recovered" }, "traces are written again");
      failing = false;
    } catch (error) {
      fail(error, batch.length);
    }
    endTimer();
    report();
  };

  const turn = (): void => {
    writeBatch();
    if (queue.size >= options.batchSpansMax) immediate = setImmediate(turn);
    else timer = setTimeout(turn, options.flushIntervalMs);
  };
  report();
  turn();

  const flush = (): void => {
    while (queue.size > 0) writeBatch();
  };
  return {
    get store() {
      return store;
    },
    get healthy() {
      return !failing;
    },
    flush,
    stop() {
      clearTimeout(timer);
      clearImmediate(immediate);
      flush();
      store.close();
    },
  };
}
