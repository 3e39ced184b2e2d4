import type { Decision, Observation } from "./decisions/decision.ts";
import type { Closed } from "./load/load-book.ts";
import type { Member } from "./membership/member.ts";
import type { PairCandidate } from "./placement/pairs/pair-candidate.ts";

/** What the core wants done. */
export type RouterEffect =
  | {
      readonly kind: "reserved";
      readonly decision: Decision;
      readonly uncachedTokens: number;
      /** The pair, when it has two legs. */
      readonly pair?: PairCandidate;
    }
  | { readonly kind: "closed"; readonly closed: Closed; readonly observed: Observation | undefined }
  /** `tellPeers`: the change comes from this router's own stream, so that nobody is told what it said itself. */
  | { readonly kind: "member_changed"; readonly member: Member; readonly tellPeers: boolean }
  | { readonly kind: "member_left"; readonly member: Member; readonly goodbye: boolean };

/** Effects that nobody has carried out yet, in order. Whoever calls the core takes them after each call. */
export class EffectQueue {
  #effects: RouterEffect[] = [];

  /** Adds one. */
  push(effect: RouterEffect): void {
    this.#effects.push(effect);
  }

  /** All since the last call. */
  take(): RouterEffect[] {
    const effects = this.#effects;
    this.#effects = [];
    return effects;
  }
}
