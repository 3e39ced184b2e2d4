import type { PlacementLeg, Placement } from "../../shared/core/placement-token/placement.ts";
import type { LegOutcome, LegSlot } from "../core/request/leg-outcome.ts";
import { noUsage, type TailUsage } from "../core/request/tail-usage.ts";
import type { LegNotice } from "../core/topology/leg-notices.ts";
import type { LegCall } from "./leg-call.ts";

/** One leg of a request while it runs, and what is known of it. */
export class LegRecord {
  readonly slot: LegSlot;
  readonly leg: PlacementLeg;
  readonly startedAt: number;
  call: LegCall | undefined;
  status = 0;
  firstByteAt = 0;
  usage: TailUsage = noUsage;
  localPrefill = false;
  /** Number of the hand-off that it makes or pulls, in the hand-off book; 0 for none. */
  handoff = 0;

  constructor(slot: LegSlot, leg: PlacementLeg, startedAt: number) {
    this.slot = slot;
    this.leg = leg;
    this.startedAt = startedAt;
  }

  /** What routers hear of it. `ttftMs` of the client, 0 when no byte was sent. */
  notice(
    placement: Placement,
    end: {
      readonly ended: boolean;
      readonly outcome: LegOutcome;
      readonly ttftMs: number;
      readonly last: boolean;
      readonly now: number;
    },
  ): LegNotice {
    const { usage, startedAt, firstByteAt } = this;
    return {
      decisionId: placement.decisionId,
      router: placement.router,
      leg: this.leg.role,
      workerId: this.leg.workerId,
      ended: end.ended,
      outcome: end.outcome,
      durationMs: end.now - startedAt,
      firstTokenMs: firstByteAt === 0 ? 0 : firstByteAt - startedAt,
      ttftMs: end.ttftMs,
      promptTokens: usage.promptTokens,
      cachedTokens: usage.cachedTokens,
      generatedTokens: usage.generatedTokens,
      status: this.status,
      localPrefill: this.localPrefill,
      last: end.last,
      at: end.now,
    };
  }
}
