import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import type { Decision } from "../decisions/decision.ts";
import { prefillKeyOf } from "../placement/pairs/pair-legs.ts";
import type { PairPlacer } from "../placement/pairs/pair-placer.ts";
import type { LegNotice } from "./leg-notice.ts";

/** What is done about legs. */
export interface LegEndsPort {
  readonly pairs: PairPlacer;
  decision(id: string): Decision | undefined;
  /** Closes a reservation, if it is open. */
  close(key: string, now: MonoMs): void;
  firstToken(decisionId: string): void;
  /** An engine says how much of a prompt it had cached. */
  cachedTold(decisionId: string, tokens: number): void;
  /** A prompt that found its engine idle took so long. */
  learnPrefill(
    worker: WorkerId,
    sample: { readonly newTokens: number; readonly cachedTokens: number; readonly ms: number },
  ): void;
}

/** Below this a transfer is no measurement, ms. */
const transferMsMin = 0.05;

/**
 * Takes what relays tell of legs: closes the reservation of each leg with its end, and learns from what it took. A notice may
 * come twice; the second changes nothing but what is learned, and whoever numbers them leaves it out.
 */
export class LegEnds {
  readonly #port: LegEndsPort;

  constructor(port: LegEndsPort) {
    this.#port = port;
  }

  /** A notice about a decision of this router. */
  take(notice: LegNotice, now: MonoMs): void {
    const { decisionId, leg, ended, last } = notice;
    const port = this.#port;
    if (!ended) {
      if (leg === "decode") this.#learnTransfer(notice, now);
      port.pairs.legs.firstToken(decisionId);
      port.firstToken(decisionId);
      return;
    }
    if (leg !== "decode" && notice.outcome === "done" && notice.cachedTokens >= 0) {
      port.cachedTold(decisionId, notice.cachedTokens);
    }
    if (leg === "prefill") {
      this.#learnPrefill(notice);
      port.close(prefillKeyOf(decisionId), now);
      if (!last) return;
    }
    // With its answer a pair's prompt is done with, whether or not somebody said so.
    if (port.pairs.legs.mayHavePrefill(decisionId)) port.close(prefillKeyOf(decisionId), now);
    port.close(decisionId, now);
  }

  /**
   * From the start of the decode leg to its first token: the transfer, and what was expected of the engine besides. Only
   * where legs run one after the other, where the answer came token by token, and with no other bytes before.
   */
  #learnTransfer(notice: LegNotice, now: MonoMs): void {
    const { decisionId, firstTokenMs, transferMs, localPrefill } = notice;
    const { pairs } = this.#port;
    const made = this.#port.decision(decisionId);
    const open = pairs.legs.get(decisionId);
    const pair = made?.pair?.candidates[0];
    if (made?.pair?.form !== "pair" || pair === undefined || open === undefined) return;
    if (localPrefill || firstTokenMs <= 0 || made.answer !== "stream") return;
    if (!pairs.isSequential(open.prefillWorker) || pair.term("transfer_wait") > 0) return;
    const ends = pairs.legs.endsOf(open);
    if (ends === undefined) return;
    const queuedMs = pair.term("decode_queue") + pair.term("decode_stall");
    // The relay leaves out the first step, by the gaps that it sees; without its word it is as expected.
    const seenMs = transferMs > 0 ? transferMs : firstTokenMs - pair.term("first_step");
    const ms = Math.max(transferMsMin, seenMs - queuedMs);
    pairs.links.observed(ends, pair.transferBytes, ms, now);
  }

  /** An idle engine's prefill leg shows what prefill alone costs. */
  #learnPrefill({ decisionId, outcome, durationMs, cachedTokens, workerId }: LegNotice): void {
    const made = this.#port.decision(decisionId);
    const pair = made?.pair?.candidates[0];
    if (made?.pair?.form !== "pair" || pair === undefined || outcome !== "done") return;
    if (pair.prefillWorkerId !== workerId || pair.term("queue") > 0) return;
    if (!this.#port.pairs.isSequential(pair.prefillWorkerId)) return;
    const cached = cachedTokens >= 0 ? cachedTokens : pair.prefillMatchedTokens;
    const newTokens = made.promptTokens - cached;
    // A prompt that was not read has a guessed length.
    if (!(durationMs > 0) || newTokens <= 0 || made.loadOnlyReason !== "") return;
    this.#port.learnPrefill(pair.prefillWorkerId, {
      newTokens,
      cachedTokens: cached,
      ms: durationMs,
    });
  }
}
