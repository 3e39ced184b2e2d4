/** Why a header block is given up. */
export type HeaderBlockFault = "header_block_too_large" | "continuation_flood";

/** Gathers a header block that HEADERS starts and CONTINUATION frames go on with (RFC 9113 §4.3). */
export class HeaderAssembly {
  readonly #bytesMax: number;
  readonly #framesMax: number;
  #bytes = new Uint8Array(0);
  #length = 0;
  #frames = 0;
  #streamId = 0;
  #flags = 0;

  constructor(bytesMax: number, framesMax: number) {
    this.#bytesMax = bytesMax;
    this.#framesMax = framesMax;
  }

  /** The stream whose block is incomplete, or 0. Until it is complete only its CONTINUATION frames may come. */
  get streamId(): number {
    return this.#streamId;
  }

  /** Flags of the HEADERS frame that started it. */
  get flags(): number {
    return this.#flags;
  }

  get bytes(): Uint8Array {
    return this.#bytes;
  }

  get length(): number {
    return this.#length;
  }

  begin(streamId: number, flags: number): void {
    this.#streamId = streamId;
    this.#flags = flags;
    this.#length = 0;
    this.#frames = 0;
  }

  /** Adds a frame's part of the block. */
  add(source: Uint8Array, start: number, end: number): HeaderBlockFault | undefined {
    const length = this.#length + end - start;
    if (length > this.#bytesMax) return "header_block_too_large";
    if (this.#frames++ > this.#framesMax) return "continuation_flood";
    if (length > this.#bytes.length) {
      const grown = new Uint8Array(
        Math.min(this.#bytesMax, Math.max(length, 4_096, this.#bytes.length * 2)),
      );
      grown.set(this.#bytes.subarray(0, this.#length));
      this.#bytes = grown;
    }
    this.#bytes.set(source.subarray(start, end), this.#length);
    this.#length = length;
    return undefined;
  }

  /** The block has been used; its memory goes, since most connections never need it. */
  done(): void {
    this.#streamId = 0;
    this.#length = 0;
    this.#bytes = new Uint8Array(0);
  }
}
