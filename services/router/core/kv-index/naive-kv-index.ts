import type { BlockIndex } from "./block-index.ts";

/**
 * The block index in its plainest form, a map from block to holders: the model that the typed index
 * is tested against. Unbounded and about a hundred times slower; not for serving.
 */
export class NaiveKvIndex implements BlockIndex {
  readonly #workersMax: number;
  readonly #holders = new Map<string, Set<number>>();

  constructor(limits: { readonly workersMax: number }) {
    this.#workersMax = limits.workersMax;
  }

  get blockCount(): number {
    return this.#holders.size;
  }

  get pairCount(): number {
    let pairs = 0;
    for (const slots of this.#holders.values()) pairs += slots.size;
    return pairs;
  }

  store(slot: number, hashes: Uint32Array, offset = 0, count = hashes.length / 2 - offset): number {
    let added = 0;
    for (let i = offset; i < offset + count; i++) {
      const key = keyAt(hashes, i);
      let slots = this.#holders.get(key);
      if (slots === undefined) {
        slots = new Set();
        this.#holders.set(key, slots);
      }
      if (!slots.has(slot)) added++;
      slots.add(slot);
    }
    return added;
  }

  remove(
    slot: number,
    hashes: Uint32Array,
    offset = 0,
    count = hashes.length / 2 - offset,
  ): number {
    let removed = 0;
    for (let i = offset; i < offset + count; i++) {
      const key = keyAt(hashes, i);
      const slots = this.#holders.get(key);
      if (slots?.delete(slot) !== true) continue;
      removed++;
      if (slots.size === 0) this.#holders.delete(key);
    }
    return removed;
  }

  clear(slot: number): number {
    let removed = 0;
    for (const [key, slots] of this.#holders) {
      if (slots.delete(slot)) removed++;
      if (slots.size === 0) this.#holders.delete(key);
    }
    return removed;
  }

  matchPrefix(hashes: Uint32Array, count: number, depths: Uint32Array): number {
    let deepest = 0;
    for (let slot = 0; slot < this.#workersMax; slot++) {
      let depth = 0;
      while (depth < count && this.#holders.get(keyAt(hashes, depth))?.has(slot) === true) depth++;
      depths[slot] = depth;
      deepest = Math.max(deepest, depth);
    }
    return deepest;
  }

  blocksOf(slot: number): number {
    let blocks = 0;
    for (const slots of this.#holders.values()) if (slots.has(slot)) blocks++;
    return blocks;
  }

  contains(slot: number, lo: number, hi: number): boolean {
    return this.#holders.get(keyOf(lo, hi))?.has(slot) === true;
  }
}

function keyAt(hashes: Uint32Array, index: number): string {
  return keyOf(hashes[2 * index] as number, hashes[2 * index + 1] as number);
}

function keyOf(lo: number, hi: number): string {
  return `${String(lo >>> 0)}:${String(hi >>> 0)}`;
}
