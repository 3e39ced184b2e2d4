import type { HeaderField } from "./header-field.ts";

/** The dynamic table of HPACK (RFC 7541 §2.3.2 and §4): newest entry first, the oldest evicted beyond the size. */
export class DynamicTable {
  /** A ring; entry `i` (newest 0) lies at `(#newest - i) & mask`. An entry counts at least 32, which bounds its length. */
  readonly #ring: (HeaderField | undefined)[];
  readonly #mask: number;
  #newest = 0;
  #length = 0;
  #size = 0;
  #sizeMax: number;
  #version = 0;

  /** `sizeMax`: bytes, as RFC 7541 §4.1 counts them; also the most that `resize` may set later. */
  constructor(sizeMax: number) {
    let slots = 1;
    while (slots < sizeMax / 32 + 1) slots *= 2;
    this.#ring = new Array<HeaderField | undefined>(slots).fill(undefined);
    this.#mask = slots - 1;
    this.#sizeMax = sizeMax;
  }

  get length(): number {
    return this.#length;
  }

  get size(): number {
    return this.#size;
  }

  /** Changes with every change of the table. */
  get version(): number {
    return this.#version;
  }

  /** Entry by age, newest 0; undefined beyond the oldest. */
  at(age: number): HeaderField | undefined {
    return age < this.#length ? this.#ring[(this.#newest - age) & this.#mask] : undefined;
  }

  /** Adds an entry, evicting what no longer fits; one larger than the table empties it and is not kept. */
  add(field: HeaderField): void {
    this.#version++;
    this.#evict(this.#sizeMax - field.size);
    if (field.size > this.#sizeMax) return;
    this.#newest = (this.#newest + 1) & this.#mask;
    this.#ring[this.#newest] = field;
    this.#length++;
    this.#size += field.size;
  }

  /** Sets the size that the encoder wants. */
  resize(sizeMax: number): void {
    this.#version++;
    this.#sizeMax = sizeMax;
    this.#evict(sizeMax);
  }

  #evict(sizeMax: number): void {
    while (this.#size > sizeMax && this.#length > 0) {
      const slot = (this.#newest - this.#length + 1) & this.#mask;
      this.#size -= (this.#ring[slot] as HeaderField).size;
      this.#ring[slot] = undefined;
      this.#length--;
    }
  }
}
