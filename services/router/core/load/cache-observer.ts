import type { MonoMs } from "../../../shared/core/ids.ts";
import { FreshBlocks } from "./fresh-blocks.ts";

/** A placed request whose engine has not yet shown what it had cached. */
interface Watched {
  readonly decisionId: string;
  readonly openedAt: MonoMs;
  /** Sequence hashes of its full prompt blocks as (lo, hi) pairs. */
  readonly hashes: Uint32Array;
  readonly blockCount: number;
  /** First block of the run of newly stored blocks seen last; −1 before any. */
  runStart: number;
  runEnd: number;
}

/**
 * Learns from one engine's KV events how much of each placed prompt it really had cached: an engine announces
 * exactly the blocks that it computes, so the run of stored blocks that reaches a prompt's end begins where
 * the cache ended. No byte of an answer is needed for it.
 *
 * A block that several waiting prompts share is counted to the one placed first, which is the one that
 * computes it under first-come scheduling. At most `watchedMax` prompts are watched; the oldest gives
 * way, since a request whose end nobody told would be watched for ever.
 */
export class CacheObserver {
  readonly #watched = new Map<string, Watched>();
  readonly #fresh = new FreshBlocks();
  readonly #watchedMax: number;

  constructor(options: { readonly watchedMax: number }) {
    this.#watchedMax = options.watchedMax;
  }

  /** Number of prompts watched. */
  get size(): number {
    return this.#watched.size;
  }

  /** Watches a placed prompt until `finish`. */
  watch(decisionId: string, hashes: Uint32Array, openedAt: MonoMs): void {
    if (this.#watched.size >= this.#watchedMax) {
      for (const oldest of this.#watched.keys()) {
        this.#watched.delete(oldest);
        break;
      }
    }
    const blockCount = hashes.length / 2;
    this.#watched.set(decisionId, {
      decisionId,
      openedAt,
      hashes,
      blockCount,
      runStart: -1,
      runEnd: -1,
    });
  }

  /** Takes blocks that the engine has newly stored, as (lo, hi) pairs. */
  stored(hashes: Uint32Array): void {
    if (this.#watched.size === 0 || hashes.length === 0) return;
    const fresh = this.#fresh;
    fresh.fill(hashes);
    for (const watched of this.#watched.values()) {
      if (watched.runEnd === watched.blockCount) continue;
      this.#consume(watched);
      if (fresh.size === 0) return;
    }
  }

  /**
   * Ends watching. Returns how many leading blocks were cached: `undefined` when not watched, all blocks when
   * none of them was stored.
   */
  finish(decisionId: string): number | undefined {
    const watched = this.#watched.get(decisionId);
    if (watched === undefined) return undefined;
    this.#watched.delete(decisionId);
    return watched.runStart < 0 ? watched.blockCount : watched.runStart;
  }

  /** Forgets everything, after a restart of the engine. */
  clear(): void {
    this.#watched.clear();
  }

  #consume(watched: Watched): void {
    const fresh = this.#fresh;
    const { hashes, blockCount } = watched;
    // Blocks before the known run cannot belong to this prompt's own computation any more.
    for (let i = Math.max(0, watched.runEnd); i < blockCount; i++) {
      if (!fresh.draw(hashes[2 * i] as number, hashes[2 * i + 1] as number)) continue;
      if (watched.runEnd !== i || watched.runStart < 0) watched.runStart = i;
      watched.runEnd = i + 1;
    }
  }
}
