import type { IncomingHttpHeaders } from "node:http";
import type { PlacementLeg, Placement } from "../../shared/core/placement-token/placement.ts";
import type { LegOutcome } from "../../shared/core/leg-outcome.ts";
import type { LegSlot } from "../core/request/leg-outcome.ts";
import { noUsage, type TailUsage } from "../core/request/tail-usage.ts";
import type { LegNotice } from "../core/topology/leg-notices.ts";
import type { LegCall } from "./leg-call.ts";

/** One leg of a request while it runs, and what is known of it. */
export class LegRecord {
  readonly slot: LegSlot;
  readonly leg: PlacementLeg;
  readonly startedAt: number;
  call: LegCall | undefined;
  /** Status of the engine's answer; 0 before it came. */
  status = 0;
  /** Header fields of the answer, until they have passed. */
  headers: IncomingHttpHeaders | undefined;
  firstByteAt = 0;
  usage: TailUsage = noUsage;
  localPrefill = false;
  /** What of the transfer from another leg was not hidden, ms; 0 when there was none, or it was not seen. */
  transferMs = 0;
  /** Pieces of an answer that is read whole: a prefill leg's, or an engine's error. */
  #whole: Buffer[] = [];
  #wholeBytes = 0;

  constructor(slot: LegSlot, leg: PlacementLeg, startedAt: number) {
    this.slot = slot;
    this.leg = leg;
    this.startedAt = startedAt;
  }

  /** Keeps a piece of an answer that is read whole; false, with the piece left out, above `bytesMax`. */
  gather(piece: Buffer, bytesMax: number): boolean {
    this.#wholeBytes += piece.length;
    if (this.#wholeBytes > bytesMax) return false;
    this.#whole.push(piece);
    return true;
  }

  /** What was gathered, which is let go of. */
  takeWhole(): Buffer {
    const whole = Buffer.concat(this.#whole);
    this.#whole = [];
    this.#wholeBytes = 0;
    return whole;
  }

  /** What the engine said instead of an answer, for people. */
  takeComplaint(): string {
    const text = this.takeWhole().toString("utf8", 0, 300);
    return `${this.leg.workerId} answered ${String(this.status)}: ${text}`;
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
      transferMs: this.transferMs,
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
