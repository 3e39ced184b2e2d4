import {
  compileModule,
  growMemory,
  instantiateModule,
  wasmPageSize,
  type WasmMemory,
} from "../wasm/wasm-instance.ts";
import { assembleTextModule, layout } from "./simd-text-module.ts";

/** Largest text that is copied to the vector instructions' memory, bytes; larger ones are read without them. */
const simdSizeDefault = 16 << 20;

/** What a scanner answers for text that it does not read. */
export const notScanned = -1;

/** How long an escape is by the byte behind its backslash; 0 where there is none. */
const escapeSize = new Uint8Array(256);
for (const byte of new TextEncoder().encode('"\\/bfnrt')) escapeSize[byte] = 2;
escapeSize[0x75] = 6;

/** The value of a hexadecimal digit plus 16; 0 for other bytes. */
const hexDigits = new Uint8Array(256);
for (let value = 0; value < 16; value++) {
  const digit = value.toString(16);
  hexDigits[digit.charCodeAt(0)] = hexDigits[digit.toUpperCase().charCodeAt(0)] = 16 + value;
}

/** What stands for an escaped byte; others, such as a slash, stand for themselves. */
const unescaped = new Uint8Array(256).map((_, byte) => byte);
unescaped[0x62] = 0x08;
unescaped[0x66] = 0x0c;
unescaped[0x6e] = 0x0a;
unescaped[0x72] = 0x0d;
unescaped[0x74] = 0x09;

/**
 * Reads JSON string literals in UTF-8 bytes as strictly as `JSON.parse` does, and hashes them. The bytes are known to be
 * well-formed UTF-8.
 *
 * The hash is keyed, 96 bits of 128 are kept (`lo`, `hi`, `check`): two texts of equal length that nobody crafted meet
 * in 2⁻⁹⁶, so that a billion texts have one such pair with a chance of 10⁻¹¹. It is that of the literal as it is
 * spelled: one text in two spellings has two hashes. Its two lanes are multiplied by secret numbers at each step and the
 * second takes in the first, as in the block hash (`block-hash.ts`); what rests on it is a routing hint.
 */
export class TextScanner {
  /** The bytes being read. */
  bytes: Uint8Array = new Uint8Array(0);
  #view = new DataView(this.bytes.buffer);
  readonly #key: Int32Array;
  readonly #memory: WasmMemory;
  #memoryBytes: Uint8Array;
  #memoryWords: Int32Array;
  readonly #module: SimdText;
  readonly #simdSizeMax: number;
  #simd = false;

  /** Hash of the text read last by `hashedText`. */
  lo = 0;
  hi = 0;
  check = 0;
  /** Whether the literal read last has escapes. */
  escaped = false;
  /** Whether it has escapes of surrogates, so that it may hold one half of a pair. */
  surrogates = false;

  /**
   * `key`: eight secret 32-bit numbers. `simdSizeMax`: up to this many bytes are read with vector instructions, larger
   * ones without, with the same results but for the hash.
   */
  constructor(key: Int32Array, simdSizeMax = simdSizeDefault) {
    this.#key = key;
    this.#simdSizeMax = simdSizeMax;
    const { memory, exports } = instantiate(key);
    this.#memory = memory;
    this.#module = exports;
    this.#memoryBytes = new Uint8Array(memory.buffer);
    this.#memoryWords = new Int32Array(memory.buffer);
  }

