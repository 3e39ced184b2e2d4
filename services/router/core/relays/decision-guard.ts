import type { UnguardedReason } from "./guard-fields.ts";

/** Which streams are guarded: none, those that pass a relay anyway, or all, which then pass one. */
export const guardModes = ["off", "pairs", "relay"] as const;

/** One of `guardModes`. */
export type GuardMode = (typeof guardModes)[number];

/** Whether a text names a mode. */
export function isGuardMode(text: string): text is GuardMode {
  return (guardModes as readonly string[]).includes(text);
}

/** How a stream is to be guarded. */
export interface GuardAsk {
  /** Only if it passes a relay as a pair, or in any case. */
  readonly mode: Exclude<GuardMode, "off">;
  /** Why it cannot be when it runs whole; empty when it can. */
  readonly off: UnguardedReason | "";
}

/** What became of a stream that was to be guarded, as its decision keeps it. */
export interface DecisionGuard {
  /** Why it is not guarded; empty when it is. */
  readonly off: UnguardedReason | "";
  /** Relays that guard a request that runs whole, first choice first; empty for a pair, which has its own. */
  readonly relays: readonly string[];
}
