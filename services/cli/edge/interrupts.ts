/** Signals that come closer together than this are one: npm repeats what the terminal has sent already. */
const sameSignalMs = 400;

/** What ended a run from outside. */
export type Interrupt = "SIGINT" | "SIGTERM" | "SIGHUP" | "parent_gone";

/**
 * Ctrl-C, SIGTERM, a closed terminal, and the loss of the launcher: the first asks to end in order, a second one to end at once.
 * One per process; `release` gives the signals back.
 */
export class Interrupts {
  readonly #first = new AbortController();
  readonly #onSecond: () => void;
  readonly #handlers: (readonly [Interrupt, () => void])[];
  #firstAtMs = 0;
  #cause: Interrupt | undefined;

  constructor(onSecond: () => void) {
    this.#onSecond = onSecond;
    this.#handlers = (["SIGINT", "SIGTERM", "SIGHUP", "parent_gone"] as const).map((cause) => [
      cause,
      () => {
        this.#interrupt(cause);
      },
    ]);
    for (const [cause, handler] of this.#handlers) process.on(eventOf(cause), handler);
    // Listening for the launcher's end must not keep this process alive.
    process.channel?.unref();
  }

  /** Aborted by the first interrupt. */
  get signal(): AbortSignal {
    return this.#first.signal;
  }

  /** What the first interrupt was. */
  get cause(): Interrupt | undefined {
    return this.#cause;
  }

  /** Resolves at the first interrupt. */
  async happened(): Promise<void> {
    if (this.signal.aborted) return;
    await new Promise<void>((resolve) => {
      this.signal.addEventListener("abort", () => {
        resolve();
      });
    });
  }

  /** Exit code of a run that was interrupted before it was done: 128 + the signal's number. */
  get exitCode(): number {
    return this.#cause === "SIGINT" ? 130 : 143;
  }

  /** Stops listening. */
  release(): void {
    for (const [cause, handler] of this.#handlers) process.off(eventOf(cause), handler);
  }

  #interrupt(cause: Interrupt): void {
    const now = performance.now();
    if (this.#cause === undefined) {
      this.#cause = cause;
      this.#firstAtMs = now;
      this.#first.abort();
    } else if (now - this.#firstAtMs >= sameSignalMs) this.#onSecond();
  }
}

function eventOf(cause: Interrupt): Exclude<Interrupt, "parent_gone"> | "disconnect" {
  return cause === "parent_gone" ? "disconnect" : cause;
}