  /** Sets the bytes to read. */
  load(bytes: Uint8Array): void {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#simd = bytes.length <= this.#simdSizeMax;
    if (!this.#simd) return;
    // As much again for what a literal spells.
    const size = layout.text + 2 * (bytes.length + layout.padding);
    if (size > this.#memoryBytes.length) {
      growMemory(this.#memory, size);
      this.#memoryBytes = new Uint8Array(this.#memory.buffer);
      this.#memoryWords = new Int32Array(this.#memory.buffer);
    }
    this.#memoryBytes.set(bytes, layout.text);
    const end = layout.text + bytes.length;
    this.#memoryBytes.fill(0, end, end + layout.padding);
  }

  /** Index of the quote that ends the literal whose first byte is at `from`; `notScanned` when it is malformed. */
  text(from: number): number {
    const { bytes } = this;
    const view = this.#view;
    const last = bytes.length - 4;
    let escaped = false;
    this.surrogates = false;
    let at = from;
    while (at <= last) {
      const marks = specialBytes(view.getInt32(at, true));
      if (marks === 0) {
        at += 4;
        continue;
      }
      // The lowest mark is exact.
      at += (31 - Math.clz32(marks & -marks)) >> 3;
      const byte = bytes[at] as number;
      if (byte === 0x22) {
        this.escaped = escaped;
        return at;
      }
      const size = byte === 0x5c ? this.#escape(at) : 0;
      if (size === 0) return notScanned;
      escaped = true;
      at += size;
    }
    while (at < bytes.length) {
      const byte = bytes[at] as number;
      if (byte === 0x22) {
        this.escaped = escaped;
        return at;
      }
      if (byte === 0x5c) {
        const size = this.#escape(at);
        if (size === 0) return notScanned;
        escaped = true;
        at += size;
      } else if (byte < 0x20) return notScanned;
      else at++;
    }
    return notScanned;
  }

  /** As `text`; also hashes the literal into `lo`, `hi` and `check`. */
  hashedText(from: number): number {
    if (this.#simd) {
      const quote = this.#module.text(from + layout.text);
      if (quote < 0) return notScanned;
      this.escaped = this.#memoryWords[layout.escaped / 4] !== 0;
      this.surrogates = this.#memoryWords[layout.surrogates / 4] !== 0;
      this.#takeHash();
      return quote - layout.text;
    }
    const end = this.text(from);
    if (end >= 0) this.hashRange(from, end);
    return end;
  }

  /**
   * What the literal `[from, to)` spells as UTF-8, in memory that is used again with the next call; it is well formed
   * and spells no surrogates.
   */
  unescape(from: number, to: number): Uint8Array {
    if (this.#simd) {
      const out = layout.text + this.bytes.length + layout.padding;
      const end = this.#module.unescape(from + layout.text, to + layout.text, out);
      return this.#memoryBytes.subarray(out, end);
    }
    const out = new Uint8Array(to - from);
    return out.subarray(0, unescapeBytes(this.bytes, from, to, out));
  }

  /** Whether `[from, to)` holds the bytes of `needle`, at least one. */
  holds(from: number, to: number, needle: Uint8Array): boolean {
    const size = needle.length;
    if (this.#simd && size <= layout.needleSizeMax) {
      this.#memoryBytes.set(needle, layout.needle);
      return this.#module.find(from + layout.text, to + layout.text, size) >= 0;
    }
    const { bytes } = this;
    const first = needle[0] as number;
    for (let at = bytes.indexOf(first, from); at >= 0 && at <= to - size;) {
      let i = 1;
      while (i < size && bytes[at + i] === needle[i]) i++;
      if (i === size) return true;
      at = bytes.indexOf(first, at + 1);
    }
    return false;
  }

  /** Hashes the bytes of `[from, to)`, whatever they are, into `lo`, `hi` and `check`. */
  hashRange(from: number, to: number): void {
    if (this.#simd) {
      this.#module.hash(from + layout.text, to + layout.text);
      this.#takeHash();
      return;
    }
    const view = this.#view;
    const key = this.#key;
    const ka = (key[0] as number) | 1;
    const kb = (key[1] as number) | 1;
    const kc = (key[2] as number) | 1;
    const kd = (key[3] as number) | 1;
    let a = key[4] as number;
    let b = key[5] as number;
    let c = key[6] as number;
    let d = key[7] as number;
    let at = from;
    for (; at <= to - 8; at += 8) {
      a = Math.imul(a ^ view.getInt32(at, true), ka);
      c = Math.imul(c ^ view.getInt32(at + 4, true), kc);
      a ^= a >>> 15;
      c ^= c >>> 15;
      b = Math.imul(b ^ a, kb);
      d = Math.imul(d ^ c, kd);
    }
    this.#finish(a, b, c, d, from, at, to);
  }

  #takeHash(): void {
    const words = this.#memoryWords;
    this.lo = words[layout.hash / 4] as number;
    this.hi = words[layout.hash / 4 + 1] as number;
    this.check = words[layout.hash / 4 + 2] as number;
  }

  /** Takes in the last bytes of a text, fewer than eight, and its length. */
  #finish(
    a0: number,
    b0: number,
    c0: number,
    d0: number,
    from: number,
    at: number,
    end: number,
  ): void {
    const key = this.#key;
    let a = Math.imul(a0 ^ this.#wordUpTo(at, end), (key[0] as number) | 1);
    let c = Math.imul(c0 ^ this.#wordUpTo(at + 4, end), (key[2] as number) | 1);
    a ^= a >>> 15;
    c ^= c >>> 15;
    let b = Math.imul(b0 ^ a ^ (end - from), (key[1] as number) | 1);
    let d = Math.imul(d0 ^ c, (key[3] as number) | 1);
    b ^= b >>> 15;
    d ^= d >>> 13;
    a = Math.imul(a ^ (d >>> 16) ^ (d << 16), 0x7feb352d);
    c = Math.imul(c ^ b, 0x846ca68b);
    this.lo = a ^ (a >>> 15) ^ c;
    b = Math.imul(b + a, 0x85ebca6b);
    this.hi = b ^ (b >>> 16);
    d = Math.imul(d + c, 0xc2b2ae35);
    this.check = d ^ (d >>> 15);
  }

  /** The bytes of `[at, at + 4)` before `end` as a number, zeros behind them. */
  #wordUpTo(at: number, end: number): number {
    let word = 0;
    for (let i = Math.min(4, end - at) - 1; i >= 0; i--) {
      word = (word << 8) | (this.bytes[at + i] as number);
    }
    return word;
  }

  /** How long the escape at `at` is; 0 when it is none. */
  #escape(at: number): number {
    const size = escapeSize[this.bytes[at + 1] ?? 0] as number;
    return size === 6 && !this.#unicodeEscape(at) ? 0 : size;
  }

