import { monoMs, type MonoMs } from "../../../shared/core/ids.ts";
import { invariant } from "../../../shared/core/invariant.ts";

/** How a hand-off ended. */
export type HandoffOutcome = "pulled" | "aborted" | "expired";

/** One prefilled prompt whose blocks wait for another engine. */
export interface Handoff {
  readonly id: string;
  /** Physical blocks, in prompt order, the last one possibly not full. */
  readonly blocks: readonly number[];
  readonly promptTokens: number;
  /** Prompt tokens that the prefill found cached. */
  readonly cachedTokens: number;
  readonly openedAt: MonoMs;
}

interface Entry extends Handoff {
  leaseUntil: number;
}

/**
 * Hand-offs of a prefill engine and their leases, as vLLM's NixlConnector keeps them (0.32.0): a lease of
 * `leaseMs`, extended by each heartbeat to two thirds of it from then, ended by the puller's notice or by
 * time. Single-use: after its end nothing remembers a hand-off. Bounded by the blocks that it holds.
 *
 * | state | heartbeat | done or abort | lease over |
 * | ----- | --------- | ------------- | ---------- |
 * | held  | held      | gone          | gone       |
 * | gone  | ignored   | ignored       | –          |
 */
export class HandoffTable {
  readonly #leaseMs: number;
  readonly #entries = new Map<string, Entry>();
  readonly #ended: Record<HandoffOutcome, number> = { pulled: 0, aborted: 0, expired: 0 };
  #heldBlocks = 0;

  constructor(leaseMs: number) {
    invariant(leaseMs > 0, "a lease lasts longer than nothing");
    this.#leaseMs = leaseMs;
  }

  get held(): number {
    return this.#entries.size;
  }

  /** Blocks that belong to hand-offs; one shared by two counts twice. */
  get heldBlocks(): number {
    return this.#heldBlocks;
  }

  /** Hand-offs that ended so far, by outcome. */
  get ended(): Readonly<Record<HandoffOutcome, number>> {
    return this.#ended;
  }

  open(handoff: Omit<Handoff, "openedAt">, now: MonoMs): void {
    invariant(!this.#entries.has(handoff.id), `hand-off ${handoff.id} exists`);
    this.#entries.set(handoff.id, { ...handoff, openedAt: now, leaseUntil: now + this.#leaseMs });
    this.#heldBlocks += handoff.blocks.length;
  }

  get(id: string): Handoff | undefined {
    return this.#entries.get(id);
  }

  /** The puller lives. False when the hand-off is gone. */
  heartbeat(id: string, now: MonoMs): boolean {
    const entry = this.#entries.get(id);
    if (entry === undefined) return false;
    entry.leaseUntil = Math.max(entry.leaseUntil, now + (this.#leaseMs * 2) / 3);
    return true;
  }

  /** Ends a hand-off; undefined when it is gone already. */
  end(id: string, outcome: HandoffOutcome): Handoff | undefined {
    const entry = this.#entries.get(id);
    if (entry === undefined) return undefined;
    this.#entries.delete(id);
    this.#heldBlocks -= entry.blocks.length;
    this.#ended[outcome]++;
    return entry;
  }

  /** Ends those whose lease is over by `now` and returns them, oldest first. O(held). */
  expire(now: MonoMs): Handoff[] {
    const over = [...this.#entries.values()].filter((entry) => entry.leaseUntil <= now);
    for (const entry of over) this.end(entry.id, "expired");
    return over;
  }

  /** When the next lease ends unless a heartbeat comes, or undefined. O(held). */
  nextExpiry(): MonoMs | undefined {
    let next = Infinity;
    for (const entry of this.#entries.values()) next = Math.min(next, entry.leaseUntil);
    return next === Infinity ? undefined : monoMs(next);
  }
}
