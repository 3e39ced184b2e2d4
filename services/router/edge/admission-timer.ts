import type { Clock } from "../../shared/core/clock.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { routerMetrics } from "../metrics.ts";

/** No timer is finer, ms: a queue that moves faster is moved by the events that make room. */
const timerMsMin = 2;

/** Lets the core decide on waiting requests when their time comes; nothing runs while nobody waits. */
export class AdmissionTimer {
  readonly #core: RouterCore;
  readonly #clock: Clock;
  #timer: NodeJS.Timeout | undefined;
  #dueAt = Infinity;
  #stopped = false;

  constructor(core: RouterCore, clock: Clock) {
    this.#core = core;
    this.#clock = clock;
  }

  /** Decides what can be decided now, and sees to it that the rest is looked at in time. Call after every event. */
  run(): void {
    if (this.#stopped) return;
    const now = this.#clock.now();
    this.#core.pump(now);
    const wakeAt = this.#core.wakeAt(now);
    if (wakeAt === undefined) return;
    const dueAt = Math.max(wakeAt, now + timerMsMin);
    if (dueAt >= this.#dueAt) return;
    clearTimeout(this.#timer);
    this.#dueAt = dueAt;
    this.#timer = setTimeout(() => {
      this.#dueAt = Infinity;
      this.run();
    }, dueAt - now);
  }

  /** Ends the timer for good; what waits is for `RouterCore.stopWaiting`. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#dueAt = Infinity;
  }
}

/** Sets the gauges of admission. */
export function admissionGauges(core: RouterCore, metrics: Metrics<typeof routerMetrics>): void {
  for (const [pool, { admission }] of core.gates) {
    for (const { name } of admission.classes) {
      metrics.admissionWaiting.set({ pool, class: name }, admission.queue.countOf(name));
      metrics.admissionOverloaded.set({ pool, class: name }, admission.isOverloaded(name) ? 1 : 0);
    }
  }
}
