import { MeshError } from "../errors.ts";
import { PairMerger } from "./pair-merger.ts";
import type { TokenizerTables } from "./tables.ts";
import { TokenScanner } from "./token-trie.ts";
import type { EncodeOptions, Tokenizer } from "./tokenizer.ts";
import { normaliseLikeReference } from "./reference-unicode.ts";
import { CharClass, classMask } from "./unicode-classes.ts";
import { decodeAt, scanUtf8, sizeFromLead } from "./utf8-scan.ts";
import { WordTable } from "./word-table.ts";

/** Bytes kept free behind the text, so that eight can be read from any of its positions. */
const readAheadSize = 8;
/** Scratch memory above this many bytes of text is given back after a call. */
const scratchKeptMax = 4 << 20;

/** UTF-8 text in scratch memory, seen in three ways. */
interface Text {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly words: Int32Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
}

function createText(size: number): Text {
  const buffer = new ArrayBuffer((size + readAheadSize + 3) & ~3);
  return {
    bytes: new Uint8Array(buffer),
    words: new Int32Array(buffer),
    view: new DataView(buffer),
  };
}

/**
 * Byte-level BPE in which cutting text into words, hashing and looking them up is one pass over bytes.
 * Gives the ids that the `tokenizers` library gives for the same `tokenizer.json`.
 *
 * Cost: known words about 10 ns each, unknown ones about 1 µs. Text is linear except for words without
 * any boundary, which are O(n log n). Memory: the tables, up to 10 MB of learned words, and scratch of
 * five times the largest text up to 4 MiB (larger texts get theirs for one call).
 */
export class FusedBpe implements Tokenizer {
  readonly vocabularySize: number;
  readonly prefixIds: readonly number[];
  readonly #tables: TokenizerTables;
  readonly #words: WordTable;
  readonly #merger: PairMerger;
  readonly #byteClasses = new Uint8Array(256).fill(CharClass.multiByte);
  readonly #allAdded: TokenScanner;
  readonly #ordinaryAdded: TokenScanner;
  readonly #encoder = new TextEncoder();
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #text = createText(1 << 14);
  #ids = new Uint32Array(1 << 14);

  constructor(tables: TokenizerTables) {
    this.vocabularySize = tables.vocabularySize;
    this.prefixIds = tables.prefixIds;
    this.#tables = tables;
    this.#words = new WordTable(tables.words, tables.tokenBytes);
    this.#merger = new PairMerger(tables.pairs, tables.byteIds);
    for (let byte = 0; byte < 0x80; byte++) {
      this.#byteClasses[byte] = (tables.classTable[byte] as number) & classMask;
    }
    this.#allAdded = new TokenScanner(tables.addedTokens);
    this.#ordinaryAdded = new TokenScanner(tables.ordinaryAddedTokens);
  }

  /** How often the learned words were forgotten because their table was full. */
  get wordTableResets(): number {
    return this.#words.resets;
  }

  encode(text: string | Uint8Array, options: EncodeOptions = {}): Uint32Array {
    let size = this.#load(text);
    const form = scanUtf8(this.#text, 0, size, this.#tables.classTable);
    if (form === "malformed") {
      size = this.#load(this.#decoder.decode(this.#text.bytes.subarray(0, size)));
      return this.#encodeLoaded(size, true, options);
    }
    return this.#encodeLoaded(size, form === "nfc_sensitive", options);
  }

  decode(ids: ArrayLike<number>): Uint8Array {
    const { tokenBytes, tokenOffsets } = this.#tables;
    let size = 0;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number;
      const length = (tokenOffsets[id + 1] ?? 0) - (tokenOffsets[id] ?? 0);
      if (!(length > 0)) {
        throw new MeshError(
          "invalid_request",
          `token id ${String(id)} is not in the vocabulary of ${String(this.vocabularySize)}`,
          { field: `ids[${String(i)}]` },
        );
      }
      size += length;
    }
    const out = new Uint8Array(size);
    let at = 0;
    for (let i = 0; i < ids.length; i++) {
      const id = ids[i] as number;
      const piece = tokenBytes.subarray(tokenOffsets[id], tokenOffsets[id + 1]);
      out.set(piece, at);
      at += piece.length;
    }
    return out;
  }

