import type { ScannedText } from "../openai/scanned-body.ts";
import { PromptText, type TextKeeper } from "./prompt-text.ts";
import { SeenTable, type Hashed } from "./seen-table.ts";
import { TokenRing } from "./token-ring.ts";

/** Memory of an entry beside what it holds, bytes; an estimate. */
const entryBytes = 280;

/** What a cache has done so far. */
export interface PromptCacheFigures {
  readonly entries: number;
  readonly bytes: number;
  readonly hits: number;
  readonly misses: number;
  readonly evicted: number;
}

/**
 * Texts and values of earlier requests with what is known about them: their tokens and what templates asked of them.
 * Found by a keyed hash of 96 bits and their length, so that two of a billion different ones are taken for each other with a
 * chance below 10⁻¹⁰; the consequence is a wrong guess about what a worker has cached. Holds `bytesMax` at most, by
 * estimate: half of it tokens, of which those put longest ago go first, half the rest, of which goes what was not used for
 * a while.
 */
export class PromptCache implements TextKeeper {
  /** Tokens of texts. */
  readonly tokens: TokenRing;
  readonly #bytesMax: number;
  readonly #table = new SeenTable();
  /** By number: a text, or a value. */
  readonly #held: unknown[] = [];
  readonly #costs: number[] = [];
  #bytes = 0;
  #hits = 0;
  #misses = 0;
  #evicted = 0;

  constructor(options: { readonly bytesMax: number }) {
    this.#bytesMax = options.bytesMax / 2;
    this.tokens = new TokenRing(Math.floor(options.bytesMax / 8));
  }

  get figures(): PromptCacheFigures {
    return {
      entries: this.#table.size,
      bytes: this.#bytes + this.tokens.bytes,
      hits: this.#hits,
      misses: this.#misses,
      evicted: this.#evicted,
    };
  }

  /** The text spelled at `of` in a body, not bound to it. Texts of different domains are different ones. */
  text(of: ScannedText, domain: number): PromptText {
    const number = this.#table.find(of, domain);
    if (number >= 0) {
      this.#hits++;
      return this.#held[number] as PromptText;
    }
    const text = PromptText.of(this);
    text.number = this.#add(of, domain, text, 0);
    return text;
  }

  /** What `make` makes of the value at `of`; made once. `make` also says how many bytes that takes, by estimate. */
  value<T>(
    of: Hashed,
    domain: number,
    make: () => { readonly value: T; readonly bytes: number },
  ): T {
    const number = this.#table.find(of, domain);
    if (number >= 0) {
      this.#hits++;
      return this.#held[number] as T;
    }
    const { value, bytes } = make();
    this.#add(of, domain, value, bytes);
    return value;
  }

  /** Called by texts that have grown. */
  grow(number: number, bytes: number): void {
    this.#costs[number] = (this.#costs[number] ?? 0) + bytes;
    this.#bytes += bytes;
  }

  /** Makes room. Called between requests, so that no entry in use goes. */
  trim(): void {
    while (this.#bytes > this.#bytesMax) {
      const number = this.#table.drop();
      if (number < 0) return;
      const held = this.#held[number];
      if (held instanceof PromptText) held.number = -1;
      this.#held[number] = undefined;
      this.#bytes -= this.#costs[number] ?? 0;
      this.#evicted++;
    }
  }

  #add(of: Hashed, domain: number, held: unknown, bytes: number): number {
    this.#misses++;
    const number = this.#table.add(of, domain);
    this.#held[number] = held;
    this.#costs[number] = entryBytes + bytes;
    this.#bytes += entryBytes + bytes;
    return number;
  }
}
