import type { Placement } from "../../shared/core/placement-token/placement.ts";
import { LegRecord } from "./leg-record.ts";
import type { RelayParts } from "./relay-parts.ts";

/** Tells the router of a placement that none of its legs is started, so that it keeps nothing reserved for them. */
export function abandon(
  { clock, notify }: Pick<RelayParts, "clock" | "notify">,
  placement: Placement,
): void {
  const now = clock.now();
  const { legs } = placement;
  legs.forEach((leg, index) => {
    const record = new LegRecord(leg.role === "prefill" ? "prefill" : "answer", leg, now);
    const last = index === legs.length - 1;
    notify(record.notice(placement, { ended: true, outcome: "not_started", ttftMs: 0, last, now }));
  });
}
