import type { MonoMs } from "../../../shared/core/ids.ts";
import type { PoolGates } from "../admission/pool-gates.ts";
import type { DecisionRecord } from "../decisions/decision-record.ts";
import type { PlaceInput } from "../placement/place-input.ts";
import { prefillKeyOf } from "../placement/pairs/pair-legs.ts";
import type { PairPlacer, PairSides, PairVerdict } from "../placement/pairs/pair-placer.ts";
import { pairRoomAsks } from "../placement/pairs/pair-room.ts";
import type { FoundPair } from "../placement/pairs/pair-search.ts";
import type { RelayRoster } from "../relays/relay-roster.ts";
import type { EffectQueue } from "../router-effects.ts";
import type { CacheObservers } from "./cache-observers.ts";
import type { EngineSpeeds } from "./engine-speeds.ts";
import type { LoadBook } from "./load-book.ts";

/** A pair as it is reserved. */
export interface PairReservation {
  readonly found: FoundPair;
  readonly sides: PairSides;
  readonly relays: PairVerdict["relays"];
  readonly expectedOutputTokens: number;
}

/** Reserves what decisions place, so that it counts at once for everything decided after it, here and at peers. */
export class Reservations {
  readonly #book: LoadBook;
  readonly #speeds: EngineSpeeds;
  readonly #observers: CacheObservers;
  readonly #gates: PoolGates;
  readonly #pairs: PairPlacer;
  readonly #relays: RelayRoster;
  readonly #effects: EffectQueue;

  constructor(of: {
    readonly book: LoadBook;
    readonly speeds: EngineSpeeds;
    readonly observers: CacheObservers;
    readonly gates: PoolGates;
    readonly pairs: PairPlacer;
    readonly relays: RelayRoster;
    readonly effects: EffectQueue;
  }) {
    this.#book = of.book;
    this.#speeds = of.speeds;
    this.#observers = of.observers;
    this.#gates = of.gates;
    this.#pairs = of.pairs;
    this.#relays = of.relays;
    this.#effects = of.effects;
  }

  /** Reserves a request that runs whole on the decision's chosen worker. False, with nothing done, when the book is full. */
  open(decision: DecisionRecord, input: PlaceInput, now: MonoMs): boolean {
    const { chosen } = decision;
    if (chosen === undefined) return false;
    const uncachedTokens = input.promptTokens - chosen.matchedTokens;
    const isOpen = this.#book.open(
      {
        decisionId: decision.id,
        workerId: chosen.workerId,
        own: true,
        openedAt: now,
        promptTokens: input.promptTokens,
        uncachedTokens,
        expectedOutputTokens: decision.expectedOutputTokens,
        prefillMs: chosen.prefillMs,
        prefillEndsAt: now,
        endsAt: now,
        hardEndAt: now,
      },
      chosen.decodeMs,
    );
    if (!isOpen) return false;
    this.#speeds.used(chosen.workerId, now);
    if (input.hashes.length > 0) {
      this.#observers.watch(chosen.workerId, decision.id, input.hashes, now);
    }
    this.#gates.get(input.pool)?.placed(chosen, decision, now);
    this.#effects.push({ kind: "reserved", decision, uncachedTokens });
    return true;
  }

  /** Reserves both legs of a pair and a place on its first relay. False, with nothing done, when the book is full. */
  openPair(decision: DecisionRecord, input: PlaceInput, of: PairReservation, now: MonoMs): boolean {
    const { found, sides, relays, expectedOutputTokens } = of;
    const { candidate } = found;
    const { promptTokens, hashes, pool } = input;
    const isOpen = this.#pairs.reserve(this.#book, {
      decisionId: decision.id,
      prefillKey: prefillKeyOf(decision.id),
      found,
      promptTokens,
      expectedOutputTokens,
      now,
    });
    if (!isOpen) return false;
    const { prefillWorkerId, decodeWorkerId } = candidate;
    this.#speeds.used(prefillWorkerId, now);
    this.#speeds.used(decodeWorkerId, now);
    if (hashes.length > 0) this.#observers.watch(prefillWorkerId, decision.id, hashes, now);
    const gate = this.#gates.get(pool);
    const asks = pairRoomAsks(candidate, { promptTokens, expectedOutputTokens });
    gate?.placed(sides.prefill, asks.prefill, now);
    gate?.placed(sides.decode, asks.decode, now);
    const [relay] = relays;
    if (relay !== undefined) this.#relays.given(relay.facts.instance);
    this.#effects.push({ kind: "reserved", decision, uncachedTokens: 0, pair: candidate });
    return true;
  }

  /** The refusal of a request that the book has no room for. */
  get bookFull(): { readonly code: "overloaded"; readonly message: string } {
    const { openCount } = this.#book;
    return {
      code: "overloaded",
      message: `${openCount} requests are open, the most that the load book holds`,
    };
  }
}
