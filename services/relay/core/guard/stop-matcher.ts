/** What a piece of text comes to. */
export interface StopMatch {
  /** Text that may go out now. */
  readonly text: string;
  /** The stop text that ended the answer, if one did. */
  readonly stop: string | undefined;
}

/** What a matcher holds, as another one goes on from. */
export interface StopState {
  /** The end of the text. */
  readonly tail: string;
  /** How much of it has gone out. */
  readonly sent: number;
  /** Where in it a stop text must end behind. */
  readonly skip: number;
}

/**
 * Looks for stop texts in an answer as it grows, whoever generates it: a stop text that begins on one engine and ends on
 * the next is found like any other. Held back is only what may be the beginning of one. Engines are asked without stop
 * texts, since what one holds back for them would be lost with it.
 *
 * The same rules as vLLM's (0.32, `check_stop_strings`): looked for after each step, the first in the list wins, and
 * one that ends within the text of the first `tokensMin` tokens does not count.
 */
export class StopMatcher {
  readonly #stops: readonly string[];
  readonly #includes: boolean;
  readonly #tokensMin: number;
  /** The end of the text, long enough for the longest stop text. */
  #tail = "";
  /** How much of the tail has gone out. */
  #sent = 0;
  /** Where in the tail a stop text must end behind. */
  #skip = 0;

  constructor(options: {
    readonly stops: readonly string[];
    /** Whether the stop text is part of the answer. */
    readonly includes: boolean;
    readonly tokensMin: number;
    readonly state?: StopState | undefined;
  }) {
    this.#stops = options.stops;
    this.#includes = options.includes;
    this.#tokensMin = options.tokensMin;
    if (options.state === undefined) return;
    this.#tail = options.state.tail;
    this.#sent = options.state.sent;
    this.#skip = options.state.skip;
  }

  /** What it holds. */
  get state(): StopState {
    return { tail: this.#tail, sent: this.#sent, skip: this.#skip };
  }

  /** Takes the text of one step; `count` tokens are generated with it. */
  add(text: string, count: number): StopMatch {
    this.#tail += text;
    if (count <= this.#tokensMin) this.#skip = this.#tail.length;
    else {
      for (const stop of this.#stops) {
        const at = this.#tail.indexOf(stop, Math.max(0, this.#skip - stop.length + 1));
        if (at < 0) continue;
        const end = this.#includes ? at + stop.length : at;
        return { text: this.#tail.slice(this.#sent, Math.max(end, this.#sent)), stop };
      }
    }
    const hold = this.#holdFrom();
    const out = this.#tail.slice(this.#sent, hold);
    this.#sent = Math.max(this.#sent, hold);
    this.#shorten();
    return { text: out, stop: undefined };
  }

  /** What is held back, for an answer that ended otherwise. */
  flush(): string {
    const out = this.#tail.slice(this.#sent);
    this.#sent = this.#tail.length;
    return out;
  }

  /** Where the text begins that may be the beginning of a stop text. */
  #holdFrom(): number {
    const { length } = this.#tail;
    let from = length;
    for (const stop of this.#stops) {
      const first = Math.max(0, length - stop.length + 1);
      for (let at = first; at < from; at++) {
        if (stop.startsWith(this.#tail.slice(at))) {
          from = at;
          break;
        }
      }
    }
    return from;
  }

  /** What has gone out and lies before everything held back cannot be part of a stop text any more. */
  #shorten(): void {
    const drop = Math.min(this.#sent, this.#holdFrom());
    if (drop < 256) return;
    this.#tail = this.#tail.slice(drop);
    this.#sent -= drop;
    this.#skip = Math.max(0, this.#skip - drop);
  }
}
