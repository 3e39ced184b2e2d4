import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import type { AdmittedRequest, GatePass, NoRoom } from "../admission/admitted-request.ts";
import type { Charges } from "../admission/charges.ts";
import { estimateOf } from "../admission/pool-gate.ts";
import type { SessionHomes } from "../admission/session-homes.ts";
import type { AskEstimate } from "../admission/waiter.ts";
import type { DecisionLog } from "../decisions/decision-log.ts";
import type { DecisionMaker } from "../decisions/decision-maker.ts";
import type { Decision } from "../decisions/decision.ts";
import type { Reservations } from "../load/reservations.ts";
import type { Members } from "../membership/members.ts";
import type { PickedGuard, StreamGuards } from "../relays/stream-guards.ts";
import type { CandidateInput, ScoredCandidate } from "./candidate.ts";
import type { DecisionPair } from "./pairs/decision-pair.ts";
import type { PairTries, Paired } from "./pairs/pair-tries.ts";
import type { PlaceInput } from "./place-input.ts";
import type { Eligible } from "./placement-table.ts";
import type { PoolPolicies } from "./pool-policies.ts";
import type { Placed } from "./policy.ts";
import type { RankedRequest, RequestRanking } from "./request-ranking.ts";

/** What places requests. */
export interface RequestPlacerParts {
  readonly ranking: RequestRanking;
  readonly tries: PairTries;
  readonly charges: Charges;
  readonly maker: DecisionMaker;
  readonly reservations: Reservations;
  readonly guards: StreamGuards;
  readonly decisions: DecisionLog;
  readonly members: Members;
  readonly policies: PoolPolicies;
  readonly homes: SessionHomes;
}

/** A request that is being placed. */
interface Placing {
  readonly input: PlaceInput;
  readonly eligible: Eligible;
  readonly ranked: RankedRequest;
  readonly pass: GatePass | undefined;
  readonly now: MonoMs;
}

/** Decides where one request runs, whole or as a pair, and reserves it there. */
export class RequestPlacer {
  readonly #endpointsMax: number;
  readonly #of: RequestPlacerParts;

  /** `endpointsMax`: endpoints named in an answer, the first choice included. */
  constructor(options: { readonly endpointsMax: number }, of: RequestPlacerParts) {
    this.#endpointsMax = options.endpointsMax;
    this.#of = of;
  }

  /** What a request is expected to cost a worker, without placing it. */
  estimate({ input: asked }: AdmittedRequest, now: MonoMs): AskEstimate {
    const { ranking, tries } = this.#of;
    const input = ranking.withinContext(asked);
    const ranked = ranking.rank(input, ranking.eligible(input), now);
    const [cheapest] = ranked.ranking.candidates;
    if (cheapest !== undefined) return estimateOf(cheapest, { ...ranked.request, itlMs: 0 });
    const { request, policy } = ranked;
    const pair = tries.estimate({ input, request, policy, pass: undefined, whole: undefined, now });
    return pair ?? { costMs: 1, firstTokenMs: 0 };
  }

  /**
   * Chooses and, unless it is a dry run, reserves. With a pass, only where admission has room for it; without one always
   * a decision, also a refusal.
   */
  place(asked: PlaceInput, now: MonoMs, pass: GatePass | undefined): Decision | NoRoom {
    const { ranking: rankings, tries, maker } = this.#of;
    const input = rankings.withinContext(asked);
    const eligible = rankings.eligible(input);
    const offersPairs = tries.offers(input.pool);
    if (eligible.count === 0 && !offersPairs) return maker.noWorker(input, eligible, undefined);

    const ranked = rankings.rank(input, eligible, now, pass?.request.hints.session);
    const placing = { input, eligible, ranked, pass, now };
    let ordered = ranked.ranking.candidates;
    let noRoom: NoRoom | undefined;
    if (pass !== undefined && eligible.count > 0) {
      const admitted = this.#admitted(ranked, pass, now);
      if ("kind" in admitted) noRoom = admitted;
      else ordered = admitted;
    }
    const whole = noRoom === undefined ? ordered[0] : undefined;
    let pair: DecisionPair | undefined;
    if (offersPairs) {
      const { request, policy } = ranked;
      const tried = tries.consider({ input, request, policy, pass, whole, now });
      if (tried.kind === "pair") return this.#placePair(tried, placing, ordered);
      if (tried.kind === "no_room") return noRoom === undefined ? tried : sooner(noRoom, tried);
      pair = tried.choice;
    }
    if (noRoom !== undefined) return noRoom;
    if (whole === undefined) return maker.noWorker(input, eligible, pair);
    return this.#placeWhole(placing, whole, ordered, pair);
  }