  #unicodeEscape(at: number): boolean {
    const { bytes } = this;
    for (let i = at + 2; i < at + 6; i++) {
      if (hexDigits[bytes[i] ?? 0] === 0) return false;
    }
    const first = bytes[at + 2] as number;
    const second = bytes[at + 3] as number;
    // d8 … df
    if ((first | 0x20) === 0x64 && (second >= 0x41 || second === 0x38 || second === 0x39)) {
      this.surrogates = true;
    }
    return true;
  }
}

/**
 * Not zero when one of four bytes is a control, a quote or a backslash. A borrow may mark a byte above such a one too,
 * which costs a look; none is missed.
 */
function specialBytes(word: number): number {
  return (
    ((word - 0x20202020) |
      ((word ^ 0x22222222) - 0x01010101) |
      ((word ^ 0x5c5c5c5c) - 0x01010101)) &
    ~word &
    0x80808080
  );
}

/** Exports of the module of vector instructions. */
interface SimdText {
  readonly text: (at: number) => number;
  readonly hash: (from: number, to: number) => number;
  readonly unescape: (from: number, to: number, out: number) => number;
  readonly find: (from: number, to: number, size: number) => number;
}

let compiled: object | undefined;

function instantiate(key: Int32Array): {
  readonly memory: WasmMemory;
  readonly exports: SimdText;
} {
  compiled ??= compileModule(assembleTextModule());
  const { memory, exports } = instantiateModule(compiled, wasmPageSize);
  const bytes = new Uint8Array(memory.buffer);
  const words = new Int32Array(memory.buffer);
  words.set(key.subarray(0, 8), layout.key / 4);
  // Multipliers are odd.
  words[layout.key / 4] = (key[0] as number) | 1;
  words[layout.key / 4 + 2] = (key[2] as number) | 1;
  bytes.fill(0xff, layout.tailMask, layout.tailMask + 16);
  bytes.set(hexDigits, layout.hexDigits);
  bytes.set(unescaped, layout.unescaped);
  return { memory, exports: exports as SimdText };
}

/** Writes what the literal `[from, to)` spells to `out`; returns how many bytes that are. */
function unescapeBytes(bytes: Uint8Array, from: number, to: number, out: Uint8Array): number {
  let read = from;
  let write = 0;
  while (read < to) {
    const byte = bytes[read++] as number;
    if (byte !== 0x5c) {
      out[write++] = byte;
      continue;
    }
    const escape = bytes[read++] as number;
    if (escape !== 0x75) {
      out[write++] = unescaped[escape] as number;
      continue;
    }
    let code = 0;
    for (let i = 0; i < 4; i++) {
      code = 16 * code + ((hexDigits[bytes[read++] as number] as number) & 15);
    }
    if (code < 0x80) out[write++] = code;
    else if (code < 0x800) {
      out[write++] = 0xc0 | (code >> 6);
      out[write++] = 0x80 | (code & 0x3f);
    } else {
      out[write++] = 0xe0 | (code >> 12);
      out[write++] = 0x80 | ((code >> 6) & 0x3f);
      out[write++] = 0x80 | (code & 0x3f);
    }
  }
  return write;
}
