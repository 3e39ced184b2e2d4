import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";

/**
 * Which worker served a conversation last. Placement prefers it by a price in ms, no more: what the worker holds in its
 * cache is known from its blocks, but not what it has of the answer that it is still generating, nor what the index lost.
 *
 * At most `sessionsMax` conversations; the longest unused goes first, and one not heard of for `keptMs` counts for nothing.
 */
export class SessionHomes {
  readonly #homes = new Map<string, { readonly worker: WorkerId; readonly at: MonoMs }>();
  readonly #sessionsMax: number;
  readonly #keptMs: number;

  constructor(options: { readonly sessionsMax: number; readonly keptMs: number }) {
    this.#sessionsMax = options.sessionsMax;
    this.#keptMs = options.keptMs;
  }

  /** Conversations known. */
  get size(): number {
    return this.#homes.size;
  }

  /** The worker of a conversation, or `undefined`. */
  homeOf(session: string, now: MonoMs): WorkerId | undefined {
    if (session === "") return undefined;
    const home = this.#homes.get(session);
    return home !== undefined && now - home.at <= this.#keptMs ? home.worker : undefined;
  }

  /** A request of a conversation was placed. */
  placed(session: string, worker: WorkerId, now: MonoMs): void {
    if (session === "" || this.#sessionsMax === 0) return;
    this.#homes.delete(session);
    this.#homes.set(session, { worker, at: now });
    if (this.#homes.size <= this.#sessionsMax) return;
    const [oldest] = this.#homes.keys();
    if (oldest !== undefined) this.#homes.delete(oldest);
  }
}
