import { invariant } from "../../../shared/core/invariant.ts";
import type { BlockContents } from "../kv-transfer/block-contents.ts";
import { HashIndex } from "./hash-index.ts";

/** Told of every block whose contents stop being findable. */
export type RemovedListener = (low: number, high: number) => void;

/**
 * KV blocks of one engine with vLLM's semantics (`vllm/v1/core/block_pool.py`, 0.19–0.32):
 * - block 0 is the null block and never handed out;
 * - a block is referenced (count ≥ 1) or in the free queue; hashed free blocks are still findable;
 * - allocation takes the head of the free queue and forgets its hash only then;
 * - released blocks go to the tail when hashed, to the head when not;
 * - equal blocks computed at once both stay; a removal is told when the last copy is gone.
 *
 * Not safe against misuse by design: double release and similar bugs throw `invariant_violated`.
 */
export class BlockPool {
  readonly capacityBlocks: number;
  readonly #referenceCount: Int32Array;
  readonly #hashed: Uint8Array;
  readonly #low: Uint32Array;
  readonly #high: Uint32Array;
  /** Doubly linked free queue; index `capacityBlocks` is the sentinel. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  /** Further blocks of the same hash, as a list that starts at the block in `#index`; −1 ends it. */
  readonly #nextCopy: Int32Array;
  readonly #index: HashIndex;
  readonly #onRemoved: RemovedListener | undefined;
  readonly #contents: BlockContents | undefined;
  #freeBlocks = 0;

  constructor(capacityBlocks: number, onRemoved?: RemovedListener, contents?: BlockContents) {
    invariant(capacityBlocks >= 2, `a pool needs at least 2 blocks, got ${String(capacityBlocks)}`);
    this.capacityBlocks = capacityBlocks;
    this.#referenceCount = new Int32Array(capacityBlocks);
    this.#hashed = new Uint8Array(capacityBlocks);
    this.#low = new Uint32Array(capacityBlocks);
    this.#high = new Uint32Array(capacityBlocks);
    this.#next = new Int32Array(capacityBlocks + 1);
    this.#previous = new Int32Array(capacityBlocks + 1);
    this.#nextCopy = new Int32Array(capacityBlocks).fill(-1);
    this.#index = new HashIndex(capacityBlocks);
    this.#onRemoved = onRemoved;
    this.#contents = contents;
    this.#next[capacityBlocks] = capacityBlocks;
    this.#previous[capacityBlocks] = capacityBlocks;
    for (let block = 1; block < capacityBlocks; block++) this.#insertBefore(capacityBlocks, block);
    this.#referenceCount[0] = 1;
  }

  /** Blocks that can hold tokens: all but the null block. */
  get usableBlocks(): number {
    return this.capacityBlocks - 1;
  }

  /** Blocks in the free queue, findable ones included. */
  get freeBlocks(): number {
    return this.#freeBlocks;
  }

  get referencedBlocks(): number {
    return this.usableBlocks - this.#freeBlocks;
  }

  /** Distinct hashes that can be found. */
  get cachedHashes(): number {
    return this.#index.size;
  }

  /** The block that holds this content, or −1. */
  find(low: number, high: number): number {
    return this.#index.get(low, high);
  }

  isReferenced(block: number): boolean {
    return (this.#referenceCount[block] as number) > 0;
  }

  /** Takes the block at the head of the free queue and forgets what it held. */
  allocate(): number {
    const block = this.#next[this.capacityBlocks] as number;
    invariant(block !== this.capacityBlocks, "allocate from an empty free queue");
    this.#unlink(block);
    if (this.#hashed[block] === 1) this.#forget(block);
    this.#referenceCount[block] = 1;
    this.#contents?.overwrite(block);
    return block;
  }

  /** References a findable block once more; it leaves the free queue if it was there. */
  touch(block: number): void {
    const count = this.#referenceCount[block] as number;
    if (count === 0) this.#unlink(block);
    this.#referenceCount[block] = count + 1;
  }

  /** Makes a full, referenced block findable under its hash. */
  cache(block: number, low: number, high: number): void {
    invariant(this.isReferenced(block) && this.#hashed[block] === 0, "cache of a block not owned");
    this.#hashed[block] = 1;
    this.#low[block] = low;
    this.#high[block] = high;
    const first = this.#index.get(low, high);
    if (first < 0) {
      this.#index.set(low, high, block);
    } else {
      // The oldest copy stays the one that lookups return.
      this.#nextCopy[block] = this.#nextCopy[first] as number;
      this.#nextCopy[first] = block;
    }
  }

  /** Drops one reference of each of the first `count` blocks, the last block first. */
  release(blocks: Int32Array, count: number): void {
    let plainAfter = this.capacityBlocks;
    for (let i = count - 1; i >= 0; i--) {
      const block = blocks[i] as number;
      const references = (this.#referenceCount[block] as number) - 1;
      invariant(references >= 0 && block !== 0, `release of block ${String(block)} not referenced`);
      this.#referenceCount[block] = references;
      if (references > 0) continue;
      if (this.#hashed[block] === 1) {
        this.#insertBefore(this.capacityBlocks, block);
      } else {
        // Blocks without content are reused first, in the order of their release.
        this.#insertBefore(this.#next[plainAfter] as number, block);
        plainAfter = block;
      }
    }
  }

  /** Forgets all contents. Refused (false) while any block is referenced. */
  reset(): boolean {
    if (this.referencedBlocks > 0) return false;
    this.#hashed.fill(0);
    this.#nextCopy.fill(-1);
    this.#index.clear();
    return true;
  }

  /** Distinct findable hashes as (low, high) pairs, in block order. O(capacity). */
  hashes(): Uint32Array {
    const out = new Uint32Array(this.#index.size * 2);
    let at = 0;
    for (let block = 1; block < this.capacityBlocks; block++) {
      const low = this.#low[block] as number;
      const high = this.#high[block] as number;
      if (this.#hashed[block] === 1 && this.#index.get(low, high) === block) {
        out[at++] = low;
        out[at++] = high;
      }
    }
    return out;
  }

  #forget(block: number): void {
    const low = this.#low[block] as number;
    const high = this.#high[block] as number;
    this.#hashed[block] = 0;
    const first = this.#index.get(low, high);
    const after = this.#nextCopy[block] as number;
    this.#nextCopy[block] = -1;
    if (first === block) {
      if (after >= 0) {
        this.#index.set(low, high, after);
        return;
      }
      this.#index.delete(low, high);
      this.#onRemoved?.(low, high);
      return;
    }
    let copy = first;
    while (this.#nextCopy[copy] !== block) copy = this.#nextCopy[copy] as number;
    this.#nextCopy[copy] = after;
  }

  #insertBefore(position: number, block: number): void {
    const previous = this.#previous[position] as number;
    this.#next[block] = position;
    this.#previous[block] = previous;
    this.#next[previous] = block;
    this.#previous[position] = block;
    this.#freeBlocks++;
  }

  #unlink(block: number): void {
    const next = this.#next[block] as number;
    const previous = this.#previous[block] as number;
    this.#next[previous] = next;
    this.#previous[next] = previous;
    this.#freeBlocks--;
  }
}
