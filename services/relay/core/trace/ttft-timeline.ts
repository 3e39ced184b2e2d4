/** Where the time to the first byte of an answer went, ms. The parts do not overlap, and add up to all of it. */
export interface TtftParts {
  /** At the relay: before the first leg, and between legs that did their part. */
  readonly relayMs: number;
  readonly prefillMs: number;
  /** What of the transfer prefill did not hide. */
  readonly transferMs: number;
  /** Decode's first step; of a request that runs whole its engine's whole time. */
  readonly decodeMs: number;
  /** Legs that failed, and placing the request again. */
  readonly retryMs: number;
}

/** Follows a request from its arrival to the first byte of its answer. Times are ms of one clock. */
export class TtftTimeline {
  /** Everything before is accounted for. */
  #mark: number;
  #relayMs = 0;
  #prefillMs = 0;
  #retryMs = 0;
  /** What runs since the mark. */
  #phase: "relay" | "prefill" | "decode" | "pull" | "retry" = "relay";
  /** Whether decode got a hand-off from a prefill leg that runs or has run. */
  #isPair = false;

  constructor(arrivedAt: number) {
    this.#mark = arrivedAt;
  }

  prefillStarted(now: number): void {
    this.#take(now);
    this.#phase = "prefill";
    this.#isPair = true;
  }

  /** The answering leg was sent. `isLocal`: it computes the prompt itself. With prefill still running, that counts on. */
  answerStarted(now: number, isLocal: boolean): void {
    if (isLocal) this.#isPair = false;
    if (this.#phase === "prefill") return;
    this.#take(now);
    this.#phase = this.#isPair ? "pull" : "decode";
  }

  prefillEnded(now: number, isDone: boolean): void {
    if (this.#phase !== "prefill") return;
    if (isDone) this.#take(now);
    else this.#fail(now);
    // What follows is the pull, whether decode was sent already or is sent next.
    this.#phase = isDone ? "pull" : "retry";
  }

  /** The answering leg failed before its first byte. */
  answerFailed(now: number): void {
    this.#fail(now);
    this.#phase = "retry";
    this.#isPair = false;
  }

  /** The first byte came. `stepMs`: expected time of one step of decode. */
  firstByte(now: number, stepMs: number): TtftParts {
    const restMs = Math.max(0, now - this.#mark);
    const hasPulled = this.#isPair && (this.#phase === "pull" || this.#phase === "prefill");
    const decodeMs = hasPulled ? Math.min(restMs, stepMs) : restMs;
    const beforeMs = restMs - decodeMs;
    return {
      relayMs: this.#relayMs,
      prefillMs: this.#prefillMs + (this.#phase === "prefill" ? beforeMs : 0),
      transferMs: this.#phase === "prefill" ? 0 : beforeMs,
      decodeMs,
      retryMs: this.#retryMs,
    };
  }

  #take(now: number): void {
    const ms = now - this.#mark;
    if (this.#phase === "prefill") this.#prefillMs += ms;
    else if (this.#phase === "retry") this.#retryMs += ms;
    else this.#relayMs += ms;
    this.#mark = now;
  }

  #fail(now: number): void {
    this.#retryMs += now - this.#mark;
    this.#mark = now;
  }
}
