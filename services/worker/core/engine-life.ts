/** What the worker sees of the engine as a process. */
export type EnginePhase =
  /** Never answered yet. */
  | "starting"
  /** Answers. */
  | "up"
  /** Did not answer the last time. */
  | "suspect"
  /** Does not answer, or says that it is dead. */
  | "down";

/** One observation. */
export type EngineInput =
  /** Both `/health` and `/metrics` answered; the start is `undefined` when the engine does not say it. */
  | { readonly kind: "answered"; readonly processStartSeconds: number | undefined }
  /** Connection refused: nothing listens there. */
  | { readonly kind: "refused" }
  /** No answer in time, a reset connection, or an answer that says that the engine is broken. */
  | { readonly kind: "failed" }
  /** The event sequence began again. */
  | { readonly kind: "sequence_restarted" };

/** How a new life was noticed. */
export type LifeCause = "process_start" | "sequence" | "connection";

/** What follows. */
export type EngineEffect =
  | { readonly kind: "ready"; readonly ready: boolean; readonly reason: string }
  | { readonly kind: "new_life"; readonly cause: LifeCause };

type Action = "none" | "meet" | "compare" | "return" | "doubt" | "fail" | "renew";

/** Every state and every input; the README shows this table. */
export const engineTransitions: Readonly<
  Record<EnginePhase, Readonly<Record<EngineInput["kind"], Action>>>
> = {
  starting: { answered: "meet", refused: "none", failed: "none", sequence_restarted: "none" },
  up: { answered: "compare", refused: "fail", failed: "doubt", sequence_restarted: "renew" },
  suspect: { answered: "compare", refused: "fail", failed: "fail", sequence_restarted: "renew" },
  down: { answered: "return", refused: "fail", failed: "none", sequence_restarted: "renew" },
};

/** Process starts closer than this are the same one; the value is printed with limited precision. */
const sameStartSeconds = 0.5;

/**
 * Decides whether the engine can take requests and counts its lives. One restart is one new life, however
 * many signs it gives: after a sequence that began again the next process start is adopted, not compared.
 */
export class EngineLife {
  #phase: EnginePhase = "starting";
  #life = 0;
  #startSeconds: number | undefined;
  #wasRefused = false;

  get phase(): EnginePhase {
    return this.#phase;
  }

  /** Lives seen, from 1; 0 before the engine answered. */
  get life(): number {
    return this.#life;
  }

  get isReady(): boolean {
    return this.#phase === "up" || this.#phase === "suspect";
  }

  /** Process start of this life, seconds since 1970; `undefined` when not known. */
  get processStartSeconds(): number | undefined {
    return this.#startSeconds;
  }

  /** Takes one observation; see `engineTransitions`. */
  step(input: EngineInput): readonly EngineEffect[] {
    const start = input.kind === "answered" ? input.processStartSeconds : undefined;
    switch (engineTransitions[this.#phase][input.kind]) {
      case "none":
        return [];
      case "meet":
        this.#phase = "up";
        this.#life = 1;
        this.#startSeconds = start;
        return [{ kind: "ready", ready: true, reason: "up" }];
      case "compare":
        this.#phase = "up";
        return this.#compare(start);
      case "return":
        this.#phase = "up";
        return [...this.#compare(start), { kind: "ready", ready: true, reason: "up" }];
      case "doubt":
        this.#phase = "suspect";
        return [];
      case "fail": {
        const wasDown = this.#phase === "down";
        this.#phase = "down";
        this.#wasRefused ||= input.kind === "refused";
        return wasDown ? [] : [{ kind: "ready", ready: false, reason: "unreachable" }];
      }
      case "renew":
        this.#startSeconds = undefined;
        this.#wasRefused = false;
        return this.#newLife("sequence");
    }
  }

  #compare(start: number | undefined): readonly EngineEffect[] {
    const before = this.#startSeconds;
    const wasRefused = this.#wasRefused;
    this.#wasRefused = false;
    this.#startSeconds = start;
    if (start === undefined || before === undefined) {
      // Without a start time, a port that nobody listened on is the only sign that the process is another.
      return start === undefined && wasRefused ? this.#newLife("connection") : [];
    }
    return Math.abs(start - before) < sameStartSeconds ? [] : this.#newLife("process_start");
  }

  #newLife(cause: LifeCause): readonly EngineEffect[] {
    this.#life++;
    return [{ kind: "new_life", cause }];
  }
}
