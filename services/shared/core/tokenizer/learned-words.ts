import { byteMasks } from "./word-hash.ts";

/** Sizes of a table of learned words. */
export interface LearnedWordsShape {
  /** Longest word kept, bytes; a multiple of four. */
  readonly wordSizeMax: number;
  /** Most tokens of a word. */
  readonly tokensMax: number;
  /** How many words fit; a power of two. */
  readonly capacity: number;
}

/** Set in an entry when its word was met again since its set last had to give one up. */
const wasUsed = 1 << 24;

/** Entries of a set; the others of an entry are found by flipping bits of its number. */
const ways = 4;

/**
 * Words of several tokens that were met and merged, with their tokens, in a fixed amount of memory.
 *
 * An entry holds everything in one place: `[size | count << 8 | used flag, bytes …, tokens …]`, so a hit
 * costs a cache line or two where a table with pools of bytes and ids costs three. A word can be in any
 * of the four entries of its set. When all are taken, one whose word was not met again gives way: words
 * in use survive any number of words that come once.
 */
export class LearnedWords {
  readonly #wordSizeMax: number;
  readonly #tokensMax: number;
  readonly #stride: number;
  readonly #tokensAt: number;
  readonly #mask: number;
  readonly #entries: Int32Array;
  /** Words that gave way to others. */
  evicted = 0;

  constructor(shape: LearnedWordsShape) {
    this.#wordSizeMax = shape.wordSizeMax;
    this.#tokensMax = shape.tokensMax;
    this.#tokensAt = 1 + shape.wordSizeMax / 4;
    this.#stride = this.#tokensAt + shape.tokensMax;
    this.#mask = shape.capacity - 1;
    this.#entries = new Int32Array(shape.capacity * this.#stride);
  }

  /**
   * Puts the tokens of the word `[from, from + size)` to `out[n …]` and returns how many there are, or 0
   * when it is not known. `view` must reach at least 4 bytes past the word; `out` must have room.
   */
  copy(
    view: DataView,
    from: number,
    size: number,
    hash: number,
    out: Uint32Array,
    n: number,
  ): number {
    const entries = this.#entries;
    const home = hash & this.#mask;
    let way = 0;
    let at = home * this.#stride;
    if (size > this.#wordSizeMax) return 0;
    while (!this.#holds(at, view, from, size)) {
      if (++way === ways) return 0;
      at = (home ^ way) * this.#stride;
    }
    const meta = entries[at] as number;
    if ((meta & wasUsed) === 0) entries[at] = meta | wasUsed;
    const count = (meta >>> 8) & 0xff;
    const first = at + this.#tokensAt;
    for (let i = 0; i < count; i++) out[n + i] = entries[first + i] as number;
    return count;
  }

  /**
   * Learns a word that `copy` did not find. Returns false, and does not, when it is too long or has too
   * many tokens.
   */
  learn(
    view: DataView,
    from: number,
    size: number,
    hash: number,
    tokens: Int32Array,
    count: number,
  ): boolean {
    if (size > this.#wordSizeMax || count > this.#tokensMax) return false;
    const entries = this.#entries;
    const at = this.#freeEntry(hash & this.#mask);
    entries[at] = size | (count << 8);
    const whole = size >> 2;
    for (let i = 0; i <= whole; i++) {
      const mask = byteMasks[i < whole ? 4 : size & 3] as number;
      if (mask !== 0) entries[at + 1 + i] = view.getInt32(from + 4 * i, true) & mask;
    }
    const first = at + this.#tokensAt;
    for (let i = 0; i < count; i++) entries[first + i] = tokens[i] as number;
    return true;
  }

  /** Where a new word of this set goes. */
  #freeEntry(home: number): number {
    const entries = this.#entries;
    let unused = -1;
    for (let way = 0; way < ways; way++) {
      const at = (home ^ way) * this.#stride;
      const meta = entries[at] as number;
      if (meta === 0) return at;
      if (unused < 0 && (meta & wasUsed) === 0) unused = at;
    }
    this.evicted++;
    if (unused >= 0) return unused;
    for (let way = 0; way < ways; way++) {
      const at = (home ^ way) * this.#stride;
      entries[at] = (entries[at] as number) & ~wasUsed;
    }
    return home * this.#stride;
  }

  #holds(at: number, view: DataView, from: number, size: number): boolean {
    const entries = this.#entries;
    if (((entries[at] as number) & 0xff) !== size) return false;
    const whole = size >> 2;
    for (let i = 0; i < whole; i++) {
      if (entries[at + 1 + i] !== view.getInt32(from + 4 * i, true)) return false;
    }
    const mask = byteMasks[size & 3] as number;
    return mask === 0 || entries[at + 1 + whole] === (view.getInt32(from + 4 * whole, true) & mask);
  }
}
