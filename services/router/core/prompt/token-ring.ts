/**
 * Tokens of texts in one piece of memory that is used in turns: what was put last stays, what was put longest ago is
 * written over. Places are numbers that only grow, so that whether one still holds what was put there is a comparison.
 */
export class TokenRing {
  readonly #capacity: number;
  #tokens: Uint32Array;
  /** The place behind what was put last. */
  #end = 0;

  /** `capacity`: how many tokens it holds. */
  constructor(capacity: number) {
    this.#capacity = Math.max(1, capacity);
    this.#tokens = new Uint32Array(Math.min(this.#capacity, 1 << 12));
  }

  /** Memory in use, bytes. */
  get bytes(): number {
    return this.#tokens.byteLength;
  }

  /** Puts tokens and returns their place; −1 when they do not fit. */
  put(ids: Uint32Array): number {
    const { length } = ids;
    if (length > this.#capacity) return -1;
    // In one piece: what does not fit behind the others begins at the start again.
    const rest = this.#capacity - (this.#end % this.#capacity);
    if (length > rest) this.#end += rest;
    const at = this.#end % this.#capacity;
    if (at + length > this.#tokens.length) {
      const size = Math.min(this.#capacity, Math.max(at + length, 2 * this.#tokens.length));
      const larger = new Uint32Array(size);
      larger.set(this.#tokens);
      this.#tokens = larger;
    }
    this.#tokens.set(ids, at);
    const place = this.#end;
    this.#end += length;
    return place;
  }

  /** The tokens put at a place, in memory that is used again; `undefined` when others have been put there since. */
  get(place: number, count: number): Uint32Array | undefined {
    if (place < 0 || place < this.#end - this.#capacity) return undefined;
    const at = place % this.#capacity;
    return this.#tokens.subarray(at, at + count);
  }
}
