/**
 * Byte pair merging of one word: the pair with the lowest rank is merged first, the leftmost among
 * equals, until no neighbouring pair has a rank.
 *
 * Up to `scanLengthMax` symbols a linear scan per merge is fastest. Longer words (a run of letters
 * without a space can be as long as the body) use a linked list and a heap: O(n log n), about 40 ms per
 * 100 KB of one character.
 */

/** Ranked pairs as an open-addressing table; entries of four: left, right, rank + 1 (0 = empty), merged. */
export type PairTable = Int32Array<ArrayBuffer>;

const scanLengthMax = 48;
/** Scratch arrays above this many symbols are given back after use. */
const scratchKeptMax = 1 << 16;
const noRank = 0x7fff_ffff;

function pairSlot(left: number, right: number, mask: number): number {
  let h = Math.imul(left ^ 0x2545f491, 0x9e3779b1) ^ Math.imul(right, 0x85ebca77);
  h ^= h >>> 15;
  h = Math.imul(h, 0x2c1b3c6d);
  return (h ^ (h >>> 13)) & mask;
}

/** An empty pair table for `pairCount` pairs, at most half full. */
export function createPairTable(pairCount: number): PairTable {
  let capacity = 1024;
  while (capacity < 2 * pairCount) capacity *= 2;
  return new Int32Array(4 * capacity);
}

/** Adds a ranked pair; of two entries for one pair the later one counts, as in the reference. */
export function addPair(
  table: PairTable,
  pair: { left: number; right: number; rank: number; merged: number },
): void {
  const mask = table.length / 4 - 1;
  let slot = pairSlot(pair.left, pair.right, mask);
  while (
    table[4 * slot + 2] !== 0 &&
    !(table[4 * slot] === pair.left && table[4 * slot + 1] === pair.right)
  ) {
    slot = (slot + 1) & mask;
  }
  table[4 * slot] = pair.left;
  table[4 * slot + 1] = pair.right;
  table[4 * slot + 2] = pair.rank + 1;
  table[4 * slot + 3] = pair.merged;
}

/** Merges words over one pair table. Holds scratch space, so one merger serves one thread. */
export class PairMerger {
  readonly #pairs: PairTable;
  readonly #mask: number;
  readonly #byteIds: Uint32Array;
  /** Symbols of the word; after `merge` the first `n` are its tokens. */
  #ids = new Int32Array(256);
  /** Slot of the pair (i, i + 1) in the table, or -1. */
  #slots = new Int32Array(256);
  #ranks = new Int32Array(256);
  #next = new Int32Array(256);
  #previous = new Int32Array(256);
  #heap = new Float64Array(1024);

  /** `byteIds`: the token id of each single byte. */
  constructor(pairs: PairTable, byteIds: Uint32Array) {
    this.#pairs = pairs;
    this.#mask = pairs.length / 4 - 1;
    this.#byteIds = byteIds;
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
    for (let i = 0; i < length; i++) {
      ids[i] = this.#byteIds[bytes[from + i] as number] as number;
    }
    return length <= scanLengthMax ? this.#mergeByScan(length) : this.#mergeByHeap(length);
  }

  #reserve(length: number): void {
    const kept = this.#ids.length;
    if (length <= kept && (kept <= scratchKeptMax || length > scratchKeptMax)) return;
    let size = length;
    if (length <= scratchKeptMax) for (size = 256; size < length;) size *= 2;
    this.#ids = new Int32Array(size);
    this.#slots = new Int32Array(size);
    this.#ranks = new Int32Array(size);
    this.#next = new Int32Array(size);
    this.#previous = new Int32Array(size);
    // Each symbol is pushed once at the start and each merge pushes two pairs.
    this.#heap = new Float64Array(3 * size);
  }

  #findPair(left: number, right: number): number {
    const pairs = this.#pairs;
    const mask = this.#mask;
    let slot = pairSlot(left, right, mask);
    for (;;) {
      const at = 4 * slot;
      if (pairs[at] === left && pairs[at + 1] === right && pairs[at + 2] !== 0) return at;
      if (pairs[at + 2] === 0) return -1;
      slot = (slot + 1) & mask;
    }
  }

  #rankAt(slot: number): number {
    return slot < 0 ? noRank : (this.#pairs[slot + 2] as number);
  }

  #mergeByScan(length: number): number {
    const ids = this.#ids;
    const slots = this.#slots;
    const ranks = this.#ranks;
    let n = length;
    for (let i = 0; i + 1 < n; i++) {
      const slot = this.#findPair(ids[i] as number, ids[i + 1] as number);
      slots[i] = slot;
      ranks[i] = this.#rankAt(slot);
    }
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
      ids[best] = this.#pairs[(slots[best] as number) + 3] as number;
      n--;
      for (let i = best + 1; i < n; i++) {
        ids[i] = ids[i + 1] as number;
        slots[i] = slots[i + 1] as number;
        ranks[i] = ranks[i + 1] as number;
      }
      for (let i = Math.max(0, best - 1); i <= best && i + 1 < n; i++) {
        const slot = this.#findPair(ids[i] as number, ids[i + 1] as number);
        slots[i] = slot;
        ranks[i] = this.#rankAt(slot);
      }
    }
    return n;
  }

  #mergeByHeap(length: number): number {
    const ids = this.#ids;
    const slots = this.#slots;
    const ranks = this.#ranks;
    const next = this.#next;
    const previous = this.#previous;
    let heapSize = 0;
    const renew = (i: number): void => {
      const right = next[i] as number;
      const slot = right < 0 ? -1 : this.#findPair(ids[i] as number, ids[right] as number);
      const rank = this.#rankAt(slot);
      slots[i] = slot;
      ranks[i] = rank;
      if (rank !== noRank) heapSize = pushKey(this.#heap, heapSize, rank * positions + i);
    };
    for (let i = 0; i < length; i++) {
      previous[i] = i - 1;
      next[i] = i + 1 < length ? i + 1 : -1;
    }
    for (let i = 0; i + 1 < length; i++) renew(i);
    ranks[length - 1] = noRank;
    while (heapSize > 0) {
      const key = this.#heap[0] as number;
      heapSize = popKey(this.#heap, heapSize);
      const rank = Math.floor(key / positions);
      const i = key - rank * positions;
      // An entry is stale when its pair has been merged or has got another right side since.
      if (ranks[i] !== rank) continue;
      const right = next[i] as number;
      ids[i] = this.#pairs[(slots[i] as number) + 3] as number;
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
