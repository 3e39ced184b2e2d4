import type { RequestOutcome } from "../request/leg-outcome.ts";

/** Why spans of a request are written although its trace was not sampled. */
export type KeepReason = "failed" | "migrated" | "slow" | "badly_predicted";

/** A first byte later than this is slow, ms. */
const slowMs = 5_000;
/** A first byte this many times later than predicted, and this much, ms, was badly predicted. */
const missMultiple = 3;
const missMsMin = 250;

/** Whether a finished request's trace is worth keeping without being asked for, and why. */
export function worthKeeping(request: {
  readonly outcome: RequestOutcome;
  readonly migrations: number;
  /** 0 when no byte went out. */
  readonly ttftMs: number;
  /** 0 when nothing was predicted. */
  readonly predictedTtftMs: number;
}): KeepReason | undefined {
  const { outcome, migrations, ttftMs, predictedTtftMs } = request;
  if (outcome !== "done" && outcome !== "client_cancel") return "failed";
  if (migrations > 0) return "migrated";
  if (ttftMs >= slowMs) return "slow";
  const isMissed =
    ttftMs >= missMultiple * predictedTtftMs && ttftMs - predictedTtftMs >= missMsMin;
  return predictedTtftMs > 0 && isMissed ? "badly_predicted" : undefined;
}
