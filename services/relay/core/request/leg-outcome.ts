/** The two legs that a request may have open: the one that prefills for another, and the one whose answer passes. */
export type LegSlot = "prefill" | "answer";

/** Why a pair's prompt was computed where it is answered. */
export type LocalPrefillReason =
  "prefill_failed" | "transfer_failed" | "handoff_full" | "choices" | "batch" | "prompt_logprobs";

/** How a request ended, as metrics count it. */
export type RequestOutcome =
  | "done"
  | "client_cancel"
  | "engine_lost"
  | "engine_error"
  | "deadline_exceeded"
  | "engine_frozen"
  | "refused"
  | "resume_lost";
