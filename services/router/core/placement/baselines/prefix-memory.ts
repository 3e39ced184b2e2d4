import type { MonoMs, WorkerId } from "../../../../shared/core/ids.ts";
import { blockKey } from "./block-key.ts";

/** Limits of a memory of prefixes. */
export interface PrefixMemoryOptions {
  /** Blocks remembered of one worker; the longest unused go first. */
  readonly blocksMax: number;
  /** Time after which a block that was not sent again counts no more, ms; `Infinity` for never. */
  readonly ttlMs: number;
  /** Blocks remembered of all workers together, shared evenly; 2 million, about 120 MB, when absent. */
  readonly blocksMaxOfAll?: number;
}

const blocksMaxOfAllDefault = 2_000_000;

/**
 * What a router without KV events believes its engines to hold: the prefixes of the prompts that it sent them. A block's
 * sequence hash names its whole prefix, so a set of hashes for each worker says the same as a trie with the workers in its
 * nodes. What engines evict, or compute for others, it does not see.
 */
export class PrefixMemory {
  readonly #options: PrefixMemoryOptions;
  /** For each worker when each block was sent last; in that order, leaves before their parents. */
  readonly #sentAt = new Map<WorkerId, Map<number, MonoMs>>();

  constructor(options: PrefixMemoryOptions) {
    this.#options = options;
  }

  /** Leading blocks of a prompt believed to be on a worker. O(blocks matched). */
  match(worker: WorkerId, prompt: { readonly hashes: Uint32Array; readonly now: MonoMs }): number {
    const sentAt = this.#sentAt.get(worker);
    if (sentAt === undefined) return 0;
    const { hashes, now } = prompt;
    const count = hashes.length / 2;
    for (let i = 0; i < count; i++) {
      const at = sentAt.get(blockKey(hashes, i));
      if (at === undefined || now - at > this.#options.ttlMs) return i;
    }
    return count;
  }

  /** A prompt was sent to a worker. O(blocks). */
  sent(worker: WorkerId, prompt: { readonly hashes: Uint32Array; readonly now: MonoMs }): void {
    let sentAt = this.#sentAt.get(worker);
    if (sentAt === undefined) {
      sentAt = new Map();
      this.#sentAt.set(worker, sentAt);
    }
    const { hashes, now } = prompt;
    // From the end, so that a parent never goes before its children.
    for (let i = hashes.length / 2 - 1; i >= 0; i--) {
      const key = blockKey(hashes, i);
      sentAt.delete(key);
      sentAt.set(key, now);
    }
    this.#trim(sentAt, now);
  }

  /** Blocks remembered of a worker, those included whose time is over but that nothing has pushed out. */
  sizeOf(worker: WorkerId): number {
    return this.#sentAt.get(worker)?.size ?? 0;
  }

  /** Forgets a worker. */
  forget(worker: WorkerId): void {
    this.#sentAt.delete(worker);
  }

  #trim(sentAt: Map<number, MonoMs>, now: MonoMs): void {
    const { blocksMax, ttlMs, blocksMaxOfAll = blocksMaxOfAllDefault } = this.#options;
    const max = Math.min(blocksMax, Math.floor(blocksMaxOfAll / this.#sentAt.size));
    for (const [key, at] of sentAt) {
      if (sentAt.size <= max && now - at <= ttlMs) return;
      sentAt.delete(key);
    }
  }
}
