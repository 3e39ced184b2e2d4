/** Buckets grow by this factor, from `leastMs`; the last one takes all that is longer. */
const factor = 1.2;
const leastMs = 0.1;
const bucketCount = 72;
const logFactor = Math.log(factor);

/** A gap is a stall when it is this many times the mean of those before it … */
const stallMultiple = 8;
/** … and at least this long, ms. */
const stallMsMin = 200;

/** Who a stall was waiting for. */
export type StallSide = "engine" | "client";

/** Gaps between the pieces of one answer, in 300 bytes: quantiles to a factor of 1.2, and stalls by who caused them. */
export class StreamGaps {
  readonly #counts = new Uint32Array(bucketCount);
  #count = 0;
  #sumMs = 0;
  #lastAt: number;
  #pausedAt = 0;
  #stalls = 0;
  #engineStallMs = 0;
  #clientStallMs = 0;

  /** `now`: when the first piece came, ms. */
  constructor(now: number) {
    this.#lastAt = now;
  }

  get stalls(): number {
    return this.#stalls;
  }

  get engineStallMs(): number {
    return this.#engineStallMs;
  }

  get clientStallMs(): number {
    return this.#clientStallMs;
  }

  /** Mean gap, ms; `undefined` before there is one. */
  get meanMs(): number | undefined {
    return this.#count === 0 ? undefined : this.#sumMs / this.#count;
  }

  /** A further piece came. Length of the engine's stall before it, ms; 0 for an ordinary gap. */
  piece(now: number): number {
    const gapMs = Math.max(0, now - this.#lastAt);
    this.#lastAt = now;
    const isStall = this.#isStall(gapMs);
    const bucket = gapMs <= leastMs ? 0 : Math.ceil(Math.log(gapMs / leastMs) / logFactor);
    const index = Math.min(bucketCount - 1, bucket);
    this.#counts[index] = (this.#counts[index] as number) + 1;
    this.#count++;
    this.#sumMs += gapMs;
    if (!isStall) return 0;
    this.#stalls++;
    this.#engineStallMs += gapMs;
    return gapMs;
  }

  /** The client is behind: the engine is not read from now on. */
  paused(now: number): void {
    this.#pausedAt = now;
  }

  /** The client takes more again. Length of its stall, ms; 0 for an ordinary wait. The engine's gap begins anew. */
  resumed(now: number): number {
    if (this.#pausedAt === 0) return 0;
    const waitedMs = now - this.#pausedAt;
    this.#pausedAt = 0;
    this.#lastAt = now;
    if (!this.#isStall(waitedMs)) return 0;
    this.#stalls++;
    this.#clientStallMs += waitedMs;
    return waitedMs;
  }

  /** Smallest bound that this share of the gaps does not exceed, ms; `undefined` before there is a gap. */
  quantileMs(share: number): number | undefined {
    if (this.#count === 0) return undefined;
    let left = Math.ceil(share * this.#count);
    for (let i = 0; i < bucketCount; i++) {
      left -= this.#counts[i] as number;
      if (left <= 0) return leastMs * factor ** i;
    }
    return leastMs * factor ** (bucketCount - 1);
  }

  #isStall(gapMs: number): boolean {
    const mean = this.#count === 0 ? 0 : this.#sumMs / this.#count;
    return gapMs >= Math.max(stallMsMin, stallMultiple * mean);
  }
}
