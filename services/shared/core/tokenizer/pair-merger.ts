/**
 * Byte pair merging of one word: the pair with the lowest rank is merged first, the leftmost among
 * equals, until no neighbouring pair has a rank.
 *
 * Up to `scanLengthMax` symbols a linear scan per merge is fastest. Longer words (a run of letters
 * without a space can be as long as the body) use a linked list and a heap: O(n log n), about 40 ms per
 * 100 KB of one character.
 */

/**
 * Ranked pairs as an open-addressing table of 64 bits an entry: `[left | low bits of rank + 1, right | high bits]`, the ids in the
 * low 22 bits, the rank in the 10 above. 0 in both is an empty entry.
 */
export type PairTable = Int32Array<ArrayBuffer>;

/** Bits of an id in an entry; the others are of the rank. */
export const idBits = 22;
const idMask = (1 << idBits) - 1;
const rankBits = 32 - idBits;
const rankMask = (1 << rankBits) - 1;

/** Largest id, and most pairs, that a table has room for. */
export const pairIdMax = idMask;
export const pairsMax = (1 << (2 * rankBits)) - 2;

const scanLengthMax = 48;
/** Scratch arrays above this many symbols are given back after use. */
const scratchKeptMax = 1 << 16;
/** Rank of what is no pair. */
export const noRank = 0x7fff_ffff;

/** Slots of the pair table take the low bits of the hash, the filter its high ones. */
function pairHash(left: number, right: number): number {
  let h = Math.imul(left ^ 0x2545f491, 0x9e3779b1) ^ Math.imul(right, 0x85ebca77);
  h ^= h >>> 15;
  h = Math.imul(h, 0x2c1b3c6d);
  return h ^ (h >>> 13);
}

/** An empty pair table for `pairCount` pairs, at most 60 % full. */
export function createPairTable(pairCount: number): PairTable {
  let capacity = 1024;
  while (0.6 * capacity < pairCount) capacity *= 2;
  return new Int32Array(2 * capacity);
}

/** Adds a ranked pair; of two entries for one pair the later one counts, as in the reference. */
export function addPair(
  table: PairTable,
  pair: { readonly left: number; readonly right: number; readonly rank: number },
): void {
  const mask = table.length / 2 - 1;
  let slot = pairHash(pair.left, pair.right) & mask;
  while (
    ((table[2 * slot] as number) | (table[2 * slot + 1] as number)) !== 0 &&
    !(
      ((table[2 * slot] as number) & idMask) === pair.left &&
      ((table[2 * slot + 1] as number) & idMask) === pair.right
    )
  ) {
    slot = (slot + 1) & mask;
  }
  const stored = pair.rank + 1;
  table[2 * slot] = pair.left | ((stored & rankMask) << idBits);
  table[2 * slot + 1] = pair.right | ((stored >>> rankBits) << idBits);
}

/** What merging needs of a vocabulary. */
export interface MergeTables {
  readonly pairs: PairTable;
  /** What the pair of each rank becomes. */
  readonly merged: Int32Array<ArrayBuffer>;
  /** The token id of each single byte. */
  readonly byteIds: Uint32Array<ArrayBuffer>;
  /**
   * Ranks of pairs of single bytes by first × 256 + second: what every word begins with, in 256 KB
   * instead of the megabytes of `pairs`.
   */
  readonly bytePairRanks: Int32Array<ArrayBuffer>;
  /**
   * A bit by the hash of each pair: most neighbours are no pair, and this says so for six out of seven
   * from 128 KB, where the table would cost a cache miss.
   */
  readonly filter: Int32Array<ArrayBuffer>;
}

const filterWords = 1 << 15;

/** Tables over `pairs`, with the ranks of byte pairs taken out of it. */
export function createMergeTables(
  pairs: PairTable,
  merged: Int32Array<ArrayBuffer>,
  byteIds: Uint32Array<ArrayBuffer>,
): MergeTables {
  const filter = new Int32Array(filterWords);
  for (let at = 0; at < pairs.length; at += 2) {
    const left = pairs[at] as number;
    const right = pairs[at + 1] as number;
    if ((left | right) === 0) continue;
    const hash = pairHash(left & idMask, right & idMask);
    filter[hash >>> 17] = (filter[hash >>> 17] as number) | (1 << (hash >>> 12));
  }
  const bytePairRanks = new Int32Array(0x1_0000);
  for (let first = 0; first < 256; first++) {
    for (let second = 0; second < 256; second++) {
      const left = byteIds[first] as number;
      const right = byteIds[second] as number;
      bytePairRanks[(first << 8) | second] = rankIn(pairs, pairHash(left, right), left, right);
    }
  }
  return { pairs, merged, byteIds, bytePairRanks, filter };
}

/** The rank of a pair, or `noRank`. */
function rankIn(pairs: PairTable, hash: number, left: number, right: number): number {
  const mask = (pairs.length >> 1) - 1;
  let slot = hash & mask;
  for (;;) {
    const first = pairs[2 * slot] as number;
    const second = pairs[2 * slot + 1] as number;
    if ((first & idMask) === left && (second & idMask) === right && (first | second) !== 0) {
      return ((first >>> idBits) | ((second >>> idBits) << rankBits)) - 1;
    }
    if ((first | second) === 0) return noRank;
    slot = (slot + 1) & mask;
  }
}

/** Merges words over one pair table. Holds scratch space, so one merger serves one thread. */
export class PairMerger {
  readonly #pairs: PairTable;
  readonly #merged: Int32Array;
  readonly #byteIds: Uint32Array;
  readonly #bytePairRanks: Int32Array;
  readonly #filter: Int32Array;
  /** Symbols of the word; after `merge` the first `n` are its tokens. */
  #ids = new Int32Array(256);
  /** Rank of the pair of a symbol and the one after it. */
  #ranks = new Int32Array(256);
  #next = new Int32Array(256);
  #previous = new Int32Array(256);
  #heap = new Float64Array(1024);

