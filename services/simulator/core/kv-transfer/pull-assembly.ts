import { MeshError } from "../../../shared/core/errors.ts";
import { isBlockContent } from "./block-content.ts";
import type { Frame } from "./frames.ts";

type Chunk = Extract<Frame, { kind: "chunk" }>;

/** What a pull brought. */
export interface PulledBlocks {
  /** Leading blocks that are complete and undamaged; what follows must be computed. */
  readonly goodBlocks: number;
  /** Blocks whose checksum was wrong. */
  readonly damagedBlocks: number;
  /**
   * Good blocks, by place, that arrived as they were sent but hold something else than their tokens: the key that
   * stands for it. One-sided reads of a hand-off that is over give such blocks.
   */
  readonly foreign: ReadonlyMap<number, { readonly low: number; readonly high: number }>;
}

/**
 * Receives the chunks of one pull and judges every block: checksum (was it damaged on the way?) and content (is it what
 * these tokens need?). Bytes are compared and dropped, not kept. Costs CRC-32 plus making the content once.
 */
export class PullAssembly {
  readonly #keys: Uint32Array;
  readonly #bytesPerBlock: number;
  readonly #checksum: (bytes: Uint8Array) => number;
  readonly #damaged = new Set<number>();
  readonly #foreign = new Map<number, { low: number; high: number }>();
  #nextBlock = 0;
  #nextOffset = 0;
  #receivedBytes = 0;

  /** `keys` holds (low, high) of each block asked for. */
  constructor(options: {
    keys: Uint32Array;
    bytesPerBlock: number;
    checksum: (bytes: Uint8Array) => number;
  }) {
    this.#keys = options.keys;
    this.#bytesPerBlock = options.bytesPerBlock;
    this.#checksum = options.checksum;
  }

  get blockCount(): number {
    return this.#keys.length / 2;
  }

  get receivedBytes(): number {
    return this.#receivedBytes;
  }

  /** Blocks that are complete, damaged ones included. */
  get completeBlocks(): number {
    return this.#nextBlock;
  }

  get isComplete(): boolean {
    return this.#nextBlock === this.blockCount;
  }

  /** Throws `invalid_request` for a chunk that is not the next one. */
  take(chunk: Chunk): void {
    const bytesEach = (chunk.words.length * 4) / chunk.blockCount;
    const isNext =
      chunk.firstBlock === this.#nextBlock &&
      chunk.offsetBytes === this.#nextOffset &&
      chunk.firstBlock + chunk.blockCount <= this.blockCount &&
      chunk.offsetBytes + bytesEach <= this.#bytesPerBlock &&
      (chunk.blockCount === 1 || bytesEach === this.#bytesPerBlock);
    if (!isNext) {
      throw new MeshError(
        "invalid_request",
        `KV chunk of blocks ${chunk.firstBlock}+${chunk.blockCount} at byte ${chunk.offsetBytes} came where ` +
          `block ${this.#nextBlock} at byte ${this.#nextOffset} was due`,
      );
    }
    for (let i = 0; i < chunk.blockCount; i++) {
      const words = chunk.words.subarray((i * bytesEach) / 4, ((i + 1) * bytesEach) / 4);
      this.#judge(chunk.firstBlock + i, chunk.offsetBytes / 4, words, chunk.checksums[i] as number);
    }
    this.#receivedBytes += chunk.words.length * 4;
    this.#nextOffset += bytesEach;
    if (this.#nextOffset === this.#bytesPerBlock) {
      this.#nextOffset = 0;
      this.#nextBlock += chunk.blockCount;
    }
  }

  result(): PulledBlocks {
    let good = 0;
    while (good < this.#nextBlock && !this.#damaged.has(good)) good++;
    const foreign = new Map([...this.#foreign].filter(([block]) => block < good));
    return { goodBlocks: good, damagedBlocks: this.#damaged.size, foreign };
  }

  #judge(block: number, firstWord: number, words: Uint32Array, checksum: number): void {
    const bytes = new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
    if (this.#checksum(bytes) >>> 0 !== checksum) {
      this.#damaged.add(block);
      return;
    }
    const key = {
      low: this.#keys[block * 2] as number,
      high: this.#keys[block * 2 + 1] as number,
    };
    if (this.#foreign.has(block) || isBlockContent(words, key, firstWord)) return;
    this.#foreign.set(block, { low: words[0] as number, high: words[1] as number });
  }
}
