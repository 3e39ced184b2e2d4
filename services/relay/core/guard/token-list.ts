/** Token ids that only grow, 4 bytes each. */
export class TokenList {
  #ids: Uint32Array;
  #length = 0;

  constructor(room = 64) {
    this.#ids = new Uint32Array(room);
  }

  get length(): number {
    return this.#length;
  }

  /** The ids; a view that is good until the next change. */
  get ids(): Uint32Array {
    return this.#ids.subarray(0, this.#length);
  }

  push(id: number): void {
    if (this.#length === this.#ids.length) {
      const larger = new Uint32Array(2 * this.#ids.length);
      larger.set(this.#ids);
      this.#ids = larger;
    }
    this.#ids[this.#length++] = id;
  }

  /** Forgets all from an index on. */
  cut(length: number): void {
    if (length < this.#length) this.#length = length;
  }

  /**
   * Adds the ids of a JSON array in `bytes[from, to)`; false, with what was read so far added, for anything but whole
   * numbers below 2^32.
   */
  read(bytes: Uint8Array, from: number, to: number): boolean {
    let value = 0;
    let digits = 0;
    for (let at = from + 1; at < to; at++) {
      const byte = bytes[at] as number;
      if (byte >= 0x30 && byte <= 0x39) {
        value = 10 * value + byte - 0x30;
        digits++;
      } else if (byte === 0x2c || byte === 0x5d) {
        if (digits > 10 || value > 0xffffffff) return false;
        if (digits > 0) this.push(value);
        value = 0;
        digits = 0;
      } else if (byte !== 0x20) return false;
    }
    return true;
  }
}
