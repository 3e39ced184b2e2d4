const cellsPerEntry = 4;
/** Entries that there is room for at first. */
const capacityMin = 1 << 10;

/**
 * Beginnings of prompts by a hash of 64 bits, chained over their texts and what stands between these, as one open-addressing
 * table. Of each it tells two numbers, 0 for none. Because a beginning is found without those before it, the longest known
 * one is looked for from a prompt's end.
 */
export class PrefixTable {
  /** Entries of the hash, in two halves, and the two numbers; an entry with neither is free. */
  #cells = new Int32Array(cellsPerEntry * capacityMin);
  #used = 0;

  /** Memory that it takes, bytes. */
  get bytes(): number {
    return this.#cells.byteLength;
  }

  /** The first number of a beginning: a state that it leaves a chain in. */
  state(a: number, b: number): number {
    return this.#cells[this.#find(a, b) + 2] as number;
  }

  /** The second number: the state of a prompt that ends there. */
  end(a: number, b: number): number {
    return this.#cells[this.#find(a, b) + 3] as number;
  }

  /** Sets the first number. */
  setState(a: number, b: number, state: number): void {
    this.#cells[this.#taken(a, b) + 2] = state;
  }

  /** Sets the second number. */
  setEnd(a: number, b: number, state: number): void {
    this.#cells[this.#taken(a, b) + 3] = state;
  }

  /** Forgets everything. */
  clear(): void {
    this.#cells = new Int32Array(cellsPerEntry * capacityMin);
    this.#used = 0;
  }

  /** Where an entry is, or where it would be. */
  #find(a: number, b: number): number {
    const cells = this.#cells;
    const last = cells.length - cellsPerEntry;
    let at = (cellsPerEntry * a) & last;
    while (
      (cells[at] !== a || cells[at + 1] !== b) &&
      ((cells[at + 2] as number) | (cells[at + 3] as number)) !== 0
    ) {
      at = (at + cellsPerEntry) & last;
    }
    return at;
  }

  #taken(a: number, b: number): number {
    if (2 * this.#used >= this.#cells.length / cellsPerEntry) this.#grow();
    const at = this.#find(a, b);
    const cells = this.#cells;
    if (((cells[at + 2] as number) | (cells[at + 3] as number)) === 0) {
      this.#used++;
      cells[at] = a;
      cells[at + 1] = b;
    }
    return at;
  }

  #grow(): void {
    const old = this.#cells;
    this.#cells = new Int32Array(2 * old.length);
    for (let from = 0; from < old.length; from += cellsPerEntry) {
      if (((old[from + 2] as number) | (old[from + 3] as number)) === 0) continue;
      const at = this.#find(old[from] as number, old[from + 1] as number);
      for (let i = 0; i < cellsPerEntry; i++) this.#cells[at + i] = old[from + i] as number;
    }
  }
}
