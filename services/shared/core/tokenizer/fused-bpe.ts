import { MeshError } from "../errors.ts";
import { PairMerger } from "./pair-merger.ts";
import type { TokenizerTables } from "./tables.ts";
import { TokenScanner, tokensOf } from "./token-trie.ts";
import type { EncodeOptions, Tokenizer } from "./tokenizer.ts";
import { normaliseLikeReference } from "./reference-unicode.ts";
import { LearnedWords } from "./learned-words.ts";
import { scanUtf8 } from "./utf8-scan.ts";
import { VocabularyWords } from "./vocabulary-words.ts";
import { WordSplitter } from "./word-splitter.ts";

/** Zeros kept behind the text, so that eight bytes can be read from any of its positions. */
const readAheadSize = 8;
/** Words of several tokens, by size: 32 bytes each and 4 MB, 64 and 4 MB, 256 and 1 MB. */
const learnedShapes = [
  { wordSizeMax: 12, tokensMax: 4, capacity: 1 << 17 },
  { wordSizeMax: 28, tokensMax: 8, capacity: 1 << 16 },
  { wordSizeMax: 128, tokensMax: 31, capacity: 1 << 12 },
] as const;
const smallSizeMax = learnedShapes[0].wordSizeMax;
const mediumSizeMax = learnedShapes[1].wordSizeMax;
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

function longestToken(offsets: ArrayLike<number>): number {
  let max = 0;
  for (let i = 1; i < offsets.length; i++) {
    max = Math.max(max, (offsets[i] as number) - (offsets[i - 1] as number));
  }
  return max;
}

/**
 * Byte-level BPE in which cutting text into words, hashing and looking them up is one pass over bytes.
 * Gives the ids that the `tokenizers` library gives for the same `tokenizer.json`.
 *
 * Cost: known words about 40 ns each, unknown ones about 1 µs. Text is linear except for words without
 * any boundary, which are O(n log n). Memory: the tables, 9 MB of learned words, and scratch of
 * five times the largest text up to 4 MiB (larger texts get theirs for one call).
 */
export class FusedBpe implements Tokenizer {
  readonly vocabularySize: number;
  readonly prefixIds: readonly number[];
  /** Bytes of the longest token. */
  readonly tokenSizeMax: number;
  readonly #tables: TokenizerTables;
  readonly #splitter: WordSplitter;
  readonly #words: VocabularyWords;
  readonly #smallWords = new LearnedWords(learnedShapes[0]);
  readonly #mediumWords = new LearnedWords(learnedShapes[1]);
  readonly #largeWords = new LearnedWords(learnedShapes[2]);
  readonly #merger: PairMerger;
  readonly #allAdded: TokenScanner;
  readonly #ordinaryAdded: TokenScanner;
  readonly #encoder = new TextEncoder();
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #text = createText(1 << 14);
  #ids = new Uint32Array(1 << 14);

  constructor(tables: TokenizerTables) {
    this.vocabularySize = tables.vocabularySize;
    this.prefixIds = tables.prefixIds;
    this.tokenSizeMax = longestToken(tables.tokenOffsets);
    this.#tables = tables;
    this.#splitter = new WordSplitter(tables.splitRules, tables.classTable);
    this.#words = new VocabularyWords(tables.words, tables.tokenBytes);
    this.#merger = new PairMerger(tables.merges);
    this.#allAdded = new TokenScanner(tables.addedTokens);
    this.#ordinaryAdded = new TokenScanner(tables.ordinaryAddedTokens);
  }

  /** Words that had to be merged so far: neither one token nor learned. */
  mergedWords = 0;

  /** Learned words that gave way to others so far. */
  get evictedWords(): number {
    return this.#smallWords.evicted + this.#mediumWords.evicted + this.#largeWords.evicted;
  }

  /** The added tokens: each is looked for in a text first, and what is between two of them is encoded by itself. */
  addedTokens(): { readonly id: number; readonly text: string }[] {
    return tokensOf(this.#tables.addedTokens).map(({ id, bytes }) => ({
      id,
      text: this.#decoder.decode(bytes),
    }));
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
    const { bytes } = this.#text;
    let size = text.length;
    if (typeof text === "string") size = this.#encoder.encodeInto(text, bytes).written;
    else bytes.set(text);
    bytes.fill(0, size, size + readAheadSize);
    return size;
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
    const splitter = this.#splitter;
    const words = this.#words;
    const byteIds = this.#tables.merges.byteIds;
    const ids = this.#ids;
    let at = from;
    while (at < to) {
      const end = splitter.end(bytes, view, at, to);
      if (end - at === 1) {
        ids[n++] = byteIds[bytes[at] as number] as number;
      } else {
        const id = words.find(view, at, end);
        if (id >= 0) ids[n++] = id;
        else n = this.#encodeSeveral(text, at, end, n);
      }
      at = end;
    }
    return n;
  }

  #largerWords(size: number): LearnedWords {
    return size <= mediumSizeMax ? this.#mediumWords : this.#largeWords;
  }

  /** Appends the tokens of a word that is not one token. */
  #encodeSeveral({ bytes, view }: Text, from: number, to: number, n: number): number {
    const size = to - from;
    const ids = this.#ids;
    const { hash } = this.#words;
    // A short word of many tokens is among the medium ones.
    let known = size > smallSizeMax ? 0 : this.#smallWords.copy(view, from, size, hash, ids, n);
    if (known === 0) known = this.#largerWords(size).copy(view, from, size, hash, ids, n);
    if (known > 0) return n + known;
    this.mergedWords++;
    const count = this.#merger.merge(bytes, from, to);
    const { tokens } = this.#merger;
    if (!this.#smallWords.learn(view, from, size, hash, tokens, count)) {
      this.#largerWords(size).learn(view, from, size, hash, tokens, count);
    }
    for (let i = 0; i < count; i++) ids[n++] = tokens[i] as number;
    return n;
  }
}
