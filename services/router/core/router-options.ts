import type { AdmissionOptions } from "./admission/options.ts";
import type { RoomOptions } from "./admission/worker-rooms.ts";
import type { Preference } from "./placement/estimate.ts";
import type { PairOptions } from "./placement/pairs/pair-placer.ts";
import type { PolicyName } from "./placement/policy.ts";

/** Settings of `RouterCore`. */
export interface RouterCoreOptions {
  /** `<instance>.<epoch>`; decision ids start with it. */
  readonly decisionPrefix: string;
  readonly blockSizeTokens: number;
  readonly policy: PolicyName;
  readonly graceMs: number;
  readonly membersMax: number;
  readonly blocksMax: number;
  readonly reservationsMax: number;
  readonly decisionsMax: number;
  /** Answer length assumed before any answer has been seen, tokens. */
  readonly outputTokensDefault: number;
  /** Endpoints named in an answer: the first choice and so many fallbacks. */
  readonly fallbacksMax: number;
  /** How requests wait and are refused; `admissionDefaults` when absent. */
  readonly admission?: AdmissionOptions;
  /** When a worker has room; `roomDefaults` when absent. */
  readonly rooms?: RoomOptions;
  /** What our own cost favours; `balanced` when absent. */
  readonly preference?: Preference;
  /** What a request costs on another worker than the one that served its conversation last, ms; 0 when absent. */
  readonly affinityMs?: number;
  /** Conversations remembered for that; 65,536 when absent. */
  readonly sessionsMax?: number;
  /** When requests run on two workers; `pairDefaults` when absent. */
  readonly pairs?: PairOptions;
}
