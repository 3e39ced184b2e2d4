/** What became of a leg, as relays find it: metrics count it, spans name it, routers learn from it. In the order of the wire. */
export const legOutcomes = [
  "done",
  "lost",
  "engine_error",
  "timeout",
  "frozen",
  "cancelled",
  "not_started",
  "no_handoff",
  "stale",
  "drained",
] as const;

/** One of `legOutcomes`. */
export type LegOutcome = (typeof legOutcomes)[number];
