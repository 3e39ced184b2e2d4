/** Most hashes in one message of the join stream, so that no message is larger than 512 KiB. */
export const hashesPerMessageMax = 65_536;

/** A part of a snapshot. `digestLo`, `digestHi` and `blockCount` count on the last chunk only. */
export interface SnapshotChunk {
  readonly baseSeq: number;
  /** Pairs `[lo0, hi0, …]`; a view, valid as long as the snapshot lives. */
  readonly hashes: Uint32Array;
  readonly last: boolean;
  readonly digestLo: number;
  readonly digestHi: number;
  readonly blockCount: number;
}

/** XOR of all hashes, pairs `[lo0, hi0, …]`; zero for none. Order does not matter. */
export function xorDigest(hashes: Uint32Array): { readonly lo: number; readonly hi: number } {
  let lo = 0;
  let hi = 0;
  for (let i = 0; i + 1 < hashes.length; i += 2) {
    lo ^= hashes[i] as number;
    hi ^= hashes[i + 1] as number;
  }
  return { lo: lo >>> 0, hi: hi >>> 0 };
}

/** The full set of mesh blocks at one moment, handed out in chunks. An empty set is one empty last chunk. */
export class Snapshot {
  readonly baseSeq: number;
  readonly #hashes: Uint32Array;
  readonly #chunkHashes: number;
  #at = 0;
  #done = false;

  constructor(
    options: { readonly baseSeq: number; readonly hashesPerChunk: number },
    hashes: Uint32Array,
  ) {
    this.baseSeq = options.baseSeq;
    this.#hashes = hashes;
    this.#chunkHashes = Math.min(options.hashesPerChunk, hashesPerMessageMax);
  }

  /** The next chunk, or `undefined` after the last. */
  next(): SnapshotChunk | undefined {
    if (this.#done) return undefined;
    const start = this.#at;
    const end = Math.min(this.#hashes.length, start + 2 * this.#chunkHashes);
    this.#at = end;
    this.#done = end === this.#hashes.length;
    const digest = this.#done ? xorDigest(this.#hashes) : { lo: 0, hi: 0 };
    return {
      baseSeq: this.baseSeq,
      hashes: this.#hashes.subarray(start, end),
      last: this.#done,
      digestLo: digest.lo,
      digestHi: digest.hi,
      blockCount: this.#done ? this.#hashes.length / 2 : 0,
    };
  }
}
