/** Memory for request bodies, with a bound over all of them. */
export class BodyMemory {
  readonly bodyBytesMax: number;
  readonly #bytesMax: number;
  #bytes = 0;

  /** `bodyBytesMax`: largest body; `bytesMax`: all bodies that are held at once. */
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

/** Why a body cannot be held. */
export type BodyRefusal = "body_too_large" | "body_memory";

/** What one request's body takes, from its first byte until it is not needed any more. */
export class BodyCharge {
  readonly #memory: BodyMemory;
  #size = 0;

  constructor(memory: BodyMemory) {
    this.#memory = memory;
  }

  /** Takes room for more bytes of the body; says why there is none, with nothing taken. */
  take(size: number): BodyRefusal | undefined {
    if (this.#size + size > this.#memory.bodyBytesMax) return "body_too_large";
    if (!this.#memory.take(size)) return "body_memory";
    this.#size += size;
    return undefined;
  }

  /** Gives everything back; twice is once. */
  giveBack(): void {
    this.#memory.give(this.#size);
    this.#size = 0;
  }
}
