import type { MonoMs } from "../../shared/core/ids.ts";
import type { Knowledge } from "../core/discovery/discovery.ts";

/** Longest wait for model files after the first worker joined, before serving by load alone, ms. */
const runtimesWaitMs = 15_000;

/** What readiness is judged by. */
export interface ReadinessFacts {
  readonly peersSynced: number;
  /** One of them has run for longer than workers need to find a router: what it knows is the whole membership. */
  readonly isToldByElder: boolean;
  readonly members: number;
  /** Every tokenizer that a worker has is loaded or refused for good. */
  readonly runtimesSettled: boolean;
}

/** What readiness needs. */
export interface ReadinessOptions {
  readonly peersExpected: number;
  readonly peerWaitMs: number;
  readonly startedAt: MonoMs;
  readonly onKnowledge: (knowledge: Knowledge) => void;
  readonly onServing: (serving: boolean) => void;
}

/**
 * When a router may answer: after it has heard all configured peers, or has waited for them and holds at least one
 * worker. Once serving it stays so until it drains, also when every worker leaves: it can still say so.
 *
 * Its knowledge is complete only when a peer that has run for a while told it. Routers that start together, or one
 * alone, see workers come back one by one: an Envoy that outlived them all keeps its endpoints until the grace period
 * of discovery ends.
 */
export class Readiness {
  readonly #options: ReadinessOptions;
  #knowledge: Knowledge = "none";
  #serving = false;
  #draining = false;
  #firstMemberAt: MonoMs | undefined;

  constructor(options: ReadinessOptions) {
    this.#options = options;
  }

  /** For people. */
  get state(): "syncing" | "serving" | "draining" {
    if (this.#draining) return "draining";
    return this.#serving ? "serving" : "syncing";
  }

  /** Judges again. Call about every 100 ms. */
  tick(now: MonoMs, facts: ReadinessFacts): void {
    const { peersExpected, peerWaitMs, startedAt } = this.#options;
    const waited = now - startedAt;
    const heardAll = facts.peersSynced >= peersExpected;
    const enough = heardAll || waited >= peerWaitMs;
    const knowledge: Knowledge =
      facts.members === 0 || !enough
        ? "none"
        : heardAll && facts.isToldByElder
          ? "complete"
          : "partial";
    if (knowledge !== "none" && knowledge !== this.#knowledge && this.#knowledge !== "complete") {
      this.#knowledge = knowledge;
      this.#options.onKnowledge(knowledge);
    }
    if (facts.members > 0) this.#firstMemberAt ??= now;
    if (this.#serving || this.#draining || knowledge === "none") return;
    const waitedForFiles = now - (this.#firstMemberAt ?? now);
    if (!facts.runtimesSettled && waitedForFiles < runtimesWaitMs) return;
    this.#serving = true;
    this.#options.onServing(true);
  }

  /** From now on not serving. */
  drain(): void {
    this.#draining = true;
    this.#options.onServing(false);
  }
}
