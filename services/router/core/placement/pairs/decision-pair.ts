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

/** Time between tokens that a request asks for, and that is expected of either form, ms. */
export interface DecisionItl {
  readonly targetMs: number;
  /** Of the best pair; 0 when there is none. */
  readonly pairMs: number;
  /** When run whole; 0 when nobody can. */
  readonly wholeMs: number;
  /** What missing it adds to the cost of running whole; a pair's is its term `itl`. */
  readonly wholeCostMs: number;
}

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
  /** How the forms keep the time between tokens that the request asks for; absent when it asks for none. */
  readonly itl?: DecisionItl;
}
