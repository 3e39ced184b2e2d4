/**
 * Words and their tokens, keyed by the word's bytes. An open-addressing table that starts with every
 * vocabulary entry that is a word of its own and learns the words it meets.
 *
 * An entry is four 32-bit numbers:
 *   words up to 8 bytes   [bytes 0–3, bytes 4–7, size | count << 16, value]
 *   longer words          [hash, offset of its bytes in `bytes`, size | count << 16, value]
 * where value is the token id when count is 1 and otherwise the offset of the ids in the id pool. Both
 * kinds are compared by their bytes, so no crafted text can get another word's tokens. The slot hash is
 * keyed with a random seed, so no crafted text can make long probe runs either.
 */
export interface WordTableSeed {
  /** Entries as above; the length is four times a power of two. */
  readonly entries: Int32Array<ArrayBuffer>;
  /** Key of the slot hash: four 32-bit numbers. */
  readonly hashKey: Int32Array<ArrayBuffer>;
}

/** Longest word kept, bytes. Longer ones hardly recur. */
export const wordSizeMax = 128;
/** Most words learned before all learned ones are forgotten. */
export const learnedWordsMax = 1 << 17;
const learnedIdsMax = 1 << 19;
const learnedBytesMax = 1 << 22;

/** Hash of a word's packed bytes or of its longer hash; uniform over 32 bits for a secret key. */
function mix(low: number, high: number, size: number, key: Int32Array): number {
  let a = Math.imul(low ^ (key[0] as number), (key[2] as number) | 1);
  const b = Math.imul(high ^ (key[1] as number) ^ size, (key[3] as number) | 1);
  a ^= a >>> 15;
  a = Math.imul(a ^ b ^ (b >>> 13), 0x2c1b3c6d);
  return a ^ (a >>> 15);
}

/** Table of an empty vocabulary with room for `wordCount` entries and the learned words, at most 62 % full. */
export function createWordTableSeed(
  wordCount: number,
  hashKey: Int32Array<ArrayBuffer>,
): WordTableSeed {
  let capacity = 1024;
  while (capacity * 0.62 < wordCount + learnedWordsMax) capacity *= 2;
  return { entries: new Int32Array(4 * capacity), hashKey };
}

/** Looks words up and learns them. Bounded: see `learnedWordsMax`; when full it forgets what it learned. */
export class WordTable {
  readonly #entries: Int32Array;
  readonly #mask: number;
  readonly #key: Int32Array;
  /** Token bytes of the vocabulary, then bytes of learned long words. */
  readonly #bytes: Uint8Array;
  readonly #vocabularySize: number;
  #bytesEnd: number;
  /** Ids of words with several tokens. */
  readonly idPool = new Int32Array(learnedIdsMax);
  #idsEnd = 0;
  readonly #learned = new Uint32Array(learnedWordsMax);
  #learnedCount = 0;
  /** How often all learned words were forgotten because the table was full. */
  resets = 0;
  /** Of the word found last: how many tokens it has. */
  count = 0;
  /** Of the word looked up last: where it is or would go, and the keys of its entry. */
  #slot = 0;
  #low = 0;
  #high = 0;

  /** `vocabularyBytes`: the bytes of all tokens in one piece; entries of long words point into it. */
  constructor(seed: WordTableSeed, vocabularyBytes: Uint8Array) {
    this.#entries = seed.entries;
    this.#mask = seed.entries.length / 4 - 1;
    this.#key = seed.hashKey;
    this.#vocabularySize = vocabularyBytes.length;
    this.#bytes = new Uint8Array(vocabularyBytes.length + learnedBytesMax);
    this.#bytes.set(vocabularyBytes);
    this.#bytesEnd = vocabularyBytes.length;
  }

