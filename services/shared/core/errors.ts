/** Every way in which the mesh refuses or fails; the mapping to gRPC and HTTP is in `shared/edge/wire.ts`. */
export type MeshErrorCode =
  | "invalid_request"
  | "context_length_exceeded"
  | "model_not_found"
  | "no_ready_worker"
  | "overloaded"
  | "tenant_limited"
  | "request_too_large"
  | "resume_lost"
  | "deadline_exceeded"
  | "cancelled"
  | "worker_lost"
  | "stale_epoch"
  | "unauthenticated"
  | "permission_denied"
  | "already_exists"
  | "not_found"
  | "invariant_violated";

/** Optional parts of a `MeshError`. */
export interface MeshErrorDetails {
  /** What led to it. */
  readonly cause?: unknown;
  /** Field of the input that is wrong, as a path such as `messages[2].content`. */
  readonly field?: string;
  /** When trying again makes sense, ms from now. */
  readonly retryAfterMs?: number;
  /** Why a request was shed: a value of `x-kvmesh-shed-reason`. */
  readonly shedReason?: string;
}

/**
 * An expected failure with a code that callers act on. The message states the fact and its values, and
 * for bad input how to mend it; nobody parses it.
 */
export class MeshError extends Error {
  readonly code: MeshErrorCode;
  readonly field: string | undefined;
  readonly retryAfterMs: number | undefined;
  readonly shedReason: string | undefined;

  constructor(code: MeshErrorCode, message: string, details: MeshErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.name = "MeshError";
    this.code = code;
    this.field = details.field;
    this.retryAfterMs = details.retryAfterMs;
    this.shedReason = details.shedReason;
  }
}
