import type { MeshErrorCode } from "../../shared/core/errors.ts";
import type { GrpcMetadata } from "../../shared/edge/h2/grpc-blocks.ts";
import type { CallRefusal } from "../../shared/edge/h2/h2-grpc-options.ts";
import { wire } from "../../shared/edge/wire.ts";
import { statusDetails } from "../core/inference/error-details.ts";

/** When a call may come again that was refused for what passes by itself, ms. */
const retryAfterMs = 1_000;

/** The mesh's code of what the transport refuses; what has none is named by its own reason. */
const codes: Readonly<Partial<Record<CallRefusal, MeshErrorCode>>> = {
  message_too_large: "request_too_large",
  headers_too_large: "request_too_large",
  memory_full: "overloaded",
  shutting_down: "overloaded",
  not_allowed: "permission_denied",
  deadline_exceeded: "deadline_exceeded",
  handler_failed: "invariant_violated",
  message_cut_off: "invalid_request",
  compressed: "invalid_request",
};

/**
 * What a caller is told of a call that never reached its method, or was ended by a limit, in the form of every other error
 * of the inference service: `google.rpc` details, the code, and when another try makes sense, -1 for never.
 */
export function refusalMetadata(
  reason: CallRefusal,
  status: number,
  message: string,
): GrpcMetadata {
  const code = codes[reason];
  const mayRetry = code !== undefined && wire[code].retry === "after_delay";
  const name = code ?? reason;
  const details = statusDetails({
    status,
    message,
    reason: name,
    ...(mayRetry ? { retryAfterMs } : {}),
  });
  return [
    ["kvmesh-error-code", name],
    ["grpc-retry-pushback-ms", mayRetry ? String(retryAfterMs) : "-1"],
    ["grpc-status-details-bin", Buffer.from(details).toString("base64").replace(/=+$/, "")],
  ];
}
