const encoder = new TextEncoder();

/** Writes the few kinds of values that a token is made of. Grows as needed; the caller bounds the whole. */
export class ByteWriter {
  #bytes = new Uint8Array(512);
  #view = new DataView(this.#bytes.buffer);
  #size = 0;

  /** What was written so far; a view that the next write may outdate. */
  written(): Uint8Array {
    return this.#bytes.subarray(0, this.#size);
  }

  byte(value: number): void {
    this.#reserve(1);
    this.#bytes[this.#size++] = value;
  }

  /** A whole number from 0 to 2^53 - 1, seven bits a byte, low ones first. */
  count(value: number): void {
    if (!Number.isSafeInteger(value) || value < 0) {
      throw new RangeError(`not a count: ${String(value)}`);
    }
    this.#reserve(8);
    let rest = value;
    while (rest >= 128) {
      this.#bytes[this.#size++] = (rest % 128) | 128;
      rest = Math.floor(rest / 128);
    }
    this.#bytes[this.#size++] = rest;
  }

  /** Eight bytes, IEEE 754, low ones first. */
  real(value: number): void {
    this.#reserve(8);
    this.#view.setFloat64(this.#size, value, true);
    this.#size += 8;
  }

  /** Bytes as they are. */
  raw(bytes: Uint8Array): void {
    this.#reserve(bytes.length);
    this.#bytes.set(bytes, this.#size);
    this.#size += bytes.length;
  }

  /** UTF-8 behind its length. */
  text(value: string): void {
    const bytes = encoder.encode(value);
    this.count(bytes.length);
    this.raw(bytes);
  }

  #reserve(more: number): void {
    if (this.#size + more <= this.#bytes.length) return;
    const larger = new Uint8Array(Math.max(2 * this.#bytes.length, this.#size + more));
    larger.set(this.written());
    this.#bytes = larger;
    this.#view = new DataView(larger.buffer);
  }
}
