const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Reads what `ByteWriter` writes. Past a fault every read gives an empty value and `isFaulty` stays true. */
export class ByteReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at: number;
  #faulty = false;

  constructor(bytes: Uint8Array, from = 0) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#at = from;
  }

  /** Index of the next byte. */
  get at(): number {
    return this.#at;
  }

  /** Whether something could not be read, or was not as `ByteWriter` writes it. */
  get isFaulty(): boolean {
    return this.#faulty;
  }

  /** Whether all was read, and without a fault. */
  get isDone(): boolean {
    return !this.#faulty && this.#at === this.#bytes.length;
  }

  byte(): number {
    return this.#has(1) ? (this.#bytes[this.#at++] as number) : 0;
  }

  /** See `ByteWriter.count`; longer forms of a number than the shortest are faults. */
  count(): number {
    let value = 0;
    let scale = 1;
    for (let i = 0; i < 8; i++) {
      if (!this.#has(1)) return 0;
      const byte = this.#bytes[this.#at++] as number;
      value += (byte & 127) * scale;
      if (byte < 128) {
        if ((byte === 0 && i > 0) || !Number.isSafeInteger(value)) return this.#fault(0);
        return value;
      }
      scale *= 128;
    }
    return this.#fault(0);
  }

  real(): number {
    if (!this.#has(8)) return 0;
    this.#at += 8;
    return this.#view.getFloat64(this.#at - 8, true);
  }

  /** A copy of the next bytes. */
  raw(size: number): Uint8Array {
    if (!this.#has(size)) return new Uint8Array(0);
    this.#at += size;
    return this.#bytes.slice(this.#at - size, this.#at);
  }

  text(): string {
    const size = this.count();
    if (!this.#has(size)) return "";
    this.#at += size;
    try {
      return decoder.decode(this.#bytes.subarray(this.#at - size, this.#at));
    } catch {
      return this.#fault("");
    }
  }

  #has(size: number): boolean {
    if (!this.#faulty && size <= this.#bytes.length - this.#at) return true;
    this.#faulty = true;
    return false;
  }

  #fault<T>(value: T): T {
    this.#faulty = true;
    return value;
  }
}
