import type { DecodeFailureCode } from "./kv-event.ts";

/** Thrown inside the decoder only; `decodeKvEventBatch` turns it into a value. */
export class DecodeReject extends Error {
  readonly code: DecodeFailureCode;
  readonly offset: number;

  constructor(code: DecodeFailureCode, offset: number) {
    super(`${code} at byte ${String(offset)}`);
    this.code = code;
    this.offset = offset;
  }
}

/** Nesting that `skip` follows; engines use at most five levels. */
const depthMax = 16;
/** Longest text, bytes. */
const textSizeMax = 64 * 1024;

const floats = new DataView(new ArrayBuffer(8));

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * Pull reader over one MessagePack message: the caller says which type it expects. 64-bit hashes come
 * out as two unsigned halves, so no BigInt is made. Lengths are checked against the bytes that are left
 * before anything is allocated, therefore a message cannot make it allocate more than a few times its
 * own size. Throws `DecodeReject` and nothing else.
 */
export class MsgpackReader {
  readonly bytes: Uint8Array;
  #at = 0;
  /** Halves of the last hash or integer read by `hash`. */
  lo = 0;
  hi = 0;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  /** Position of the next byte. */
  get offset(): number {
    return this.#at;
  }

  /** Whether all bytes were read. */
  get atEnd(): boolean {
    return this.#at === this.bytes.length;
  }

