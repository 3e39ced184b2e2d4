import type { Clock } from "../../shared/core/clock.ts";
import { monoMs } from "../../shared/core/ids.ts";
import type { EngineCore } from "../core/engine/engine.ts";
import type {
  EngineListener,
  EngineRequest,
  EngineSequence,
  KvLoadResult,
} from "../core/engine/engine-types.ts";

/**
 * A step that is noticed this much too late means that the whole process stood still (SIGSTOP, a suspended
 * machine): an engine would have stood still with it, so the time is taken out instead of caught up, ms.
 */
const standstillMs = 1_000;

/**
 * Runs an engine core in real time. Step ends are model time: a timer that fires late delays what is seen, not
 * what follows, and several steps due at once are processed in order. Idle engines hold no timer.
 */
export class EngineDriver {
  readonly core: EngineCore;
  readonly #clock: Clock;
  readonly #listener: EngineListener;
  #timer: NodeJS.Timeout | undefined;
  #kicked: NodeJS.Immediate | undefined;
  #stopped = false;

  constructor(core: EngineCore, clock: Clock, listener: EngineListener) {
    this.core = core;
    this.#clock = clock;
    this.#listener = listener;
  }

  /** Queues a sequence; errors are those of `EngineCore.submit`. */
  submit(request: EngineRequest): EngineSequence {
    this.#advance();
    const sequence = this.core.submit(request, this.#clock.now());
    this.#kick();
    return sequence;
  }

  /** Ends a sequence early; false when it is not live. */
  abort(id: string): boolean {
    const wasLive = this.core.abort(id);
    // What it held may be what others wait for.
    if (wasLive) this.#kick();
    return wasLive;
  }

  /** See `EngineCore.finishLoad`. */
  finishLoad(id: string, result: KvLoadResult): ReturnType<EngineCore["finishLoad"]> {
    this.#advance();
    const loaded = this.core.finishLoad(id, result, this.#clock.now());
    this.#kick();
    return loaded;
  }

  /** Gives back what an ended sequence kept; false when it keeps nothing. */
  releaseKept(id: string): boolean {
    const wasKept = this.core.releaseKept(id);
    if (wasKept) this.#kick();
    return wasKept;
  }

  /** Stands still for `ms`, as a GPU that hangs. */
  freeze(ms: number): void {
    this.#advance();
    this.core.stall(ms, this.#clock.now());
    this.#arm();
  }

  /** Makes steps take `factor` times as long for `ms`. */
  slow(factor: number, ms: number): void {
    this.core.setSlowFactor(factor);
    setTimeout(() => {
      this.core.setSlowFactor(1);
    }, ms).unref();
  }

  /** Makes no further step. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    clearImmediate(this.#kicked);
  }

  /** Starts a step in the next turn of the event loop, so that arrivals of one turn share it. */
  #kick(): void {
    if (this.#stopped || this.core.stepEndsAt !== undefined || this.#kicked !== undefined) return;
    this.#kicked = setImmediate(() => {
      this.#kicked = undefined;
      this.#start();
    });
  }

  /** Ends what is due. Does not start an idle engine: that is left to the next turn. */
  #advance(): void {
    if (this.#stopped || this.core.stepEndsAt === undefined) return;
    this.#start();
  }

  #start(): void {
    if (this.#stopped) return;
    const now = this.#clock.now();
    const endsAt = this.core.stepEndsAt;
    if (endsAt !== undefined) {
      const lateMs = now - endsAt;
      if (lateMs > standstillMs) this.core.stall(lateMs, now);
    }
    this.core.advance(monoMs(now), this.#listener);
    this.#arm();
  }

  #arm(): void {
    clearTimeout(this.#timer);
    const endsAt = this.core.stepEndsAt;
    if (endsAt === undefined || this.#stopped) return;
    this.#timer = setTimeout(
      () => {
        this.#start();
      },
      Math.max(0, Math.ceil(endsAt - this.#clock.now())),
    );
  }
}
