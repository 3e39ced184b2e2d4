import type { BufferPool } from "../../../shared/core/h2/buffer-pool.ts";
import type { BodyStore } from "../../core/exchange/exchange.ts";
import { pieceHeadBytesMax } from "./answer-messages.ts";

/** A length that a client only claims is believed up to here, bytes; longer bodies grow. */
const claimBytesMax = 1 << 20;
const noParts: readonly Uint8Array[] = [];

/**
 * A body that is sent back, copied into one buffer of a pool, with room before it for the head of its first piece.
 * A body in one part needs no joining for those who read it.
 */
export class PooledBody implements BodyStore {
  readonly #pool: BufferPool;
  readonly #claimedBytes: () => number;
  #buffer: Uint8Array | undefined;
  #end = pieceHeadBytesMax;
  #parts = noParts;

  /** `claimedBytes`: how long the client says that the body is, NaN when it does not. */
  constructor(pool: BufferPool, claimedBytes: () => number) {
    this.#pool = pool;
    this.#claimedBytes = claimedBytes;
  }

  /** The body so far, in one part; none while it is empty. Valid until the next `add` or `release`. */
  get parts(): readonly Uint8Array[] {
    const buffer = this.#buffer;
    if (buffer === undefined) return noParts;
    if (this.#parts.length === 0) this.#parts = [buffer.subarray(pieceHeadBytesMax, this.#end)];
    return this.#parts;
  }

  add(part: Uint8Array): void {
    const end = this.#end + part.length;
    let buffer = this.#buffer;
    if (buffer === undefined || buffer.length < end) {
      const claimed = buffer === undefined ? this.#claimedBytes() : 0;
      const wanted = claimed > 0 ? pieceHeadBytesMax + Math.min(claimed, claimBytesMax) : 0;
      const grown = takeFrom(this.#pool, Math.max(wanted, end));
      if (buffer !== undefined) {
        grown.set(buffer.subarray(0, this.#end));
        this.#pool.give(buffer);
      }
      buffer = grown;
      this.#buffer = grown;
    }
    buffer.set(part, this.#end);
    this.#end = end;
    this.#parts = noParts;
  }

  /** Gives the buffer back; nobody may use `parts` afterwards. */
  release(): void {
    if (this.#buffer === undefined) return;
    this.#pool.give(this.#buffer);
    this.#buffer = undefined;
    this.#parts = noParts;
    this.#end = pieceHeadBytesMax;
  }
}

function takeFrom(pool: BufferPool, bytes: number): Uint8Array {
  const taken = pool.take(bytes);
  if (taken === undefined) throw new RangeError(`no buffer of ${bytes} bytes`);
  return taken;
}