  /** Puts the text's UTF-8 bytes into scratch memory and returns how many there are. */
  #load(text: string | Uint8Array): number {
    // A UTF-16 code unit is at most three bytes of UTF-8.
    const sizeMax = typeof text === "string" ? 3 * text.length : text.length;
    const capacity = this.#text.bytes.length - readAheadSize;
    if (sizeMax > capacity || (capacity > scratchKeptMax && sizeMax <= scratchKeptMax)) {
      this.#text = createText(Math.max(1 << 14, sizeMax));
    }
    if (typeof text === "string") return this.#encoder.encodeInto(text, this.#text.bytes).written;
    this.#text.bytes.set(text);
    return text.length;
  }

  #encodeLoaded(size: number, mayNeedNfc: boolean, options: EncodeOptions): Uint32Array {
    // Every token covers at least one byte, and NFC makes text at most three times longer.
    const tokensMax = mayNeedNfc && this.#tables.normaliseNfc ? 3 * size : size;
    if (tokensMax > this.#ids.length || this.#ids.length > scratchKeptMax) {
      this.#ids = new Uint32Array(Math.max(1 << 14, tokensMax));
    }
    const scanner = options.special === false ? this.#ordinaryAdded : this.#allAdded;
    const { bytes } = this.#text;
    let n = 0;
    let from = 0;
    while (from < size) {
      const added = scanner.find(bytes, from, size);
      const to = added < 0 ? size : scanner.start;
      n = mayNeedNfc
        ? this.#encodeNormalised(from, to, n)
        : this.#encodeRun(this.#text, from, to, n);
      if (added < 0) break;
      this.#ids[n++] = added;
      from = scanner.end;
    }
    return this.#ids.slice(0, n);
  }

  /** Text between two added tokens is normalised by itself: nothing composes across a token. */
  #encodeNormalised(from: number, to: number, n: number): number {
    const { classTable, normaliseNfc } = this.#tables;
    if (!normaliseNfc || scanUtf8(this.#text, from, to, classTable) !== "nfc_sensitive") {
      return this.#encodeRun(this.#text, from, to, n);
    }
    const original = this.#decoder.decode(this.#text.bytes.subarray(from, to));
    const normalised = normaliseLikeReference(original);
    if (normalised === original) return this.#encodeRun(this.#text, from, to, n);
    const text = createText(3 * normalised.length);
    const { written } = this.#encoder.encodeInto(normalised, text.bytes);
    return this.#encodeRun(text, 0, written, n);
  }

  /**
   * Cuts `[from, to)` into words, by the alternatives of the split pattern in their order, and appends
   * their tokens at `#ids[n]`. Returns the new `n`. The end of the run counts as the end of the text.
   */
  #encodeRun(text: Text, from: number, to: number, n: number): number {
    const { bytes, view } = text;
    const byteClasses = this.#byteClasses;
    const digitsMax = this.#tables.digitsMax;
    const words = this.#words;
    const ids = this.#ids;
    const pool = words.idPool;
    let at = from;
    while (at < to) {
      const byte = bytes[at] as number;
      let kind = byteClasses[byte] as number;
      let end = at + 1;
      if (kind === CharClass.multiByte) {
        kind = this.#classAt(bytes, at);
        end = at + sizeFromLead(byte);
      }
      if (kind === CharClass.letter) {
        end = this.#skipLetters(bytes, end, to);
      } else if (kind === CharClass.number) {
        for (let digits = 1; digits < digitsMax && end < to; digits++) {
          if (this.#classAt(bytes, end) !== CharClass.number) break;
          end += sizeAt(bytes, end);
        }
      } else {
        const contractionSize = byte === 0x27 ? contractionAt(bytes, at, to) : 0;
        let next = end < to ? (byteClasses[bytes[end] as number] as number) : -1;
        if (next === CharClass.multiByte) next = this.#classAt(bytes, end);
        if (contractionSize > 0) {
          end = at + contractionSize;
        } else if (next === CharClass.letter && kind !== CharClass.newline) {
          end = this.#skipLetters(bytes, end, to);
        } else if (kind === CharClass.other || (byte === 0x20 && next === CharClass.other)) {
          end = this.#skipSymbols(bytes, end, to);
        } else {
          end = this.#skipSpaces(bytes, at, to);
        }
      }
      const value = words.find(bytes, view, at, end);
      if (value < 0) {
        n = this.#encodeUnknown(bytes, at, end, n);
      } else if (words.count === 1) {
        ids[n++] = value;
      } else {
        for (let i = 0; i < words.count; i++) ids[n++] = pool[value + i] as number;
      }
      at = end;
    }
    return n;
  }

  #encodeUnknown(bytes: Uint8Array, from: number, to: number, n: number): number {
    const count = this.#merger.merge(bytes, from, to);
    const tokens = this.#merger.tokens;
    this.#words.learn(bytes, from, to, tokens, count);
    for (let i = 0; i < count; i++) this.#ids[n++] = tokens[i] as number;
    return n;
  }

  #classAt(bytes: Uint8Array, at: number): number {
    const kind = this.#byteClasses[bytes[at] as number] as number;
    if (kind !== CharClass.multiByte) return kind;
    const code = decodeAt(bytes, at);
    const { classTable } = this.#tables;
    return code < classTable.length ? (classTable[code] as number) & classMask : CharClass.other;
  }

  #skipLetters(bytes: Uint8Array, from: number, to: number): number {
    const byteClasses = this.#byteClasses;
    let at = from;
    while (at < to) {
      const kind = byteClasses[bytes[at] as number] as number;
      if (kind === CharClass.letter) at++;
      else if (kind === CharClass.multiByte && this.#classAt(bytes, at) === CharClass.letter) {
        at += sizeFromLead(bytes[at] as number);
      } else break;
    }
    return at;
  }

  /** Symbols and marks, then the line ends that follow them. */
  #skipSymbols(bytes: Uint8Array, from: number, to: number): number {
    let at = from;
    while (at < to && this.#classAt(bytes, at) === CharClass.other) at += sizeAt(bytes, at);
    while (at < to && this.#byteClasses[bytes[at] as number] === CharClass.newline) at++;
    return at;
  }

  /**
   * White space from `from`: up to its last line end if it has one; otherwise all of it when the text
   * ends there; otherwise all but its last character, which goes with the word that follows.
   */
  #skipSpaces(bytes: Uint8Array, from: number, to: number): number {
    let at = from;
    let last = from;
    let newlineEnd = -1;
    while (at < to) {
      const kind = this.#classAt(bytes, at);
      if (kind === CharClass.newline) newlineEnd = at + 1;
      else if (kind !== CharClass.space) break;
      last = at;
      at += sizeAt(bytes, at);
    }
    if (newlineEnd >= 0) return newlineEnd;
    return at < to && last > from ? last : at;
  }
}

function sizeAt(bytes: Uint8Array, at: number): number {
  const byte = bytes[at] as number;
  return byte < 0x80 ? 1 : sizeFromLead(byte);
}

/** Size of an English contraction ('s, 't, 'm, 'd, 're, 've, 'll, any case) at an apostrophe, or 0. */
function contractionAt(bytes: Uint8Array, at: number, to: number): number {
  if (at + 1 >= to) return 0;
  const first = (bytes[at + 1] as number) | 0x20;
  if (first === 0x73 || first === 0x74 || first === 0x6d || first === 0x64) return 2;
  if (at + 2 >= to) return 0;
  // U+017F, the long s, is an s without regard to case.
  if (bytes[at + 1] === 0xc5 && bytes[at + 2] === 0xbf) return 3;
  const second = (bytes[at + 2] as number) | 0x20;
  if (second === 0x65) return first === 0x72 || first === 0x76 ? 3 : 0;
  return first === 0x6c && second === 0x6c ? 3 : 0;
}
