/**
 * A set of block hashes that is filled, drawn from and filled anew many times a second: open addressing over arrays
 * that are kept, a few nanoseconds a block.
 */
export class FreshBlocks {
  /** Place of a block in `#hashes` plus one; 0 is free. At least twice as many as blocks. */
  #slots = new Int32Array(64);
  #mask = 63;
  /** (lo, hi) pairs; only until the next `fill`. */
  #hashes: Uint32Array = new Uint32Array(0);
  #drawn = new Uint8Array(32);
  #size = 0;

  /** Blocks not drawn yet. */
  get size(): number {
    return this.#size;
  }

  /** Holds these blocks and no others, as (lo, hi) pairs that do not change meanwhile. */
  fill(hashes: Uint32Array): void {
    const count = hashes.length / 2;
    let slots = 64;
    while (slots < 2 * count) slots *= 2;
    if (slots > this.#slots.length) {
      this.#slots = new Int32Array(slots);
      this.#drawn = new Uint8Array(slots / 2);
    } else this.#slots.fill(0, 0, slots);
    this.#mask = slots - 1;
    this.#hashes = hashes;
    this.#drawn.fill(0, 0, count);
    this.#size = 0;
    for (let i = 0; i < count; i++) this.#add(i);
  }

  /** Takes a block out; whether it was in. */
  draw(lo: number, hi: number): boolean {
    const hashes = this.#hashes;
    for (let slot = lo & this.#mask; ; slot = (slot + 1) & this.#mask) {
      const block = (this.#slots[slot] as number) - 1;
      if (block < 0) return false;
      if (hashes[2 * block] !== lo || hashes[2 * block + 1] !== hi) continue;
      if (this.#drawn[block] === 1) return false;
      this.#drawn[block] = 1;
      this.#size--;
      return true;
    }
  }

  #add(block: number): void {
    const lo = this.#hashes[2 * block] as number;
    const hi = this.#hashes[2 * block + 1] as number;
    for (let slot = lo & this.#mask; ; slot = (slot + 1) & this.#mask) {
      const other = (this.#slots[slot] as number) - 1;
      if (other < 0) {
        this.#slots[slot] = block + 1;
        this.#size++;
        return;
      }
      if (this.#hashes[2 * other] === lo && this.#hashes[2 * other + 1] === hi) return;
    }
  }
}
