import { MeshError } from "../errors.ts";
import { PairMerger } from "./pair-merger.ts";
import type { TokenizerTables } from "./tables.ts";
import { TokenScanner, tokensOf, tokenStarts } from "./token-trie.ts";
import type { EncodeOptions, Tokenizer } from "./tokenizer.ts";
import { normaliseLikeReference } from "./reference-unicode.ts";
import { LearnedWords } from "./learned-words.ts";
import { scanUtf8 } from "./utf8-scan.ts";
import { VocabularyWords } from "./vocabulary-words.ts";
import { WordRuns } from "./word-runs.ts";
import { WordSplitter } from "./word-splitter.ts";

/** Words that are too long for `WordRuns`: 1 MB. */
const longWords = { wordSizeMax: 128, tokensMax: 31, capacity: 1 << 11 } as const;
/** As how many short words merging a longer one counts. */
const longWordMerges = 8;
/** Larger texts get memory of their own for one call, bytes. */
const scratchKeptMax = 4 << 20;
/** Zeros behind a text, so that eight bytes can be read from any of its positions. */
const readAheadSize = 8;

/** UTF-8 text in memory, seen in three ways. */
interface Text {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly words: Int32Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
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
 * Cost: known words of ASCII about 15 ns each (`WordRuns`), others about 60, unknown ones about 1 µs. Text is linear except
 * for words without any boundary, which are O(n log n). Memory: the tables, 10 MB of learned words and of what merging
 * them needs, and scratch of five times the largest text up to 4 MiB (larger texts get theirs for one call).
 */
export class FusedBpe implements Tokenizer {
  readonly vocabularySize: number;
  readonly prefixIds: readonly number[];
  /** Bytes of the longest token. */
  readonly tokenSizeMax: number;
  readonly #tables: TokenizerTables;
  readonly #splitter: WordSplitter;
  readonly #words: VocabularyWords;
  readonly #keptRuns: WordRuns;
  readonly #longWords = new LearnedWords(longWords);
  readonly #merger: PairMerger;
  readonly #allAdded: TokenScanner;
  readonly #ordinaryAdded: TokenScanner;
  readonly #encoder = new TextEncoder();
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** Holds the text at hand and its ids. */
  #runs: WordRuns;

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
    this.#keptRuns = WordRuns.create({
      rules: tables.splitRules,
      starts: tokenStarts(tables.addedTokens),
      merges: tables.merges,
      ignoreMerges: tables.ignoreMerges,
      key: tables.words.hashKey,
    });
    this.#runs = this.#keptRuns;
  }

  /** Words that had to be merged so far. */
  get mergedWords(): number {
    return this.#merged + this.#keptRuns.mergedWords;
  }

  /** Of these the ones that were too long for `WordRuns`. */
  #merged = 0;
  /** How far the work of merging may go for the text at hand. */
  #mergesEnd = 0;

  /** Work of merging so far, in short words. */
  #mergesIn(runs: WordRuns): number {
    return runs.mergedWords + longWordMerges * this.#merged;
  }

  /** The added tokens: each is looked for in a text first, and what is between two of them is encoded by itself. */
  addedTokens(): { readonly id: number; readonly text: string }[] {
    return tokensOf(this.#tables.addedTokens).map(({ id, bytes }) => ({
      id,
      text: this.#decoder.decode(bytes),
    }));
  }

  encode(text: string | Uint8Array, options: EncodeOptions = {}): Uint32Array {
    return this.#encode(text, options, Infinity)?.slice() ?? new Uint32Array(0);
  }

  /**
   * As `encode`, in memory that is used again with the next call. `undefined` for a text that needs more work than merging
   * `mergesMax` words (about 1 µs each) besides looking words up.
   */
  encodeScratch(text: string | Uint8Array, mergesMax = Infinity): Uint32Array | undefined {
    return this.#encode(text, {}, mergesMax);
  }

  #encode(
    text: string | Uint8Array,
    options: EncodeOptions,
    mergesMax: number,
  ): Uint32Array | undefined {
    let to = this.#load(text);
    let mayNeedNfc = false;
    if (!this.#runs.isAscii(to)) {
      const form = scanUtf8(this.#runs, this.#runs.from, to, this.#tables.classTable);
      mayNeedNfc = form === "nfc_sensitive";
      if (form === "malformed") {
        to = this.#load(this.#decoder.decode(this.#runs.bytes.subarray(this.#runs.from, to)));
        mayNeedNfc = true;
      }
    }
    this.#mergesEnd = this.#mergesIn(this.#runs) + mergesMax;
    this.#runs.limitMerges(this.#mergesEnd - longWordMerges * this.#merged);
    return this.#encodeLoaded(to, mayNeedNfc, options);
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

  /** Puts the text's UTF-8 bytes into scratch memory and returns where they end. */
  #load(text: string | Uint8Array): number {
    // A UTF-16 code unit is at most three bytes of UTF-8.
    const sizeMax = typeof text === "string" ? 3 * text.length : text.length;
    if (sizeMax <= scratchKeptMax) this.#runs = this.#keptRuns;
    else this.#runs = this.#keptRuns.fresh(sizeMax);
    this.#runs.reserve(sizeMax, sizeMax);
    const { bytes, from } = this.#runs;
    let to = from + text.length;
    if (typeof text === "string") {
      to = from + this.#encoder.encodeInto(text, bytes.subarray(from)).written;
    } else bytes.set(text, from);
    this.#runs.closeAt(to);
    return to;
  }

  #encodeLoaded(
    size: number,
    mayNeedNfc: boolean,
    options: EncodeOptions,
  ): Uint32Array | undefined {
    const runs = this.#runs;
    // Every token covers at least one byte, and NFC makes text at most three times longer.
    if (mayNeedNfc && this.#tables.normaliseNfc)
      runs.reserve(size - runs.from, 3 * (size - runs.from));
    const scanner = options.special === false ? this.#ordinaryAdded : this.#allAdded;
    let n = 0;
    let from = runs.from;
    while (from < size) {
      const added = scanner.find(runs, from, size);
      const to = added < 0 ? size : scanner.start;
      n = mayNeedNfc ? this.#encodeNormalised(from, to, n) : this.#encodeRuns(from, to, n);
      if (this.#mergesIn(runs) > this.#mergesEnd) return undefined;
      if (added < 0) break;
      runs.ids[n++] = added;
      from = scanner.end;
    }
    return runs.ids.subarray(0, n);
  }

  /** Text between two added tokens is normalised by itself: nothing composes across a token. */
  #encodeNormalised(from: number, to: number, n: number): number {
    const { classTable, normaliseNfc } = this.#tables;
    if (!normaliseNfc || scanUtf8(this.#runs, from, to, classTable) !== "nfc_sensitive") {
      return this.#encodeRuns(from, to, n);
    }
    const original = this.#decoder.decode(this.#runs.bytes.subarray(from, to));
    const normalised = normaliseLikeReference(original);
    if (normalised === original) return this.#encodeRuns(from, to, n);
    const buffer = new ArrayBuffer((3 * normalised.length + readAheadSize + 3) & ~3);
    const bytes = new Uint8Array(buffer);
    const text = { bytes, words: new Int32Array(buffer), view: new DataView(buffer) };
    const { written } = this.#encoder.encodeInto(normalised, bytes);
    let at = 0;
    let count = n;
    while (at < written) {
      const end = this.#splitter.end(bytes, text.view, at, written);
      count = this.#encodeWord(text, at, end, count);
      at = end;
    }
    return count;
  }

  /**
   * Cuts `[from, to)` of the text into words, by the alternatives of the split pattern in their order, and appends
   * their tokens at `ids[n]`. Returns the new `n`. The end of the run counts as the end of the text.
   */
  #encodeRuns(from: number, to: number, n: number): number {
    const runs = this.#runs;
    const { bytes, view } = runs;
    let count = n;
    let at = from;
    while (at < to) {
      // A word that begins with or just before another character is none of ASCII.
      if (((bytes[at] as number) | (bytes[at + 1] as number)) < 0x80) {
        at = runs.run(at, to, count);
        ({ count } = runs);
        if (at >= to || this.#mergesIn(runs) > this.#mergesEnd) break;
      }
      const end = this.#splitter.end(bytes, view, at, to);
      count = this.#encodeWord(runs, at, end, count);
      at = end;
    }
    return count;
  }

  /** Appends the tokens of a word that `WordRuns` leaves, or of one of another text. */
  #encodeWord(text: Text, from: number, to: number, n: number): number {
    const { bytes, view } = text;
    const runs = this.#runs;
    const { ids } = runs;
    const size = to - from;
    const isOfRuns = text === runs;
    if (isOfRuns) {
      const known = runs.put(from, size, n);
      if (known > 0) return n + known;
    }
    const id =
      size === 1
        ? (this.#tables.merges.byteIds[bytes[from] as number] as number)
        : this.#words.find(view, from, to);
    if (id >= 0) {
      ids[n] = id;
      if (isOfRuns) runs.learn(from, size, id);
      return n + 1;
    }
    const { hash } = this.#words;
    const merged = isOfRuns ? runs.merge(from, size, n) : 0;
    if (merged > 0) return n + merged;
    const known = this.#longWords.copy(view, from, size, hash, ids, n);
    if (known > 0) return n + known;
    this.#merged++;
    const count = this.#merger.merge(bytes, from, to);
    const { tokens } = this.#merger;
    this.#longWords.learn(view, from, size, hash, tokens, count);
    for (let i = 0; i < count; i++) ids[n + i] = tokens[i] as number;
    return n + count;
  }
}
