const smallestBits = 12;
const largestBits = 30;

/**
 * Byte buffers in sizes of powers of two from 4 KiB, kept for reuse up to a total. What is out counts against a
 * budget; a fresh buffer costs zeroing, a reused one nothing, and is not cleared.
 */
export class BufferPool {
  readonly #outBytesMax: number;
  readonly #idleBytesMax: number;
  readonly #idle: Uint8Array[][] = Array.from({ length: largestBits + 1 }, () => []);
  #idleBytes = 0;
  #outBytes = 0;

  /** `outBytesMax`: what may be out at once; `idleBytesMax`: what is kept for reuse. */
  constructor(outBytesMax: number, idleBytesMax: number) {
    this.#outBytesMax = outBytesMax;
    this.#idleBytesMax = idleBytesMax;
  }

  /** Bytes of the buffers that are out. */
  get outBytes(): number {
    return this.#outBytes;
  }

  get idleBytes(): number {
    return this.#idleBytes;
  }

  /** A buffer of at least `bytes`, or undefined when the budget is used up. */
  take(bytes: number): Uint8Array | undefined {
    const bits = bytes <= 1 << smallestBits ? smallestBits : 32 - Math.clz32(bytes - 1);
    if (bits > largestBits || this.#outBytes + 2 ** bits > this.#outBytesMax) return undefined;
    this.#outBytes += 2 ** bits;
    const kept = this.#idle[bits]?.pop();
    if (kept === undefined) return new Uint8Array(2 ** bits);
    this.#idleBytes -= kept.length;
    return kept;
  }

  /** Takes back a buffer that came from `take`; nobody may use it afterwards. */
  give(buffer: Uint8Array): void {
    this.#outBytes -= buffer.length;
    if (this.#idleBytes + buffer.length > this.#idleBytesMax) return;
    this.#idleBytes += buffer.length;
    this.#idle[31 - Math.clz32(buffer.length)]?.push(buffer);
  }
}