  /** The next byte, which names the next value's type, without taking it. */
  peek(): number {
    if (this.#at >= this.bytes.length) throw new DecodeReject("truncated", this.#at);
    return this.bytes[this.#at] as number;
  }

  /** Whether the next value is an array. */
  atArray(): boolean {
    const tag = this.peek();
    return (tag & 0xf0) === 0x90 || tag === 0xdc || tag === 0xdd;
  }

  /** Whether the next value is a map. */
  atMap(): boolean {
    const tag = this.peek();
    return (tag & 0xf0) === 0x80 || tag === 0xde || tag === 0xdf;
  }

  /** Whether the next value is a text. */
  atText(): boolean {
    const tag = this.peek();
    return (tag & 0xe0) === 0xa0 || (tag >= 0xd9 && tag <= 0xdb);
  }

  /** Whether the next value is an integer of any width. */
  atInteger(): boolean {
    const tag = this.peek();
    return tag < 0x80 || tag >= 0xe0 || (tag >= 0xcc && tag <= 0xd3);
  }

  /** Takes the value that starts here if its bytes are these. */
  take(value: Uint8Array): boolean {
    const { bytes } = this;
    const at = this.#at;
    for (let i = 0; i < value.length; i++) if (bytes[at + i] !== value[i]) return false;
    this.#at = at + value.length;
    return true;
  }

  /** Takes a nil if there is one. */
  takeNil(): boolean {
    if (this.peek() !== 0xc0) return false;
    this.#at++;
    return true;
  }

  /** Whether the array that starts here holds arrays. Takes nothing. */
  holdsArrays(): boolean {
    const start = this.#at;
    const length = this.arrayHeader(0xffff_ffff);
    const nested = length > 0 && this.atArray();
    this.#at = start;
    return nested;
  }

  /** Length of the array that starts here. */
  arrayHeader(lengthMax: number): number {
    const start = this.#at;
    const tag = this.#take();
    let length: number;
    if ((tag & 0xf0) === 0x90) length = tag & 0x0f;
    else if (tag === 0xdc) length = this.#u16();
    else if (tag === 0xdd) length = this.#u32();
    else throw new DecodeReject("wrong_type", start);
    if (length > lengthMax) throw new DecodeReject("too_large", start);
    // Every element needs at least one byte.
    if (length > this.bytes.length - this.#at) throw new DecodeReject("truncated", start);
    return length;
  }

  /** Number of pairs of the map that starts here. */
  mapHeader(lengthMax: number): number {
    const start = this.#at;
    const tag = this.#take();
    let length: number;
    if ((tag & 0xf0) === 0x80) length = tag & 0x0f;
    else if (tag === 0xde) length = this.#u16();
    else if (tag === 0xdf) length = this.#u32();
    else throw new DecodeReject("wrong_type", start);
    if (length > lengthMax) throw new DecodeReject("too_large", start);
    if (2 * length > this.bytes.length - this.#at) throw new DecodeReject("truncated", start);
    return length;
  }

  /** Takes a text and returns where its bytes start; its size is in `lo`. */
  textRange(): number {
    const start = this.#at;
    const tag = this.#take();
    let size: number;
    if ((tag & 0xe0) === 0xa0) size = tag & 0x1f;
    else if (tag === 0xd9) size = this.#u8();
    else if (tag === 0xda) size = this.#u16();
    else if (tag === 0xdb) size = this.#u32();
    else throw new DecodeReject("wrong_type", start);
    if (size > textSizeMax) throw new DecodeReject("too_large", start);
    const from = this.#at;
    this.#advance(size);
    this.lo = size;
    return from;
  }

  /** A text of valid UTF-8. */
  text(): string {
    this.textRange();
    return this.lastText();
  }

  /** The text that `textRange` took last; nothing else may have been read since. */
  lastText(): string {
    const from = this.#at - this.lo;
    try {
      return utf8.decode(this.bytes.subarray(from, this.#at));
    } catch {
      throw new DecodeReject("bad_text", from);
    }
  }

  /** A text, or `undefined` for nil. */
  textOrNil(): string | undefined {
    return this.takeNil() ? undefined : this.text();
  }

  /** A finite number of any width, seconds for instance. Integers past 2⁵³ lose precision. */
  number(): number {
    const start = this.#at;
    const tag = this.peek();
    let value: number;
    if (tag === 0xcb) {
      this.#at++;
      this.#advance(8);
      value = this.#float(8).getFloat64(0);
    } else if (tag === 0xca) {
      this.#at++;
      this.#advance(4);
      value = this.#float(4).getFloat32(0);
    } else {
      this.#integer();
      value = (this.hi | 0) * 0x1_0000_0000 + this.lo;
    }
    if (!Number.isFinite(value)) throw new DecodeReject("bad_number", start);
    return value;
  }

  /** An integer from 0 to 2³² − 1. */
  uint32(): number {
    const start = this.#at;
    this.#integer();
    if (this.hi !== 0) throw new DecodeReject("bad_number", start);
    return this.lo;
  }

  /** An integer that JavaScript holds exactly, or `undefined` for nil. */
  integerOrNil(): number | undefined {
    if (this.takeNil()) return undefined;
    const start = this.#at;
    this.#integer();
    const value = (this.hi | 0) * 0x1_0000_0000 + this.lo;
    if (!Number.isSafeInteger(value)) throw new DecodeReject("bad_number", start);
    return value;
  }

  /**
   * A block hash into `lo` and `hi`: an integer (a negative one as its two's complement) or bytes, of
   * which the last 8 count, big-endian. Fewer than 8 bytes are refused.
   */
  hash(): void {
    const start = this.#at;
    const tag = this.peek();
    if (tag < 0xc4 || tag > 0xc6) {
      this.#integer();
      return;
    }
    this.#at++;
    const size = tag === 0xc4 ? this.#u8() : tag === 0xc5 ? this.#u16() : this.#u32();
    if (size < 8) throw new DecodeReject("bad_number", start);
    if (size > textSizeMax) throw new DecodeReject("too_large", start);
    this.#advance(size);
    this.hi = this.#u32At(this.#at - 8);
    this.lo = this.#u32At(this.#at - 4);
  }

  /** An array of hashes as pairs `[lo0, hi0, …]`. */
  hashes(countMax: number): Uint32Array {
    const count = this.arrayHeader(countMax);
    const out = new Uint32Array(2 * count);
    for (let i = 0; i < count; i++) {
      this.hash();
      out[2 * i] = this.lo;
      out[2 * i + 1] = this.hi;
    }
    return out;
  }

  /** An array of token ids. The loop reads the three widths that engines write without a call each. */
  tokens(countMax: number): Uint32Array {
    const count = this.arrayHeader(countMax);
    const out = new Uint32Array(count);
    const { bytes } = this;
    const size = bytes.length;
    let at = this.#at;
    for (let i = 0; i < count; i++) {
      const tag = at < size ? (bytes[at] as number) : 0x100;
      if (tag < 0x80) {
        out[i] = tag;
        at += 1;
      } else if (tag === 0xcd && at + 3 <= size) {
        out[i] = ((bytes[at + 1] as number) << 8) | (bytes[at + 2] as number);
        at += 3;
      } else if (tag === 0xce && at + 5 <= size) {
        out[i] = this.#u32At(at + 1);
        at += 5;
      } else {
        this.#at = at;
        out[i] = this.uint32();
        at = this.#at;
      }
    }
    this.#at = at;
    return out;
  }

  /** Steps over one value of any type. */
  skip(depth = 0): void {
    if (depth > depthMax) throw new DecodeReject("too_deep", this.#at);
    const tag = this.peek();
    if (this.atArray()) {
      const length = this.arrayHeader(0xffff_ffff);
      for (let i = 0; i < length; i++) this.skip(depth + 1);
      return;
    }
    if (this.atMap()) {
      const length = this.mapHeader(0xffff_ffff);
      for (let i = 0; i < 2 * length; i++) this.skip(depth + 1);
      return;
    }
    this.#at++;
    if (tag < 0x80 || tag >= 0xe0 || tag === 0xc0 || tag === 0xc2 || tag === 0xc3) return;
    if (tag < 0xc0) this.#advance(tag & 0x1f);
    else if (tag === 0xc4 || tag === 0xd9) this.#advance(this.#u8());
    else if (tag === 0xc5 || tag === 0xda) this.#advance(this.#u16());
    else if (tag === 0xc6 || tag === 0xdb) this.#advance(this.#u32());
    else if (tag === 0xc7) this.#advance(this.#u8() + 1);
    else if (tag === 0xc8) this.#advance(this.#u16() + 1);
    else if (tag === 0xc9) this.#advance(this.#u32() + 1);
    else if (tag === 0xca) this.#advance(4);
    else if (tag === 0xcb) this.#advance(8);
    else if (tag >= 0xcc && tag <= 0xcf) this.#advance(1 << (tag - 0xcc));
    else if (tag >= 0xd0 && tag <= 0xd3) this.#advance(1 << (tag - 0xd0));
    else if (tag >= 0xd4 && tag <= 0xd8) this.#advance(1 + (1 << (tag - 0xd4)));
    else throw new DecodeReject("wrong_type", this.#at - 1);
  }

  #integer(): void {
    const start = this.#at;
    const tag = this.#take();
    if (tag < 0x80) this.#set(0, tag);
    else if (tag >= 0xe0) this.#set(0xffff_ffff, (tag - 0x100) >>> 0);
    else if (tag === 0xcc) this.#set(0, this.#u8());
    else if (tag === 0xcd) this.#set(0, this.#u16());
    else if (tag === 0xce) this.#set(0, this.#u32());
    else if (tag === 0xd0) this.#setSigned((this.#u8() << 24) >> 24);
    else if (tag === 0xd1) this.#setSigned((this.#u16() << 16) >> 16);
    else if (tag === 0xd2) this.#setSigned(this.#u32() | 0);
    else if (tag === 0xcf || tag === 0xd3) {
      const hi = this.#u32();
      this.#set(hi, this.#u32());
    } else throw new DecodeReject("wrong_type", start);
  }

  #set(hi: number, lo: number): void {
    this.hi = hi;
    this.lo = lo;
  }

  #setSigned(value: number): void {
    this.#set(value < 0 ? 0xffff_ffff : 0, value >>> 0);
  }

  #take(): number {
    const tag = this.peek();
    this.#at++;
    return tag;
  }

  #u8(): number {
    this.#advance(1);
    return this.bytes[this.#at - 1] as number;
  }

  #u16(): number {
    this.#advance(2);
    return ((this.bytes[this.#at - 2] as number) << 8) | (this.bytes[this.#at - 1] as number);
  }

  #u32(): number {
    this.#advance(4);
    return this.#u32At(this.#at - 4);
  }

  /** Big-endian. A view over each payload would cost as much as reading four blocks. */
  #u32At(at: number): number {
    const { bytes } = this;
    const high = ((bytes[at] as number) << 24) | ((bytes[at + 1] as number) << 16);
    return (high | ((bytes[at + 2] as number) << 8) | (bytes[at + 3] as number)) >>> 0;
  }

  /** The last `size` bytes read, in a view for floats. */
  #float(size: number): DataView {
    for (let i = 0; i < size; i++) {
      floats.setUint8(i, this.bytes[this.#at - size + i] as number);
    }
    return floats;
  }

  #advance(size: number): void {
    if (size > this.bytes.length - this.#at) throw new DecodeReject("truncated", this.#at);
    this.#at += size;
  }
}
