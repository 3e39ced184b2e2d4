import type { PairCandidate } from "./pair-candidate.ts";

/**
 * Why a form was chosen. `cheaper`: by cost; `always`: by setting; `only_form`: the other could not serve; for whole also
 * `no_relay`: none is attached that speaks the engine's protocol and has room; `no_pair`: no two workers could;
 * `no_room`: admission lets nothing more onto them; `request_form`: the request cannot be split, or was not read;
 * `policy`: the pool's policy counts no times that a pair's could be compared with.
 */
export type PairWhy =
  | "cheaper"
  | "always"
  | "only_form"
  | "no_relay"
  | "no_pair"
  | "no_room"
  | "request_form"
  | "policy";

/** How pairs compared with running whole, as a decision keeps it. */
export interface DecisionPair {
  readonly form: "pair" | "whole";
  readonly why: PairWhy;
  /** Best cost of the form not chosen minus that of the chosen one, ms; 0 when there was one form. */
  readonly marginMs: number;
  /** Best pairs, cheapest first; the first is the chosen one when a pair was chosen. */
  readonly candidates: readonly PairCandidate[];
  /** Instances of relays, first choice first; empty when whole. */
  readonly relays: readonly string[];
}
