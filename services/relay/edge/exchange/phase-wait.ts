import type { Clock } from "../../../shared/core/clock.ts";

/** What an open request waits for. */
export type Phase = "prefill" | "first_byte" | "stream" | "slow_reader" | "placing";

/** The one thing that a request waits for now, and until when. */
export class PhaseWait {
  readonly #clock: Clock;
  #phase: Phase = "prefill";
  #deadlineAt = Infinity;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get phase(): Phase {
    return this.#phase;
  }

  /** Waits for something, at most so long from now, ms. What was waited for before is forgotten. */
  start(phase: Phase, ms: number): void {
    this.#phase = phase;
    this.#deadlineAt = this.#clock.now() + ms;
  }

  /** Waits for nothing any more. */
  stop(): void {
    this.#deadlineAt = Infinity;
  }

  /** The phase that took too long; told once. */
  takeOverdue(now: number): Phase | undefined {
    if (now < this.#deadlineAt) return undefined;
    this.#deadlineAt = Infinity;
    return this.#phase;
  }
}
