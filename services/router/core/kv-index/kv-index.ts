import { invariant } from "../../../shared/core/invariant.ts";
import type { BlockIndex, BlockIndexLimits } from "./block-index.ts";
import { BlockTable, recordWords, segmentBlocks } from "./block-table.ts";
import { PromptFinder } from "./prompt-finder.ts";
import { WorkerSets } from "./worker-sets.ts";

/** Blocks of one event searched together, so that their reads from memory overlap. */
const guessesMax = 32;
/** Records looked at per stored or removed block while records of cleared workers remain. */
const sweepRecordsPerBlock = 4;

/**
 * The router's KV index: block hash → set of workers, in typed arrays outside the traced heap.
 *
 * Exact for any holdings, gaps included: `matchPrefix` looks at every block until nobody is left, save those of segments
 * in which nothing has changed since it looked (see `BlockTable.markSegment`). Blocks that were stored together lie
 * together, so that looking means reading memory in order.
 * No call allocates, except that growth makes a larger index. Costs are in the README.
 *
 * At a limit the pair is dropped, never invented: a worker may then be credited with less than it
 * holds. `lostPairsOf` says for which workers, until they are cleared.
 */
export class KvIndex implements BlockIndex {
  readonly #workersMax: number;
  readonly #table: BlockTable;
  readonly #finder: PromptFinder;
  readonly #guesses = new Int32Array(guessesMax);
  readonly #sets: WorkerSets;
  readonly #blocks: Uint32Array;
  readonly #lostPairs: Uint32Array;
  #pairCount = 0;
  /** Records whose set became empty through `clear` and that the sweep has yet to free. */
  #deadCount = 0;
  #sweepAt = 1;
  /** Failed set allocations before the next attempt to collect; see `#makeRoomForSet`. */
  #collectAfter = 0;
  readonly #collectEvery: number;
  #droppedAtBlocksMax = 0;
  #droppedAtSetsMax = 0;
  #collections = 0;

  /** Workers still matching during `matchPrefix`: bits, and which words have any. */
  readonly #active: Int32Array;
  readonly #activeWords: Uint16Array;
  #activeWordCount = 0;
  /**
   * Per set: the lookup in which it was found to contain `#active`. That stays true for the rest of
   * the lookup, because `#active` only shrinks.
   */
  readonly #containsActive: Int32Array;
  #lookup = 0;

  /** Throws `invariant_violated` for limits outside the ranges named in `BlockIndexLimits`. */
  constructor(limits: BlockIndexLimits) {
    this.#sets = new WorkerSets(limits);
    this.#table = new BlockTable(limits.blocksMax);
    this.#finder = new PromptFinder(this.#table);
    this.#workersMax = limits.workersMax;
    this.#blocks = new Uint32Array(limits.workersMax);
    this.#lostPairs = new Uint32Array(limits.workersMax);
    this.#collectEvery = limits.setsMax >>> 4;
    this.#active = new Int32Array(this.#sets.rowWords);
    this.#activeWords = new Uint16Array(this.#sets.rowWords);
    this.#containsActive = new Int32Array(this.#sets.references.length);
  }

  get blockCount(): number {
    return this.#table.count - this.#deadCount;
  }

  get pairCount(): number {
    return this.#pairCount;
  }

  /** Interned worker sets, whether in use or kept for reuse. */
  get setCount(): number {
    return this.#sets.count;
  }

  /** Bytes of memory touched by the arrays; reserved but untouched memory is not counted. */
  get bytes(): number {
    return (
      this.#table.bytes +
      this.#sets.bytes +
      this.#blocks.byteLength * 2 +
      this.#containsActive.byteLength
    );
  }

  /** Pairs dropped because `blocksMax` blocks were held; only grows. */
  get droppedAtBlocksMax(): number {
    return this.#droppedAtBlocksMax;
  }

  /** Pairs dropped because `setsMax` worker sets were in use; only grows. */
  get droppedAtSetsMax(): number {
    return this.#droppedAtSetsMax;
  }

  /** How often unused worker sets were collected; only grows. */
  get setCollections(): number {
    return this.#collections;
  }

  /** Pairs of this worker dropped at a limit since it was last cleared; above 0: resync it. */
  lostPairsOf(slot: number): number {
    this.#checkSlot(slot);
    return this.#lostPairs[slot] as number;
  }

  /** Number of blocks that each worker holds, by slot; to be read only. */
  get blockCounts(): Uint32Array {
    return this.#blocks;
  }

  blocksOf(slot: number): number {
    this.#checkSlot(slot);
    return this.#blocks[slot] as number;
  }

