import { byteMasks, hashLong, hashShort, highByteMasks } from "./word-hash.ts";

/**
 * Words that are one token, keyed by their bytes. Fixed once built; words met later are in
 * `LearnedWords`.
 *
 * Words of two bytes, a sixth of all, have a table by their bytes. Longer ones are in open-addressing
 * tables of entries of four numbers: `[bytes 0–3, bytes 4–7, size, id]` up to 8 bytes, `[hash, offset of
 * its bytes, size, id]` above. Size 0 is an empty entry. Both kinds are compared by their bytes, never
 * by hash alone.
 */
export interface VocabularyWordsTables {
  /** Id by second byte × 256 + first byte, or -1. */
  readonly ofTwoBytes: Int32Array<ArrayBuffer>;
  readonly short: Int32Array<ArrayBuffer>;
  readonly long: Int32Array<ArrayBuffer>;
  /** Key of the hash: four 32-bit numbers. */
  readonly hashKey: Int32Array<ArrayBuffer>;
}

const shortSizeMax = 8;
/** Longest word kept, bytes. */
const wordSizeMax = 255;

/** A vocabulary entry: where its bytes lie among the vocabulary's. */
export interface WordEntry {
  readonly offset: number;
  readonly size: number;
  readonly id: number;
}

/**
 * Builds the tables. Of two entries with the same bytes the first counts. Entries that come early get
 * the shortest way to their slot, so frequent tokens, which have low ids, should.
 */
export function buildVocabularyWords(
  entries: readonly WordEntry[],
  view: DataView,
  hashKey: Int32Array<ArrayBuffer>,
): VocabularyWordsTables {
  const ofTwoBytes = new Int32Array(0x1_0000).fill(-1);
  const kept = entries.filter(({ size }) => size > 1 && size <= wordSizeMax);
  const shortCount = kept.filter(({ size }) => size <= shortSizeMax).length;
  const short = new Int32Array(4 * capacityFor(shortCount));
  const long = new Int32Array(4 * capacityFor(kept.length - shortCount));
  for (const { offset, size, id } of kept) {
    if (size === 2) {
      const pair = view.getUint16(offset, true);
      if (ofTwoBytes[pair] === -1) ofTwoBytes[pair] = id;
    } else if (size <= shortSizeMax) {
      const low = view.getInt32(offset, true) & (byteMasks[size] as number);
      const high = view.getInt32(offset + 4, true) & (highByteMasks[size] as number);
      put(
        short,
        hashShort(low, high, hashKey),
        [low, high, size, id],
        (at) => short[at] === low && short[at + 1] === high,
      );
    } else {
      const hash = hashLong(view, offset, offset + size, hashKey);
      put(long, hash, [hash, offset, size, id], (at) =>
        equalBytes(view, long[at + 1] as number, view, offset, size),
      );
    }
  }
  return { ofTwoBytes, short, long, hashKey };
}

/** At most 70 % full: a look-up that misses still needs few steps, and one that hits an early entry one. */
function capacityFor(count: number): number {
  let capacity = 1024;
  while (capacity * 0.7 < count) capacity *= 2;
  return capacity;
}

function put(
  table: Int32Array,
  hash: number,
  entry: readonly [number, number, number, number],
  isSame: (at: number) => boolean,
): void {
  const mask = table.length / 4 - 1;
  let slot = hash & mask;
  for (let at = 4 * slot; table[at + 2] !== 0; at = 4 * slot) {
    if (table[at + 2] === entry[2] && isSame(at)) return;
    slot = (slot + 1) & mask;
  }
  table.set(entry, 4 * slot);
}

/** Whether `size` ≥ 4 bytes are the same; four at a time, the last four end at the end. */
function equalBytes(
  one: DataView,
  oneAt: number,
  two: DataView,
  twoAt: number,
  size: number,
): boolean {
  const last = size - 4;
  for (let i = 0; i < last; i += 4) {
    if (one.getInt32(oneAt + i, true) !== two.getInt32(twoAt + i, true)) return false;
  }
  return one.getInt32(oneAt + last, true) === two.getInt32(twoAt + last, true);
}

/** Looks words up in the tables. */
export class VocabularyWords {
  readonly #ofTwoBytes: Int32Array;
  readonly #short: Int32Array;
  readonly #long: Int32Array;
  readonly #key: Int32Array;
  readonly #bytes: DataView;
  /** Hash of the word that was not found last. */
  hash = 0;

  /** `vocabularyBytes`: the bytes of all tokens in one piece, into which the entries of long words point. */
  constructor(tables: VocabularyWordsTables, vocabularyBytes: Uint8Array) {
    this.#ofTwoBytes = tables.ofTwoBytes;
    this.#short = tables.short;
    this.#long = tables.long;
    this.#key = tables.hashKey;
    const { buffer, byteOffset, byteLength } = vocabularyBytes;
    this.#bytes = new DataView(buffer, byteOffset, byteLength);
  }

  /**
   * The id of the word `[from, to)` of at least two bytes, or -1 when it is not one token; `hash` is
   * then set. `view` must reach at least 8 bytes past `from`.
   */
  find(view: DataView, from: number, to: number): number {
    const size = to - from;
    if (size > shortSizeMax) return this.#findLong(view, from, to);
    const low = view.getInt32(from, true) & (byteMasks[size] as number);
    if (size === 2) {
      const id = this.#ofTwoBytes[low] as number;
      if (id < 0) this.hash = hashShort(low, 0, this.#key);
      return id;
    }
    const high = view.getInt32(from + 4, true) & (highByteMasks[size] as number);
    const table = this.#short;
    const mask = (table.length >> 2) - 1;
    const hash = hashShort(low, high, this.#key);
    let slot = hash & mask;
    for (;;) {
      const at = 4 * slot;
      const found = table[at + 2] as number;
      if (table[at] === low && table[at + 1] === high && found === size) {
        return table[at + 3] as number;
      }
      if (found === 0) break;
      slot = (slot + 1) & mask;
    }
    this.hash = hash;
    return -1;
  }

  #findLong(view: DataView, from: number, to: number): number {
    const size = to - from;
    const table = this.#long;
    const mask = table.length / 4 - 1;
    const hash = hashLong(view, from, to, this.#key);
    this.hash = hash;
    let slot = hash & mask;
    for (;;) {
      const at = 4 * slot;
      const found = table[at + 2] as number;
      if (found === 0) return -1;
      if (
        table[at] === hash &&
        found === size &&
        equalBytes(this.#bytes, table[at + 1] as number, view, from, size)
      ) {
        return table[at + 3] as number;
      }
      slot = (slot + 1) & mask;
    }
  }
}
