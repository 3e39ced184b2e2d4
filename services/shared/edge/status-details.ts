import type { MeshError } from "../core/errors.ts";
import { ErrorInfo, QuotaFailure, RetryInfo } from "../gen/google/rpc/error_details.ts";
import { Status } from "../gen/google/rpc/status.ts";

/** Whose reasons `ErrorInfo` names. */
const domain = "kvmesh";

/**
 * The value of `grpc-status-details-bin` for an error: `google.rpc.Status` with ErrorInfo, whose reason is the mesh's code;
 * RetryInfo when trying again makes sense; QuotaFailure when the caller's tenant is over a limit of its own.
 */
export function statusDetails(error: MeshError, code: number): Buffer {
  const { code: reason, message, retryAfterMs, shedReason } = error;
  const metadata: Record<string, string> =
    shedReason === undefined ? {} : { shed_reason: shedReason };
  const details = [any("ErrorInfo", ErrorInfo.encode({ reason, domain, metadata }).finish())];
  if (retryAfterMs !== undefined) {
    const ms = Math.max(0, Math.ceil(retryAfterMs));
    const retryDelay = { seconds: BigInt(Math.floor(ms / 1_000)), nanos: (ms % 1_000) * 1_000_000 };
    details.push(any("RetryInfo", RetryInfo.encode({ retryDelay }).finish()));
  }
  if (reason === "tenant_limited") {
    const violations = [{ subject: "tenant", description: message }];
    details.push(any("QuotaFailure", QuotaFailure.encode({ violations }).finish()));
  }
  return Buffer.from(Status.encode({ code, message, details }).finish());
}

function any(name: string, value: Uint8Array): Status["details"][number] {
  return { typeUrl: `type.googleapis.com/google.rpc.${name}`, value: Buffer.from(value) };
}
