import type { BufferPool } from "./buffer-pool.ts";

/** Bytes of one stream that wait for the client's window, in one pooled buffer that grows. */
export class SendQueue {
  readonly #pool: BufferPool;
  #buffer: Uint8Array | undefined;
  #start = 0;
  #end = 0;

  constructor(pool: BufferPool) {
    this.#pool = pool;
  }

  get length(): number {
    return this.#end - this.#start;
  }

  /** The buffer that holds the bytes; they start at `start`. Only to be read, and only while `length` is above 0. */
  get bytes(): Uint8Array {
    return this.#buffer as Uint8Array;
  }

  get start(): number {
    return this.#start;
  }

  /** Appends `source[from, to)`; false, with nothing changed, when the pool's budget is used up. */
  push(source: Uint8Array, from: number, to: number): boolean {
    const count = to - from;
    if (count === 0) return true;
    let buffer = this.#buffer;
    if (buffer === undefined || this.#end + count > buffer.length) {
      const length = this.length;
      if (buffer !== undefined && length + count <= buffer.length && this.#start >= length) {
        buffer.copyWithin(0, this.#start, this.#end);
      } else {
        const grown = this.#pool.take(length + count);
        if (grown === undefined) return false;
        if (buffer !== undefined) {
          grown.set(buffer.subarray(this.#start, this.#end));
          this.#pool.give(buffer);
        }
        buffer = grown;
      }
      this.#buffer = buffer;
      this.#start = 0;
      this.#end = length;
    }
    buffer.set(source.subarray(from, to), this.#end);
    this.#end += count;
    return true;
  }

  /** Removes `count` bytes at the front. */
  shift(count: number): void {
    this.#start += count;
    if (this.#start === this.#end) this.clear();
  }

  /** Drops all bytes and gives the buffer back. */
  clear(): void {
    if (this.#buffer !== undefined) this.#pool.give(this.#buffer);
    this.#buffer = undefined;
    this.#start = 0;
    this.#end = 0;
  }
}
