import { invariant } from "../../../shared/core/invariant.ts";

const memoEntries = 1 << 15;
const memoWords = 3;

/**
 * Interned sets of worker slots. A set is an id; its members are a bitset row. Equal sets have one
 * id (except after `clearWorker`, which may leave duplicates until they fall out of use), so most
 * blocks of a prompt share a few ids and comparing ids replaces comparing sets.
 *
 * Id 0 is the set that a free record carries; it is never counted. `references` holds how many
 * blocks carry each id; the caller keeps it. A set that no block carries stays interned, ready to be
 * used again, until `collect` frees all such sets at once: so a remembered step can never lead to a
 * row that has been reused.
 *
 * Rows for `setsMax` shared sets and for one set per worker are reserved at once and touched as used.
 */
export class WorkerSets {
  /** 32-bit words per row. */
  readonly rowWords: number;
  /** Row of id s: words s * rowWords … of bits, slot w at bit w & 31 of word w >>> 5. */
  readonly rows: Int32Array;
  /** Number of blocks that carry each id. */
  readonly references: Int32Array;
  /** Number of members of each id. */
  readonly sizes: Uint16Array;
  readonly #workersMax: number;
  readonly #setsMax: number;
  readonly #rowHashes: Int32Array;
  /** 1: counts against setsMax, 2: the set of one worker, 0: free. */
  readonly #kinds: Uint8Array;
  readonly #freeIds: Int32Array;
  #freeCount = 0;
  /** Ids 1 … idEnd-1 have been given out at least once. */
  #idEnd = 1;
  #sharedCount = 0;
  #singleCount = 0;
  /** Open addressing by row hash; holds ids. A row that duplicates another is not in it. */
  readonly #interned: Int32Array;
  readonly #internedMask: number;
  /** Direct-mapped: set id, step (slot * 2 + add), resulting id + 1. */
  readonly #memo = new Int32Array(memoEntries * memoWords);

  constructor(limits: { readonly workersMax: number; readonly setsMax: number }) {
    const { workersMax, setsMax } = limits;
    invariant(
      Number.isInteger(workersMax) && workersMax >= 1 && workersMax <= 4_096,
      `workersMax must be an integer in 1 … 4096, got ${String(workersMax)}`,
    );
    invariant(
      Number.isInteger(setsMax) && setsMax >= 1 && setsMax <= 2 ** 22,
      `setsMax must be an integer in 1 … 2^22, got ${String(setsMax)}`,
    );
    this.#workersMax = workersMax;
    this.#setsMax = setsMax;
    this.rowWords = (workersMax + 31) >>> 5;
    // A worker's own set is left behind empty when the worker is cleared, and goes when no block
    // carries it any more; the second workersMax rows make waiting for that the exception.
    const ids = 1 + setsMax + 2 * workersMax;
    this.rows = new Int32Array(ids * this.rowWords);
    this.references = new Int32Array(ids);
    this.sizes = new Uint16Array(ids);
    this.#rowHashes = new Int32Array(ids);
    this.#kinds = new Uint8Array(ids);
    this.#freeIds = new Int32Array(ids);
    this.#internedMask = 2 ** Math.ceil(Math.log2(2 * ids)) - 1;
    this.#interned = new Int32Array(this.#internedMask + 1);
  }

  /** Sets held, whether a block carries them now or not. */
  get count(): number {
    return this.#sharedCount + this.#singleCount;
  }

  /** Bytes touched. */
  get bytes(): number {
    const perId = this.rowWords * 4 + 4 + 2 + 4 + 1 + 4;
    return this.#idEnd * perId + this.#interned.byteLength + this.#memo.byteLength;
  }

  /** Whether the worker is a member. */
  has(set: number, slot: number): boolean {
    const word = this.rows[set * this.rowWords + (slot >>> 5)] as number;
    return ((word >>> (slot & 31)) & 1) === 1;
  }

  /** Id of `set` plus the worker; -1 when there is no row left for it. */
  with(set: number, slot: number): number {
    return this.has(set, slot) ? set : this.#step(set, slot, 1);
  }

  /** Id of `set` less the worker, 0 when nobody is left; -1 when there is no row left for it. */
  without(set: number, slot: number): number {
    if (!this.has(set, slot)) return set;
    return this.sizes[set] === 1 ? 0 : this.#step(set, slot, 0);
  }

  /**
   * Takes a worker out of every set, in place: blocks keep their ids. Returns how many blocks are
   * left with an empty set. O(sets).
   */
  clearWorker(slot: number): number {
    const { rows, rowWords, sizes } = this;
    const word = slot >>> 5;
    const bit = 1 << (slot & 31);
    const hashBit = slotHash(slot);
    let emptied = 0;
    for (let id = 1; id < this.#idEnd; id++) {
      const at = id * rowWords + word;
      if (((rows[at] as number) & bit) === 0) continue;
      this.#unintern(id);
      rows[at] = (rows[at] as number) & ~bit;
      this.#rowHashes[id] = (this.#rowHashes[id] as number) ^ hashBit;
      const size = (sizes[id] as number) - 1;
      sizes[id] = size;
      if (size === 0) emptied += this.references[id] as number;
      else this.#internUnlessEqual(id);
    }
    // Steps of other workers stay true: both ends lost the same member.
    this.#memo.fill(0);
    return emptied;
  }

