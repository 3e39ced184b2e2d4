import type { MeshErrorCode } from "../../../shared/core/errors.ts";
import type { WorkerId } from "../../../shared/core/ids.ts";
import type { BlockedBy, ShedReason } from "../admission/waiter.ts";
import type { ScoredCandidate } from "../placement/candidate.ts";
import type { DecisionPair } from "../placement/pairs/decision-pair.ts";
import type { DecisionGuard } from "../relays/decision-guard.ts";

/** Why a worker of the pool was not a candidate. */
export type FilterReason =
  | "not_ready"
  | "away"
  | "draining"
  | "outside_subset"
  | "excluded"
  | "wrong_role"
  | "context_too_long";

/** A worker that was left out. */
export interface FilteredWorker {
  readonly workerId: WorkerId;
  readonly endpoint: string;
  readonly reason: FilterReason;
}

/** Why predicted and observed cached tokens differ. */
export type CachedDifference = "none" | "evicted" | "index_gap" | "concurrent" | "unknown";

/**
 * How an answer was asked for: token by token, in one piece, or empty when that was not read. Only a streamed answer
 * shows when its first token came.
 */
export type AnswerForm = "stream" | "whole" | "";

/** What happened to a placed request. Times in ms; 0 where the thing never happened. */
export interface Observation {
  /** 0 also when the answer was not known to be streamed. */
  readonly ttftMs: number;
  readonly durationMs: number;
  readonly servedEndpoint: string;
  readonly servedAsPicked: boolean;
  readonly status: number;
  readonly responseFlags: string;
  readonly attempts: number;
  /** −1 when unknown. */
  readonly cachedTokens: number;
  readonly cachedDifference: CachedDifference;
  readonly closedBy: string;
  readonly responseBytes: number;
}

/** Outcome of a decision. */
export type DecisionOutcome =
  | { readonly kind: "placed" }
  | {
      readonly kind: "no_worker" | "refused";
      readonly code: MeshErrorCode;
      readonly message: string;
    };

/** What admission did with a request. */
export interface DecisionAdmission {
  readonly className: string;
  readonly tenant: string;
  /** Worker time that its tenant was charged, ms; 0 when it was refused. */
  readonly chargedMs: number;
  /** The part of that for its decode. */
  readonly chargedDecodeMs: number;
  /** Time that it waited, ms. */
  readonly waitedMs: number;
  /** Requests that waited when it came. */
  readonly position: number;
  /** Why it waited; empty when it did not. */
  readonly blockedBy: BlockedBy | "";
  /** Why it was refused; empty when it was not. */
  readonly shedReason: ShedReason | "";
  /** What a refused caller was told, ms; 0 otherwise. */
  readonly retryAfterMs: number;
}

/** One decision with everything that it depended on. */
export interface Decision {
  readonly id: string;
  readonly requestId: string;
  traceId: string;
  traceparent: string;
  /** Wall clock, microseconds since 1970. */
  readonly decidedUnixUs: number;
  /** Time from parsed request to placement, µs; set by the edge. */
  decideUs: number;
  readonly pool: string;
  readonly model: string;
  readonly answer: AnswerForm;
  readonly policy: string;
  readonly outcome: DecisionOutcome;
  readonly promptTokens: number;
  readonly promptBlocks: number;
  readonly expectedOutputTokens: number;
  readonly workerId: WorkerId | undefined;
  /** First choice, then fallbacks. */
  readonly endpoints: readonly string[];
  /** The first of `candidates`; of a pair its decode worker, with what is expected of the pair. */
  readonly chosen: ScoredCandidate | undefined;
  /**
   * Eligible workers, cheapest first, and below those that were not, by id. Of large pools the first of each list only;
   * the log shortens both lists of older decisions further. See `leftOut`. The log may have to make the list anew.
   */
  readonly candidates: readonly ScoredCandidate[];
  readonly filtered: readonly FilteredWorker[];
  /** Workers that belong in either list and are not kept. */
  readonly leftOut: number;
  readonly marginMs: number;
  readonly tieBreak: string;
  readonly indexAgeMs: number;
  readonly loadOnlyReason: string;
  /** How pairs compared with running whole; absent where the pool has none to offer. */
  readonly pair: DecisionPair | undefined;
  /** Whether its stream survives its engine; absent when nobody asked for that. */
  readonly guard: DecisionGuard | undefined;
  /** Absent for requests that did not pass admission. */
  readonly admission: DecisionAdmission | undefined;
  observed: Observation | undefined;
}
