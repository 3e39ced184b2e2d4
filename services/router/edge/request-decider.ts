import type { Answer, ExchangeRequest } from "../core/exchange/exchange.ts";
import type { RequestContext } from "./request-context.ts";

/** A request that waits for its answer. */
export interface WaitingDecision {
  /** Longest time until the answer, ms: how far the proxy must put its timer off. */
  readonly waitMsMax: number;
  /** Forgets the request: its client left or its stream broke. `answer` is not called afterwards. */
  cancel(): void;
}

/** Answers whole requests, at once or after a wait. */
export interface RequestDecider {
  /**
   * Decides one request and calls `answer` exactly once, unless the wait is cancelled first. Returns `undefined` when
   * `answer` has been called, otherwise the wait. Everything needed of `request` is read before this returns: its body
   * may be gone afterwards. Bad input is answered, not thrown.
   */
  decide(
    request: ExchangeRequest,
    context: RequestContext,
    answer: (answer: Answer) => void,
  ): WaitingDecision | undefined;
}
