/** Smallest buffer that is passed round: smaller ones are cheap to make and stay with their owner. */
export const spareBytesMin = 256 << 10;

/**
 * Large write buffers, passed from one connection to the next: a fresh megabyte for each burst of answers costs more
 * than writing it, in zeroing and in collection. What is given back is kept up to a total; a buffer that never comes
 * back is the collector's.
 */
export class SpareBuffers {
  readonly #idleBytesMax: number;
  readonly #idle: Uint8Array[] = [];
  #idleBytes = 0;

  constructor(idleBytesMax: number) {
    this.#idleBytesMax = idleBytesMax;
  }

  get idleBytes(): number {
    return this.#idleBytes;
  }

  /** A buffer of at least `bytes`, and at least `spareBytesMin`, with anything in it. */
  take(bytes: number): Uint8Array {
    const found = this.#idle.findLastIndex((buffer) => buffer.length >= bytes);
    if (found >= 0) {
      const [buffer] = this.#idle.splice(found, 1) as [Uint8Array];
      this.#idleBytes -= buffer.length;
      return buffer;
    }
    const size = Math.max(spareBytesMin, 2 ** (32 - Math.clz32(bytes - 1)));
    return new Uint8Array(size);
  }

  /** Takes a buffer back, large or not; nobody may use it afterwards. False when it is not kept. */
  give(buffer: Uint8Array): boolean {
    const { length } = buffer;
    if (length < spareBytesMin || this.#idleBytes + length > this.#idleBytesMax) return false;
    this.#idle.push(buffer);
    this.#idleBytes += length;
    return true;
  }
}
