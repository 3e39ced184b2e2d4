import { MeshError } from "../../../shared/core/errors.ts";
import { parseEndpoint } from "../../../shared/core/endpoint.ts";
import type { Placement, RelayEngine } from "../../../shared/core/placement-token/placement.ts";
import type { RelayedBody } from "../body/relayed-body.ts";
import type { EngineAdapter, PairRequest } from "../engines/engine-adapter.ts";
import type { LocalPrefillReason } from "./leg-outcome.ts";
import { findUnpairedReason } from "./pair-policy.ts";
import type { RunPlan } from "./request-run.ts";

/** What a placement comes to: how its legs run, and with which adapter the prefill leg's answer is read. */
export interface PlannedRun {
  readonly plan: RunPlan;
  /** Absent for a request that runs whole. */
  readonly pair?: { readonly adapter: EngineAdapter; readonly request: PairRequest };
}

/**
 * Turns a placement into the bodies of its legs. `refuse`: why its hand-off may not be made although all else is well.
 * Throws `invalid_request` when the placement lacks what its engine's protocol needs, or the request cannot be run by it.
 */
export function planRun(
  adapters: Readonly<Record<RelayEngine, EngineAdapter>>,
  placement: Placement,
  request: {
    readonly body: RelayedBody;
    readonly room: number;
    readonly refuse?: LocalPrefillReason | undefined;
  },
): PlannedRun {
  const { body, room } = request;
  const [first, second] = placement.legs;
  if (first === undefined) throw new MeshError("invalid_request", "the placement has no leg");
  const untouched = body.object.bytes;
  if (second === undefined) {
    return { plan: { kind: "whole", body: untouched, workerId: first.workerId } };
  }
  const adapter = adapters[first.engine];
  const { order, canPrefillOnDecode } = adapter;
  if (first.engine === "sglang" && parseEndpoint(first.bootstrap) === undefined) {
    throw new MeshError(
      "invalid_request",
      `placement ${placement.decisionId} names no bootstrap server for ${first.workerId}`,
    );
  }
  const unpaired = findUnpairedReason(body) ?? request.refuse;
  if (unpaired !== undefined && !canPrefillOnDecode) {
    throw new MeshError(
      "invalid_request",
      `${adapter.name} cannot run this request as a pair: ${unpaired.replaceAll("_", " ")}`,
    );
  }
  const pair: PairRequest = { body, prefill: first, decode: second, room };
  const plan: RunPlan = {
    kind: "pair",
    order,
    start: unpaired === undefined ? adapter.start(pair) : { prefillBody: untouched },
    untouched,
    canPrefillOnDecode,
    ...(unpaired === undefined ? {} : { unpaired }),
    prefillWorkerId: first.workerId,
    decodeWorkerId: second.workerId,
  };
  return { plan, pair: { adapter, request: pair } };
}
