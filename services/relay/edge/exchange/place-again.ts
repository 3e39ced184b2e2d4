import type { MeshErrorCode } from "../../../shared/core/errors.ts";
import type { Placement } from "../../../shared/core/placement-token/placement.ts";
import { readPlacement } from "../../../shared/core/placement-token/placement-token.ts";
import { placeFields } from "../../core/request/place-fields.ts";
import type { PlaceAnswer } from "../placer.ts";
import type { OpenRequest } from "./open-request.ts";

/** Where a request goes next, or why nowhere. */
export type PlacedAgain =
  | { readonly kind: "placed"; readonly placement: Placement }
  | { readonly kind: "not_placed"; readonly code: MeshErrorCode; readonly why: string };

/**
 * Asks a router for another placement of a request, without these workers. Where that leaves nobody, those that were tried
 * before the last one may be tried again: under load an engine is late for one moment, and in a small pool a stream would
 * soon have none left. How often a request is placed is bounded all the same. Never rejects. `signal`: aborted when the
 * request is over.
 */
export async function placeAgain(
  open: OpenRequest,
  excluded: readonly string[],
  signal: AbortSignal,
): Promise<PlacedAgain> {
  const { placer, placementKeys, metrics, config, clock } = open.parts;
  const { client, placement } = open;
  const ask = (without: readonly string[]): Promise<PlaceAnswer> =>
    placer.place(
      {
        requestId: client.header("x-request-id") ?? placement.decisionId,
        path: client.path,
        body: open.raw,
        fields: placeFields({
          tenant: placement.tenant,
          traceparent: open.spans.traceparent,
          header: (name) => client.header(name),
        }),
        excluded: without,
        timeoutMs: config.deadlines.placeMs,
      },
      signal,
    );
  let given = await ask(excluded);
  const last = excluded.slice(-1);
  if (given.kind === "refused" && given.code === "no_ready_worker" && excluded.length > 1) {
    given = await ask(last);
  }
  if (given.kind === "refused") {
    metrics.placementsAgain.inc({ outcome: given.outcome });
    return { kind: "not_placed", code: given.code, why: given.message };
  }
  const reading = readPlacement(given.token, placementKeys, clock.wallUnixUs() / 1_000);
  if (reading.kind === "refused") {
    metrics.placementsAgain.inc({ outcome: "refused" });
    return { kind: "not_placed", code: "worker_lost", why: reading.message };
  }
  metrics.placementsAgain.inc({ outcome: "placed" });
  return { kind: "placed", placement: reading.placement };
}
