import type { MonoMs } from "../../../shared/core/ids.ts";
import type { Charges } from "../admission/charges.ts";
import type { PoolGates } from "../admission/pool-gates.ts";
import type { DecisionLog } from "../decisions/decision-log.ts";
import type { Decision, Observation } from "../decisions/decision.ts";
import { prefillKeyOf } from "../placement/pairs/pair-legs.ts";
import type { PairPlacer } from "../placement/pairs/pair-placer.ts";
import type { PoolPolicies } from "../placement/pool-policies.ts";
import type { EffectQueue } from "../router-effects.ts";
import type { CacheObservers } from "./cache-observers.ts";
import type { EngineSpeeds } from "./engine-speeds.ts";
import type { Closed, LoadBook } from "./load-book.ts";
import { observedCache } from "./observed-cache.ts";
import type { CloseReason } from "./reservation.ts";

/** Times that an access-log record tells. */
export interface ServedRecord {
  /** To the first byte of the answer's body, whether it is a first token or not. */
  readonly ttftMs: number;
  readonly durationMs: number;
  readonly servedEndpoint: string;
  readonly status: number;
  readonly responseFlags: string;
  readonly attempts: number;
  readonly responseBytes: number;
}

/** What follows from the end of a request, by whatever way this router hears of it. */
export interface RequestEndsParts {
  readonly book: LoadBook;
  readonly decisions: DecisionLog;
  readonly pairs: PairPlacer;
  readonly observers: CacheObservers;
  readonly speeds: EngineSpeeds;
  readonly gates: PoolGates;
  readonly policies: PoolPolicies;
  readonly charges: Charges;
  readonly effects: EffectQueue;
}

/** Closes the books of requests that have ended and learns from what was observed of them. */
export class RequestEnds {
  readonly #blockSizeTokens: number;
  readonly #of: RequestEndsParts;

  constructor(options: { readonly blockSizeTokens: number }, of: RequestEndsParts) {
    this.#blockSizeTokens = options.blockSizeTokens;
    this.#of = of;
  }

  /**
   * Closes the books of one decision with what Envoy's access log says. Returns the observation; `undefined`
   * when this router did not make the decision or has forgotten it.
   */
  served(decisionId: string, record: ServedRecord, now: MonoMs): Observation | undefined {
    const { book, decisions, observers, speeds, charges } = this.#of;
    const decision = decisions.byId(decisionId);
    this.closePrefill(decisionId, "access_log", now);
    const closed = book.close(decisionId, "access_log", now);
    if (decision?.workerId === undefined) {
      // The book may outlive the log of decisions; peers hold the reservation too and must hear of its end.
      if (closed !== undefined) {
        observers.finish(closed.reservation.workerId, decisionId);
        this.closed(closed, undefined);
      }
      return undefined;
    }
    if (decision.observed?.closedBy === "access_log") return decision.observed;
    const observation = this.#observe(decision, record);
    decision.observed = observation;
    const { chosen } = decision;
    const { servedAsPicked } = observation;
    if (chosen !== undefined && servedAsPicked && record.ttftMs > 0 && record.status === 200) {
      // What the first token of a pair took says nothing of one engine; relays tell of each leg.
      if (decision.answer === "stream" && decision.pair?.form !== "pair") {
        speeds.observeServed(decision, observation, chosen.load.prefillBacklogMs);
      }
      charges.settle(decision, chosen, observation, now);
    }
    if (closed !== undefined) this.closed(closed, observation);
    return observation;
  }

  /** Closes a reservation without a record; whether it was open. */
  release(decisionId: string, now: MonoMs): boolean {
    this.closePrefill(decisionId, "released", now);
    const closed = this.#of.book.close(decisionId, "released", now);
    if (closed === undefined) return false;
    this.closed(closed, undefined);
    return true;
  }

  /** Closes one leg by its key in the book, if it is open: its relay tells that it is over. */
  closeLeg(key: string, now: MonoMs): void {
    const closed = this.#of.book.close(key, "relay", now);
    if (closed !== undefined) this.closed(closed, undefined);
  }

  /** The prefill leg of a pair is over with its decode leg, if nobody has told of its end. */
  closePrefill(decisionId: string, reason: CloseReason, now: MonoMs): void {
    const { pairs, book } = this.#of;
    if (!pairs.legs.mayHavePrefill(decisionId)) return;
    const closed = book.close(prefillKeyOf(decisionId), reason, now);
    if (closed !== undefined) this.closed(closed, undefined);
  }

  /** What follows from a reservation that the book has closed. */
  closed(closed: Closed, observed: Observation | undefined): void {
    const { gates, policies, observers, decisions, effects } = this.#of;
    const { reservation, reason } = closed;
    const { decisionId, workerId } = reservation;
    gates.freed(workerId);
    if (!reservation.own) return;
    policies.closed(decisionId);
    if (reason !== "access_log") {
      observers.finish(workerId, decisionId);
      const decision = decisions.byId(decisionId);
      if (decision?.observed === undefined && decision !== undefined) {
        decision.observed = unheard(reason);
      }
    }
    effects.push({ kind: "closed", closed, observed });
  }

  #observe(decision: Decision, record: ServedRecord): Observation {
    const pair = decision.pair?.form === "pair" ? decision.pair.candidates[0] : undefined;
    // Every relay of the list carries out the same placement.
    const servedAsPicked =
      pair === undefined
        ? record.servedEndpoint === (decision.endpoints[0] ?? "")
        : decision.endpoints.includes(record.servedEndpoint);
    const prompted = pair?.prefillWorkerId ?? decision.workerId;
    const cachedBlocks =
      prompted === undefined ? undefined : this.#of.observers.finish(prompted, decision.id);
    const cached =
      record.ttftMs > 0
        ? observedCache(decision, servedAsPicked ? cachedBlocks : undefined, this.#blockSizeTokens)
        : unknownCache;
    return {
      ...record,
      ...cached,
      ttftMs: decision.answer === "stream" ? record.ttftMs : 0,
      servedAsPicked,
      closedBy: "access_log",
    };
  }
}

const unknownCache = { cachedTokens: -1, cachedDifference: "unknown" } as const;

function unheard(reason: string): Observation {
  return {
    ttftMs: 0,
    durationMs: 0,
    servedEndpoint: "",
    servedAsPicked: false,
    status: 0,
    responseFlags: "",
    attempts: 0,
    ...unknownCache,
    closedBy: reason,
    responseBytes: 0,
  };
}
