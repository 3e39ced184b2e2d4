import { U64Map } from "./u64-map.ts";

/** What changed since the last message; to be applied in the order cleared, removed, stored. */
export interface BlockChange {
  readonly cleared: boolean;
  readonly stored: Uint32Array;
  readonly removed: Uint32Array;
}

const storedOp = 1;
const removedOp = 0;

/**
 * Changes that one router has not been sent yet, merged: a block stored and removed again leaves no
 * trace, and a clear swallows what came before it. Exact, because every change it is told is a real one.
 * Bounded: `isFull` past `blocksMax`, then the owner drops it and sends a snapshot.
 */
export class PendingDelta {
  readonly #blocksMax: number;
  readonly #ops = new U64Map();
  #cleared = false;

  constructor(blocksMax: number) {
    this.#blocksMax = blocksMax;
  }

  get isEmpty(): boolean {
    return !this.#cleared && this.#ops.count === 0;
  }

  get isFull(): boolean {
    return this.#ops.count > this.#blocksMax;
  }

  /** Blocks whose change waits. */
  get count(): number {
    return this.#ops.count;
  }

  stored(lo: number, hi: number): void {
    this.#toggle(lo, hi, storedOp);
  }

  removed(lo: number, hi: number): void {
    this.#toggle(lo, hi, removedOp);
  }

  cleared(): void {
    this.#ops.clear();
    this.#cleared = true;
  }

  /** Forgets all that waits. */
  reset(): void {
    this.#ops.clear();
    this.#cleared = false;
  }

  /** Takes up to `hashesMax` changes out. A rest keeps its meaning: the clear goes with the first part. */
  take(hashesMax: number): BlockChange {
    const count = Math.min(hashesMax, this.#ops.count);
    const stored = new Uint32Array(2 * count);
    const removed = new Uint32Array(2 * count);
    let storedAt = 0;
    let removedAt = 0;
    let left = count;
    this.#ops.forEach((lo, hi, op) => {
      if (left === 0) return;
      left--;
      if (op === storedOp) {
        stored[storedAt++] = lo;
        stored[storedAt++] = hi;
      } else {
        removed[removedAt++] = lo;
        removed[removedAt++] = hi;
      }
    });
    const cleared = this.#cleared;
    this.#cleared = false;
    const change = {
      cleared,
      stored: stored.subarray(0, storedAt),
      removed: removed.subarray(0, removedAt),
    };
    if (count === this.#ops.count) this.#ops.clear();
    else this.#deleteAll(change);
    return change;
  }

  #deleteAll(change: BlockChange): void {
    for (const hashes of [change.stored, change.removed]) {
      for (let i = 0; i < hashes.length; i += 2) {
        this.#ops.delete(hashes[i] as number, hashes[i + 1] as number);
      }
    }
  }

  #toggle(lo: number, hi: number, op: number): void {
    const waiting = this.#ops.get(lo, hi);
    if (waiting === -1) this.#ops.set(lo, hi, op);
    else if (waiting !== op) this.#ops.delete(lo, hi);
  }
}
