import { frameFlag, frameHeaderBytes, frameType } from "./codes.ts";
import { spareBytesMin, type SpareBuffers } from "./spare-buffers.ts";

/** Frames on their way to a socket, written one behind the other into a buffer that grows. */
export class FrameOutput {
  #bytes: Uint8Array;
  #length = 0;
  readonly #initialBytes: number;
  readonly #spares: SpareBuffers | undefined;
  /** A small buffer of its own, to go on in. */
  #small: Uint8Array | undefined;

  /** Starts with a buffer of `bytes`; what grows beyond it grows in buffers of `spares`. */
  constructor(bytes: number, spares?: SpareBuffers) {
    this.#bytes = new Uint8Array(bytes);
    this.#initialBytes = bytes;
    this.#spares = spares;
  }

  get length(): number {
    return this.#length;
  }

  /** Takes out what has been written, `length` bytes of the returned buffer, and goes on in `next` or one of its own. */
  swap(next?: Uint8Array): Uint8Array {
    const full = this.#bytes;
    if (next === undefined) {
      this.#bytes = this.#small ?? new Uint8Array(this.#initialBytes);
      this.#small = undefined;
    } else this.#bytes = next;
    this.#length = 0;
    return full;
  }

  /** Takes back a buffer that `swap` gave, once its bytes are on their way: small ones for itself, large ones for all. */
  giveBack(buffer: Uint8Array): void {
    if (buffer.length < spareBytesMin) this.#small ??= buffer;
    else this.#spares?.give(buffer);
  }

  #room(bytes: number): void {
    const needed = this.#length + bytes;
    if (needed <= this.#bytes.length) return;
    const before = this.#bytes;
    const size = Math.max(needed, before.length * 2);
    const grown = this.#spares === undefined ? new Uint8Array(size) : this.#spares.take(size);
    grown.set(before.subarray(0, this.#length));
    this.#bytes = grown;
    this.giveBack(before);
  }

  #header(type: number, flags: number, streamId: number, length: number): void {
    this.#room(frameHeaderBytes + length);
    const bytes = this.#bytes;
    const at = this.#length;
    bytes[at] = length >>> 16;
    bytes[at + 1] = length >>> 8;
    bytes[at + 2] = length;
    bytes[at + 3] = type;
    bytes[at + 4] = flags;
    bytes[at + 5] = streamId >>> 24;
    bytes[at + 6] = streamId >>> 16;
    bytes[at + 7] = streamId >>> 8;
    bytes[at + 8] = streamId;
    this.#length = at + frameHeaderBytes;
  }

  #uint32(value: number): void {
    const bytes = this.#bytes;
    const at = this.#length;
    bytes[at] = value >>> 24;
    bytes[at + 1] = value >>> 16;
    bytes[at + 2] = value >>> 8;
    bytes[at + 3] = value;
    this.#length = at + 4;
  }

  #append(source: Uint8Array, start: number, end: number): void {
    const count = end - start;
    // Short pieces by a loop: making a view costs more than copying 64 bytes one by one.
    if (count <= 64) {
      const bytes = this.#bytes;
      const at = this.#length;
      for (let i = 0; i < count; i++) bytes[at + i] = source[start + i] as number;
    } else if (count === source.length) this.#bytes.set(source, this.#length);
    else this.#bytes.set(source.subarray(start, end), this.#length);
    this.#length += count;
  }

  /** HEADERS with its whole block; a block longer than `frameBytesMax` goes on in CONTINUATION frames. */
  headers(streamId: number, block: Uint8Array, endStream: boolean, frameBytesMax: number): void {
    const first = Math.min(block.length, frameBytesMax);
    const end = endStream ? frameFlag.endStream : 0;
    const whole = first === block.length ? frameFlag.endHeaders : 0;
    this.#header(frameType.headers, end | whole, streamId, first);
    this.#append(block, 0, first);
    for (let at = first; at < block.length;) {
      const next = Math.min(block.length, at + frameBytesMax);
      const last = next === block.length ? frameFlag.endHeaders : 0;
      this.#header(frameType.continuation, last, streamId, next - at);
      this.#append(block, at, next);
      at = next;
    }
  }

  /** One DATA frame with `source[start, end)`. */
  data(streamId: number, source: Uint8Array, start: number, end: number): void {
    this.#header(frameType.data, 0, streamId, end - start);
    this.#append(source, start, end);
  }

  /** One DATA frame with `prefix` followed by `source[0, count)`. */
  prefixedData(streamId: number, prefix: Uint8Array, source: Uint8Array, count: number): void {
    this.#header(frameType.data, 0, streamId, prefix.length + count);
    this.#append(prefix, 0, prefix.length);
    this.#append(source, 0, count);
  }

  rstStream(streamId: number, code: number): void {
    this.#header(frameType.rstStream, 0, streamId, 4);
    this.#uint32(code);
  }

  /** SETTINGS with the given pairs of identifier and value. */
  settings(pairs: readonly (readonly [id: number, value: number])[]): void {
    this.#header(frameType.settings, 0, 0, pairs.length * 6);
    for (const [id, value] of pairs) {
      this.#bytes[this.#length] = id >>> 8;
      this.#bytes[this.#length + 1] = id;
      this.#length += 2;
      this.#uint32(value);
    }
  }

  settingsAck(): void {
    this.#header(frameType.settings, frameFlag.ack, 0, 0);
  }

  /** PING, or the answer to one, with the eight octets at `source[start]`. */
  ping(isAck: boolean, source: Uint8Array, start: number): void {
    this.#header(frameType.ping, isAck ? frameFlag.ack : 0, 0, 8);
    this.#append(source, start, start + 8);
  }

  /** GOAWAY with a text for whoever reads the peer's log (ASCII). */
  goaway(lastStreamId: number, code: number, text: string): void {
    this.#header(frameType.goaway, 0, 0, 8 + text.length);
    this.#uint32(lastStreamId);
    this.#uint32(code);
    for (let i = 0; i < text.length; i++) this.#bytes[this.#length++] = text.charCodeAt(i) & 127;
  }

  windowUpdate(streamId: number, increment: number): void {
    this.#header(frameType.windowUpdate, 0, streamId, 4);
    this.#uint32(increment);
  }
}
