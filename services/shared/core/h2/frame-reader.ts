import {
  clientPreface,
  defaultFrameBytesMax,
  frameFlag,
  frameHeaderBytes,
  frameType,
} from "./codes.ts";

/** What takes the frames that a `FrameReader` finds; any of the methods may call the reader's `stop`. */
export interface FrameSink {
  /** The first bytes are not those of HTTP/2. */
  badPreface(): void;
  /**
   * A frame's header has come, its payload perhaps not; called again when a payload that was missing is there.
   * Frames longer than 16,384 bytes must be refused here by `stop`.
   */
  frameStarts(type: number, flags: number, streamId: number, length: number): void;
  /** One whole frame of any type but DATA, its payload in `bytes[start, end)`. */
  frame(
    type: number,
    flags: number,
    streamId: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void;
  /** DATA begins: `length` of payload, of which `padding` (its length octet included) is dropped; -1 is too much. */
  dataStarts(streamId: number, flags: number, length: number, padding: number): void;
  /** A piece of the payload of the DATA frame that began last, without padding. */
  data(bytes: Uint8Array, start: number, end: number): void;
  /** All of that frame has come. */
  dataEnds(): void;
}

/**
 * Cuts what a socket gives into frames, wherever it was split. Frames that lie whole in the input are handed out in
 * place; DATA is handed on piece by piece as it comes; only a small frame cut by the end of the input is copied.
 */
export class FrameReader {
  readonly #sink: FrameSink;
  #prefaceLength = 0;
  /** The start of a frame whose rest has not come; at most a header and 16,384 bytes. */
  #carry = new Uint8Array(64);
  #carryLength = 0;
  #isInData = false;
  #dataLeft = 0;
  #paddingLeft = 0;
  #isStopped = false;

  constructor(sink: FrameSink) {
    this.#sink = sink;
  }

  /** Whether the preface has been read. */
  get hasPreface(): boolean {
    return this.#prefaceLength === clientPreface.length;
  }

  /** Whether the start of a frame waits for its rest; the payload of DATA does not count. */
  get isCutOff(): boolean {
    return this.#carryLength > 0;
  }

  /** Ignores everything from here on. */
  stop(): void {
    this.#isStopped = true;
  }

  /** Reads `bytes[0, end)`; nothing of it is needed after the call. */
  receive(bytes: Uint8Array, end: number): void {
    let at = this.hasPreface ? 0 : this.#preface(bytes, end);
    while (at < end && !this.#isStopped) {
      if (this.#isInData) at = this.#dataPiece(bytes, at, end);
      else if (this.#carryLength > 0) at = this.#complete(bytes, at, end);
      else at = this.#next(bytes, at, end);
    }
  }

  #preface(bytes: Uint8Array, end: number): number {
    let at = 0;
    while (at < end && !this.hasPreface) {
      if (bytes[at++] !== clientPreface.charCodeAt(this.#prefaceLength)) {
        this.#sink.badPreface();
        return end;
      }
      this.#prefaceLength++;
    }
    return at;
  }

  /** Takes the frame at `at`, or keeps its start; returns the position after it. */
  #next(bytes: Uint8Array, at: number, end: number): number {
    const have = end - at;
    if (have < frameHeaderBytes) return this.#keep(bytes, at, end);
    const length =
      ((bytes[at] as number) << 16) | ((bytes[at + 1] as number) << 8) | (bytes[at + 2] as number);
    const type = bytes[at + 3] as number;
    const flags = bytes[at + 4] as number;
    const streamId =
      (((bytes[at + 5] as number) & 0x7f) << 24) |
      ((bytes[at + 6] as number) << 16) |
      ((bytes[at + 7] as number) << 8) |
      (bytes[at + 8] as number);
    this.#sink.frameStarts(type, flags, streamId, length);
    if (this.#isStopped) return end;
    if (type === frameType.data) {
      let padding = 0;
      if ((flags & frameFlag.padded) !== 0) {
        if (length > 0 && have === frameHeaderBytes) return this.#keep(bytes, at, end);
        padding = 1 + (bytes[at + frameHeaderBytes] as number);
        if (padding > length) padding = -1;
      }
      this.#sink.dataStarts(streamId, flags, length, padding);
      if (padding < 0) return end;
      this.#dataLeft = length - padding;
      this.#paddingLeft = padding > 0 ? padding - 1 : 0;
      if (length === 0) this.#sink.dataEnds();
      else this.#isInData = true;
      const from = at + frameHeaderBytes + (padding > 0 ? 1 : 0);
      return this.#isInData ? this.#dataPiece(bytes, from, end) : from;
    }
    const after = at + frameHeaderBytes + length;
    if (after > end) return this.#keep(bytes, at, end);
    this.#sink.frame(type, flags, streamId, bytes, at + frameHeaderBytes, after);
    return after;
  }

  #dataPiece(bytes: Uint8Array, at: number, end: number): number {
    const count = Math.min(this.#dataLeft, end - at);
    this.#dataLeft -= count;
    if (count > 0) {
      this.#sink.data(bytes, at, at + count);
      at += count;
    }
    const dropped = Math.min(this.#paddingLeft, end - at);
    this.#paddingLeft -= dropped;
    if (this.#dataLeft === 0 && this.#paddingLeft === 0 && !this.#isStopped) {
      this.#isInData = false;
      this.#sink.dataEnds();
    }
    return at + dropped;
  }

  #keep(bytes: Uint8Array, at: number, end: number): number {
    const length = this.#carryLength + end - at;
    if (length > this.#carry.length) {
      const grown = new Uint8Array(
        length <= 1_024 ? 1_024 : frameHeaderBytes + defaultFrameBytesMax,
      );
      grown.set(this.#carry.subarray(0, this.#carryLength));
      this.#carry = grown;
    }
    this.#carry.set(bytes.subarray(at, end), this.#carryLength);
    this.#carryLength = length;
    return end;
  }

  /** How much of the frame in the carry must be there before `#next` can take it. */
  #needed(): number {
    const carry = this.#carry;
    if (this.#carryLength < frameHeaderBytes) return frameHeaderBytes;
    const length =
      ((carry[0] as number) << 16) | ((carry[1] as number) << 8) | (carry[2] as number);
    if (length > defaultFrameBytesMax) return frameHeaderBytes;
    if (carry[3] !== frameType.data) return frameHeaderBytes + length;
    const isPadded = ((carry[4] as number) & frameFlag.padded) !== 0 && length > 0;
    return isPadded ? frameHeaderBytes + 1 : frameHeaderBytes;
  }

  #complete(bytes: Uint8Array, at: number, end: number): number {
    const next = Math.min(end, at + this.#needed() - this.#carryLength);
    if (next > at) this.#keep(bytes, at, next);
    if (this.#carryLength < this.#needed()) return next;
    const length = this.#carryLength;
    this.#carryLength = 0;
    this.#next(this.#carry, 0, length);
    return next;
  }
}
