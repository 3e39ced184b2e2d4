import { hashNextBlock, type HashRoot } from "../../../shared/core/block-hash.ts";

/** Hashes are in pages of so many numbers, or one of their own when there are more. */
const pageSize = 1 << 13;
/** Cells of a run: its page, where it is there, blocks that there is room for, blocks that it has. */
const cellsPerRun = 4;

/**
 * Block hashes of prompts that go on from one another: a run is the hashes of the longest of them as (lo, hi) pairs, of which
 * the others have a beginning. The first prompt to go on from a run's end makes it longer, any other gets a copy of the
 * beginning. What has been handed out never changes.
 */
export class HashRuns {
  #pages: Uint32Array[] = [];
  #pageEnd = 0;
  #cells = new Int32Array(cellsPerRun * 256);
  #count = 0;
  #bytes = 0;
  readonly #next = new Uint32Array(2);

  /** Memory that they take, bytes. */
  get bytes(): number {
    return this.#bytes + this.#cells.byteLength;
  }

  /** Forgets all of them. */
  clear(): void {
    this.#pages = [];
    this.#cells = new Int32Array(cellsPerRun * 256);
    this.#count = 0;
    this.#bytes = 0;
  }

  /** An empty run. */
  add(): number {
    return this.#allocate(0);
  }

  /** The hashes of the first blocks of a run: a view of memory that others share, not to be written to. */
  hashes(run: number, blocks: number): Uint32Array {
    const at = cellsPerRun * run;
    const from = this.#cells[at + 1] as number;
    return this.#page(run).subarray(from, from + 2 * blocks);
  }

  /**
   * Hashes the full blocks of `ids[0 … count)` behind the first `blocks` of a run. Returns the run that has them, which is
   * another one when this one goes on already.
   */
  extend(
    before: number,
    blocks: number,
    ids: Uint32Array,
    count: number,
    chain: { readonly root: HashRoot; readonly blockSizeTokens: number },
  ): number {
    const { blockSizeTokens, root } = chain;
    const more = Math.floor(count / blockSizeTokens);
    if (more === 0) return before;
    const run = this.#roomFor(before, blocks, blocks + more);
    const page = this.#page(run);
    const from = (this.#cells[cellsPerRun * run + 1] as number) + 2 * blocks;
    const next = this.#next;
    let lo = (blocks === 0 ? root.lo : (page[from - 2] as number)) | 0;
    let hi = (blocks === 0 ? root.hi : (page[from - 1] as number)) | 0;
    for (let i = 0; i < more; i++) {
      hashNextBlock(lo, hi, ids, i * blockSizeTokens, blockSizeTokens, next);
      lo = (next[0] as number) | 0;
      hi = (next[1] as number) | 0;
      page[from + 2 * i] = lo;
      page[from + 2 * i + 1] = hi;
    }
    this.#cells[cellsPerRun * run + 3] = blocks + more;
    return run;
  }

  #page(run: number): Uint32Array {
    return this.#pages[this.#cells[cellsPerRun * run] as number] as Uint32Array;
  }

  /** A run with the first `blocks` of this one, with room for `wanted`. */
  #roomFor(run: number, blocks: number, wanted: number): number {
    const at = cellsPerRun * run;
    const isEnd = this.#cells[at + 3] === blocks;
    if (isEnd && wanted <= (this.#cells[at + 2] as number)) return run;
    const larger = this.#allocate(wanted + Math.min(wanted >> 2, 256));
    const from = this.#cells[at + 1] as number;
    const to = this.#cells[cellsPerRun * larger + 1] as number;
    const old = this.#page(run);
    const page = this.#page(larger);
    for (let i = 0; i < 2 * blocks; i++) page[to + i] = old[from + i] as number;
    return larger;
  }

  #allocate(blocks: number): number {
    const run = this.#count++;
    if (cellsPerRun * this.#count > this.#cells.length) {
      const larger = new Int32Array(2 * this.#cells.length);
      larger.set(this.#cells);
      this.#cells = larger;
    }
    const last = this.#pages.at(-1);
    if (last === undefined || this.#pageEnd + 2 * blocks > last.length) {
      const page = new Uint32Array(Math.max(pageSize, 2 * blocks));
      this.#bytes += page.byteLength;
      this.#pages.push(page);
      this.#pageEnd = 0;
    }
    const at = cellsPerRun * run;
    this.#cells[at] = this.#pages.length - 1;
    this.#cells[at + 1] = this.#pageEnd;
    this.#cells[at + 2] = blocks;
    this.#cells[at + 3] = 0;
    this.#pageEnd += 2 * blocks;
    return run;
  }
}
