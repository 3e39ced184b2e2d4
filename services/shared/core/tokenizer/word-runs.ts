import {
  compileModule,
  growMemory,
  instantiateModule,
  type WasmMemory,
} from "../wasm/wasm-instance.ts";
import { mergedSizeMax, mergeLayout, putMergeTables } from "./merge-code.ts";
import type { MergeTables } from "./pair-merger.ts";
import type { SplitRules } from "./split-rules.ts";
import { assembleRunModule, layout, wordTables, type TokenStarts } from "./word-run-module.ts";
import { tokensMax, wordSizeMax } from "./word-table-code.ts";

/** Functions of the module, with addresses in its memory. */
interface RunExports {
  readonly run: (from: number, to: number, out: number) => number;
  readonly put: (from: number, size: number, out: number) => number;
  readonly learn: (from: number, size: number, out: number) => number;
  readonly placeShort: (from: number, size: number) => number;
  readonly placeLong: (from: number, size: number) => number;
  readonly mark: (from: number, to: number) => number;
  readonly ascii: (from: number, to: number) => number;
}

/** Text of at least this size is made room for, bytes. */
const textSizeMin = 1 << 14;

const { short, long } = wordTables;
/** Longest word that is kept, bytes; most tokens of one. */
const keptSizeMax = wordSizeMax(long);
const keptTokensMax = tokensMax(long);

/** What words are cut and merged by. */
export interface WordRunsOptions {
  readonly rules: SplitRules;
  /** What added tokens begin with; `undefined` when that is too varied to be looked for at once. */
  readonly starts: TokenStarts | undefined;
  readonly merges: MergeTables;
  /** Whether a word that is a vocabulary entry is that entry, whatever merging would give. */
  readonly ignoreMerges: boolean;
  /** Four random 32-bit numbers. */
  readonly key: Int32Array;
}

/**
 * Cuts ASCII text into words and puts their tokens in a row with vector instructions. Words of up to 31 bytes and eight tokens
 * are remembered, 160 Ki of them. What is longer or not ASCII, and with `ignoreMerges` what is new, it leaves to its user
 * one word at a time.
 *
 * Text lies in the module's memory at `from`, its ids there at `ids[0]`. Memory: 6 MB, the tables for merging (3 MB for a
 * vocabulary of 150 000), and five times the largest text.
 */
export class WordRuns {
  /** The memory in four views, made anew when it grows. Behind the text stand 64 zeros. */
  bytes: Uint8Array<ArrayBuffer>;
  words: Int32Array<ArrayBuffer>;
  view: DataView<ArrayBuffer>;
  ids: Uint32Array<ArrayBuffer>;
  /** Where text begins in `bytes`. */
  readonly from: number;
  readonly #options: WordRunsOptions;
  readonly #module: object;
  readonly #memory: WasmMemory;
  readonly #exports: RunExports;
  #idsAt = 0;
  #room = 0;
  #tokensRoom = 0;

  /** Index in `words`. */
  readonly #mergedCountAt: number;

