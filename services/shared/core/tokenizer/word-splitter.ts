import { CharClass, classMask, lowerCase, upperCase } from "./unicode-classes.ts";
import { decodeAt, sizeFromLead } from "./utf8-scan.ts";
import type { SplitRules } from "./split-rules.ts";

/** Flags of a byte, so that several classes are tested at once. */
const letter = 1;
const number = 2;
const space = 4;
const newline = 8;
const other = 16;
const multiByte = 32;
const apostrophe = 64;

/** The high bit of each byte of four. */
const highBits = 0x80808080 | 0;

/**
 * Cuts well-formed UTF-8 text into words, by the alternatives of the split pattern in their order.
 * Letters of ASCII are looked at four bytes a step; everything outside ASCII goes through the table of
 * classes, never through a regular expression.
 *
 * `bytes` and `view` are the same memory, of which eight bytes behind the text are readable and zero.
 */
export class WordSplitter {
  readonly #digitsMax: number;
  readonly #casedWords: boolean;
  /** What may follow symbols besides line ends: a slash for o200k. */
  readonly #tailByte: number;
  readonly #classTable: Uint8Array;
  readonly #byteFlags = new Uint8Array(256).fill(multiByte);
  /** Bits that make small letters of capitals where these are the same to the rules. */
  readonly #caseBits: number;

  constructor(rules: SplitRules, classTable: Uint8Array) {
    this.#digitsMax = rules.digitsMax;
    this.#casedWords = rules.casedWords;
    this.#tailByte = rules.casedWords ? 0x2f : 0x0a;
    this.#classTable = classTable;
    for (let byte = 0; byte < 0x80; byte++) {
      this.#byteFlags[byte] = flagOf((classTable[byte] as number) & classMask);
    }
    this.#byteFlags[0x27] = other | apostrophe;
    this.#caseBits = rules.casedWords ? 0 : 0x20202020;
  }

