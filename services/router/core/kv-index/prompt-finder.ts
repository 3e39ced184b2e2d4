import { segmentBlocks, type BlockTable } from "./block-table.ts";

const guessesMax = 16;
/** A guess for the last block of every segment while runs are long. */
const strideLogInRuns = Math.log2(segmentBlocks);
/** A run shorter than this says that the blocks around are scattered. */
const shortRunBlocks = 8;

/**
 * Finds the blocks of one prompt: the ends of its segments, and those where a run of consecutive records breaks off.
 *
 * A lone search waits for two reads from memory, one after the other. So the finder searches ahead, 16 blocks at once: the
 * last block of each segment while the prompt lies in runs (the start of a run is then counted back from a block inside
 * it), every block where runs are short. A guess counts only if the record has the whole key; otherwise the table is
 * searched.
 */
export class PromptFinder {
  readonly #table: BlockTable;
  readonly #guesses = new Int32Array(guessesMax);
  #from = 0;
  #strideLog = 0;
  /** First block that the guesses say nothing of. */
  #end = 0;
  #lastBreak = 0;

  constructor(table: BlockTable) {
    this.#table = table;
  }

  /** Begins another prompt. */
  start(): void {
    this.#end = 0;
    this.#lastBreak = -shortRunBlocks;
  }

  /** Record of the last block of the segment that begins at `i`, if it was guessed right; 0 otherwise. */
  segmentEnd(hashes: Uint32Array, i: number, count: number): number {
    // Scattered blocks make no segment.
    if (this.#strideLog === 0 && i - this.#lastBreak < shortRunBlocks) return 0;
    const last = i + segmentBlocks - 1;
    if (last >= this.#end) this.#guessFrom(hashes, i, count, strideLogInRuns);
    // While blocks are scattered the guesses are for each of them.
    if (this.#strideLog !== strideLogInRuns) return 0;
    const record = this.#guesses[(last - this.#from) >> strideLogInRuns] as number;
    const lo = (hashes[2 * last] as number) | 0;
    const hi = (hashes[2 * last + 1] as number) | 0;
    return this.#table.holds(record, lo, hi) ? record : 0;
  }

  /** Record of block `i` of a prompt of `count` blocks, 0 if there is none; `i` must ascend. */
  find(hashes: Uint32Array, i: number, count: number): number {
    const isScattered = i - this.#lastBreak < shortRunBlocks;
    this.#lastBreak = i;
    if (i >= this.#end || (isScattered && this.#strideLog !== 0)) {
      this.#guessFrom(hashes, i, count, isScattered ? 0 : strideLogInRuns);
    }
    const lo = (hashes[2 * i] as number) | 0;
    const hi = (hashes[2 * i + 1] as number) | 0;
    const distance = i - this.#from;
    const ahead = (distance + (1 << this.#strideLog) - 1) >> this.#strideLog;
    const blocksBack = (ahead << this.#strideLog) - distance;
    // Past the last guess there is none to count back from.
    const record = ahead < guessesMax ? (this.#guesses[ahead] as number) - blocksBack : 0;
    if (record > 0 && this.#table.holds(record, lo, hi)) return record;
    return this.#table.find(lo, hi);
  }

  #guessFrom(hashes: Uint32Array, i: number, count: number, strideLog: number): void {
    const stride = 1 << strideLog;
    // The first block from `i` on that is the last of its stride.
    const from = i | (stride - 1);
    const guesses = Math.max(0, Math.min(guessesMax, (count - from + stride - 1) >> strideLog));
    this.#guesses.fill(0);
    if (guesses > 0) this.#table.guess(hashes, from, stride, guesses, this.#guesses);
    this.#from = from;
    this.#strideLog = strideLog;
    this.#end = guesses === 0 ? count : from + (guesses - 1) * stride + 1;
  }
}