  /**
   * Frees every set that no block carries and returns how many. O(sets). No id that the caller keeps
   * outside a block is valid afterwards.
   */
  collect(): number {
    let freed = 0;
    for (let id = 1; id < this.#idEnd; id++) {
      if (this.#kinds[id] === 0 || this.references[id] !== 0) continue;
      if (this.#kinds[id] === 1) this.#sharedCount--;
      else this.#singleCount--;
      if (this.sizes[id] !== 0) this.#unintern(id);
      this.rows.fill(0, id * this.rowWords, (id + 1) * this.rowWords);
      this.#kinds[id] = 0;
      this.#freeIds[this.#freeCount++] = id;
      freed++;
    }
    if (freed > 0) this.#memo.fill(0);
    return freed;
  }

  #step(set: number, slot: number, add: 0 | 1): number {
    const step = slot * 2 + add;
    let entry = Math.imul(set, 0x9e3779b1) ^ Math.imul(step, 0x85ebca6b);
    entry = ((entry ^ (entry >>> 15)) & (memoEntries - 1)) * memoWords;
    const memo = this.#memo;
    const known = memo[entry + 2] as number;
    if (known !== 0 && memo[entry] === set && memo[entry + 1] === step) return known - 1;
    const result = this.#intern(set, slot);
    if (result >= 0) {
      memo[entry] = set;
      memo[entry + 1] = step;
      memo[entry + 2] = result + 1;
    }
    return result;
  }

  /** Finds or makes the row that differs from `set` in this worker alone. */
  #intern(set: number, slot: number): number {
    const { rows, rowWords } = this;
    const hash = (this.#rowHashes[set] as number) ^ slotHash(slot);
    const word = slot >>> 5;
    const bit = 1 << (slot & 31);
    let at = spread(hash) & this.#internedMask;
    for (;;) {
      const id = this.#interned[at] as number;
      if (id === 0) break;
      if (this.#rowHashes[id] === hash && this.#differOnlyIn(set, id, word, bit)) return id;
      at = (at + 1) & this.#internedMask;
    }
    const size = (this.sizes[set] as number) + (this.has(set, slot) ? -1 : 1);
    const id = this.#takeId(size);
    if (id < 0) return -1;
    rows.copyWithin(id * rowWords, set * rowWords, (set + 1) * rowWords);
    rows[id * rowWords + word] = (rows[id * rowWords + word] as number) ^ bit;
    this.sizes[id] = size;
    this.#rowHashes[id] = hash;
    this.#interned[at] = id;
    return id;
  }

  #takeId(size: number): number {
    if (size > 1 && this.#sharedCount >= this.#setsMax) return -1;
    if (size === 1 && this.#singleCount >= 2 * this.#workersMax) return -1;
    const id = this.#freeCount > 0 ? (this.#freeIds[--this.#freeCount] as number) : this.#idEnd++;
    if (size > 1) this.#sharedCount++;
    else this.#singleCount++;
    this.#kinds[id] = size > 1 ? 1 : 2;
    this.references[id] = 0;
    return id;
  }

  #differOnlyIn(a: number, b: number, word: number, bit: number): boolean {
    const { rows, rowWords } = this;
    for (let i = 0; i < rowWords; i++) {
      const difference = (rows[a * rowWords + i] as number) ^ (rows[b * rowWords + i] as number);
      if (difference !== (i === word ? bit : 0)) return false;
    }
    return true;
  }

  #internUnlessEqual(id: number): void {
    const hash = this.#rowHashes[id] as number;
    let at = spread(hash) & this.#internedMask;
    for (;;) {
      const there = this.#interned[at] as number;
      if (there === 0) break;
      if (this.#rowHashes[there] === hash && this.#differOnlyIn(id, there, 0, 0)) return;
      at = (at + 1) & this.#internedMask;
    }
    this.#interned[at] = id;
  }

  #unintern(id: number): void {
    const interned = this.#interned;
    const mask = this.#internedMask;
    let hole = spread(this.#rowHashes[id] as number) & mask;
    for (;;) {
      const there = interned[hole] as number;
      if (there === 0) return;
      if (there === id) break;
      hole = (hole + 1) & mask;
    }
    for (let at = (hole + 1) & mask; ; at = (at + 1) & mask) {
      const there = interned[at] as number;
      if (there === 0) break;
      const home = spread(this.#rowHashes[there] as number) & mask;
      if (((at - home) & mask) < ((at - hole) & mask)) continue;
      interned[hole] = there;
      hole = at;
    }
    interned[hole] = 0;
  }
}

// The hash of a row is the XOR over its members, so that one step updates it.
function slotHash(slot: number): number {
  let hash = Math.imul(slot + 1, 0x9e3779b1);
  hash = Math.imul(hash ^ (hash >>> 16), 0x7feb352d);
  hash = Math.imul(hash ^ (hash >>> 15), 0x846ca68b);
  return hash ^ (hash >>> 16);
}

function spread(hash: number): number {
  return hash ^ (hash >>> 15);
}