  #placeWhole(
    { input, eligible, ranked, pass, now }: Placing,
    chosen: ScoredCandidate,
    ordered: readonly ScoredCandidate[],
    pair: DecisionPair | undefined,
  ): Decision {
    const { maker, policies, charges, reservations, decisions } = this.#of;
    const { ranking, request, policy } = ranked;
    if (!input.dryRun) policies.turnTaken(input.pool, request.turn);
    const decision = maker.placed(input, policy.name);
    decision.filtered = eligible.filtered;
    decision.leftOut = ranking.leftOut + eligible.filteredLeftOut;
    decision.expectedOutputTokens = request.expectedOutputTokens;
    decision.workerId = chosen.workerId;
    decision.endpoints = endpointsOf(ordered, this.#endpointsMax);
    decision.candidates = ordered;
    decision.marginMs = ranking.marginMs;
    decision.tieBreak = ranking.tieBreak;
    decision.indexAgeMs = this.#indexAgeMs(chosen.workerId, now);
    decision.pair = pair;
    const guard = this.#guardOf(input, chosen.workerId);
    if (guard !== undefined) {
      decision.guard = guard.choice;
      if (guard.relays.length > 0) {
        decision.endpoints = guard.relays.map(({ facts }) => facts.h2Address);
      }
    }
    if (pass !== undefined) decision.admission = charges.charge(pass, chosen, request, now);
    if (!input.dryRun) {
      if (!reservations.open(decision, input, now)) {
        return maker.refused(input, reservations.bookFull);
      }
      if (guard !== undefined) this.#of.guards.given(guard.relays);
      this.#placed(ranked, {
        decisionId: decision.id,
        workerId: chosen.workerId,
        matchedBlocks: chosen.matchedBlocks,
        predictedTtftMs: chosen.predictedTtftMs,
      });
    }
    decisions.add(decision);
    return decision;
  }

  /** The ranked workers with the one in front that has room for the request. */
  #admitted(
    { ranking, request }: RankedRequest,
    pass: GatePass,
    now: MonoMs,
  ): readonly ScoredCandidate[] | NoRoom {
    const { hints } = pass.request;
    const account = this.#of.charges.accountOf(pass);
    const ask = {
      promptTokens: request.promptTokens,
      expectedOutputTokens: request.expectedOutputTokens,
      itlMs: hints.itlMs ?? pass.gate.admission.classOf(account.className).itlMs,
    };
    let ordered = ranking.candidates;
    let choice = pass.gate.choose(ordered, ask, account, now);
    if (ranking.leftOut > 0 && !(choice.kind === "take" && choice.index === 0)) {
      // The best has no room for it, so every worker counts.
      ordered = ranking.all();
      choice = pass.gate.choose(ordered, ask, account, now);
    }
    if (choice.kind === "no_room") return choice;
    if (choice.index > 0) ordered = withFirst(ordered, choice.index);
    const listed = ranking.candidates.length;
    return ordered.length === listed ? ordered : ordered.slice(0, listed);
  }

  #placePair(
    paired: Paired,
    { eligible, ranked }: Placing,
    whole: readonly ScoredCandidate[],
  ): Decision {
    const { maker, reservations, policies, decisions, tries } = this.#of;
    const { input, now, choice, chosen, verdict, found, sides } = paired;
    const { request } = ranked;
    const { prefillWorkerId, decodeWorkerId } = found.candidate;
    if (!input.dryRun) policies.turnTaken(input.pool, request.turn);
    const decision = maker.placed(input, ranked.policy.name);
    decision.filtered = eligible.filtered;
    decision.leftOut = eligible.filteredLeftOut + ranked.ranking.leftOut;
    decision.expectedOutputTokens = request.expectedOutputTokens;
    decision.workerId = decodeWorkerId;
    decision.endpoints = verdict.relays.map(({ facts }) => facts.h2Address);
    decision.indexAgeMs = this.#indexAgeMs(prefillWorkerId, now);
    decision.pair = choice;
    // The relay that carries it out sees what of its stream it can guard.
    if (input.guard !== undefined) decision.guard = { off: "", relays: [] };
    decision.admission = tries.charge(paired);
    decision.candidates = whole;
    decision.chosen = chosen;
    if (!input.dryRun) {
      const { expectedOutputTokens } = request;
      const reserved = { found, sides, relays: verdict.relays, expectedOutputTokens };
      if (!reservations.openPair(decision, input, reserved, now)) {
        return maker.refused(input, reservations.bookFull);
      }
      this.#placed(ranked, {
        decisionId: decision.id,
        workerId: decodeWorkerId,
        matchedBlocks: chosen.matchedBlocks,
        predictedTtftMs: choice.candidates[0]?.predictedTtftMs ?? 0,
      });
    }
    decisions.add(decision);
    return decision;
  }

  #guardOf({ guard, requestId }: PlaceInput, worker: WorkerId): PickedGuard | undefined {
    if (guard === undefined) return undefined;
    return this.#of.guards.pick(guard, { requestId, worker, max: this.#endpointsMax });
  }

  /** Tells those that learn from placements. */
  #placed({ request, policy }: RankedRequest, placed: Placed): void {
    this.#of.homes.placed(request.session, placed.workerId, request.now);
    policy.placed?.(request, placed);
  }

  #indexAgeMs(key: WorkerId, now: MonoMs): number {
    const member = this.#of.members.get(key);
    return member?.slot === undefined ? 0 : now - member.blocksHeardAt;
  }
}

/** Of two attempts for which there is no room, the one that may have some sooner. */
function sooner(a: NoRoom, b: NoRoom): NoRoom {
  return b.roomAt < a.roomAt ? b : a;
}

/** The list with the entry at `index` in front. */
function withFirst<T>(list: readonly T[], index: number): T[] {
  const first = list[index];
  const others = list.filter((_, i) => i !== index);
  return first === undefined ? others : [first, ...others];
}

function endpointsOf(candidates: readonly CandidateInput[], max: number): string[] {
  const endpoints: string[] = [];
  for (const { endpoint } of candidates) {
    if (endpoints.length >= max) break;
    if (!endpoints.includes(endpoint)) endpoints.push(endpoint);
  }
  return endpoints;
}
