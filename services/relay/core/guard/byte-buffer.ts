const encoder = new TextEncoder();

/** Bytes that are gathered and then taken, in memory that is used again. */
export class ByteBuffer {
  #bytes: Uint8Array;
  #length = 0;

  constructor(size: number) {
    this.#bytes = new Uint8Array(size);
  }

  get length(): number {
    return this.#length;
  }

  /** What was gathered, as a view that is good until the next write; empties the buffer. */
  take(): Uint8Array {
    const taken = this.#bytes.subarray(0, this.#length);
    this.#length = 0;
    return taken;
  }

  /** Appends `source[from, to)`. */
  bytes(source: Uint8Array, from: number, to: number): void {
    const count = to - from;
    this.#reserve(count);
    // Short pieces are faster by hand than through a view.
    if (count <= 32) {
      for (let i = from; i < to; i++) this.#bytes[this.#length++] = source[i] as number;
      return;
    }
    this.#bytes.set(source.subarray(from, to), this.#length);
    this.#length += count;
  }

  /** Appends a text in UTF-8. */
  text(text: string): void {
    this.#reserve(3 * text.length);
    const { written } = encoder.encodeInto(text, this.#bytes.subarray(this.#length));
    this.#length += written;
  }

  #reserve(count: number): void {
    const needed = this.#length + count;
    if (needed <= this.#bytes.length) return;
    const larger = new Uint8Array(Math.max(2 * this.#bytes.length, needed));
    larger.set(this.#bytes.subarray(0, this.#length));
    this.#bytes = larger;
  }
}
