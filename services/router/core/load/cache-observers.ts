import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import { CacheObserver } from "./cache-observer.ts";

/** Prompts watched on one engine at once. */
const watchedMax = 1_024;

/** A `CacheObserver` for each worker whose block changes come to this router. */
export class CacheObservers {
  readonly #observers = new Map<WorkerId, CacheObserver>();

  /** A worker joined, perhaps again. */
  joined(worker: WorkerId): void {
    if (!this.#observers.has(worker))
      this.#observers.set(worker, new CacheObserver({ watchedMax }));
  }

  /** An engine has newly stored blocks, (lo, hi) pairs. */
  stored(worker: WorkerId, hashes: Uint32Array): void {
    this.#observers.get(worker)?.stored(hashes);
  }

  /** A prompt of these full blocks, at least one, was placed on a worker. */
  watch(worker: WorkerId, decisionId: string, hashes: Uint32Array, now: MonoMs): void {
    this.#observers.get(worker)?.watch(decisionId, hashes, now);
  }

  /** See `CacheObserver.finish`. */
  finish(worker: WorkerId, decisionId: string): number | undefined {
    return this.#observers.get(worker)?.finish(decisionId);
  }

  /** An engine has lost its cache. */
  clear(worker: WorkerId): void {
    this.#observers.get(worker)?.clear();
  }

  /** A worker left. */
  left(worker: WorkerId): void {
    this.#observers.delete(worker);
  }
}
