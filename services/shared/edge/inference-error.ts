import { status, type ServiceError } from "@grpc/grpc-js";
import type { MeshErrorCode } from "../core/errors.ts";
import { ErrorInfo, QuotaFailure, RetryInfo } from "../gen/google/rpc/error_details.ts";
import { Status } from "../gen/google/rpc/status.ts";
import { wire } from "./wire.ts";

/** A limit that a request met. */
export interface MetQuota {
  /** Who is over it, such as `tenant:acme`. */
  readonly subject: string;
  readonly description: string;
}

/** A failed call of `kvmesh.inference.v1.Inference` with everything that its status says. */
export class InferenceError extends Error {
  /** gRPC status code. */
  readonly status: status;
  /** ErrorInfo's reason where the domain is kvmesh, such as `overloaded`; empty when the mesh did not answer. */
  readonly reason: string;
  /** When trying again makes sense, ms from then; undefined when it does not, or nobody says. */
  readonly retryAfterMs: number | undefined;
  readonly quotas: readonly MetQuota[];
  /** With which the stream can be resumed, on any relay; empty when it cannot. */
  readonly resumeToken: string;
  readonly requestId: string;

  constructor(facts: {
    readonly status: status;
    readonly message: string;
    readonly reason?: string;
    readonly retryAfterMs?: number | undefined;
    readonly quotas?: readonly MetQuota[];
    readonly resumeToken?: string;
    readonly requestId?: string;
    readonly cause?: unknown;
  }) {
    super(facts.message, { cause: facts.cause });
    this.name = "InferenceError";
    this.status = facts.status;
    this.reason = facts.reason ?? "";
    this.retryAfterMs = facts.retryAfterMs;
    this.quotas = facts.quotas ?? [];
    this.resumeToken = facts.resumeToken ?? "";
    this.requestId = facts.requestId ?? "";
  }

  /** Name of the status, such as UNAVAILABLE. */
  get statusName(): string {
    return status[this.status];
  }

  /** Whether the same request may be sent again from its beginning. */
  get mayRetry(): boolean {
    if (Object.hasOwn(wire, this.reason)) {
      const { retry } = wire[this.reason as MeshErrorCode];
      return retry !== "never" && this.status !== status.ABORTED;
    }
    return this.status === status.UNAVAILABLE;
  }
}

/** Reads a status with its details; details that nobody knows or that are broken are left out. */
export function readInferenceError(
  error: ServiceError,
  of: { readonly requestId: string; readonly resumeToken: string },
): InferenceError {
  const { code, details, message, metadata } = error;
  let reason = textOf(metadata.get("kvmesh-error-code")[0]);
  let retryAfterMs = numberOf(textOf(metadata.get("grpc-retry-pushback-ms")[0]));
  let { resumeToken } = of;
  const quotas: MetQuota[] = [];
  for (const { typeUrl, value } of detailsOf(metadata.get("grpc-status-details-bin")[0])) {
    switch (typeUrl.slice(typeUrl.lastIndexOf(".") + 1)) {
      case "ErrorInfo": {
        const info = ErrorInfo.decode(value);
        if (info.domain !== "kvmesh") break;
        ({ reason } = info);
        resumeToken = info.metadata["resume_token"] ?? resumeToken;
        break;
      }
      case "RetryInfo": {
        const { retryDelay } = RetryInfo.decode(value);
        if (retryDelay === undefined) break;
        retryAfterMs = Number(retryDelay.seconds) * 1_000 + retryDelay.nanos / 1e6;
        break;
      }
      case "QuotaFailure":
        quotas.push(...QuotaFailure.decode(value).violations);
        break;
      default:
    }
  }
  return new InferenceError({
    status: code,
    message: details === "" ? message : details,
    reason,
    retryAfterMs,
    quotas,
    // A stream whose state is gone cannot be resumed with any token.
    resumeToken: reason === "resume_lost" ? "" : resumeToken,
    requestId: of.requestId,
    cause: error,
  });
}

function detailsOf(raw: string | Buffer | undefined): Status["details"] {
  if (!Buffer.isBuffer(raw)) return [];
  try {
    return Status.decode(raw).details;
  } catch {
    // The status alone says what there is to say.
    return [];
  }
}

function textOf(value: string | Buffer | undefined): string {
  return value === undefined ? "" : value.toString();
}

/** A wait in ms; undefined for what is no wait: gRPC's pushback below 0 says never. */
function numberOf(text: string): number | undefined {
  const value = Number(text);
  return text === "" || !Number.isFinite(value) || value < 0 ? undefined : value;
}
