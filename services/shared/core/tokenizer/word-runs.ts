import {
  compileModule,
  growMemory,
  instantiateModule,
  type WasmMemory,
} from "../wasm/wasm-instance.ts";
import type { SplitRules } from "./split-rules.ts";
import { assembleRunModule, layout, wordTables, type TokenStarts } from "./word-run-module.ts";
import { tokensMax, wordSizeMax } from "./word-table-code.ts";

/** Functions of the module, with addresses in its memory. */
interface RunExports {
  readonly run: (from: number, to: number, out: number) => number;
  readonly put: (from: number, size: number, out: number) => number;
  readonly placeShort: (from: number, size: number) => number;
  readonly placeLong: (from: number, size: number) => number;
  readonly mark: (from: number, to: number) => number;
  readonly ascii: (from: number, to: number) => number;
}

/** Ids of more bits have no room beside the count of a word's tokens. */
const idsMax = 1 << 24;

/** Text of at least this size is made room for, bytes. */
const textSizeMin = 1 << 14;

const { short, long } = wordTables;
/** Longest word that is kept, bytes; most tokens of one. */
const keptSizeMax = wordSizeMax(long);
const keptTokensMax = tokensMax(long);

/**
 * Cuts ASCII text into words and puts their tokens in a row with vector instructions, for words met before of up to 31
 * bytes and eight tokens each, 160 Ki of them. What it does not know, or is not ASCII, it leaves to its user one word at a
 * time, and may be told of it (`learn`).
 *
 * Text lies in the module's memory at `from`, its ids there at `ids[0]`. Memory: 6 MB and five times the largest text.
 */
export class WordRuns {
  /** The memory in four views, made anew when it grows. Behind the text stand 64 zeros. */
  bytes: Uint8Array<ArrayBuffer>;
  words: Int32Array<ArrayBuffer>;
  view: DataView<ArrayBuffer>;
  ids: Uint32Array<ArrayBuffer>;
  /** Where text begins in `bytes`. */
  readonly from = layout.text;
  readonly #module: object;
  readonly #memory: WasmMemory;
  readonly #exports: RunExports;
  #idsAt = 0;
  #room = 0;
  #tokensRoom = 0;

  private constructor(module: object, key: Int32Array, textSize: number) {
    this.#module = module;
    const { memory, exports } = instantiateModule(module, layout.text);
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

  /** `key`: four random 32-bit numbers. */
  static create(rules: SplitRules, starts: TokenStarts | undefined, key: Int32Array): WordRuns {
    return new WordRuns(compileModule(assembleRunModule(rules, starts)), key, textSizeMin);
  }

  /** Another one that knows no words yet, with room for `textSize` bytes. */
  fresh(key: Int32Array, textSize: number): WordRuns {
    return new WordRuns(this.#module, key, textSize);
  }

  /** Makes room for a text and its tokens. The text stays, ids do not. */
  reserve(textSize: number, tokens: number): void {
    if (textSize <= this.#room && tokens <= this.#tokensRoom) return;
    this.#room = Math.max(textSizeMin, this.#room, 2 ** Math.ceil(Math.log2(textSize)));
    this.#tokensRoom = Math.max(this.#room, tokens);
    this.#idsAt = layout.text + this.#room + layout.padding;
    growMemory(this.#memory, this.#idsAt + 4 * (this.#tokensRoom + keptTokensMax));
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

  /** Remembers a word that it did not know; not one that is too long or has too many tokens. Says whether it does. */
  learn(from: number, size: number, tokens: ArrayLike<number>, count: number): boolean {
    const isShort = size <= wordSizeMax(short) && count <= tokensMax(short);
    if (!isShort && (size > keptSizeMax || count > keptTokensMax)) return false;
    for (let i = 0; i < count; i++) if ((tokens[i] as number) >= idsMax) return false;
    const room = isShort ? tokensMax(short) : keptTokensMax;
    const { placeShort, placeLong } = this.#exports;
    const at = (isShort ? placeShort(from, size) : placeLong(from, size)) / 4;
    const { words } = this;
    for (let i = 0; i < room; i++) words[at + i] = i < count ? (tokens[i] as number) : 0;
    words[at + room - 1] = (words[at + room - 1] as number) | (count << 24);
    return true;
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