  /** End of the word that starts at `at`; `to` counts as the end of the text. */
  end(bytes: Uint8Array, view: DataView, at: number, to: number): number {
    const flags = this.#byteFlags;
    const kind = flags[bytes[at] as number] as number;
    const end = at + 1;
    const next = end < to ? (flags[bytes[end] as number] as number) : 0;
    if (((kind | next) & (multiByte | apostrophe)) !== 0) return this.#endOfAny(bytes, at, to);
    if (kind === letter || (next === letter && (kind & (space | other)) !== 0)) {
      if (this.#casedWords) return this.#endOfCased(bytes, view, at, to);
      const p = skipAsciiLetters(view, end, this.#caseBits);
      if (p >= to) return to;
      return (bytes[p] as number) < 0x80 ? p : this.#skipLetters(bytes, p, to);
    }
    if (kind === other || (next === other && bytes[at] === 0x20)) {
      return this.#skipSymbols(bytes, end, to);
    }
    if (kind === number) return next === number ? this.#skipNumbers(bytes, at, to) : end;
    return (next & (space | newline)) === 0 ? end : this.#skipSpaces(bytes, at, to);
  }

  /** As `end`, for words that begin in or just before a character outside ASCII or an apostrophe. */
  #endOfAny(bytes: Uint8Array, at: number, to: number): number {
    const byte = bytes[at] as number;
    const kind = this.#classAt(bytes, at);
    const end = at + sizeAt(bytes, at);
    if (kind === CharClass.number) return this.#skipNumbers(bytes, at, to);
    if (this.#casedWords) {
      const word = this.#endOfCasedWord(bytes, at, to);
      if (word > at) return word;
    } else {
      if (kind === CharClass.letter) return this.#skipLetters(bytes, end, to);
      const contractionSize = contractionAt(bytes, at, to);
      if (contractionSize > 0) return at + contractionSize;
      if (
        kind !== CharClass.newline &&
        end < to &&
        this.#classAt(bytes, end) === CharClass.letter
      ) {
        return this.#skipLetters(bytes, end, to);
      }
    }
    if (kind === CharClass.other) return this.#skipSymbols(bytes, end, to);
    if (byte === 0x20 && end < to && this.#classAt(bytes, end) === CharClass.other) {
      return this.#skipSymbols(bytes, end, to);
    }
    return this.#skipSpaces(bytes, at, to);
  }

  /** An o200k word that begins with ASCII; the commonest ones, of small letters, without a table. */
  #endOfCased(bytes: Uint8Array, view: DataView, at: number, to: number): number {
    let from = at;
    // What is no letter here is the one character that may stand before a word.
    if (this.#byteFlags[bytes[from] as number] !== letter) from++;
    // At most one capital.
    if ((bytes[from] as number) <= 0x5a) from++;
    const p = skipAsciiLetters(view, from, this.#caseBits);
    if (from < to && p >= to) return to;
    const after = bytes[p] as number;
    if (p === from || after >= 0x80) return this.#endOfCasedWord(bytes, at, to);
    return after === 0x27 ? p + contractionAt(bytes, p, to) : p;
  }

  /**
   * End of an o200k word at `at`, or `at` when there is none. Such a word is one character that is
   * neither letter, number nor line end (optional), capitals, small letters, a contraction (optional);
   * marks and letters without case count as both. The pattern first tries for a word with a small
   * letter, with the leading character and then without, and only then for one of capitals alone.
   */
  #endOfCasedWord(bytes: Uint8Array, at: number, to: number): number {
    const kind = this.#classAt(bytes, at);
    if (kind === CharClass.number) return at;
    const mayLead = kind === CharClass.space || kind === CharClass.other;
    const start = mayLead ? at + sizeAt(bytes, at) : at;
    let end = this.#endWithSmall(bytes, start, to);
    if (end === start && mayLead) {
      // A mark can lead, and it can be the word.
      const whole = this.#endWithSmall(bytes, at, to);
      if (whole > at) return whole + contractionAt(bytes, whole, to);
    }
    if (end === start) end = this.#skipCase(bytes, start, to, upperCase);
    return end === start ? at : end + contractionAt(bytes, end, to);
  }

  /**
   * End of capitals followed by at least one small letter, or `from`. Capitals are taken first, and
   * given back until one that counts as small too is left to follow them.
   */
  #endWithSmall(bytes: Uint8Array, from: number, to: number): number {
    let at = from;
    let afterLastBoth = from;
    while (at < to) {
      const entry = this.#entryAt(bytes, at);
      if ((entry & upperCase) === 0) break;
      at += sizeAt(bytes, at);
      if ((entry & lowerCase) !== 0) afterLastBoth = at;
    }
    const end = this.#skipCase(bytes, at, to, lowerCase);
    return end > at ? end : afterLastBoth;
  }

  #skipCase(bytes: Uint8Array, from: number, to: number, letterCase: number): number {
    let at = from;
    while (at < to && (this.#entryAt(bytes, at) & letterCase) !== 0) at += sizeAt(bytes, at);
    return at;
  }

  #entryAt(bytes: Uint8Array, at: number): number {
    const byte = bytes[at] as number;
    if (byte < 0x80) return this.#classTable[byte] as number;
    const code = decodeAt(bytes, at);
    if (code < this.#classTable.length) return this.#classTable[code] as number;
    // The only other assigned marks: variation selectors 17 to 256.
    const isMark = code >= 0xe0100 && code <= 0xe01ef;
    return isMark ? CharClass.other | upperCase | lowerCase : CharClass.other;
  }

  #classAt(bytes: Uint8Array, at: number): number {
    return this.#entryAt(bytes, at) & classMask;
  }

  #skipLetters(bytes: Uint8Array, from: number, to: number): number {
    let at = from;
    while (at < to && this.#classAt(bytes, at) === CharClass.letter) at += sizeAt(bytes, at);
    return at;
  }

