import type { Logger } from "pino";

/** What a service's `main.ts` gives back once it runs. */
export interface RunningService {
  /** Stops accepting, lets requests finish, flushes telemetry. Bounded by `drainMsMax`. */
  stop(reason: string): Promise<void>;
  readonly log: Logger;
  /** Longest time that `stop` may take, ms. */
  readonly drainMsMax: number;
}

/** Tells a supervising parent, if there is one, that the service runs and on which ports. */
export function announceReady(
  log: Logger,
  service: string,
  ports: Readonly<Record<string, number>>,
): void {
  log.info({ event: `${service}_ready`, ports }, `${service} ready`);
  if (process.connected) process.send?.({ event: "ready", service, ports });
}

/**
 * Runs a service until SIGTERM, SIGINT, or the loss of the parent's IPC channel; then drains and exits.
 * Exit codes: 0 after a drain, 1 after a bug or a failed start, 2 after a configuration error (the caller's).
 * A second signal exits at once.
 */
export async function runMain(start: () => Promise<RunningService>): Promise<void> {
  let running: RunningService;
  try {
    running = await start();
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    process.stderr.write(`cannot start: ${text}\n`);
    process.exit(1);
  }
  const { log } = running;
  let stopping = false;
  const stop = (reason: string, code: number): void => {
    if (stopping) process.exit(code === 0 ? 1 : code);
    stopping = true;
    log.info({ event: "stopping", reason }, "stopping");
    const timer = setTimeout(() => {
      log.warn({ event: "drain_timed_out", drainMsMax: running.drainMsMax }, "drain timed out");
      process.exit(code);
    }, running.drainMsMax);
    timer.unref();
    running.stop(reason).then(
      () => {
        process.exit(code);
      },
      (error: unknown) => {
        log.error({ event: "stop_failed", err: error }, "stop failed");
        process.exit(1);
      },
    );
  };
  process.on("SIGTERM", () => {
    stop("SIGTERM", 0);
  });
  process.on("SIGINT", () => {
    stop("SIGINT", 0);
  });
  // A supervisor that was killed cannot send a signal; its end of the channel closes.
  process.on("disconnect", () => {
    stop("parent_gone", 0);
  });
  const bug = (error: unknown): void => {
    log.fatal({ event: "invariant_violated", err: error }, "stopping because of a bug");
    stop("bug", 1);
  };
  process.on("uncaughtException", bug);
  process.on("unhandledRejection", bug);
}
