/** Limits of a block index; each has a stated behaviour when it is reached. */
export interface BlockIndexLimits {
  /** Worker slots are the integers 0 … workersMax-1; 1 … 4096. */
  readonly workersMax: number;
  /** Distinct blocks held at once; 1 … 2^27. A new block beyond it is dropped and counted. */
  readonly blocksMax: number;
  /**
   * Distinct sets of two or more workers that can share a block; 1 … 2^22. Beyond it a pair is
   * dropped and counted. Memory is reserved lazily: a row costs workersMax/8 bytes once used.
   */
  readonly setsMax: number;
}

/**
 * Which workers hold which KV blocks.
 *
 * A block is named by a 64-bit sequence hash, given as a pair of u32 (lo, hi): `hashes` holds
 * `[lo0, hi0, lo1, hi1, …]`, `offset` and `count` are in blocks. A hash names a whole prefix: two prompts that
 * have a hash in common have it at the same place, and all before it. Nothing is assumed about what is held: any worker
 * may hold any subset, in particular one with gaps.
 *
 * A pair is (worker slot, block). Every call is deterministic and complete when it returns. Wrong
 * slots and ranges are bugs of the caller and throw `invariant_violated`.
 */
export interface BlockIndex {
  /** Number of distinct blocks that at least one worker holds. */
  readonly blockCount: number;
  /** Number of (worker, block) pairs. */
  readonly pairCount: number;
  /** Adds blocks to a worker; returns how many pairs are new. Known pairs are ignored. */
  store(slot: number, hashes: Uint32Array, offset?: number, count?: number): number;
  /** Takes blocks from a worker; returns how many pairs went. Unknown pairs are ignored. */
  remove(slot: number, hashes: Uint32Array, offset?: number, count?: number): number;
  /** Forgets every block of a worker; returns how many pairs went. */
  clear(slot: number): number;
  /**
   * Writes to `depths[slot]`, for every slot, how many leading blocks of the prompt the worker holds
   * without a gap, and returns the largest of them. `depths` has at least `workersMax` elements.
   */
  matchPrefix(hashes: Uint32Array, count: number, depths: Uint32Array): number;
  /** Number of blocks a worker holds. */
  blocksOf(slot: number): number;
  /** Whether the worker holds the block. */
  contains(slot: number, lo: number, hi: number): boolean;
}
