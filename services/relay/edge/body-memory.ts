/** Memory for bodies that are being received, with a bound over all of them. */
export class BodyMemory {
  readonly bodyBytesMax: number;
  readonly #bytesMax: number;
  #bytes = 0;

  constructor(bodyBytesMax: number, bytesMax: number) {
    this.bodyBytesMax = bodyBytesMax;
    this.#bytesMax = bytesMax;
  }

  /** Bytes taken now. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Takes memory; false, with nothing taken, when there is none left. */
  take(size: number): boolean {
    if (this.#bytes + size > this.#bytesMax) return false;
    this.#bytes += size;
    return true;
  }

  give(size: number): void {
    this.#bytes -= size;
  }
}
