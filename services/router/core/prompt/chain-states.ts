import type { HashRoot } from "../../../shared/core/block-hash.ts";
import { HashRuns } from "./hash-runs.ts";

/** Cells of a state: tokens, blocks, run, where its tail is and how long that is. */
const cellsPerState = 5;
const statesMin = 1 << 8;

/**
 * Where chains of blocks stand behind parts of prompts, as numbers in typed arrays: nothing that a garbage collector would
 * have to look at. A state is the tokens so far, the hashes of the full blocks among them, and the tokens behind these.
 */
export class ChainStates {
  readonly #runs = new HashRuns();
  #cells = new Int32Array(cellsPerState * statesMin);
  /** No state is numbered 0. */
  #count = 1;
  #tails = new Uint32Array(16 * statesMin);
  #tailsEnd = 0;

  /** Memory that they take, bytes. */
  get bytes(): number {
    return this.#runs.bytes + this.#cells.byteLength + this.#tails.byteLength;
  }

  /** Forgets all of them. */
  clear(): void {
    this.#runs.clear();
    this.#cells = new Int32Array(cellsPerState * statesMin);
    this.#count = 1;
    this.#tails = new Uint32Array(16 * statesMin);
    this.#tailsEnd = 0;
  }

  /** A state before any token. */
  start(): number {
    return this.#add(0, 0, this.#runs.add(), 0);
  }

  /** Tokens of a state. */
  tokens(state: number): number {
    return this.#cells[cellsPerState * state] as number;
  }

  /** Hashes of its blocks as (lo, hi) pairs: a view of memory that others share, not to be written to. */
  hashes(state: number): Uint32Array {
    const at = cellsPerState * state;
    return this.#runs.hashes(this.#cells[at + 2] as number, this.#cells[at + 1] as number);
  }

  /** How many tokens stand behind the last full block; fewer than a block. */
  tailLength(state: number): number {
    return this.#cells[cellsPerState * state + 4] as number;
  }

  /** Puts these tokens to the start of `ids`. */
  putTail(state: number, ids: Uint32Array): void {
    const at = this.#cells[cellsPerState * state + 3] as number;
    const length = this.tailLength(state);
    for (let i = 0; i < length; i++) ids[i] = this.#tails[at + i] as number;
  }

  /** The state behind `ids[0 … count)`, which begin with the tail of the state before. */
  next(
    before: number,
    ids: Uint32Array,
    count: number,
    chain: { readonly root: HashRoot; readonly blockSizeTokens: number },
  ): number {
    const at = cellsPerState * before;
    const blocks = this.#cells[at + 1] as number;
    const run = this.#cells[at + 2] as number;
    const tokens = this.tokens(before) - this.tailLength(before) + count;
    const more = Math.floor(count / chain.blockSizeTokens);
    const ours = this.#runs.extend(run, blocks, ids, count, chain);
    const from = more * chain.blockSizeTokens;
    const state = this.#add(tokens, blocks + more, ours, count - from);
    const tails = this.#tails;
    const tailAt = this.#cells[cellsPerState * state + 3] as number;
    for (let i = from; i < count; i++) tails[tailAt + i - from] = ids[i] as number;
    return state;
  }

  #add(tokens: number, blocks: number, run: number, tailLength: number): number {
    const state = this.#count++;
    const at = cellsPerState * state;
    if (at + cellsPerState > this.#cells.length) {
      const larger = new Int32Array(2 * this.#cells.length);
      larger.set(this.#cells);
      this.#cells = larger;
    }
    if (this.#tailsEnd + tailLength > this.#tails.length) {
      const larger = new Uint32Array(2 * this.#tails.length + tailLength);
      larger.set(this.#tails);
      this.#tails = larger;
    }
    const cells = this.#cells;
    cells[at] = tokens;
    cells[at + 1] = blocks;
    cells[at + 2] = run;
    cells[at + 3] = this.#tailsEnd;
    cells[at + 4] = tailLength;
    this.#tailsEnd += tailLength;
    return state;
  }
}
