/**
 * What each physical KV block of one engine really holds, as the key of its content. A block keeps its content after it
 * is released and until it is handed out again: who reads it late (a hand-off that was used before) gets what lies
 * there. Two words a block; only engines with a KV connector have one.
 */
export class BlockContents {
  readonly #low: Uint32Array;
  readonly #high: Uint32Array;
  #overwrites = 0;

  constructor(capacityBlocks: number) {
    this.#low = new Uint32Array(capacityBlocks);
    this.#high = new Uint32Array(capacityBlocks);
  }

  get capacityBlocks(): number {
    return this.#low.length;
  }

  /** The block was given to another sequence: from now on it holds something of its own. */
  overwrite(block: number): void {
    this.#overwrites++;
    this.#low[block] = Math.imul(this.#overwrites, 0x9e3779b1);
    this.#high[block] = ~block;
  }

  write(block: number, low: number, high: number): void {
    this.#low[block] = low;
    this.#high[block] = high;
  }

  keyOf(block: number): { readonly low: number; readonly high: number } {
    return { low: this.#low[block] as number, high: this.#high[block] as number };
  }

  /** 0 when the block holds what (low, high) names, otherwise a number that depends on what it holds instead. */
  taintOf(block: number, low: number, high: number): number {
    const wrongLow = ((this.#low[block] as number) ^ low) >>> 0;
    const wrongHigh = ((this.#high[block] as number) ^ high) >>> 0;
    if (wrongLow === 0 && wrongHigh === 0) return 0;
    return (Math.imul(wrongLow ^ 0x2545f491, 0x85ebca6b) ^ wrongHigh) | 1;
  }
}
