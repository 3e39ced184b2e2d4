import { MeshError } from "../../../shared/core/errors.ts";
import type { Placement } from "../../../shared/core/placement-token/placement.ts";
import {
  isPlacedBody,
  placementHeader,
  readPlacement,
} from "../../../shared/core/placement-token/placement-token.ts";
import { kindOfPath, readBody, type RelayedBody } from "../../core/body/relayed-body.ts";
import { findUnsendable } from "../../core/request/forwarded-headers.ts";
import { hash, isUtf8 } from "../body-checks.ts";
import type { ClientRequest } from "../client-exchange.ts";
import type { RelayParts } from "../relay-parts.ts";

/** What a request must have before a leg is started for it. Throws what the client hears. */
export function admit(
  parts: RelayParts,
  request: ClientRequest,
): { readonly placement: Placement; readonly body: RelayedBody } {
  const kind = kindOfPath(request.path);
  if (kind === undefined) {
    throw new MeshError(
      "not_found",
      `relays carry /v1/completions and /v1/chat/completions, not ${request.path.split("?", 1)[0] ?? ""}`,
    );
  }
  if (request.method !== "POST") {
    throw new MeshError("invalid_request", `${request.method} has no meaning here; use POST`);
  }
  const unsendable = findUnsendable(request.path, request.fields());
  if (unsendable !== undefined) throw new MeshError("invalid_request", unsendable);
  const reading = readPlacement(
    request.header(placementHeader),
    parts.placementKeys,
    parts.clock.wallUnixUs() / 1_000,
  );
  if (reading.kind === "refused") {
    parts.metrics.refusals.inc({ reason: `placement_${reading.reason}` });
    throw new MeshError(
      "unauthenticated",
      `the placement is not valid (${reading.reason}): ${reading.message}`,
    );
  }
  const { placement } = reading;
  if (!isPlacedBody(placement, hash(request.body))) {
    parts.metrics.refusals.inc({ reason: "placement_digest_mismatch" });
    throw new MeshError(
      "unauthenticated",
      "the placement is not valid (digest_mismatch): it was made for another body",
    );
  }
  if (!isUtf8(request.body)) throw new MeshError("invalid_request", "the body is not UTF-8");
  const body = readBody(parts.json, request.body, { kind, salted: placement.salted });
  return { placement, body };
}
