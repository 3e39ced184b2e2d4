import type { Logger } from "pino";
import type { Clock } from "../../shared/core/clock.ts";
import { parseCidr } from "../../shared/core/cidr.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { createMetrics } from "../../shared/edge/metrics.ts";
import type { ConsoleConfig } from "../config.ts";
import { SpanQueue } from "../core/span-queue.ts";
import { consoleMetrics } from "../metrics.ts";
import { startOtlpGrpc } from "./otlp-grpc.ts";
import { startOtlpHttp } from "./otlp-http.ts";
import { startQueryApi } from "./query-api.ts";
import { createReceiver } from "./receiver.ts";
import { BodyBudget } from "./request-body.ts";
import { openStoreFile } from "./store-file.ts";
import { startStoreWriter } from "./store-writer.ts";
import { TraceStore } from "./trace-store.ts";

/** Calls still open when the console stops get this long, ms. */
const graceMs = 1_000;

/** A started console. */
export interface RunningConsole {
  readonly ports: { readonly grpc: number; readonly otlpHttp: number; readonly http: number };
  /** Writes what is queued now; tests use it instead of waiting for the interval. */
  flush(): void;
  /** Stops receiving, writes what is queued, closes the store. */
  stop(): Promise<void>;
}

/** Waits for a listener; a port that cannot be bound is told with its setting. */
async function bound<T>(setting: string, port: number, listener: Promise<T>): Promise<T> {
  try {
    return await listener;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new MeshError(
      "already_exists",
      `cannot listen on port ${port.toString()} (${reason}): free it, or set ${setting}`,
      { cause: error },
    );
  }
}

/**
 * Starts receivers, store and query API; port 0 takes a free one. Throws when a port is taken or the store cannot be
 * used; what was started before is stopped again.
 */
export async function startConsole(
  config: ConsoleConfig,
  { log, clock }: { readonly log: Logger; readonly clock: Clock },
): Promise<RunningConsole> {
  const { registry, metrics } = createMetrics(consoleMetrics);
  const unixMs = (): number => Math.round(clock.wallUnixUs() / 1_000);
  const queue = new SpanQueue(config.queue);
  const onReset = (): void => metrics.storeResets.inc();
  const writer = startStoreWriter({
    ...config.store,
    queue,
    metrics,
    log,
    unixMs,
    openStore: () =>
      new TraceStore(
        openStoreFile({ stateDir: config.store.stateDir, log, unixMs, onReset }),
        config.store,
      ),
  });
  const closers: (() => Promise<void>)[] = [];
  const stop = async (): Promise<void> => {
    await Promise.all(closers.map((close) => close()));
    writer.stop();
  };
  try {
    const receiver = createReceiver({ queue, limits: config.span, metrics });
    const allowed = config.otlp.allowedCidrs.map(parseCidr).filter((range) => range !== undefined);
    const shared = { host: config.host, receiver, allowed, metrics };
    const refused = (): void => metrics.requestsRefused.inc({ reason: "caller" });
    const grpc = await bound(
      "console.otlp.grpcPort",
      config.otlp.grpcPort,
      startOtlpGrpc({
        ...shared,
        port: config.otlp.grpcPort,
        messageBytesMax: config.otlp.messageBytesMax,
        reflection: config.otlp.reflection,
        onRefused: refused,
      }),
    );
    closers.push(() => grpc.close(graceMs));
    const otlpHttp = await bound(
      "console.otlp.httpPort",
      config.otlp.httpPort,
      startOtlpHttp({
        ...shared,
        port: config.otlp.httpPort,
        bytesMax: config.otlp.messageBytesMax,
        budget: new BodyBudget(config.otlp.bodiesBytesMax),
      }),
    );
    closers.push(() => otlpHttp.close());
    const http = await bound(
      "console.httpPort",
      config.httpPort,
      startQueryApi({
        host: config.host,
        port: config.httpPort,
        store: () => writer.store,
        registry,
        metrics,
        healthy: () => writer.healthy,
        log,
      }),
    );
    closers.push(() => http.close());
    const ports = { grpc: grpc.port, otlpHttp: otlpHttp.port, http: http.port };
    return { ports, flush: () => writer.flush(), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}
