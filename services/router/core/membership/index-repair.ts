import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";

/** How full the index may be after a repair, 0 to 1: the rest is for what comes meanwhile. */
const fillRatioMax = 0.95;
/** Time between two repairs, ms: a snapshot of a large cache keeps a router busy for a while. */
const apartMs = 1_000;
/** Time between two repairs of one worker, ms: what is dropped again would be dropped every time. */
const againMs = 60_000;

/** How one worker stands in the index. */
export interface IndexLoss {
  /** Pairs of it that were dropped at a limit. */
  readonly lostPairs: number;
  /** Blocks in the index, of all workers. */
  readonly blockCount: number;
  readonly blocksMax: number;
}

/**
 * Decides which worker sends its blocks again because the index dropped some of them when it was full: once there is room
 * for them, one worker a second, each at most once a minute.
 */
export class IndexRepair {
  readonly #repairedAt = new Map<WorkerId, MonoMs>();
  #lastAt = -Infinity;

  /** Whether a worker is to send its blocks now; counts as done if so. */
  isDue(worker: WorkerId, loss: IndexLoss, now: MonoMs): boolean {
    if (loss.lostPairs === 0) return false;
    if (loss.blockCount + loss.lostPairs > fillRatioMax * loss.blocksMax) return false;
    if (now - this.#lastAt < apartMs) return false;
    const before = this.#repairedAt.get(worker);
    if (before !== undefined && now - before < againMs) return false;
    this.#repairedAt.set(worker, now);
    this.#lastAt = now;
    return true;
  }

  /** A worker left. */
  forget(worker: WorkerId): void {
    this.#repairedAt.delete(worker);
  }
}
