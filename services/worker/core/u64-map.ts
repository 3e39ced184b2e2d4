const empty = -1;
const sizeMin = 64;

/**
 * Hash map from 64-bit keys, given as two unsigned halves, to numbers from 0 to 2³¹ − 1. Open addressing
 * with linear probing in typed arrays: 12 bytes per place, at most half full, no object per entry.
 */
export class U64Map {
  #lo: Uint32Array;
  #hi: Uint32Array;
  #value: Int32Array;
  #mask: number;
  #count = 0;

  constructor() {
    this.#lo = new Uint32Array(sizeMin);
    this.#hi = new Uint32Array(sizeMin);
    this.#value = new Int32Array(sizeMin).fill(empty);
    this.#mask = sizeMin - 1;
  }

  /** Number of entries. */
  get count(): number {
    return this.#count;
  }

  /** The value of a key, or −1. */
  get(lo: number, hi: number): number {
    return this.#value[this.#find(lo, hi)] as number;
  }

  /** Sets the value of a key, new or not. */
  set(lo: number, hi: number, value: number): void {
    const place = this.#find(lo, hi);
    if (this.#value[place] === empty) {
      this.#count++;
      this.#lo[place] = lo;
      this.#hi[place] = hi;
    }
    this.#value[place] = value;
    if (2 * this.#count > this.#mask) this.#grow();
  }

  /** Removes a key and says whether it was there. Later entries of the same run move up, so no tombstone stays. */
  delete(lo: number, hi: number): boolean {
    let hole = this.#find(lo, hi);
    if (this.#value[hole] === empty) return false;
    this.#count--;
    for (let at = (hole + 1) & this.#mask; ; at = (at + 1) & this.#mask) {
      if (this.#value[at] === empty) break;
      const home = hashOf(this.#lo[at] as number, this.#hi[at] as number) & this.#mask;
      if (((at - home) & this.#mask) < ((at - hole) & this.#mask)) continue;
      this.#lo[hole] = this.#lo[at] as number;
      this.#hi[hole] = this.#hi[at] as number;
      this.#value[hole] = this.#value[at] as number;
      hole = at;
    }
    this.#value[hole] = empty;
    return true;
  }

  /** Removes everything and gives the memory back. */
  clear(): void {
    if (this.#count === 0) return;
    this.#allocate(sizeMin);
    this.#count = 0;
  }

  /** Visits every entry, in an order that depends on the keys and the history alone. */
  forEach(visit: (lo: number, hi: number, value: number) => void): void {
    for (let place = 0; place <= this.#mask; place++) {
      const value = this.#value[place] as number;
      if (value !== empty) visit(this.#lo[place] as number, this.#hi[place] as number, value);
    }
  }

  #find(lo: number, hi: number): number {
    let place = hashOf(lo, hi) & this.#mask;
    while (this.#value[place] !== empty && (this.#lo[place] !== lo || this.#hi[place] !== hi)) {
      place = (place + 1) & this.#mask;
    }
    return place;
  }

  #grow(): void {
    const lo = this.#lo;
    const hi = this.#hi;
    const value = this.#value;
    this.#allocate(2 * value.length);
    for (let place = 0; place < value.length; place++) {
      const v = value[place] as number;
      if (v === empty) continue;
      const target = this.#find(lo[place] as number, hi[place] as number);
      this.#lo[target] = lo[place] as number;
      this.#hi[target] = hi[place] as number;
      this.#value[target] = v;
    }
  }

  #allocate(size: number): void {
    this.#lo = new Uint32Array(size);
    this.#hi = new Uint32Array(size);
    this.#value = new Int32Array(size).fill(empty);
    this.#mask = size - 1;
  }
}

/** Keys are hashes already, but an engine may number its blocks, so one round of mixing. */
function hashOf(lo: number, hi: number): number {
  let h = lo ^ Math.imul(hi, 0x9e3779b1);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  return (h ^ (h >>> 13)) >>> 0;
}
