/** A hash of 96 bits of something of a body, and where it is (`TextScanner`). */
export interface Hashed {
  readonly lo: number;
  readonly hi: number;
  readonly check: number;
  readonly start: number;
  readonly end: number;
}

/** Cells of an entry: lo, hi, check, size, domain, number + 1 (0 is none); two are spare, so that an entry is 32 bytes. */
const cellsPerEntry = 8;
const sizeCell = 3;
const domainCell = 4;
const numberCell = 5;
const capacityMin = 1 << 8;

/**
 * Numbers of things seen before by their hashes, as one open-addressing table: a look-up costs a cache miss. Numbers are small
 * and used again; when told to, it lets go of one that was not looked up since it was last considered.
 */
export class SeenTable {
  #cells = new Int32Array(cellsPerEntry * capacityMin);
  #count = 0;
  /** By number: the keys, and whether it was looked up again. */
  #keys = new Int32Array(cellsPerEntry * capacityMin);
  #used = new Uint8Array(capacityMin);
  #freed: number[] = [];
  #numbers = 0;
  #hand = 0;

  /** How many there are. */
  get size(): number {
    return this.#count;
  }

  /** The number of what has this hash, in a domain of its own; −1 for nothing. */
  find(of: Hashed, domain: number): number {
    const cells = this.#cells;
    const mask = cells.length / cellsPerEntry - 1;
    const { lo, hi, check } = of;
    const size = of.end - of.start;
    let slot = slotOf(lo, domain) & mask;
    for (;;) {
      const at = cellsPerEntry * slot;
      const number = (cells[at + numberCell] as number) - 1;
      if (number < 0) return -1;
      if (
        cells[at] === lo &&
        cells[at + 1] === hi &&
        cells[at + 2] === check &&
        cells[at + sizeCell] === size &&
        cells[at + domainCell] === domain
      ) {
        this.#used[number] = 1;
        return number;
      }
      slot = (slot + 1) & mask;
    }
  }

  /** A number for what `find` does not find. */
  add(of: Hashed, domain: number): number {
    if (2 * this.#count >= this.#cells.length / cellsPerEntry) this.#grow();
    const number = this.#freed.pop() ?? this.#numbers++;
    if (number >= this.#used.length) {
      this.#used = enlarged(this.#used, new Uint8Array(2 * this.#used.length));
      this.#keys = enlarged(this.#keys, new Int32Array(2 * this.#keys.length));
    }
    const keys = this.#keys;
    const at = cellsPerEntry * number;
    keys[at] = of.lo;
    keys[at + 1] = of.hi;
    keys[at + 2] = of.check;
    keys[at + sizeCell] = of.end - of.start;
    keys[at + domainCell] = domain;
    keys[at + numberCell] = number + 1;
    this.#used[number] = 0;
    this.#count++;
    this.#put(keys, at);
    return number;
  }

  /** Lets go of one that was not looked up for a while, and returns its number; −1 when there are none. */
  drop(): number {
    if (this.#count === 0) return -1;
    for (;;) {
      if (this.#hand >= this.#numbers) this.#hand = 0;
      const number = this.#hand++;
      const at = cellsPerEntry * number;
      if (this.#keys[at + numberCell] === 0) continue;
      if (this.#used[number] === 1) {
        this.#used[number] = 0;
        continue;
      }
      this.#remove(at);
      this.#keys[at + numberCell] = 0;
      this.#freed.push(number);
      this.#count--;
      return number;
    }
  }

  #put(from: Int32Array, at: number): void {
    const cells = this.#cells;
    const mask = cells.length / cellsPerEntry - 1;
    let slot = slotOf(from[at] as number, from[at + domainCell] as number) & mask;
    while (cells[cellsPerEntry * slot + numberCell] !== 0) slot = (slot + 1) & mask;
    for (let i = 0; i <= numberCell; i++) cells[cellsPerEntry * slot + i] = from[at + i] as number;
  }

  /** Removes the entry of a number's key; those behind it move up, so that none is cut off. */
  #remove(keyAt: number): void {
    const cells = this.#cells;
    const mask = cells.length / cellsPerEntry - 1;
    const wanted = this.#keys[keyAt + numberCell];
    let slot = slotOf(this.#keys[keyAt] as number, this.#keys[keyAt + domainCell] as number) & mask;
    while (cells[cellsPerEntry * slot + numberCell] !== wanted) slot = (slot + 1) & mask;
    for (let next = (slot + 1) & mask; ; next = (next + 1) & mask) {
      const at = cellsPerEntry * next;
      if (cells[at + numberCell] === 0) break;
      const home = slotOf(cells[at] as number, cells[at + domainCell] as number) & mask;
      if (((next - home) & mask) < ((next - slot) & mask)) continue;
      cells.copyWithin(cellsPerEntry * slot, at, at + cellsPerEntry);
      slot = next;
    }
    cells[cellsPerEntry * slot + numberCell] = 0;
  }

  #grow(): void {
    const old = this.#cells;
    this.#cells = new Int32Array(2 * old.length);
    for (let at = 0; at < old.length; at += cellsPerEntry) {
      if (old[at + numberCell] !== 0) this.#put(old, at);
    }
  }
}

function slotOf(lo: number, domain: number): number {
  return lo ^ Math.imul(domain, 0x9e3779b1);
}

function enlarged<T extends Int32Array | Uint8Array>(from: T, to: T): T {
  to.set(from);
  return to;
}
