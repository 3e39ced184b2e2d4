/** What one piece of text leads to. */
export interface StopOutcome {
  /** Text that can be given out now. */
  readonly text: string;
  /** The stop string that was found, or undefined. */
  readonly stopped: string | undefined;
}

/**
 * Finds stop strings in text that comes in pieces. Text that may be the beginning of a stop string is held back;
 * the stop string itself is never given out.
 */
export class StopMatcher {
  readonly #stops: readonly string[];
  readonly #holdMax: number;
  #held = "";

  constructor(stops: readonly string[]) {
    this.#stops = stops;
    this.#holdMax = Math.max(0, ...stops.map((stop) => stop.length)) - 1;
  }

  push(piece: string): StopOutcome {
    if (this.#stops.length === 0) return { text: piece, stopped: undefined };
    const text = this.#held + piece;
    let at = -1;
    let stopped: string | undefined;
    for (const stop of this.#stops) {
      const found = text.indexOf(stop);
      if (found >= 0 && (at < 0 || found < at)) {
        at = found;
        stopped = stop;
      }
    }
    if (stopped !== undefined) {
      this.#held = "";
      return { text: text.slice(0, at), stopped };
    }
    const keep = Math.min(this.#holdMax, text.length);
    this.#held = keep === 0 ? "" : text.slice(-keep);
    return { text: text.slice(0, text.length - keep), stopped: undefined };
  }

  /** What is still held when the answer ends otherwise. */
  flush(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }
}