  contains(slot: number, lo: number, hi: number): boolean {
    this.#checkSlot(slot);
    const set = this.setOf(lo, hi);
    return set !== 0 && this.#sets.has(set, slot);
  }

  /**
   * Id of the interned set of workers that hold a block, 0 when the block is unknown. Equal ids mean
   * equal sets until the next `store`, `remove` or `clear`; different ids do not mean different sets.
   */
  setOf(lo: number, hi: number): number {
    const record = this.#table.find(lo | 0, hi | 0);
    return record === 0 ? 0 : (this.#table.records[record * recordWords + 2] as number);
  }

  store(slot: number, hashes: Uint32Array, offset = 0, count = hashes.length / 2 - offset): number {
    this.#checkRange(slot, hashes, offset, count);
    if (this.#deadCount > 0) this.#sweep(count * sweepRecordsPerBlock);
    const table = this.#table;
    const guesses = this.#guesses;
    const { records } = table;
    const references = this.#sets.references;
    let added = 0;
    let lastSet = -1;
    let lastNext = 0;
    for (let i = offset, end = offset + count; i < end; i++) {
      const k = (i - offset) % guessesMax;
      if (k === 0) table.guess(hashes, i, 1, Math.min(guessesMax, end - i), guesses);
      const lo = (hashes[2 * i] as number) | 0;
      const hi = (hashes[2 * i + 1] as number) | 0;
      let record = guesses[k] as number;
      if (!table.holds(record, lo, hi)) record = table.find(lo, hi);
      let set = records[record * recordWords + 2] as number;
      if (set !== lastSet) {
        const collections = this.#collections;
        lastNext = this.#setWith(set, slot);
        if (this.#collections !== collections) {
          // The sweep before a collection may have freed this very record.
          record = table.find(lo, hi);
          set = records[record * recordWords + 2] as number;
        }
        lastSet = set;
      }
      const next = lastNext;
      if (next === set) continue;
      if (next < 0) {
        this.#droppedAtSetsMax++;
        this.#lose(slot);
        continue;
      }
      if (set === 0) {
        record = this.#insert(lo, hi, next);
        if (record === 0) {
          this.#droppedAtBlocksMax++;
          this.#lose(slot);
          continue;
        }
      } else {
        if (this.#sets.sizes[set] === 0) this.#deadCount--;
        references[set] = (references[set] as number) - 1;
        records[record * recordWords + 2] = next;
        table.setChanged(record);
      }
      references[next] = (references[next] as number) + 1;
      added++;
    }
    this.#blocks[slot] = (this.#blocks[slot] as number) + added;
    this.#pairCount += added;
    return added;
  }

  remove(
    slot: number,
    hashes: Uint32Array,
    offset = 0,
    count = hashes.length / 2 - offset,
  ): number {
    this.#checkRange(slot, hashes, offset, count);
    if (this.#deadCount > 0) this.#sweep(count * sweepRecordsPerBlock);
    const table = this.#table;
    const guesses = this.#guesses;
    const { records } = table;
    const references = this.#sets.references;
    let removed = 0;
    let lastSet = -1;
    let lastNext = 0;
    for (let i = offset, end = offset + count; i < end; i++) {
      const k = (i - offset) % guessesMax;
      if (k === 0) table.guess(hashes, i, 1, Math.min(guessesMax, end - i), guesses);
      const lo = (hashes[2 * i] as number) | 0;
      const hi = (hashes[2 * i + 1] as number) | 0;
      let record = guesses[k] as number;
      if (!table.holds(record, lo, hi)) record = table.find(lo, hi);
      const set = records[record * recordWords + 2] as number;
      if (set !== lastSet) {
        lastNext = this.#setWithout(set, slot);
        lastSet = set;
      }
      let next = lastNext;
      if (next === set) continue;
      if (next < 0) {
        next = this.#dropAllButOne(set, slot);
        // Making the keeper's set may have collected this one.
        lastSet = -1;
      }
      references[set] = (references[set] as number) - 1;
      if (next === 0) {
        table.delete(record);
      } else {
        references[next] = (references[next] as number) + 1;
        records[record * recordWords + 2] = next;
        table.setChanged(record);
      }
      removed++;
    }
    this.#blocks[slot] = (this.#blocks[slot] as number) - removed;
    this.#pairCount -= removed;
    return removed;
  }

  /**
   * Forgets every block of a worker, at once for all readers: the worker leaves the sets, not the
   * blocks, in O(sets). Records that nobody holds any more are freed by later calls of `store` and
   * `remove`, a few per block, or by `sweep`.
   */
  clear(slot: number): number {
    this.#checkSlot(slot);
    const removed = this.#blocks[slot] as number;
    if (removed > 0) this.#deadCount += this.#sets.clearWorker(slot);
    this.#blocks[slot] = 0;
    this.#lostPairs[slot] = 0;
    this.#pairCount -= removed;
    return removed;
  }

  /**
   * Looks at up to `recordBudget` records for ones that cleared workers left behind, and frees them.
   * Returns true when none is left. 5 … 20 ns per record; for idle time, never needed for correctness.
   */
  sweep(recordBudget: number): boolean {
    this.#sweep(recordBudget);
    return this.#deadCount === 0;
  }

  matchPrefix(hashes: Uint32Array, count: number, depths: Uint32Array): number {
    if (depths.length < this.#workersMax || count * 2 > hashes.length) this.#refuseMatch();
    depths.fill(0);
    const table = this.#table;
    const { records } = table;
    this.#activeWordCount = 0;
    this.#finder.start();
    let set = 0;
    let record = 0;
    for (let i = 0; i < count;) {
      const segmentEnd = i - (i % segmentBlocks) + segmentBlocks;
      const isWhole = i % segmentBlocks === 0 && segmentEnd <= count;
      if (isWhole) {
        const last = this.#finder.segmentEnd(hashes, i, count);
        if (last !== 0 && table.isSegment(last)) {
          const next = records[last * recordWords + 2] as number;
          if (next !== set) {
            set = next;
            if (!this.#meets(set, depths, i)) return i;
          }
          record = last;
          i = segmentEnd;
          continue;
        }
      }
      const end = Math.min(count, segmentEnd);
      const segmentStart = i;
      let runStart = i;
      while (i < end) {
        const run = runLength(records, record + 1, set, hashes, i, end);
        i += run;
        record += run;
        if (i === end) break;
        record++;
        runStart = i;
        const lo = (hashes[2 * i] as number) | 0;
        const hi = (hashes[2 * i + 1] as number) | 0;
        if (!table.holds(record, lo, hi)) record = this.#finder.find(hashes, i, count);
        const next = records[record * recordWords + 2] as number;
        if (next === 0) {
          this.#finish(depths, i);
          return i;
        }
        if (next !== set) {
          set = next;
          if (!this.#meets(set, depths, i)) return i;
        }
        i++;
      }
      // One run under one set from the first block to the last.
      if (isWhole && runStart === segmentStart) table.markSegment(record);
    }
    this.#finish(depths, count);
    return count;
  }

  /** From block `depth` on the prompt's blocks are those of `set`. False: nobody is left. */
  #meets(set: number, depths: Uint32Array, depth: number): boolean {
    if (depth === 0) this.#activate(set);
    else if (this.#containsActive[set] === this.#lookup) return true;
    return this.#narrow(set, depths, depth);
  }

  /** Starts with the holders of the first block. */
  #activate(set: number): void {
    const { rows, rowWords } = this.#sets;
    this.#nextLookup();
    for (let word = 0; word < rowWords; word++) {
      const bits = rows[set * rowWords + word] as number;
      this.#active[word] = bits;
      if (bits !== 0) this.#activeWords[this.#activeWordCount++] = word;
    }
  }

  /** Keeps the active workers that are in `set`; the others end at `depth`. False: nobody is left. */
  #narrow(set: number, depths: Uint32Array, depth: number): boolean {
    const { rows, rowWords } = this.#sets;
    const active = this.#active;
    const activeWords = this.#activeWords;
    let kept = 0;
    for (let k = 0; k < this.#activeWordCount; k++) {
      const word = activeWords[k] as number;
      const before = active[word] as number;
      const after = before & (rows[set * rowWords + word] as number);
      if (after !== before) {
        active[word] = after;
        setDepths(depths, word, before & ~after, depth);
      }
      if (after !== 0) activeWords[kept++] = word;
    }
    this.#activeWordCount = kept;
    this.#containsActive[set] = this.#lookup;
    return kept > 0;
  }

  #finish(depths: Uint32Array, depth: number): void {
    for (let k = 0; k < this.#activeWordCount; k++) {
      const word = this.#activeWords[k] as number;
      setDepths(depths, word, this.#active[word] as number, depth);
    }
  }

  #nextLookup(): void {
    if (this.#lookup === 0x7fffffff) {
      this.#lookup = 0;
      this.#containsActive.fill(0);
    }
    this.#lookup++;
  }

  /** Enters a block that the directly preceding `find` did not find; 0 at `blocksMax`. */
  #insert(lo: number, hi: number, set: number): number {
    const table = this.#table;
    if (table.isFull) {
      if (this.#deadCount === 0) return 0;
      const dead = this.#deadCount;
      while (this.#deadCount === dead) this.#sweep(1_024);
      table.find(lo, hi);
    }
    return table.insert(lo, hi, set);
  }

  /** Id of `set` plus the worker, -1 at `setsMax`. Never fails for a block that nobody holds. */
  #setWith(set: number, slot: number): number {
    const isUnheld = this.#sets.sizes[set] === 0;
    const from = isUnheld ? 0 : set;
    const next = this.#sets.with(from, slot);
    if (next >= 0 || !this.#makeRoomForSet(isUnheld)) return next;
    return this.#sets.with(from, slot);
  }

  /** Id of `set` less the worker, 0 when nobody is left, -1 at `setsMax`. */
  #setWithout(set: number, slot: number): number {
    const next = this.#sets.without(set, slot);
    if (next >= 0 || !this.#makeRoomForSet(false)) return next;
    return this.#sets.without(set, slot);
  }

  /**
   * What `remove` does when the remaining holders have no row: the lowest of them keeps the block,
   * the others lose it and are marked. Returns the id of the keeper's own set.
   */
  #dropAllButOne(set: number, slot: number): number {
    let keeper = -1;
    for (let other = 0; other < this.#workersMax; other++) {
      if (other === slot || !this.#sets.has(set, other)) continue;
      if (keeper < 0) {
        keeper = other;
        continue;
      }
      this.#blocks[other] = (this.#blocks[other] as number) - 1;
      this.#pairCount--;
      this.#droppedAtSetsMax++;
      this.#lose(other);
    }
    return this.#setWith(0, keeper);
  }

  #makeRoomForSet(must: boolean): boolean {
    if (!must && this.#collectAfter > 0) {
      this.#collectAfter--;
      return false;
    }
    while (this.#deadCount > 0) this.#sweep(this.#table.recordsLimit);
    const freed = this.#sets.collect();
    this.#collections++;
    this.#collectAfter = freed >= this.#collectEvery ? 0 : this.#collectEvery;
    return freed > 0;
  }

  #sweep(recordBudget: number): void {
    const table = this.#table;
    const { records } = table;
    const { sizes, references } = this.#sets;
    for (let i = 0; i < recordBudget && this.#deadCount > 0; i++) {
      if (this.#sweepAt >= table.recordsLimit) this.#sweepAt = 1;
      const record = this.#sweepAt++;
      const set = records[record * recordWords + 2] as number;
      if (set === 0 || sizes[set] !== 0) continue;
      references[set] = (references[set] as number) - 1;
      table.delete(record);
      this.#deadCount--;
    }
  }

  #lose(slot: number): void {
    this.#lostPairs[slot] = (this.#lostPairs[slot] as number) + 1;
  }

  #checkSlot(slot: number): void {
    if (Number.isInteger(slot) && slot >= 0 && slot < this.#workersMax) return;
    invariant(false, `slot ${String(slot)} is not in 0 … ${String(this.#workersMax - 1)}`);
  }

  #checkRange(slot: number, hashes: Uint32Array, offset: number, count: number): void {
    this.#checkSlot(slot);
    const words = 2 * (offset + count);
    if (Number.isInteger(offset) && Number.isInteger(count) && offset >= 0 && count >= 0) {
      if (words <= hashes.length) return;
    }
    invariant(
      false,
      `blocks ${String(offset)} + ${String(count)} are not whole pairs of ${String(hashes.length)} words`,
    );
  }

  #refuseMatch(): void {
    invariant(false, "depths needs workersMax elements and hashes two words per block");
  }
}

/** How many blocks from `from` on lie in consecutive records under one set, starting at `record`. */
function runLength(
  records: Int32Array,
  record: number,
  set: number,
  hashes: Uint32Array,
  from: number,
  end: number,
): number {
  if (set === 0) return 0;
  let i = from;
  for (let word = record * recordWords; i < end; i++, word += recordWords) {
    const difference =
      ((records[word] as number) ^ (hashes[2 * i] as number)) |
      ((records[word + 1] as number) ^ (hashes[2 * i + 1] as number)) |
      ((records[word + 2] as number) ^ set);
    if (difference !== 0) break;
  }
  return i - from;
}

function setDepths(depths: Uint32Array, word: number, workers: number, depth: number): void {
  for (let bits = workers; bits !== 0; bits &= bits - 1) {
    depths[word * 32 + 31 - Math.clz32(bits & -bits)] = depth;
  }
}
