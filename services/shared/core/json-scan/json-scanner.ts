import { notScanned, TextScanner } from "./text-scanner.ts";

/** Deepest nesting that is scanned; deeper values are left to a parser. */
const depthMax = 48;

/** What a byte outside strings is: 1 white space, 2 digit. */
const classOfByte = new Uint8Array(256);
for (const byte of new TextEncoder().encode(" \t\n\r")) classOfByte[byte] = 1;
for (const byte of new TextEncoder().encode("0123456789")) classOfByte[byte] = 2;

/** Whole numbers of so many digits are exact. */
const digitsMax = 15;

/** Strings that are remembered, and the longest of them, bytes. */
const shortTexts = 64;
const shortSizeMax = 128;

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/**
 * Walks over JSON in UTF-8 bytes as strictly as `JSON.parse`, without building values. Each method takes the index where
 * something begins and returns the index behind it, or `notScanned` for what is malformed or nested too deep: a parser
 * then says what it is.
 */
export class JsonScanner {
  readonly text: TextScanner;
  readonly #shortTexts = new Array<string | undefined>(shortTexts).fill(undefined);

  /** For `key` and `simdSizeMax` see `TextScanner`. */
  constructor(key: Int32Array, simdSizeMax?: number) {
    this.text = new TextScanner(key, simdSizeMax);
  }

  /** Sets the bytes to read: well-formed UTF-8, which the caller has made sure of. */
  load(bytes: Uint8Array): void {
    this.text.load(bytes);
  }

  /** Skips white space. */
  space(from: number): number {
    const { bytes } = this.text;
    let at = from;
    while (classOfByte[bytes[at] ?? 0] === 1) at++;
    return at;
  }

  /** Skips any value. */
  value(at: number, depth = 0): number {
    const { bytes } = this.text;
    const byte = bytes[at] ?? 0;
    switch (byte) {
      case 0x22: {
        const end = this.text.text(at + 1);
        return end < 0 ? notScanned : end + 1;
      }
      case 0x7b:
        return depth >= depthMax ? notScanned : this.#object(at + 1, depth + 1);
      case 0x5b:
        return depth >= depthMax ? notScanned : this.#array(at + 1, depth + 1);
      case 0x74:
        return this.#word(at, "true");
      case 0x66:
        return this.#word(at, "false");
      case 0x6e:
        return this.#word(at, "null");
      default:
        return this.#number(at);
    }
  }

  /** Skips the colon behind a key, and white space around it. */
  colon(from: number): number {
    const at = this.space(from);
    return this.text.bytes[at] === 0x3a ? this.space(at + 1) : notScanned;
  }

  /** As `parse`; short plain values do not go through a parser. */
  scalar(from: number, to: number): unknown {
    const { bytes } = this.text;
    const first = bytes[from] as number;
    if (first === 0x74) return true;
    if (first === 0x66) return false;
    if (first === 0x6e) return null;
    if (first === 0x22) return this.#shortText(from, to) ?? this.parse(from, to);
    if (classOfByte[first] === 2 && to - from <= digitsMax) {
      let number = 0;
      for (let i = from; i < to; i++) {
        if (classOfByte[bytes[i] as number] !== 2) return this.parse(from, to);
        number = 10 * number + (bytes[i] as number) - 0x30;
      }
      return number;
    }
    return this.parse(from, to);
  }

  /** What the string in `[from, to)` spells, if it is like the one before it at its slot: names of models come again and again. */
  #shortText(from: number, to: number): string | undefined {
    const { bytes } = this.text;
    const size = to - from - 2;
    if (size > shortSizeMax) return undefined;
    let hash = size;
    for (let i = from + 1; i < to - 1; i++) {
      const byte = bytes[i] as number;
      // With escapes, or not of ASCII.
      if (byte === 0x5c || byte >= 0x80) return undefined;
      hash = Math.imul(hash ^ byte, 0x01000193);
    }
    const slot = hash & (shortTexts - 1);
    const known = this.#shortTexts[slot];
    if (known?.length === size) {
      let i = 0;
      while (i < size && known.charCodeAt(i) === bytes[from + 1 + i]) i++;
      if (i === size) return known;
    }
    const text = this.parse(from, to) as string;
    this.#shortTexts[slot] = text;
    return text;
  }

  /** What `JSON.parse` makes of the value in `[from, to)`, which has been skipped. */
  parse(from: number, to: number): unknown {
    return JSON.parse(decoder.decode(this.text.bytes.subarray(from, to)));
  }

  #object(from: number, depth: number): number {
    const { bytes } = this.text;
    let at = this.space(from);
    if (bytes[at] === 0x7d) return at + 1;
    for (;;) {
      if (bytes[at] !== 0x22) return notScanned;
      const keyEnd = this.text.text(at + 1);
      if (keyEnd < 0) return notScanned;
      at = this.colon(keyEnd + 1);
      if (at < 0) return notScanned;
      at = this.value(at, depth);
      if (at < 0) return notScanned;
      at = this.space(at);
      const byte = bytes[at];
      if (byte === 0x7d) return at + 1;
      if (byte !== 0x2c) return notScanned;
      at = this.space(at + 1);
    }
  }

  #array(from: number, depth: number): number {
    const { bytes } = this.text;
    let at = this.space(from);
    if (bytes[at] === 0x5d) return at + 1;
    for (;;) {
      at = this.value(at, depth);
      if (at < 0) return notScanned;
      at = this.space(at);
      const byte = bytes[at];
      if (byte === 0x5d) return at + 1;
      if (byte !== 0x2c) return notScanned;
      at = this.space(at + 1);
    }
  }

  #word(at: number, word: string): number {
    const { bytes } = this.text;
    for (let i = 0; i < word.length; i++) {
      if (bytes[at + i] !== word.charCodeAt(i)) return notScanned;
    }
    return at + word.length;
  }

  #digits(from: number): number {
    const { bytes } = this.text;
    let at = from;
    while (classOfByte[bytes[at] ?? 0] === 2) at++;
    return at;
  }

  #number(from: number): number {
    const { bytes } = this.text;
    let at = bytes[from] === 0x2d ? from + 1 : from;
    const whole = this.#digits(at);
    if (whole === at || (bytes[at] === 0x30 && whole > at + 1)) return notScanned;
    at = whole;
    if (bytes[at] === 0x2e) {
      const fraction = this.#digits(at + 1);
      if (fraction === at + 1) return notScanned;
      at = fraction;
    }
    const exponent = bytes[at] ?? 0;
    if ((exponent | 0x20) === 0x65) {
      const sign = bytes[at + 1];
      const start = sign === 0x2b || sign === 0x2d ? at + 2 : at + 1;
      const end = this.#digits(start);
      if (end === start) return notScanned;
      at = end;
    }
    return at;
  }
}
