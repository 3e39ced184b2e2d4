import { status } from "@grpc/grpc-js";
import { MeshError, type MeshErrorCode } from "../core/errors.ts";

/** How one error code looks on the wire. */
export interface WireMapping {
  /** gRPC status. */
  readonly grpc: status;
  /** HTTP status. */
  readonly http: number;
  /** OpenAI `error.type`. */
  readonly type: string;
  /** Whether and when a caller may try again. */
  readonly retry: "never" | "after_delay" | "other_worker" | "after_resync";
}

/** Exhaustive on purpose: a new code does not compile until it has a row here. */
export const wire: Readonly<Record<MeshErrorCode, WireMapping>> = {
  invalid_request: {
    grpc: status.INVALID_ARGUMENT,
    http: 400,
    type: "invalid_request_error",
    retry: "never",
  },
  context_length_exceeded: {
    grpc: status.INVALID_ARGUMENT,
    http: 400,
    type: "invalid_request_error",
    retry: "never",
  },
  model_not_found: {
    grpc: status.NOT_FOUND,
    http: 404,
    type: "invalid_request_error",
    retry: "never",
  },
  no_ready_worker: {
    grpc: status.UNAVAILABLE,
    http: 503,
    type: "service_unavailable_error",
    retry: "after_delay",
  },
  overloaded: {
    grpc: status.RESOURCE_EXHAUSTED,
    http: 503,
    type: "service_unavailable_error",
    retry: "after_delay",
  },
  tenant_limited: {
    grpc: status.RESOURCE_EXHAUSTED,
    http: 429,
    type: "rate_limit_error",
    retry: "after_delay",
  },
  request_too_large: {
    grpc: status.RESOURCE_EXHAUSTED,
    http: 413,
    type: "invalid_request_error",
    retry: "never",
  },
  resume_lost: { grpc: status.ABORTED, http: 409, type: "invalid_request_error", retry: "never" },
  deadline_exceeded: {
    grpc: status.DEADLINE_EXCEEDED,
    http: 504,
    type: "timeout_error",
    retry: "never",
  },
  cancelled: { grpc: status.CANCELLED, http: 499, type: "cancelled_error", retry: "never" },
  worker_lost: {
    grpc: status.UNAVAILABLE,
    http: 502,
    type: "service_unavailable_error",
    retry: "other_worker",
  },
  stale_epoch: {
    grpc: status.ABORTED,
    http: 409,
    type: "service_unavailable_error",
    retry: "after_resync",
  },
  unauthenticated: {
    grpc: status.UNAUTHENTICATED,
    http: 401,
    type: "authentication_error",
    retry: "never",
  },
  permission_denied: {
    grpc: status.PERMISSION_DENIED,
    http: 403,
    type: "permission_error",
    retry: "never",
  },
  already_exists: {
    grpc: status.ALREADY_EXISTS,
    http: 409,
    type: "invalid_request_error",
    retry: "never",
  },
  not_found: { grpc: status.NOT_FOUND, http: 404, type: "invalid_request_error", retry: "never" },
  invariant_violated: { grpc: status.INTERNAL, http: 500, type: "internal_error", retry: "never" },
};

/** Any thrown value as a `MeshError`; what is not one already becomes `invariant_violated` with its cause kept. */
export function toMeshError(error: unknown): MeshError {
  if (error instanceof MeshError) return error;
  const text = error instanceof Error ? error.message : String(error);
  return new MeshError("invariant_violated", text, { cause: error });
}

/** The error as an OpenAI error body. */
export function openAiError(error: MeshError): { status: number; body: string } {
  const row = wire[error.code];
  const body = JSON.stringify({
    error: { message: error.message, type: row.type, param: error.field ?? null, code: error.code },
  });
  return { status: row.http, body };
}
