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
import { observedCache, unknownCache, type ObservedCache } from "./observed-cache.ts";
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

/** Requests of which a relay has told what was cached and whose end is still to come. */
const toldMax = 4_096;

/** Closes the books of requests that have ended and learns from what was observed of them. */
export class RequestEnds {
  readonly #blockSizeTokens: number;
  readonly #of: RequestEndsParts;
  /** Cached tokens as relays tell them, by decision, until its end. */
  readonly #told = new Map<string, number>();

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

  /** A relay tells how many tokens of a prompt its engine had cached. */
  cachedTold(decisionId: string, tokens: number): void {
    const decision = this.#of.decisions.byId(decisionId);
    if (decision === undefined) return;
    const { observed } = decision;
    if (observed === undefined) {
      if (this.#told.size >= toldMax) this.#forgetOldest();
      this.#told.set(decisionId, tokens);
      return;
    }
    if (observed.cachedTokens >= 0) return;
    const evidence = { blocks: undefined, toldTokens: tokens };
    const cached = observedCache(decision, evidence, this.#blockSizeTokens);
    decision.observed = { ...observed, ...cached };
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
      const decision = decisions.byId(decisionId);
      const cached =
        decision === undefined
          ? undefined
          : this.#cacheOf(decision, { isKept: reason === "relay" });
      if (decision === undefined) observers.finish(workerId, decisionId);
      else if (cached !== undefined) decision.observed ??= unheard(reason, cached);
    }
    effects.push({ kind: "closed", closed, observed });
  }

  #observe(decision: Decision, record: ServedRecord): Observation {
    const { pair, guard, endpoints } = decision;
    const isRelayed = pair?.form === "pair" || (guard !== undefined && guard.relays.length > 0);
    // Every relay of the list carries out the same placement.
    const servedAsPicked = isRelayed
      ? endpoints.includes(record.servedEndpoint)
      : record.servedEndpoint === (endpoints[0] ?? "");
    const isKept = servedAsPicked && record.ttftMs > 0;
    const cached = this.#cacheOf(decision, { isKept });
    return {
      ...record,
      ...cached,
      ttftMs: decision.answer === "stream" ? record.ttftMs : 0,
      servedAsPicked,
      closedBy: "access_log",
    };
  }

  /**
   * Ends the watch over a decision's prompt. `isKept`: what it has shown is of this request's engine. What a relay's word
   * closed before its record came has been seen then.
   */
  #cacheOf(decision: Decision, { isKept }: { readonly isKept: boolean }): ObservedCache {
    const { id, workerId, pair, observed } = decision;
    const toldTokens = this.#told.get(id);
    this.#told.delete(id);
    const prompted =
      (pair?.form === "pair" ? pair.candidates[0]?.prefillWorkerId : undefined) ?? workerId;
    const blocks = prompted === undefined ? undefined : this.#of.observers.finish(prompted, id);
    if (!isKept) return unknownCache;
    if (blocks === undefined && toldTokens === undefined && observed !== undefined) {
      const { cachedTokens, cachedDifference } = observed;
      return { cachedTokens, cachedDifference };
    }
    return observedCache(decision, { blocks, toldTokens }, this.#blockSizeTokens);
  }

  #forgetOldest(): void {
    for (const id of this.#told.keys()) {
      this.#told.delete(id);
      return;
    }
  }
}

function unheard(reason: string, cached: ObservedCache): Observation {
  return {
    ttftMs: 0,
    durationMs: 0,
    servedEndpoint: "",
    servedAsPicked: false,
    status: 0,
    responseFlags: "",
    attempts: 0,
    ...cached,
    closedBy: reason,
    responseBytes: 0,
  };
}
