import { MeshError } from "../../../shared/core/errors.ts";
import type { Placement } from "../../../shared/core/placement-token/placement.ts";
import type { RelayedBody } from "../../core/body/relayed-body.ts";
import type { LocalPrefillReason } from "../../core/request/leg-outcome.ts";
import { planRun, type PlannedRun } from "../../core/request/plan-run.ts";
import type { RelayParts } from "../relay-parts.ts";

/** Throws `stale_epoch` when the engine that is to answer is gone, or in another life. */
export function requireLive({ topology }: RelayParts, { legs }: Placement): void {
  const leg = legs[legs.length - 1];
  if (leg === undefined) return;
  const standing = topology.judge(leg);
  if (standing !== "stale" && standing !== "unknown") return;
  throw new MeshError(
    "stale_epoch",
    `${leg.workerId} at ${leg.address} is ${
      standing === "stale" ? "in another life" : "no member any more"
    }; ask for a new placement`,
  );
}

/** Plans the legs of a placement from what is known of its engines now. Throws as `requireLive` and `planRun` do. */
export function planPlacement(
  parts: RelayParts,
  placement: Placement,
  body: RelayedBody,
): PlannedRun {
  const { adapters, handoffs, random, topology } = parts;
  const [first] = placement.legs;
  let refuse: LocalPrefillReason | undefined;
  if (first?.role === "prefill") {
    const standing = topology.judge(first);
    if (standing === "stale" || standing === "unknown") refuse = "prefill_failed";
    else if (!handoffs.hasRoom(first.workerId, placement.forecast.promptTokens)) {
      refuse = "handoff_full";
    }
  }
  requireLive(parts, placement);
  const room = Math.floor(random.next() * 2 ** 31);
  return planRun(adapters, placement, { body, room, refuse });
}