  constructor(tables: MergeTables) {
    this.#pairs = tables.pairs;
    this.#merged = tables.merged;
    this.#byteIds = tables.byteIds;
    this.#bytePairRanks = tables.bytePairRanks;
    this.#filter = tables.filter;
  }

  /** Tokens of the last merged word; valid until the next `merge`. */
  get tokens(): Int32Array {
    return this.#ids;
  }

  /** Merges the word `bytes[from … to)`, leaves its tokens in `tokens` and returns how many there are. */
  merge(bytes: Uint8Array, from: number, to: number): number {
    const length = to - from;
    this.#reserve(length);
    const ids = this.#ids;
    const ranks = this.#ranks;
    const byteIds = this.#byteIds;
    const bytePairRanks = this.#bytePairRanks;
    let byte = bytes[from] as number;
    for (let i = 0; i + 1 < length; i++) {
      ids[i] = byteIds[byte] as number;
      const next = bytes[from + i + 1] as number;
      ranks[i] = bytePairRanks[(byte << 8) | next] as number;
      byte = next;
    }
    ids[length - 1] = byteIds[byte] as number;
    ranks[length - 1] = noRank;
    return length <= scanLengthMax ? this.#mergeByScan(length) : this.#mergeByHeap(length);
  }

  #reserve(length: number): void {
    const kept = this.#ids.length;
    if (length <= kept && (kept <= scratchKeptMax || length > scratchKeptMax)) return;
    let size = length;
    if (length <= scratchKeptMax) for (size = 256; size < length;) size *= 2;
    this.#ids = new Int32Array(size);
    this.#ranks = new Int32Array(size);
    this.#next = new Int32Array(size);
    this.#previous = new Int32Array(size);
    // Each symbol is pushed once at the start and each merge pushes two pairs.
    this.#heap = new Float64Array(3 * size);
  }

  #rankOf(left: number, right: number): number {
    const hash = pairHash(left, right);
    if ((((this.#filter[hash >>> 17] as number) >>> (hash >>> 12)) & 1) === 0) return noRank;
    return rankIn(this.#pairs, hash, left, right);
  }

  #mergeByScan(length: number): number {
    const ids = this.#ids;
    const ranks = this.#ranks;
    let n = length;
    while (n > 1) {
      let best = 0;
      let bestRank = ranks[0] as number;
      for (let i = 1; i < n - 1; i++) {
        const rank = ranks[i] as number;
        if (rank < bestRank) {
          bestRank = rank;
          best = i;
        }
      }
      if (bestRank === noRank) break;
      const merged = this.#merged[bestRank] as number;
      ids[best] = merged;
      n--;
      for (let i = best + 1; i < n; i++) {
        ids[i] = ids[i + 1] as number;
        ranks[i] = ranks[i + 1] as number;
      }
      ranks[best] = best + 1 < n ? this.#rankOf(merged, ids[best + 1] as number) : noRank;
      if (best > 0) ranks[best - 1] = this.#rankOf(ids[best - 1] as number, merged);
    }
    return n;
  }

  #mergeByHeap(length: number): number {
    const ids = this.#ids;
    const ranks = this.#ranks;
    const next = this.#next;
    const previous = this.#previous;
    let heapSize = 0;
    const renew = (i: number): void => {
      const right = next[i] as number;
      const rank = right < 0 ? noRank : this.#rankOf(ids[i] as number, ids[right] as number);
      ranks[i] = rank;
      if (rank !== noRank) heapSize = pushKey(this.#heap, heapSize, rank * positions + i);
    };
    for (let i = 0; i < length; i++) {
      previous[i] = i - 1;
      next[i] = i + 1 < length ? i + 1 : -1;
    }
    for (let i = 0; i + 1 < length; i++) {
      const rank = ranks[i] as number;
      if (rank !== noRank) heapSize = pushKey(this.#heap, heapSize, rank * positions + i);
    }
    while (heapSize > 0) {
      const key = this.#heap[0] as number;
      heapSize = popKey(this.#heap, heapSize);
      const rank = Math.floor(key / positions);
      const i = key - rank * positions;
      // An entry is stale when its pair has been merged or has got another right side since.
      if (ranks[i] !== rank) continue;
      const right = next[i] as number;
      ids[i] = this.#merged[rank] as number;
      const after = next[right] as number;
      next[i] = after;
      if (after >= 0) previous[after] = i;
      ranks[right] = noRank;
      renew(i);
      const left = previous[i] as number;
      if (left >= 0) renew(left);
    }
    let n = 0;
    for (let i = 0; i >= 0; i = next[i] as number) ids[n++] = ids[i] as number;
    return n;
  }
}

/** A heap key is rank × positions + position: ordered by rank, then from left to right; below 2⁵³. */
const positions = 0x4000_0000;

function pushKey(heap: Float64Array, size: number, key: number): number {
  let at = size;
  while (at > 0) {
    const parent = (at - 1) >> 1;
    const other = heap[parent] as number;
    if (other <= key) break;
    heap[at] = other;
    at = parent;
  }
  heap[at] = key;
  return size + 1;
}

function popKey(heap: Float64Array, size: number): number {
  const last = heap[size - 1] as number;
  const end = size - 1;
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= end) break;
    if (child + 1 < end && (heap[child + 1] as number) < (heap[child] as number)) child++;
    const other = heap[child] as number;
    if (other >= last) break;
    heap[at] = other;
    at = child;
  }
  heap[at] = last;
  return end;
}
