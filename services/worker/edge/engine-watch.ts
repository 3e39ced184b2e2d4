import type { Logger } from "pino";
import type { Backoff } from "../../shared/core/backoff.ts";
import type { Clock } from "../../shared/core/clock.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import { EngineLife, type EngineInput, type LifeCause } from "../core/engine-life.ts";
import type { EngineReading } from "../core/load-sample.ts";
import type { workerMetrics } from "../metrics.ts";
import type { EngineFacts, EngineHttp } from "./engine-http.ts";

/** What the watch tells its owner. */
export interface EngineListener {
  /** The engine answered for the first time. */
  started(facts: EngineFacts): void;
  /** The engine is another process than before. */
  newLife(facts: EngineFacts, cause: LifeCause): void;
  /** Whether it can take requests changed. */
  readiness(ready: boolean, reason: string): void;
  /** A reading of the rank's metrics. */
  reading(dpRank: number, reading: EngineReading): void;
}

/** What the watch needs. */
export interface EngineWatchOptions {
  readonly http: EngineHttp;
  readonly intervalMs: number;
  readonly listener: EngineListener;
  readonly backoff: Backoff;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof workerMetrics>;
}

/** Looks at the engine at an interval: load, readiness, restarts. */
export class EngineWatch {
  readonly #options: EngineWatchOptions;
  readonly #life = new EngineLife();
  readonly #stop = new AbortController();
  #facts: EngineFacts | undefined;
  #reason = "starting";
  #looking: Promise<void> | undefined;
  /** A life that began and whose facts are not read yet. */
  #unread: LifeCause | undefined;

  constructor(options: EngineWatchOptions) {
    this.#options = options;
  }

  /** Readiness and life as hellos and state changes tell them. Not ready while a new life's facts are unread. */
  state(): { readonly ready: boolean; readonly reason: string; readonly life: number } {
    const ready = this.#life.isReady && this.#facts !== undefined && this.#unread === undefined;
    return { ready, reason: this.#reason, life: this.#life.life };
  }

  /** Looks until `close`. */
  async run(): Promise<void> {
    const { clock, intervalMs } = this.#options;
    while (!this.#stop.signal.aborted) {
      await this.look();
      await clock.sleep(intervalMs, this.#stop.signal).catch(() => undefined);
    }
  }

  /** One look now; callers at the same time share it. */
  async look(): Promise<void> {
    this.#looking ??= this.#look().finally(() => {
      this.#looking = undefined;
    });
    await this.#looking;
  }

  /** The event stream began again. */
  sequenceRestarted(): void {
    this.#take({ kind: "sequence_restarted" });
    void this.look();
  }

  close(): void {
    this.#stop.abort();
  }

  async #look(): Promise<void> {
    const { http, metrics, listener } = this.#options;
    const ranks = [...(this.#facts?.eventSources.keys() ?? [])];
    const rank = ranks[0] ?? 0;
    const probe = await http.probe(rank);
    if (this.#stop.signal.aborted) return;
    metrics.engineProbes.inc({ outcome: probe.kind });
    if (probe.kind === "failed")
      this.#options.log.debug({ event: "engine_probe_failed", why: probe.why }, "probe failed");
    this.#take(
      probe.kind === "answered"
        ? { kind: "answered", processStartSeconds: probe.reading.processStartSeconds }
        : { kind: probe.kind },
    );
    if (probe.kind !== "answered") return;
    if (this.#facts === undefined || this.#unread !== undefined) await this.#readFacts();
    listener.reading(rank, probe.reading);
    for (const other of ranks.slice(1)) {
      const more = await http.probe(other);
      if (more.kind === "answered") listener.reading(other, more.reading);
    }
  }

  #take(input: EngineInput): void {
    const { metrics, log, listener } = this.#options;
    for (const effect of this.#life.step(input)) {
      if (effect.kind === "new_life") {
        this.#unread = effect.cause;
        metrics.engineRestarts.inc({ cause: effect.cause });
        log.warn(
          { event: "engine_restarted", cause: effect.cause, life: this.#life.life },
          "the engine is in another life",
        );
      } else {
        this.#reason = effect.reason;
        log.info({ event: "engine_readiness_changed", ...effect }, "engine readiness changed");
        listener.readiness(effect.ready, effect.reason);
      }
    }
    metrics.engineReady.set(this.state().ready ? 1 : 0);
    metrics.engineLife.set(this.#life.life);
  }

  /** Reads the facts of a life; one that cannot be read yet is tried again with the next look. */
  async #readFacts(): Promise<void> {
    const { http, listener, log, metrics, backoff, clock } = this.#options;
    const cause = this.#unread;
    try {
      const facts = await http.discover();
      if (this.#stop.signal.aborted) return;
      const isFirst = this.#facts === undefined;
      this.#facts = facts;
      this.#unread = undefined;
      backoff.reset();
      metrics.engineReady.set(this.state().ready ? 1 : 0);
      if (isFirst) listener.started(facts);
      else if (cause !== undefined) listener.newLife(facts, cause);
    } catch (error) {
      log.warn(
        { event: "engine_facts_unread", err: error },
        "the engine's facts cannot be read yet",
      );
      await clock.sleep(backoff.next(), this.#stop.signal).catch(() => undefined);
    }
  }
}
