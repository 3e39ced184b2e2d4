import type { LegOutcome } from "../../../shared/core/leg-outcome.ts";
import type { LegRole } from "../../../shared/core/placement-token/placement.ts";

/** What a relay tells of a leg. Times are ms; counts are −1 where nobody said. */
export interface LegNotice {
  readonly decisionId: string;
  readonly leg: LegRole;
  readonly workerId: string;
  /** Whether it is over; else its first token came. */
  readonly ended: boolean;
  /** With `ended`. */
  readonly outcome: LegOutcome;
  readonly durationMs: number;
  /** From its start to its first token; 0 when none came or it was not seen. */
  readonly firstTokenMs: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  /** Of a decode leg: what of its KV's transfer the prefill leg did not hide, as the relay saw it; 0 when it did not. */
  readonly transferMs: number;
  /** Whether the decode leg computed the prompt itself because there was no KV to pull. */
  readonly localPrefill: boolean;
  /** Whether it is the last word on the decision. */
  readonly last: boolean;
}
