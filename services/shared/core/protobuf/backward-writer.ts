const initialBytes = 4_096;

/**
 * Writes protobuf messages from their last byte to their first, so that the length of everything nested is known when
 * its prefix is written: no sizes are computed beforehand, nothing is moved, no objects are made. Fields are put in
 * reverse order; constant parts are put as bytes made once.
 *
 * The buffer is reused: `finish` gives a view that the next `start` overwrites. It grows to the largest message
 * written and keeps that size.
 */
export class BackwardWriter {
  #bytes = new Uint8Array(initialBytes);
  #at = initialBytes;

  /** Begins a message. */
  start(): void {
    this.#at = this.#bytes.length;
  }

  /** The message written since `start`. */
  finish(): Uint8Array {
    return this.#bytes.subarray(this.#at);
  }

  /** Bytes written since `start`; the difference of two readings is the length of what was put between. */
  get length(): number {
    return this.#bytes.length - this.#at;
  }

  /** Puts bytes as they are. */
  bytes(bytes: Uint8Array): void {
    this.#reserve(bytes.length);
    this.#at -= bytes.length;
    this.#bytes.set(bytes, this.#at);
  }

  /** Puts a varint below 2^32. */
  varint(value: number): void {
    if (value < 0x80) {
      this.#reserve(1);
      this.#bytes[--this.#at] = value;
      return;
    }
    const size = varintSize(value);
    this.#reserve(size);
    this.#at -= size;
    writeVarint(this.#bytes, this.#at, value);
  }

  /** Puts tag and length of everything put since `length` was `before`. `tag` is the field's tag as one varint. */
  prefix(tag: number, before: number): void {
    this.varint(this.length - before);
    this.varint(tag);
  }

  /** Puts text as UTF-8 without tag or length; a lone surrogate becomes U+FFFD. */
  text(text: string): void {
    const { length } = text;
    this.#reserve(length * 3);
    const bytes = this.#bytes;
    let at = this.#at;
    for (let i = length - 1; i >= 0; i--) {
      let code = text.charCodeAt(i);
      if (code < 0x80) {
        bytes[--at] = code;
        continue;
      }
      if (code >= 0xdc00 && code <= 0xdfff && i > 0) {
        const high = text.charCodeAt(i - 1);
        if (high >= 0xd800 && high <= 0xdbff) {
          i--;
          code = 0x1_0000 + ((high & 0x3ff) << 10) + (code & 0x3ff);
          bytes[--at] = 0x80 | (code & 0x3f);
          bytes[--at] = 0x80 | ((code >> 6) & 0x3f);
          bytes[--at] = 0x80 | ((code >> 12) & 0x3f);
          bytes[--at] = 0xf0 | (code >> 18);
          continue;
        }
      }
      if (code >= 0xd800 && code <= 0xdfff) code = 0xfffd;
      bytes[--at] = 0x80 | (code & 0x3f);
      if (code < 0x800) {
        bytes[--at] = 0xc0 | (code >> 6);
      } else {
        bytes[--at] = 0x80 | ((code >> 6) & 0x3f);
        bytes[--at] = 0xe0 | (code >> 12);
      }
    }
    this.#at = at;
  }

  /** Puts a text field: tag, length, UTF-8. */
  textField(tag: number, text: string): void {
    const before = this.length;
    this.text(text);
    this.prefix(tag, before);
  }

  #reserve(count: number): void {
    if (count <= this.#at) return;
    const used = this.length;
    let size = this.#bytes.length * 2;
    while (size < used + count) size *= 2;
    const grown = new Uint8Array(size);
    grown.set(this.#bytes.subarray(this.#at), size - used);
    this.#bytes = grown;
    this.#at = size - used;
  }
}

/** Bytes of a varint below 2^32. */
export function varintSize(value: number): number {
  if (value < 0x80) return 1;
  if (value < 0x4000) return 2;
  if (value < 0x20_0000) return 3;
  return value < 0x1000_0000 ? 4 : 5;
}

/** Writes a varint below 2^32 at `at`; returns where it ends. */
export function writeVarint(bytes: Uint8Array, at: number, value: number): number {
  let rest = value;
  while (rest >= 0x80) {
    bytes[at++] = (rest & 0x7f) | 0x80;
    rest >>>= 7;
  }
  bytes[at++] = rest;
  return at;
}