  /**
   * The value of the word `[from, to)` with `count` set, or -1 when it is not in the table. `view`
   * covers the same memory as `bytes` and must reach at least 8 bytes past `from`.
   */
  find(bytes: Uint8Array, view: DataView, from: number, to: number): number {
    const size = to - from;
    const entries = this.#entries;
    let low: number;
    let high = 0;
    if (size <= 8) {
      low = view.getInt32(from, true);
      if (size < 4) low &= (1 << (size << 3)) - 1;
      else if (size === 8) high = view.getInt32(from + 4, true);
      else if (size > 4) high = view.getInt32(from + 4, true) & ((1 << ((size - 4) << 3)) - 1);
    } else {
      low = longHash(view, from, to, this.#key);
    }
    const key = this.#key;
    let slot = mix(low, high, size, key) & this.#mask;
    for (;;) {
      const at = 4 * slot;
      const meta = entries[at + 2] as number;
      if (meta === 0) break;
      if (entries[at] === low && (meta & 0xffff) === size) {
        const second = entries[at + 1] as number;
        if (size <= 8 ? second === high : this.#bytesEqual(second, bytes, from, size)) {
          this.count = meta >>> 16;
          return entries[at + 3] as number;
        }
      }
      slot = (slot + 1) & this.#mask;
    }
    this.#slot = slot;
    this.#low = low;
    this.#high = high;
    return -1;
  }

  /** Learns the word that `find` has just missed, with its first `count` tokens of `ids`. */
  learn(bytes: Uint8Array, from: number, to: number, ids: Int32Array, count: number): void {
    const size = to - from;
    if (size > wordSizeMax) return;
    if (
      this.#learnedCount === learnedWordsMax ||
      this.#idsEnd + count > learnedIdsMax ||
      this.#bytesEnd + size > this.#bytes.length
    ) {
      this.#forget();
      // The slot may lie behind a gap now; the word is learned when it comes next.
      return;
    }
    let second = this.#high;
    if (size > 8) {
      second = this.#bytesEnd;
      for (let i = from; i < to; i++) this.#bytes[this.#bytesEnd++] = bytes[i] as number;
    }
    let value = ids[0] as number;
    if (count > 1) {
      value = this.#idsEnd;
      for (let i = 0; i < count; i++) this.idPool[this.#idsEnd++] = ids[i] as number;
    }
    this.#learned[this.#learnedCount++] = this.#slot;
    this.#write(second, size, count, value);
  }

  /**
   * Adds a vocabulary entry while the table is built; `offset` is where its bytes lie in the
   * vocabulary's. Must not follow `learn`: vocabulary entries never sit behind learned ones, so that
   * forgetting leaves no gap before them.
   */
  seed(view: DataView, offset: number, size: number, id: number): void {
    if (size > wordSizeMax || size === 0) return;
    if (this.find(this.#bytes, view, offset, offset + size) >= 0) return;
    this.#write(size > 8 ? offset : this.#high, size, 1, id);
  }

  #write(second: number, size: number, count: number, value: number): void {
    const at = 4 * this.#slot;
    this.#entries[at] = this.#low;
    this.#entries[at + 1] = second;
    this.#entries[at + 2] = size | (count << 16);
    this.#entries[at + 3] = value;
  }

  #bytesEqual(offset: number, bytes: Uint8Array, from: number, size: number): boolean {
    const own = this.#bytes;
    for (let i = 0; i < size; i++) if (own[offset + i] !== bytes[from + i]) return false;
    return true;
  }

  #forget(): void {
    for (let i = 0; i < this.#learnedCount; i++) {
      this.#entries[4 * (this.#learned[i] as number) + 2] = 0;
    }
    this.#learnedCount = 0;
    this.#idsEnd = 0;
    this.#bytesEnd = this.#vocabularySize;
    this.resets++;
  }
}

/** Hash of a word of more than 8 bytes: four bytes a step, the last step ends at the word's end. */
function longHash(view: DataView, from: number, to: number, key: Int32Array): number {
  const first = (key[2] as number) | 1;
  const second = (key[3] as number) | 1;
  let a = key[0] as number;
  let b = key[1] as number;
  for (let at = from; at < to - 4; at += 4) {
    a = Math.imul(a ^ view.getInt32(at, true), first);
    a ^= a >>> 15;
    b = Math.imul(b ^ a, second);
  }
  a = Math.imul(a ^ view.getInt32(to - 4, true), first);
  return a ^ (a >>> 15) ^ b;
}
