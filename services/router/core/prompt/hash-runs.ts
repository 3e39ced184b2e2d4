import { hashNextBlock, type HashRoot } from "../../../shared/core/block-hash.ts";

/**
 * Block hashes of prompts that go on from one another: a run is the hashes of the longest of them as (lo, hi) pairs, of which
 * the others have a beginning. The first prompt to go on from a run's end makes it longer, any other gets a copy of the
 * beginning. What has been handed out never changes.
 */
export class HashRuns {
  #runs: Uint32Array[] = [];
  #blocks: number[] = [];
  #bytes = 0;
  readonly #next = new Uint32Array(2);

  /** Memory that they take, bytes. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Forgets all of them. */
  clear(): void {
    this.#runs = [];
    this.#blocks = [];
    this.#bytes = 0;
  }

  /** An empty run. */
  add(): number {
    this.#runs.push(new Uint32Array(0));
    return this.#blocks.push(0) - 1;
  }

  /** The hashes of the first blocks of a run: a view of memory that others share, not to be written to. */
  hashes(run: number, blocks: number): Uint32Array {
    return (this.#runs[run] as Uint32Array).subarray(0, 2 * blocks);
  }

  /**
   * Hashes the full blocks of `ids[0 … count)` behind the first `blocks` of a run. Returns the run that has them, which is
   * another one when this one goes on already.
   */
  extend(
    from: { readonly run: number; readonly blocks: number },
    ids: Uint32Array,
    count: number,
    chain: { readonly root: HashRoot; readonly blockSizeTokens: number },
  ): number {
    const { blockSizeTokens, root } = chain;
    const { blocks } = from;
    const more = Math.floor(count / blockSizeTokens);
    if (more === 0) return from.run;
    const run = this.#roomFor(from.run, blocks, blocks + more);
    const hashes = this.#runs[run] as Uint32Array;
    const next = this.#next;
    let lo = (blocks === 0 ? root.lo : (hashes[2 * blocks - 2] as number)) | 0;
    let hi = (blocks === 0 ? root.hi : (hashes[2 * blocks - 1] as number)) | 0;
    for (let i = 0; i < more; i++) {
      hashNextBlock(lo, hi, ids, i * blockSizeTokens, blockSizeTokens, next);
      lo = (next[0] as number) | 0;
      hi = (next[1] as number) | 0;
      hashes[2 * (blocks + i)] = lo;
      hashes[2 * (blocks + i) + 1] = hi;
    }
    this.#blocks[run] = blocks + more;
    return run;
  }

  /** A run with the first `blocks` of this one, with room for `wanted`. */
  #roomFor(run: number, blocks: number, wanted: number): number {
    const hashes = this.#runs[run] as Uint32Array;
    const isEnd = this.#blocks[run] === blocks;
    if (isEnd && 2 * wanted <= hashes.length) return run;
    const larger = new Uint32Array(2 * wanted + Math.min(wanted, 512));
    larger.set(hashes.subarray(0, 2 * blocks));
    this.#bytes += larger.byteLength - (isEnd ? hashes.byteLength : 0);
    if (isEnd) {
      this.#runs[run] = larger;
      return run;
    }
    this.#runs.push(larger);
    return this.#blocks.push(blocks) - 1;
  }
}
