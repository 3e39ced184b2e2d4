import { invariant } from "../../../shared/core/invariant.ts";

/** Words of one record: hash lo, hash hi, set id (0 = the record is free), mark (see `markSegment`). */
export const recordWords = 4;
/** Blocks of a segment; segments begin at every multiple of it in a prompt. */
export const segmentBlocks = 32;
/** Records that share a count of changes, as a power of two. */
const changesLog = 5;

const indexSlotsMin = 1_024;
/** Records moved to the larger index at each insertion or removal while one is being filled. */
const moveRecordsPerStep = 8;

/**
 * Maps a 64-bit hash to a set id. Two parts:
 *
 * - **records**, 16 bytes each, placed next-fit in the order in which blocks arrive. Blocks of one
 *   prompt arrive in runs, so a run lies in consecutive records, and following a prompt is reading
 *   memory in order: `records` is public for that loop. Records never move.
 * - **index**, 8 bytes a slot (mixed hash, record number), open addressing with linear probing and
 *   backward-shift deletion, at most 3/4 full.
 *
 * Memory for `blocksMax` records is reserved at once but touched (and counted in `bytes`) only up to
 * a limit that grows by a quarter. The index doubles; the old one stays readable while records are
 * entered into the new one a few at a time, so no single call pays for the growth.
 */
export class BlockTable {
  /** `recordWords` words per record, record 0 unused. Hash words are signed (`| 0`). */
  readonly records: Int32Array;
  /** How often a record of each group changed its key or its set; wraps. */
  readonly #changes: Int32Array;
  readonly #recordsMax: number;
  readonly #blocksMax: number;
  /** One bit per record: in use. Bounds the search for a free record to recordsMax/32 words. */
  readonly #used: Int32Array;
  /** Records 1 … limit-1 may be used; a multiple of 32. */
  #recordsLimit: number;
  #hand = 1;
  #count = 0;

  #index: Int32Array;
  #mask: number;
  /** The smaller index while it is being replaced; never written. */
  #oldIndex: Int32Array | undefined;
  #oldMask = 0;
  /** Records below this are in `#index`. */
  #moved = 0;
  /** Where the last failed `find` would put its key. */
  #vacantSlot = 0;
  /** Takes what `guess` reads ahead; otherwise the compiler could drop the reads. */
  readonly #sink = new Int32Array(1);