  #skipNumbers(bytes: Uint8Array, from: number, to: number): number {
    let at = from + sizeAt(bytes, from);
    for (let digits = 1; digits < this.#digitsMax && at < to; digits++) {
      if (this.#classAt(bytes, at) !== CharClass.number) break;
      at += sizeAt(bytes, at);
    }
    return at;
  }

  /** Symbols and marks, then the line ends (for o200k slashes too) that follow them. */
  #skipSymbols(bytes: Uint8Array, from: number, to: number): number {
    const flags = this.#byteFlags;
    let at = from;
    for (;;) {
      while (at < to && ((flags[bytes[at] as number] as number) & other) !== 0) at++;
      if (at >= to) return to;
      if ((bytes[at] as number) < 0x80 || this.#classAt(bytes, at) !== CharClass.other) break;
      at += sizeFromLead(bytes[at] as number);
    }
    while (at < to) {
      const byte = bytes[at] as number;
      if (byte !== 0x0a && byte !== 0x0d && byte !== this.#tailByte) break;
      at++;
    }
    return at;
  }

  /**
   * White space from `from`: up to its last line end if it has one; otherwise all of it when the text
   * ends there; otherwise all but its last character, which goes with the word that follows.
   */
  #skipSpaces(bytes: Uint8Array, from: number, to: number): number {
    const flags = this.#byteFlags;
    let at = from;
    let last = from;
    let newlineEnd = -1;
    while (at < to) {
      const kind = flags[bytes[at] as number] as number;
      if (kind === newline) newlineEnd = at + 1;
      else if (kind === multiByte) {
        if (this.#classAt(bytes, at) !== CharClass.space) break;
      } else if (kind !== space) break;
      last = at;
      at += sizeAt(bytes, at);
    }
    if (newlineEnd >= 0) return newlineEnd;
    return at < to && last > from ? last : at;
  }
}

/**
 * Sets the high bit of each of four bytes that is not a small ASCII letter once `caseBits` are set in
 * them: adding 0x1f carries into the high bit from "a" on, adding 5 from behind "z" on.
 */
function nonLetters(four: number, caseBits: number): number {
  const small = (four | caseBits) & ~highBits;
  return ((small + 0x1f1f1f1f) & ~(small + 0x05050505) & ~four & highBits) ^ highBits;
}

/** Index of the lowest byte with a bit set, -1 for 0. */
function lowestByte(bits: number): number {
  return (31 - Math.clz32(bits & -bits)) >> 3;
}

/** Where ASCII letters from `from` on end, at latest behind the text, where zeros stand. */
function skipAsciiLetters(view: DataView, from: number, caseBits: number): number {
  let at = from;
  for (;;) {
    const others = nonLetters(view.getInt32(at, true), caseBits);
    if (others !== 0) return at + lowestByte(others);
    at += 4;
  }
}

function flagOf(kind: number): number {
  switch (kind) {
    case CharClass.letter:
      return letter;
    case CharClass.number:
      return number;
    case CharClass.space:
      return space;
    case CharClass.newline:
      return newline;
    default:
      return other;
  }
}

function sizeAt(bytes: Uint8Array, at: number): number {
  const byte = bytes[at] as number;
  return byte < 0x80 ? 1 : sizeFromLead(byte);
}

/** Size of an English contraction ('s, 't, 'm, 'd, 're, 've, 'll, any case) at `at`, or 0. */
function contractionAt(bytes: Uint8Array, at: number, to: number): number {
  if (at + 1 >= to || bytes[at] !== 0x27) return 0;
  const first = (bytes[at + 1] as number) | 0x20;
  if (first === 0x73 || first === 0x74 || first === 0x6d || first === 0x64) return 2;
  if (at + 2 >= to) return 0;
  // U+017F, the long s, is an s without regard to case.
  if (bytes[at + 1] === 0xc5 && bytes[at + 2] === 0xbf) return 3;
  const second = (bytes[at + 2] as number) | 0x20;
  if (second === 0x65) return first === 0x72 || first === 0x76 ? 3 : 0;
  return first === 0x6c && second === 0x6c ? 3 : 0;
}
