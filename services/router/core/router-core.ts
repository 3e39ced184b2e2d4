import type { MonoMs, WorkerId } from "../../shared/core/ids.ts";
import type { AdmittedRequest, RequestGate, WaitingRequest } from "./admission/admitted-request.ts";
import type { TenantDemand } from "./admission/router-shares.ts";
import type { DecisionLog } from "./decisions/decision-log.ts";
import type { Decision, Observation } from "./decisions/decision.ts";
import type { KvIndex } from "./kv-index/kv-index.ts";
import type { LoadBook } from "./load/load-book.ts";
import type { ServedRecord } from "./load/request-ends.ts";
import type { LoadReport } from "./load/reservation.ts";
import type { CounterDelta, WorkerModel } from "./load/worker-model.ts";
import type { BlockChange, FeedOutcome, SnapshotPart } from "./membership/block-feed.ts";
import type { Member, MemberFacts, MemberNotice } from "./membership/member.ts";
import type { Members } from "./membership/members.ts";
import type { PeerReservation } from "./peers/peer-reservations.ts";
import type { PairPlacer } from "./placement/pairs/pair-placer.ts";
import type { PlaceInput } from "./placement/place-input.ts";
import type { PolicyName } from "./placement/policy.ts";
import type { LegEnds } from "./relays/leg-ends.ts";
import type { RelayRoster } from "./relays/relay-roster.ts";
import type { RouterEffect } from "./router-effects.ts";
import type { RouterCoreOptions } from "./router-options.ts";
import { makeRouterParts, type RouterParts } from "./router-parts.ts";

/**
 * The router's whole state and every rule over it, deterministic: the same calls at the same times give the
 * same decisions. Edges feed it and carry out `takeEffects()`. Each call goes to the part that has its rule.
 */
export class RouterCore {
  readonly members: Members;
  readonly book: LoadBook;
  readonly decisions: DecisionLog;
  readonly index: KvIndex;
  readonly relays: RelayRoster;
  readonly pairs: PairPlacer;
  /** What relays tell of legs. */
  readonly legEnds: LegEnds;
  readonly #parts: RouterParts;

  constructor(options: RouterCoreOptions) {
    const parts = makeRouterParts(options);
    this.#parts = parts;
    this.members = parts.members;
    this.book = parts.book;
    this.decisions = parts.decisions;
    this.index = parts.index;
    this.relays = parts.relays;
    this.pairs = parts.pairs;
    this.legEnds = parts.legEnds;
  }

  /** Effects since the last call, in order. */
  takeEffects(): RouterEffect[] {
    return this.#parts.effects.take();
  }

  /** Ends what has run out. Call about every 250 ms. */
  tick(now: MonoMs): void {
    this.#parts.membership.tick(now);
    this.relays.tick(now);
    this.pairs.links.tick(now);
    for (const closed of this.book.expire(now)) this.#parts.ends.closed(closed, undefined);
    this.#parts.speeds.tick(now);
  }

  // ——— members ———

  /** See `Membership.admit`. */
  admit(
    facts: MemberFacts,
    streamId: number,
    now: MonoMs,
  ): { readonly replacedStream: number | undefined } {
    return this.#parts.membership.admit(facts, streamId, now);
  }

  /** A part of a member's snapshot. */
  snapshot(key: WorkerId, part: SnapshotPart, now: MonoMs): FeedOutcome {
    return this.#parts.membership.snapshot(key, part, now);
  }

  /** A change of a member's blocks. */
  delta(key: WorkerId, change: BlockChange, now: MonoMs): FeedOutcome {
    return this.#parts.membership.delta(key, change, now);
  }

