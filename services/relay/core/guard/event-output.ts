import { ByteBuffer } from "./byte-buffer.ts";

const encoder = new TextEncoder();
const eventEnd = encoder.encode("\n\n");

/**
 * Writes events for a client: those of an engine with places cut out or replaced, and events of the relay's own. One
 * buffer for all streams: what is written is taken before the next stream writes.
 */
export class EventOutput {
  readonly buffer = new ByteBuffer(64 << 10);
  /** Places to replace in the event being written, in order; `by` is absent for a cut. */
  readonly #from: number[] = [];
  readonly #to: number[] = [];
  readonly #by: (string | undefined)[] = [];

  /** Replaces `[from, to)` of the next event; nothing when `from` is 0. */
  replace(from: number, to: number, by?: string): void {
    if (from === 0) return;
    let at = this.#from.length;
    while (at > 0 && (this.#from[at - 1] as number) > from) at--;
    this.#from.splice(at, 0, from);
    this.#to.splice(at, 0, to);
    this.#by.splice(at, 0, by);
  }

  /** Writes an engine's event `bytes[from, to)` with the replacements, which are used up. */
  copy(bytes: Uint8Array, from: number, to: number): void {
    const { buffer } = this;
    let at = from;
    for (let i = 0; i < this.#from.length; i++) {
      buffer.bytes(bytes, at, this.#from[i] as number);
      const by = this.#by[i];
      if (by !== undefined) buffer.text(by);
      at = this.#to[i] as number;
    }
    buffer.bytes(bytes, at, to);
    buffer.bytes(eventEnd, 0, 2);
    this.#from.length = 0;
    this.#to.length = 0;
    this.#by.length = 0;
  }

  /** Writes an event with this data. */
  data(json: string): void {
    this.buffer.text(`data: ${json}\n\n`);
  }

  /** Writes the line that names the event that follows. */
  name(id: string): void {
    this.buffer.text(`id: ${id}\n`);
  }
}
