const empty = -1;
const deleted = -2;

/**
 * Map from 64-bit hashes, given as two 32-bit words, to small non-negative integers. Open addressing
 * on typed arrays: no allocation per entry, which matters when a process holds hundreds of pools.
 * Holds at most `entriesMax` entries; `set` on a full index is a bug of the caller.
 */
export class HashIndex {
  readonly #mask: number;
  readonly #low: Uint32Array;
  readonly #high: Uint32Array;
  readonly #value: Int32Array;
  #size = 0;
  #deleted = 0;

  constructor(entriesMax: number) {
    let slots = 16;
    while (slots < entriesMax * 2) slots *= 2;
    this.#mask = slots - 1;
    this.#low = new Uint32Array(slots);
    this.#high = new Uint32Array(slots);
    this.#value = new Int32Array(slots).fill(empty);
  }

  get size(): number {
    return this.#size;
  }

  /** The value of a hash, or −1. */
  get(low: number, high: number): number {
    const slot = this.#find(low, high);
    return slot < 0 ? -1 : (this.#value[slot] as number);
  }

  set(low: number, high: number, value: number): void {
    const found = this.#find(low, high);
    if (found >= 0) {
      this.#value[found] = value;
      return;
    }
    let slot = (low ^ Math.imul(high, 0x9e3779b1)) & this.#mask;
    while ((this.#value[slot] as number) >= 0) slot = (slot + 1) & this.#mask;
    if (this.#value[slot] === deleted) this.#deleted--;
    this.#low[slot] = low;
    this.#high[slot] = high;
    this.#value[slot] = value;
    this.#size++;
  }

  delete(low: number, high: number): boolean {
    const slot = this.#find(low, high);
    if (slot < 0) return false;
    // A slot before an empty one ends every probe that reaches it, so it can become empty itself.
    const next = (slot + 1) & this.#mask;
    if (this.#value[next] === empty) {
      this.#value[slot] = empty;
    } else {
      this.#value[slot] = deleted;
      this.#deleted++;
    }
    this.#size--;
    // Long-lived pools evict for ever: rebuild before tombstones make misses walk the whole table.
    if (this.#deleted > this.#mask >> 2) this.#rebuild();
    return true;
  }

  clear(): void {
    this.#value.fill(empty);
    this.#size = 0;
    this.#deleted = 0;
  }

  #find(low: number, high: number): number {
    let slot = (low ^ Math.imul(high, 0x9e3779b1)) & this.#mask;
    for (;;) {
      const value = this.#value[slot] as number;
      if (value === empty) return -1;
      if (value >= 0 && this.#low[slot] === low && this.#high[slot] === high) return slot;
      slot = (slot + 1) & this.#mask;
    }
  }

  #rebuild(): void {
    const kept: [number, number, number][] = [];
    for (let slot = 0; slot <= this.#mask; slot++) {
      const value = this.#value[slot] as number;
      if (value >= 0) kept.push([this.#low[slot] as number, this.#high[slot] as number, value]);
    }
    this.clear();
    for (const [low, high, value] of kept) this.set(low, high, value);
  }
}
