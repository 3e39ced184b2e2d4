import type { MonoMs } from "../../../../shared/core/ids.ts";
import type { GatePass, NoRoom } from "../../admission/admitted-request.ts";
import type { Charges } from "../../admission/charges.ts";
import { decodeCostMs, workMs } from "../../admission/pool-gate.ts";
import type { AskEstimate } from "../../admission/waiter.ts";
import type { DecisionAdmission } from "../../decisions/decision.ts";
import type { PlacementRequest, ScoredCandidate } from "../candidate.ts";
import type { PlaceInput } from "../place-input.ts";
import { isAllowed, type PlacementTable } from "../placement-table.ts";
import type { PlacementPolicy, PolicyRequest } from "../policy.ts";
import type { RequestRanking } from "../request-ranking.ts";
import type { DecisionPair } from "./decision-pair.ts";
import { wholeItlMs } from "./itl-target.ts";
import { PairPlacer, type PairAsk, type PairSides, type PairVerdict } from "./pair-placer.ts";
import { pairRoomAsks } from "./pair-room.ts";
import type { FoundPair } from "./pair-search.ts";

/** A request for which a pair is tried, right after its ranking. */
export interface PairTry {
  readonly input: PlaceInput;
  readonly request: PolicyRequest;
  readonly policy: PlacementPolicy;
  readonly pass: GatePass | undefined;
  /** The worker that would take it whole; `undefined` when nobody can. */
  readonly whole: ScoredCandidate | undefined;
  readonly now: MonoMs;
}

/** It is to run as a pair. */
export interface Paired extends PairTry {
  readonly kind: "pair";
  readonly choice: DecisionPair;
  readonly verdict: PairVerdict;
  readonly found: FoundPair;
  readonly sides: PairSides;
  /** What its decision shows as its candidate. */
  readonly chosen: ScoredCandidate;
}

/** It is to run whole. */
export interface WholeForm {
  readonly kind: "whole";
  readonly choice: DecisionPair;
}

/** Compares running a request whole with the best pair, under what admission has room for. */
export class PairTries {
  readonly #relaysMax: number;
  readonly #pairs: PairPlacer;
  readonly #table: PlacementTable;
  readonly #ranking: RequestRanking;
  readonly #charges: Charges;

  /** `relaysMax`: relays named in an answer. */
  constructor(
    options: { readonly relaysMax: number },
    of: {
      readonly pairs: PairPlacer;
      readonly table: PlacementTable;
      readonly ranking: RequestRanking;
      readonly charges: Charges;
    },
  ) {
    this.#relaysMax = options.relaysMax;
    this.#pairs = of.pairs;
    this.#table = of.table;
    this.#ranking = of.ranking;
    this.#charges = of.charges;
  }

  /** Whether a pool offers pairs at all, so that `consider` has something to say. */
  offers(pool: string): boolean {
    return this.#pairs.offers(pool);
  }

  /** Compares running whole, as it would on `whole`, with the best pair that admission has room for. */
  consider(of: PairTry): Paired | WholeForm | NoRoom {
    const { request, pass, now } = of;
    const ask = this.#askOf(of);
    const verdict = this.#pairs.consider(ask);
    const { found } = verdict;
    if (found === undefined) return { kind: "whole", choice: verdict.choice };
    const sides = this.#pairs.sides(found, ask);
    if (pass !== undefined) {
      const noRoom = this.#findNoRoom(pass, { found, sides, request, now });
      if (noRoom !== undefined) {
        if (verdict.choice.why === "always" || of.whole === undefined) return noRoom;
        return { kind: "whole", choice: PairPlacer.withoutRoom(verdict).choice };
      }
    }
    const chosen = PairPlacer.chosenOf(found, sides);
    return { ...of, kind: "pair", choice: verdict.choice, verdict, found, sides, chosen };
  }

  /** What a request is expected to cost as a pair; `undefined` when it cannot run as one. */
  estimate(of: PairTry): AskEstimate | undefined {
    if (!this.#pairs.offers(of.input.pool)) return undefined;
    const ask = this.#askOf(of);
    const { found } = this.#pairs.consider(ask);
    if (found === undefined) return undefined;
    return estimateOfPair(found, this.#pairs.sides(found, ask), of.request);
  }

  /** What a pair is charged: the work of its prefill worker and the room of its decode worker. */
  charge({ pass, sides, request, now }: Paired): DecisionAdmission | undefined {
    if (pass === undefined) return undefined;
    const admission = this.#charges.charge(pass, sides.decode, request, now);
    const prefillMs = workMs(sides.prefill, request.promptTokens);
    return { ...admission, chargedMs: prefillMs + admission.chargedDecodeMs };
  }

  #itlTargetMs(pass: GatePass): number {
    const { className } = this.#charges.accountOf(pass);
    return pass.request.hints.itlMs ?? pass.gate.admission.classOf(className).itlMs;
  }

  #askOf({ input, request, policy, pass, whole, now }: PairTry): PairAsk {
    const { home } = request;
    return {
      requestId: input.requestId,
      pool: input.pool,
      isPairable: input.isPairable === true,
      promptTokens: input.promptTokens,
      isCounted: input.loadOnlyReason === "",
      expectedOutputTokens: request.expectedOutputTokens,
      depths: this.#ranking.depthsOf(input),
      isBlind: policy.name === "kv-blind",
      homeRow: home === undefined ? -1 : this.#table.rowOf(home),
      affinityMs: home === undefined ? 0 : (request.affinityMs ?? 0),
      allows: (row) => isAllowed(input, this.#table.worker(row)),
      wholeCostMs: whole?.costMs,
      wholeItlMs:
        whole === undefined
          ? 0
          : wholeItlMs(whole, request, this.#pairs.prefillShare(whole.workerId, now)),
      itlTargetMs: pass === undefined ? 0 : this.#itlTargetMs(pass),
      isComparable: policy.name === "kv" || policy.name === "kv-blind",
      relaysMax: this.#relaysMax,
      now,
    };
  }

  #findNoRoom(
    pass: GatePass,
    of: {
      readonly found: FoundPair;
      readonly sides: PairSides;
      readonly request: PolicyRequest;
      readonly now: MonoMs;
    },
  ): NoRoom | undefined {
    const { found, sides, request, now } = of;
    const account = this.#charges.accountOf(pass);
    const itlMs = this.#itlTargetMs(pass);
    const asks = pairRoomAsks(found.candidate, request);
    for (const side of ["prefill", "decode"] as const) {
      const ask = { ...asks[side], itlMs: side === "decode" ? itlMs : 0 };
      const choice = pass.gate.choose([sides[side]], ask, account, now);
      if (choice.kind === "no_room") {
        return { ...choice, estimate: estimateOfPair(found, sides, request) };
      }
    }
    return undefined;
  }
}

/** What a pair costs its two workers, and how long its first token takes where both have room. */
function estimateOfPair(
  { candidate }: FoundPair,
  { prefill, decode }: PairSides,
  request: PlacementRequest,
): AskEstimate {
  const { promptTokens } = request;
  const first = ["prefill", "transfer", "first_step"] as const;
  return {
    costMs: workMs(prefill, promptTokens) + decodeCostMs(decode, request, decode.decodeMs),
    firstTokenMs: first.reduce((sum, name) => sum + candidate.term(name), 0),
  };
}
