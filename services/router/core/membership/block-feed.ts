/** Where a member's block changes go. */
export interface BlockSink {
  store(hashes: Uint32Array): void;
  remove(hashes: Uint32Array): void;
  clear(): void;
}

/** A change of blocks; hashes as (lo, hi) pairs. */
export interface BlockChange {
  readonly seq: number;
  readonly cleared: boolean;
  readonly removed: Uint32Array;
  readonly stored: Uint32Array;
}

/** One part of a snapshot. */
export interface SnapshotPart {
  readonly baseSeq: number;
  readonly hashes: Uint32Array;
  readonly last: boolean;
  readonly xorLo: number;
  readonly xorHi: number;
  readonly blockCount: number;
}

/** What a message led to. */
export type FeedOutcome =
  | { readonly kind: "applied" }
  | { readonly kind: "buffered" }
  | { readonly kind: "resync"; readonly reason: "gap" | "digest" };

interface Pending {
  readonly baseSeq: number;
  readonly parts: Uint32Array[];
  blocks: number;
  /** Deltas that arrived between parts; they build on the snapshot. */
  readonly later: BlockChange[];
}

/** Changes kept while a snapshot is incomplete; past this the snapshot is asked for again. */
const laterMax = 4_096;

/**
 * One member's stream of snapshots and numbered deltas, applied in order to a sink.
 *
 * A gap or a wrong digest asks for a snapshot; until it is complete the sink keeps what it has and goes on
 * taking deltas, and the member counts as suspect. A snapshot replaces everything at once when its last part
 * has come and its digest and count are right.
 */
export class BlockFeed {
  readonly #sink: BlockSink;
  readonly #blocksMax: number;
  #appliedSeq = 0;
  #synced = false;
  #pending: Pending | undefined;
  #resyncAsked = false;

  constructor(options: { readonly sink: BlockSink; readonly blocksMax: number }) {
    this.#sink = options.sink;
    this.#blocksMax = options.blocksMax;
  }

  /** Last delta applied, or the snapshot's base. */
  get appliedSeq(): number {
    return this.#appliedSeq;
  }

  /** Whether the sink holds exactly what the worker has sent. */
  get synced(): boolean {
    return this.#synced;
  }

  /** Takes a part of a snapshot. */
  snapshot(part: SnapshotPart): FeedOutcome {
    if (this.#pending?.baseSeq !== part.baseSeq) {
      this.#pending = { baseSeq: part.baseSeq, parts: [], blocks: 0, later: [] };
    }
    const pending = this.#pending;
    pending.parts.push(part.hashes);
    pending.blocks += part.hashes.length / 2;
    if (pending.blocks > this.#blocksMax) return this.#askAgain("digest");
    if (!part.last) return { kind: "buffered" };
    this.#pending = undefined;
    if (pending.blocks !== part.blockCount || !digestIs(pending.parts, part.xorLo, part.xorHi)) {
      this.#resyncAsked = false;
      return this.#askAgain("digest");
    }
    this.#sink.clear();
    for (const hashes of pending.parts) this.#sink.store(hashes);
    this.#appliedSeq = part.baseSeq;
    this.#synced = true;
    this.#resyncAsked = false;
    for (const change of pending.later) {
      const outcome = this.delta(change);
      if (outcome.kind === "resync") return outcome;
    }
    return { kind: "applied" };
  }

  /** Takes a delta. */
  delta(change: BlockChange): FeedOutcome {
    if (this.#pending !== undefined && change.seq > this.#pending.baseSeq) {
      if (this.#pending.later.length >= laterMax) return this.#askAgain("gap");
      this.#pending.later.push(change);
      return { kind: "buffered" };
    }
    if (this.#synced && change.seq <= this.#appliedSeq) return { kind: "applied" };
    const gap = this.#synced && change.seq !== this.#appliedSeq + 1;
    if (change.cleared) this.#sink.clear();
    if (change.removed.length > 0) this.#sink.remove(change.removed);
    if (change.stored.length > 0) this.#sink.store(change.stored);
    if (gap || !this.#synced) return this.#askAgain("gap");
    this.#appliedSeq = change.seq;
    return { kind: "applied" };
  }

  #askAgain(reason: "gap" | "digest"): FeedOutcome {
    this.#synced = false;
    this.#pending = undefined;
    if (this.#resyncAsked) return { kind: "buffered" };
    this.#resyncAsked = true;
    return { kind: "resync", reason };
  }
}

function digestIs(parts: readonly Uint32Array[], lo: number, hi: number): boolean {
  let xorLo = 0;
  let xorHi = 0;
  for (const hashes of parts) {
    for (let i = 0; i < hashes.length; i += 2) {
      xorLo ^= hashes[i] as number;
      xorHi ^= hashes[i + 1] as number;
    }
  }
  return xorLo >>> 0 === lo >>> 0 && xorHi >>> 0 === hi >>> 0;
}