  /** An engine's load report and, where known, what its counters did since the report before. */
  report(key: WorkerId, report: LoadReport, delta: CounterDelta | undefined): void {
    this.#parts.membership.reported(key, report.at);
    for (const closed of this.book.report(key, report)) this.#parts.ends.closed(closed, undefined);
    const pool = this.members.get(key)?.pool;
    const gate = pool === undefined ? undefined : this.#parts.gates.get(pool);
    gate?.reported(key, report, this.#parts.speeds.of(key).steps);
    if (delta === undefined) return;
    const legs = this.pairs.legs.takeEndedPrefills(key, delta.finished);
    this.#parts.speeds.observeInterval(key, legs === 0 ? delta : withoutLegs(delta, legs));
  }

  /** See `Membership.repairDue`. */
  repairDue(key: WorkerId, now: MonoMs): boolean {
    return this.#parts.membership.repairDue(key, now);
  }

  /** The engine became able or unable to take requests. */
  setReady(key: WorkerId, ready: boolean): void {
    this.#parts.membership.setReady(key, ready);
  }

  /** A worker's stream ended. */
  streamLost(streamId: number, now: MonoMs): void {
    this.#parts.membership.streamLost(streamId, now);
  }

  /** A worker said goodbye, here or to a peer. */
  goodbye(key: WorkerId): void {
    this.#parts.membership.goodbye(key);
  }

  /** Members of a pool. */
  poolMembers(pool: string): Member[] {
    return [...this.members.ofPool(pool)];
  }

  /** The pool that serves a model, or `undefined`. */
  poolOf(model: string): string | undefined {
    return this.members.poolOf(model);
  }

  /** Longest context that a worker of the pool takes, tokens; 0 when none is known. */
  contextMax(pool: string): number {
    return this.#parts.table.contextMax(pool);
  }

  /** What is known of an engine's speed. */
  modelOf(key: WorkerId): WorkerModel | undefined {
    return this.#parts.speeds.modelOf(key);
  }

  // ——— peers ———

  /** What a peer says of a member. */
  notice(router: string, notice: MemberNotice, now: MonoMs): void {
    this.#parts.membership.notice(router, notice, now);
  }

  /**
   * A peer router is gone, and with it its hold on streams. The requests that it placed still run on their engines; their
   * records reach other routers, and reports and hard ends close the rest.
   */
  routerLost(router: string, now: MonoMs): void {
    this.#parts.gates.routerLost(router);
    this.relays.routerLost(router, now);
    this.#parts.membership.routerLost(router, now);
  }

  /** See `Membership.peerHoldsOnly`. */
  peerHoldsOnly(router: string, keys: ReadonlySet<string>, now: MonoMs): void {
    this.#parts.membership.peerHoldsOnly(router, keys, now);
  }

  /** See `PeerReservations.openOnly`. */
  peerOpenOnly(router: string, epoch: bigint, open: ReadonlySet<string>, now: MonoMs): void {
    this.#parts.peers.openOnly(router, epoch, open, now);
  }

  /** A reservation that a peer made. */
  peerReserved(reservation: PeerReservation, now: MonoMs): void {
    this.#parts.peers.reserved(reservation, now);
  }

  /** A peer says that a reservation ended. */
  peerClosed(decisionId: string, now: MonoMs): void {
    this.#parts.peers.closed(decisionId, now);
  }

  /** Waiting demand and service of each pool, for the other routers. */
  demand(now: MonoMs): { readonly pool: string; readonly tenants: readonly TenantDemand[] }[] {
    return this.#parts.gates.demand(now);
  }

  /** Whether requests wait here or at another router. */
  isShort(now: MonoMs): boolean {
    return this.#parts.gates.isShort(now);
  }

  /** What another router says of its demand in a pool. */
  takePeerDemand(
    router: string,
    pool: string,
    tenants: readonly TenantDemand[],
    now: MonoMs,
  ): void {
    this.#parts.gates.of(pool).takeDemand(router, tenants, now);
  }

  /** What to add to monotonic time to get wall time, ms: routers take turns by it. */
  setWallOffset(ms: number): void {
    this.#parts.gates.setWallOffset(ms);
  }

  // ——— requests ———

  /** Policy of a pool. */
  policyOf(pool: string): PolicyName {
    return this.#parts.policies.nameOf(pool);
  }

  /** Changes the policy of a pool, whose state begins anew; returns the one before. */
  setPolicy(pool: string, policy: PolicyName): PolicyName {
    return this.#parts.policies.set(pool, policy);
  }

  /** See `PoolGates.setPlaceOnArrival`. */
  setPlaceOnArrival(pool: string, placesOnArrival: boolean): void {
    this.#parts.gates.setPlaceOnArrival(pool, placesOnArrival);
  }

  /** Chooses a worker and, unless it is a dry run, reserves it. Always returns a decision, also a refusal. */
  place(asked: PlaceInput, now: MonoMs): Decision {
    return this.#parts.placer.place(asked, now, undefined) as Decision;
  }

  /** See `TurnTaking.arrive`; call `pump` at `wakeAt` while somebody waits. */
  placeInTurn(request: AdmittedRequest, now: MonoMs): WaitingRequest | undefined {
    return this.#parts.turns.arrive(request, now);
  }

  /** Decides the waiting requests whose time has come. Cheap when nobody waits. */
  pump(now: MonoMs): void {
    this.#parts.turns.pump(now);
  }

  /** When `pump` is due; `undefined` while nobody waits. */
  wakeAt(now: MonoMs): number | undefined {
    return this.#parts.gates.wakeAt(now);
  }

  /** Refuses everyone who waits: this router stops. */
  stopWaiting(now: MonoMs): void {
    this.#parts.turns.stop(now);
  }

  /** Gates by pool, for metrics. */
  get gates(): ReadonlyMap<string, RequestGate> {
    return this.#parts.gates.all;
  }

  /** See `PoolPolicies.firstToken`. */
  firstToken(decisionId: string): void {
    this.#parts.policies.firstToken(decisionId);
  }

  /** See `RequestEnds.release`. */
  release(decisionId: string, now: MonoMs): boolean {
    return this.#parts.ends.release(decisionId, now);
  }

  /** See `RequestEnds.served`. */
  served(decisionId: string, record: ServedRecord, now: MonoMs): Observation | undefined {
    return this.#parts.ends.served(decisionId, record, now);
  }
}

/** What an engine did without the legs that computed prompts for others, of one token each. */
function withoutLegs(delta: CounterDelta, legs: number): CounterDelta {
  const { finished, generatedTokens } = delta;
  return {
    ...delta,
    finished: finished - legs,
    generatedTokens: Math.max(0, generatedTokens - legs),
  };
}
