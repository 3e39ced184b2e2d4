import type { MonoMs } from "../../../shared/core/ids.ts";

/** What admission must know of a request. */
export interface Ask {
  /** Class by name; an unknown name means the default class. */
  readonly className: string;
  /** Who asks; empty for callers that name nobody. */
  readonly tenant: string;
  /** Time to first token that the caller asks for, ms; `undefined` leaves the class's. */
  readonly ttftMs: number | undefined;
  /** Memory that the request holds while it waits, bytes. */
  readonly bytes: number;
  /** Only some workers of the pool may serve it, so that it must not hold up others. */
  readonly constrained: boolean;
}

/** What a request is expected to cost a worker. */
export interface AskEstimate {
  /**
   * Worker time, ms: that of its uncached prefill tokens, plus that of its decode block-seconds, which count as the share
   * of the worker's blocks that they fill.
   */
  readonly costMs: number;
  /** From its dispatch until its first token on a worker with room, ms. */
  readonly firstTokenMs: number;
}

/** Why a request was refused; the value of `x-kvmesh-shed-reason`. */
export const shedReasons = [
  /** The tenant's request or token rate is used up. */
  "tenant_rate",
  /** The tenant has as many requests or bytes waiting as it may. */
  "tenant_queue",
  /** The tenant's waiting requests fill its share of the pool; others are still served. */
  "tenant_share",
  /** As many requests or bytes wait as may. */
  "queue_full",
  /** It would wait longer than requests may. */
  "predicted_wait",
  /** Its time to first token cannot be met any more. */
  "deadline",
  /** It has waited as long as requests may. */
  "wait_timeout",
  /** Its class does not wait, and no worker has room. */
  "sheddable",
  /** Its router stops. */
  "shutting_down",
] as const;

/** One of `shedReasons`. */
export type ShedReason = (typeof shedReasons)[number];

/** A request that is not served. */
export interface Refusal {
  readonly reason: ShedReason;
  /** Whether the tenant is over its own limit (429) rather than the pool short of capacity (503). */
  readonly isTenantLimit: boolean;
  /** When trying again makes sense, ms from now. */
  readonly retryAfterMs: number;
  /** The fact with its values, for people. */
  readonly message: string;
}

/** Why a request has to wait; the value of `kvmesh.admission.blocked_by`. */
export type BlockedBy = "capacity" | "fairness";

/** A waiting request with its places in the queue's heaps. */
export interface Waiter<T> {
  readonly item: T;
  readonly ask: Ask;
  /** Order of arrival. */
  readonly seq: number;
  readonly queuedAt: MonoMs;
  /** By when it should be dispatched, for the order inside its tenant. */
  readonly deadline: number;
  /** What it stands for in the accounts of the queue until the true cost is known, ms. */
  readonly estimate: AskEstimate;
  /** Requests that waited when it came. */
  readonly position: number;
  readonly blockedBy: BlockedBy;
  /** When it is looked at again, or refused if it still waits. */
  expiresAt: number;
  /** When it is refused after all; later than `expiresAt` while its wait is still to be predicted anew. */
  refusedAt: number;
  /** What the refusal then says. */
  expiresFor: ShedReason;
  /** Account of the queue that it is on: its tenant's, or one that several share. */
  account: string;
  orderPlace: number;
  expiryPlace: number;
}
