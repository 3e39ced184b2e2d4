/** Takes the events of a stream one by one, in place: `bytes[from, to)` without the blank line that ends it. */
export type EventTaker = (bytes: Uint8Array, from: number, to: number) => void;

/** Largest event that is put together from pieces, bytes. */
const eventBytesMax = 1 << 20;
const nothing = new Uint8Array(0);

/**
 * Cuts server-sent events out of a stream of bytes. An event that lies whole in one piece, as engines send them, is handed
 * on where it is; only one that is split over pieces is copied.
 */
export class SseSplitter {
  #kept: Uint8Array | undefined;

  /** Whether the bytes so far ended with an event. */
  get isBetween(): boolean {
    return this.#kept === undefined;
  }

  /** Forgets a begun event. */
  reset(): void {
    this.#kept = undefined;
  }

  /** The bytes of a begun event, for whoever passes them on as they are. */
  takeRest(): Uint8Array {
    const rest = this.#kept ?? nothing;
    this.#kept = undefined;
    return rest;
  }

  /** Reads a piece; false for an event above 1 MiB, after which nothing can be read. */
  read(piece: Uint8Array, take: EventTaker): boolean {
    let bytes = piece;
    if (this.#kept !== undefined) {
      bytes = new Uint8Array(this.#kept.length + piece.length);
      bytes.set(this.#kept);
      bytes.set(piece, this.#kept.length);
      this.#kept = undefined;
    }
    let from = 0;
    for (;;) {
      const end = this.#end(bytes, from);
      if (end < 0) break;
      if (end > from) take(bytes, from, end);
      from = end + 2;
    }
    if (from === bytes.length) return true;
    if (bytes.length - from > eventBytesMax) return false;
    this.#kept = bytes.slice(from);
    return true;
  }

  /** Index of the first of two line ends in a row, from an index on; -1 when there are none. */
  #end(bytes: Uint8Array, from: number): number {
    let at = from;
    for (;;) {
      at = bytes.indexOf(0x0a, at);
      if (at < 0 || at + 1 >= bytes.length) return -1;
      if (bytes[at + 1] === 0x0a) return at;
      at++;
    }
  }
}