  constructor(blocksMax: number) {
    invariant(
      Number.isInteger(blocksMax) && blocksMax >= 1 && blocksMax <= 2 ** 27,
      `blocksMax must be an integer in 1 … 2^27, got ${String(blocksMax)}`,
    );
    this.#blocksMax = blocksMax;
    // An eighth stays free so that next-fit finds room nearby.
    this.#recordsMax = roundUp32(Math.ceil((blocksMax * 8) / 7) + 2);
    this.records = new Int32Array((this.#recordsMax + 1) * recordWords);
    this.#changes = new Int32Array((this.#recordsMax >>> changesLog) + 1);
    this.#used = new Int32Array(this.#recordsMax / 32);
    this.#used[0] = 1;
    this.#recordsLimit = Math.min(this.#recordsMax, 1_024);
    this.#index = new Int32Array(2 * indexSlotsMin);
    this.#mask = indexSlotsMin - 1;
  }

  /** Records in use. */
  get count(): number {
    return this.#count;
  }

  /** Records 1 … recordsLimit-1 are the ones that can be in use. */
  get recordsLimit(): number {
    return this.#recordsLimit;
  }

  /** Whether `blocksMax` records are in use. */
  get isFull(): boolean {
    return this.#count >= this.#blocksMax;
  }

  /** Bytes touched: records up to the limit, their bitmap, and the index (both while growing). */
  get bytes(): number {
    const index = this.#index.byteLength + (this.#oldIndex?.byteLength ?? 0);
    const changes = (this.#recordsLimit >>> changesLog) * 4;
    return this.#recordsLimit * recordWords * 4 + this.#recordsLimit / 8 + changes + index;
  }

  /** Whether the record is in use and has this hash, signed (`| 0`). */
  holds(record: number, lo: number, hi: number): boolean {
    const at = record * recordWords;
    const records = this.records;
    return records[at] === lo && records[at + 1] === hi && records[at + 2] !== 0;
  }

  /** The set of a record, which stays in use, becomes another. */
  setChanged(record: number): void {
    const group = record >>> changesLog;
    this.#changes[group] = ((this.#changes[group] as number) + 1) | 0;
  }

  /**
   * Notes that the `segmentBlocks` records up to this one hold a segment of a prompt, in its order and all with one set.
   * The note holds until any of them changes: it is the sum of the change counts of the one or two groups that they lie
   * in, which only grow, and would have to grow by 2^31 to look the same again.
   */
  markSegment(last: number): void {
    this.records[last * recordWords + 3] = this.#segmentMark(last);
  }

  /** Whether `markSegment` holds. A chained hash names all blocks before it: whose last block it is has the others. */
  isSegment(last: number): boolean {
    return this.records[last * recordWords + 3] === this.#segmentMark(last);
  }

  /** Never 0, which stands for no mark. */
  #segmentMark(last: number): number {
    const group = last >>> changesLog;
    const before = (last - segmentBlocks + 1) >>> changesLog;
    const changes = this.#changes;
    const sum = (changes[group] as number) + (before === group ? 0 : (changes[before] as number));
    return (sum << 1) | 1;
  }

  /** Record number of the hash, 0 if there is none. `lo` and `hi` are signed (`| 0`). */
  find(lo: number, hi: number): number {
    const tag = mix(lo, hi);
    const index = this.#index;
    const mask = this.#mask;
    let slot = tag & mask;
    for (;;) {
      const record = index[2 * slot + 1] as number;
      if (record === 0) break;
      if (index[2 * slot] === tag && this.holds(record, lo, hi)) return record;
      slot = (slot + 1) & mask;
    }
    this.#vacantSlot = slot;
    return this.#oldIndex === undefined ? 0 : this.#findInOld(this.#oldIndex, tag, lo, hi);
  }

  /**
   * Writes to `out` the likely record of every `stride`-th hash from block `from` on, 0 where there
   * is none or it has not been moved to the new index yet; the caller compares the keys. Same work
   * as `find`, in passes without branches on what they read, so that up to `out.length` reads from
   * memory are under way together.
   */
  guess(hashes: Uint32Array, from: number, stride: number, count: number, out: Int32Array): void {
    const index = this.#index;
    const mask = this.#mask;
    let read = 0;
    for (let k = 0, i = 2 * from; k < count; k++, i += 2 * stride) {
      const tag = mix(hashes[i] as number, hashes[i + 1] as number);
      out[k] = tag;
      read ^= index[2 * (tag & mask)] as number;
    }
    for (let k = 0; k < count; k++) {
      const tag = out[k] as number;
      let slot = tag & mask;
      while (index[2 * slot] !== tag && index[2 * slot + 1] !== 0) slot = (slot + 1) & mask;
      out[k] = index[2 * slot + 1] as number;
    }
    for (let k = 0; k < count; k++)
      read ^= this.records[(out[k] as number) * recordWords] as number;
    this.#sink[0] = read;
  }

  /**
   * Enters a hash that the directly preceding `find` did not find; returns its record number.
   * The table must not be full.
   */
  insert(lo: number, hi: number, set: number): number {
    invariant(!this.isFull, "insert into a full block table");
    const record = this.#takeRecord();
    const at = record * recordWords;
    this.records[at] = lo;
    this.records[at + 1] = hi;
    this.records[at + 2] = set;
    this.records[at + 3] = 0;
    this.setChanged(record);
    this.#index[2 * this.#vacantSlot] = mix(lo, hi);
    this.#index[2 * this.#vacantSlot + 1] = record;
    this.#count++;
    if (this.#oldIndex !== undefined) this.#moveSome(moveRecordsPerStep);
    else if (this.#count * 4 > (this.#mask + 1) * 3) this.#growIndex();
    return record;
  }

  /** Frees a record in use. */
  delete(record: number): void {
    const at = record * recordWords;
    this.#deleteFromIndex(mix(this.records[at] as number, this.records[at + 1] as number), record);
    this.records[at + 2] = 0;
    this.records[at + 3] = 0;
    this.setChanged(record);
    this.#used[record >>> 5] = (this.#used[record >>> 5] as number) & ~(1 << (record & 31));
    this.#count--;
    if (this.#oldIndex !== undefined) this.#moveSome(moveRecordsPerStep);
  }

  // The old index may name records that were freed or reused since; comparing the whole key with the
  // record, and the record being in use, tells them apart. A key that was removed and stored again is
  // in the new index, which is searched first.
  #findInOld(old: Int32Array, tag: number, lo: number, hi: number): number {
    const mask = this.#oldMask;
    let slot = tag & mask;
    for (;;) {
      const record = old[2 * slot + 1] as number;
      if (record === 0) return 0;
      if (old[2 * slot] === tag && this.holds(record, lo, hi)) return record;
      slot = (slot + 1) & mask;
    }
  }

  // Next-fit: the hand moves on through memory, so that a run gets ascending records even between
  // blocks that stay.
  #takeRecord(): number {
    if ((this.#count + 2) * 8 > this.#recordsLimit * 7) {
      const larger = roundUp32(Math.ceil(this.#recordsLimit * 1.25));
      this.#recordsLimit = Math.min(this.#recordsMax, larger);
    }
    const used = this.#used;
    const words = this.#recordsLimit >>> 5;
    let word = this.#hand >>> 5;
    let free = word < words ? ~(used[word] as number) & (-1 << (this.#hand & 31)) : 0;
    while (free === 0) {
      word = word + 1 < words ? word + 1 : 0;
      free = ~(used[word] as number);
    }
    const bit = free & -free;
    used[word] = (used[word] as number) | bit;
    const record = word * 32 + 31 - Math.clz32(bit);
    this.#hand = record + 1;
    return record;
  }

  #deleteFromIndex(tag: number, record: number): void {
    const index = this.#index;
    const mask = this.#mask;
    let hole = tag & mask;
    for (;;) {
      const there = index[2 * hole + 1] as number;
      // Not moved yet: the old index keeps a stale entry, which `find` sees through.
      if (there === 0) return;
      if (there === record) break;
      hole = (hole + 1) & mask;
    }
    for (let slot = (hole + 1) & mask; ; slot = (slot + 1) & mask) {
      const there = index[2 * slot + 1] as number;
      if (there === 0) break;
      const home = (index[2 * slot] as number) & mask;
      if (((slot - home) & mask) < ((slot - hole) & mask)) continue;
      index[2 * hole] = index[2 * slot] as number;
      index[2 * hole + 1] = there;
      hole = slot;
    }
    index[2 * hole + 1] = 0;
  }

  #growIndex(): void {
    this.#oldIndex = this.#index;
    this.#oldMask = this.#mask;
    this.#mask = 2 * this.#mask + 1;
    this.#index = new Int32Array(2 * (this.#mask + 1));
    this.#moved = 1;
  }

  // Moving 8 records per insertion ends long before the doubled index is 3/4 full: that takes as many
  // insertions as there are records, and there are at most 8/7 records per block plus 25 % of growth.
  #moveSome(budget: number): void {
    const { records } = this;
    const index = this.#index;
    const mask = this.#mask;
    const end = Math.min(this.#recordsLimit, this.#moved + budget);
    for (let record = this.#moved; record < end; record++) {
      const at = record * recordWords;
      if (records[at + 2] === 0) continue;
      const tag = mix(records[at] as number, records[at + 1] as number);
      let slot = tag & mask;
      let there = index[2 * slot + 1] as number;
      while (there !== 0 && there !== record) {
        slot = (slot + 1) & mask;
        there = index[2 * slot + 1] as number;
      }
      index[2 * slot] = tag;
      index[2 * slot + 1] = record;
    }
    this.#moved = end;
    if (end === this.#recordsLimit) this.#oldIndex = undefined;
  }
}

// Spreads both words over the tag, so that keys which agree in their low bits do not share a slot.
function mix(lo: number, hi: number): number {
  let tag = lo ^ Math.imul(hi, 0x9e3779b1);
  tag = Math.imul(tag ^ (tag >>> 15), 0x85ebca6b);
  return tag ^ (tag >>> 13);
}

function roundUp32(n: number): number {
  return Math.ceil(n / 32) * 32;
}