  private constructor(options: WordRunsOptions, textSize: number, module?: object) {
    const { starts, rules, ignoreMerges, key } = options;
    const merging = mergeLayout(layout.merging, options.merges);
    this.#options = options;
    this.#module =
      module ?? compileModule(assembleRunModule({ rules, starts, merging, ignoreMerges }));
    this.from = merging.end;
    this.#mergedCountAt = merging.count / 4;
    const { memory, exports } = instantiateModule(this.#module, this.from);
    putMergeTables(memory.buffer, merging, options.merges);
    this.#memory = memory;
    this.#exports = exports as RunExports;
    this.bytes = new Uint8Array(memory.buffer);
    this.words = new Int32Array(memory.buffer);
    this.view = new DataView(memory.buffer);
    this.ids = new Uint32Array(memory.buffer);
    this.bytes.fill(0xff, layout.masks, layout.masks + 32);
    // Two numbers that are added to a text's halves and two that multiply them, which are odd.
    this.words.set(
      [key[0], key[1], (key[2] ?? 0) | 1, key[3], key[3], key[2], (key[1] ?? 0) | 1, key[0]].map(
        (number, i) => Math.imul((number ?? 0) ^ i, i === 2 || i === 6 ? 1 : 0x9e3779b1),
      ),
      layout.key / 4,
    );
    this.reserve(textSize, textSize);
  }

  /** One that knows no words yet. */
  static create(options: WordRunsOptions): WordRuns {
    return new WordRuns(options, textSizeMin);
  }

  /** Another one that knows no words yet, with room for `textSize` bytes. */
  fresh(textSize: number): WordRuns {
    return new WordRuns(this.#options, textSize, this.#module);
  }

  /** Words that have been merged so far. */
  get mergedWords(): number {
    return (this.words[this.#mergedCountAt] as number) >>> 0;
  }

  /** Runs stop at the word that would be merged after this many since the beginning. */
  limitMerges(mergedWords: number): void {
    this.words[this.#mergedCountAt + 1] = Math.min(mergedWords, 0x7fff_ffff);
  }

  /** Makes room for a text and its tokens. The text stays, ids do not. */
  reserve(textSize: number, tokens: number): void {
    if (textSize <= this.#room && tokens <= this.#tokensRoom) return;
    const room = Math.max(textSizeMin, this.#room, 2 ** Math.ceil(Math.log2(textSize)));
    const tokensRoom = Math.max(room, tokens);
    const idsAt = this.from + room + layout.padding;
    // May throw: what is noted below must have its memory.
    growMemory(this.#memory, idsAt + 4 * (tokensRoom + keptTokensMax));
    this.#room = room;
    this.#tokensRoom = tokensRoom;
    this.#idsAt = idsAt;
    const { buffer } = this.#memory;
    this.bytes = new Uint8Array(buffer);
    this.words = new Int32Array(buffer);
    this.view = new DataView(buffer);
    this.ids = new Uint32Array(buffer, this.#idsAt);
  }

  /** Says where the text ends. */
  closeAt(to: number): void {
    this.bytes.fill(0, to, to + layout.padding);
  }

  /**
   * Puts the tokens of words of `[from, to)` to `ids[count …]`. Returns `to`, or where a word begins that it lacks; how many
   * ids there are then is `count`.
   */
  run(from: number, to: number, count: number): number {
    const end = this.#exports.run(from, to, this.#idsAt + 4 * count);
    this.count = ((this.words[layout.end / 4] as number) - this.#idsAt) >> 2;
    return end;
  }

  /** Ids after the last run. */
  count = 0;

  /** Puts the tokens of a word to `ids[count …]` and returns how many there are; 0 when it does not know the word. */
  put(from: number, size: number, count: number): number {
    return size > keptSizeMax ? 0 : this.#exports.put(from, size, this.#idsAt + 4 * count);
  }

  /** Merges a word that it did not know, puts its tokens to `ids[count …]` and returns how many there are; 0 for a long one. */
  merge(from: number, size: number, count: number): number {
    return size > mergedSizeMax ? 0 : this.#exports.learn(from, size, this.#idsAt + 4 * count);
  }

  /** Remembers a word that it did not know and that is one token. */
  learn(from: number, size: number, token: number): void {
    if (size > keptSizeMax) return;
    const isShort = size <= wordSizeMax(short);
    const { placeShort, placeLong } = this.#exports;
    const at = (isShort ? placeShort(from, size) : placeLong(from, size)) / 4;
    const room = isShort ? tokensMax(short) : keptTokensMax;
    this.words.fill(0, at, at + room);
    this.words[at] = token;
    this.words[at + room - 1] = 1 << 24;
  }

  /** The first place in `[from, to)` where an added token may begin; `to` or more for none. */
  mark(from: number, to: number): number {
    return this.#exports.mark(from, to);
  }

  /** Whether the text up to `to` is ASCII. */
  isAscii(to: number): boolean {
    return this.#exports.ascii(this.from, to) === 1;
  }
}
