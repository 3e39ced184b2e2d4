const none = -1;
const cellsPerEntry = 4;
/** Entries that there is room for at first. */
const capacityMin = 1 << 10;

/**
 * A tree of numbered nodes as one open-addressing table: from a node, a text and what the template puts behind it to the next
 * node. A step costs a cache miss, whatever the number of branches.
 */
export class PrefixTable {
  /** Entries of node, text, connector and the next node; no next node is numbered 0. */
  #cells = new Int32Array(cellsPerEntry * capacityMin);
  #used = 0;

  /** Memory that it takes, bytes. */
  get bytes(): number {
    return this.#cells.byteLength;
  }

  /** The next node, or −1. */
  find(node: number, text: number, connector: number): number {
    const cells = this.#cells;
    const mask = cells.length / cellsPerEntry - 1;
    let slot = hashOf(node, text, connector) & mask;
    for (;;) {
      const at = cellsPerEntry * slot;
      const next = cells[at + 3] as number;
      if (next === 0) return none;
      if (cells[at] === node && cells[at + 1] === text && cells[at + 2] === connector) return next;
      slot = (slot + 1) & mask;
    }
  }

  /** Adds a branch that `find` does not find. */
  add(node: number, text: number, connector: number, next: number): void {
    if (2 * this.#used >= this.#cells.length / cellsPerEntry) this.#grow();
    this.#used++;
    this.#put(node, text, connector, next);
  }

  /** Forgets everything. */
  clear(): void {
    this.#cells = new Int32Array(cellsPerEntry * capacityMin);
    this.#used = 0;
  }

  #put(node: number, text: number, connector: number, next: number): void {
    const cells = this.#cells;
    const mask = cells.length / cellsPerEntry - 1;
    let slot = hashOf(node, text, connector) & mask;
    while (cells[cellsPerEntry * slot + 3] !== 0) slot = (slot + 1) & mask;
    const at = cellsPerEntry * slot;
    cells[at] = node;
    cells[at + 1] = text;
    cells[at + 2] = connector;
    cells[at + 3] = next;
  }

  #grow(): void {
    const old = this.#cells;
    this.#cells = new Int32Array(2 * old.length);
    for (let at = 0; at < old.length; at += cellsPerEntry) {
      const next = old[at + 3] as number;
      if (next === 0) continue;
      this.#put(old[at] as number, old[at + 1] as number, old[at + 2] as number, next);
    }
  }
}

function hashOf(node: number, text: number, connector: number): number {
  let h = Math.imul(node, 0x9e3779b1) ^ Math.imul(text, 0x85ebca77) ^ connector;
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  return h ^ (h >>> 13);
}
