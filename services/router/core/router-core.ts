import { MeshError, type MeshErrorCode } from "../../shared/core/errors.ts";
import { monoMs, type MonoMs, type WorkerId } from "../../shared/core/ids.ts";
import type { StepModel } from "../../shared/core/step-model.ts";
import { admissionDefaults, type AdmissionOptions } from "./admission/options.ts";
import {
  busyPrefillMs,
  decodeCostMs,
  estimateOf,
  PoolGate,
  workMs,
} from "./admission/pool-gate.ts";
import type { Attempt, LateRefusal } from "./admission/admission.ts";
import { classFor, type RequestHints } from "./admission/request-hints.ts";
import type { TenantDemand } from "./admission/router-shares.ts";
import { SessionHomes } from "./admission/session-homes.ts";
import type { AskEstimate, Refusal, Waiter } from "./admission/waiter.ts";
import { roomDefaults, type RoomOptions } from "./admission/worker-rooms.ts";
import { DecisionLog } from "./decisions/decision-log.ts";
import { DecisionRecord, type DecisionSubject } from "./decisions/decision-record.ts";
import type {
  AnswerForm,
  CachedDifference,
  Decision,
  DecisionAdmission,
  DecisionOutcome,
  Observation,
} from "./decisions/decision.ts";
import { KvIndex } from "./kv-index/kv-index.ts";
import { CacheObserver } from "./load/cache-observer.ts";
import { LoadBook, type Closed } from "./load/load-book.ts";
import type { CloseReason, LoadReport, Reservation } from "./load/reservation.ts";
import { defaultStepModel, fasterOf, WorkerModel, type CounterDelta } from "./load/worker-model.ts";
import {
  BlockFeed,
  type BlockChange,
  type FeedOutcome,
  type SnapshotPart,
} from "./membership/block-feed.ts";
import { IndexRepair } from "./membership/index-repair.ts";
import type { Member, MemberFacts, MemberNotice } from "./membership/member.ts";
import { Members } from "./membership/members.ts";
import type { CandidateInput, PlacementRequest, ScoredCandidate } from "./placement/candidate.ts";
import { pairDefaults, PairPlacer } from "./placement/pairs/pair-placer.ts";
import type {
  PairAsk,
  PairOptions,
  PairSides,
  PairVerdict,
} from "./placement/pairs/pair-placer.ts";
import type { DecisionPair } from "./placement/pairs/decision-pair.ts";
import type { PairCandidate } from "./placement/pairs/pair-candidate.ts";
import { isPrefillKey, prefillKeyOf } from "./placement/pairs/pair-legs.ts";
import { pairRoomAsks } from "./placement/pairs/pair-room.ts";
import type { FoundPair } from "./placement/pairs/pair-search.ts";
import { LegEnds } from "./relays/leg-ends.ts";
import { RelayRoster } from "./relays/relay-roster.ts";
import { rank } from "./placement/place.ts";
import { PlacementTable, type Eligible, type KnownSpeed } from "./placement/placement-table.ts";
import { isAllowed } from "./placement/placement-table.ts";
import { reusableTokens, RowRanker, shortRanking } from "./placement/row-ranking.ts";
import { seedOf } from "./placement/baselines/draw.ts";
import { preferences, type CostWeights, type Preference } from "./placement/estimate.ts";
import { createPolicy } from "./placement/policies.ts";
import type { PlacementPolicy, PolicyName, PolicyRequest } from "./placement/policy.ts";

/** Settings of the core. */
export interface RouterCoreOptions {
  /** `<instance>.<epoch>`; decision ids start with it. */
  readonly decisionPrefix: string;
  readonly blockSizeTokens: number;
  readonly policy: PolicyName;
  readonly graceMs: number;
  readonly membersMax: number;
  readonly blocksMax: number;
  readonly reservationsMax: number;
  readonly decisionsMax: number;
  /** Answer length assumed before any answer has been seen, tokens. */
  readonly outputTokensDefault: number;
  /** Endpoints named in an answer: the first choice and so many fallbacks. */
  readonly fallbacksMax: number;
  /** How requests wait and are refused; `admissionDefaults` when absent. */
  readonly admission?: AdmissionOptions;
  /** When a worker has room; `roomDefaults` when absent. */
  readonly rooms?: RoomOptions;
  /** What our own cost favours; `balanced` when absent. */
  readonly preference?: Preference;
  /** What a request costs on another worker than the one that served its conversation last, ms; 0 when absent. */
  readonly affinityMs?: number;
  /** Conversations remembered for that; 65,536 when absent. */
  readonly sessionsMax?: number;
  /** When requests run on two workers; `pairDefaults` when absent. */
  readonly pairs?: PairOptions;
}

/** A request to place. */
export interface PlaceInput {
  readonly requestId: string;
  readonly pool: string;
  readonly model: string;
  readonly promptTokens: number;
  /** Sequence hashes of the full prompt blocks, (lo, hi) pairs. */
  readonly hashes: Uint32Array;
  readonly tokensMax: number | undefined;
  /** Key of the conversation that it belongs to; absent or empty when its caller names none. */
  readonly session?: string;
  /** How its answer is asked for; absent when unknown. Nothing is learned of first tokens unless it is streamed. */
  readonly answer?: AnswerForm;
  readonly loadOnlyReason: string;
  /** Only these endpoints may serve; `undefined` means all. */
  readonly subset: ReadonlySet<string> | undefined;
  /** Workers that must not be chosen. */
  readonly excluded?: ReadonlySet<string>;
  /** Whether its prompt may be computed on another worker than its answer; absent for no. */
  readonly isPairable?: boolean;
  readonly dryRun: boolean;
  /** Wall clock, for people. */
  readonly unixUs: number;
}

/** A request to place as soon as its turn comes. */
export interface AdmittedRequest {
  readonly input: PlaceInput;
  readonly hints: RequestHints;
  /** Memory that it holds while it waits, bytes. */
  readonly bytes: number;
  /** Takes the decision, whatever it is; called once, unless the request is cancelled before. */
  readonly decided: (decision: Decision) => void;
}

/** A request that waits. */
export interface WaitingRequest {
  /** By then it is decided, ms. */
  readonly waitMsMax: number;
  /** Forgets it; `decided` is not called afterwards. */
  cancel(now: MonoMs): void;
}

/** A reservation as peers tell each other. */
export interface PeerReservation {
  readonly decisionId: string;
  readonly workerId: WorkerId;
  readonly promptTokens: number;
  readonly uncachedTokens: number;
  readonly expectedOutputTokens: number;
  readonly ageMs: number;
  /** Of the decode leg of a pair whose prompt is still being computed. */
  readonly awaits?: {
    readonly prefillWorker: WorkerId;
    readonly transferBytes: number;
    /** When its decode begins, ms after the decision. */
    readonly beginsInMs: number;
  };
}

/** What the core wants done. */
export type RouterEffect =
  | {
      readonly kind: "reserved";
      readonly decision: Decision;
      readonly uncachedTokens: number;
      /** The pair, when it has two legs. */
      readonly pair?: PairCandidate;
    }
  | { readonly kind: "closed"; readonly closed: Closed; readonly observed: Observation | undefined }
  /** `tellPeers`: the change comes from this router's own stream, so that nobody is told what it said itself. */
  | { readonly kind: "member_changed"; readonly member: Member; readonly tellPeers: boolean }
  | { readonly kind: "member_left"; readonly member: Member; readonly goodbye: boolean };

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

const placed: DecisionOutcome = { kind: "placed" };

type Gate = PoolGate<AdmittedRequest>;

/** An attempt of `AdmittedRequest` on its gate. */
interface GatePass {
  readonly gate: Gate;
  readonly request: AdmittedRequest;
  readonly waiter: Waiter<AdmittedRequest> | undefined;
}

const decodeLeg = { leg: "decode", arrivesAt: Infinity } as const;

type NoRoom = Extract<Attempt, { kind: "no_room" }>;

/** A request for which a pair is tried, and the worker that would take it whole. */
interface PairTry {
  readonly input: PlaceInput;
  readonly request: PolicyRequest;
  readonly policy: PlacementPolicy;
  readonly pass: GatePass | undefined;
  readonly whole: ScoredCandidate | undefined;
  readonly now: MonoMs;
}

/** It is to run as a pair. */
interface Paired extends PairTry {
  readonly kind: "pair";
  readonly choice: DecisionPair;
  readonly verdict: PairVerdict;
  readonly found: FoundPair;
  readonly sides: PairSides;
  readonly chosen: ScoredCandidate;
}

/** It is to run whole. */
interface WholeForm {
  readonly kind: "whole";
  readonly choice: DecisionPair;
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** A conversation that has been silent for so long has no worker of its own any more, ms. */
const sessionKeptMs = 600_000;
/** Relays at once. */
const relaysMax = 256;
/** Pools that may have a gate of their own. */
const gatesMax = 256;
/**
 * What was learned of an engine that has been given nothing for so long may come from a fault that is over, ms. An
 * engine that is really slower costs one slower request in this time.
 */
const unusedMsMax = 60_000;

/**
 * The router's whole state and every rule over it, deterministic: the same calls at the same times give the
 * same decisions. Edges feed it and carry out `takeEffects()`.
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
  readonly #options: RouterCoreOptions;
  readonly #feeds = new Map<WorkerId, BlockFeed>();
  readonly #models = new Map<WorkerId, WorkerModel>();
  /** When a request was placed on each last, or its speed was guessed anew. */
  readonly #usedAt = new Map<WorkerId, MonoMs>();
  readonly #observers = new Map<WorkerId, CacheObserver>();
  readonly #policies = new Map<string, PlacementPolicy>();
  readonly #turns = new Map<string, number>();
  readonly #gates = new Map<string, Gate>();
  /** Pools whose requests are placed when they arrive. */
  readonly #onArrival = new Set<string>();
  readonly #homes: SessionHomes;
  readonly #repair = new IndexRepair();
  #isPumping = false;
  #wallOffsetMs = 0;
  readonly #depths: Uint32Array;
  readonly #table: PlacementTable;
  readonly #weights: CostWeights;
  readonly #ranker: RowRanker;
  #effects: RouterEffect[] = [];
  #decisionCount = 0;

  constructor(options: RouterCoreOptions) {
    this.#options = options;
    const { graceMs, membersMax, blockSizeTokens } = options;
    this.members = new Members({ graceMs, membersMax, blockSizeTokens });
    this.book = new LoadBook({
      reservationsMax: options.reservationsMax,
      onLegClosed: (leg, now) => {
        this.pairs.legs.closed(leg, now);
      },
    });
    this.decisions = new DecisionLog({ decisionsMax: options.decisionsMax });
    this.index = new KvIndex({
      workersMax: membersMax,
      blocksMax: options.blocksMax,
      setsMax: 1 << 18,
    });
    this.#homes = new SessionHomes({
      sessionsMax: (options.affinityMs ?? 0) > 0 ? (options.sessionsMax ?? 65_536) : 0,
      keptMs: sessionKeptMs,
    });
    this.#depths = new Uint32Array(membersMax);
    this.#table = new PlacementTable({ book: this.book });
    const { index } = this;
    this.#weights = preferences[options.preference ?? "balanced"];
    this.#ranker = new RowRanker({
      table: this.#table,
      index,
      blockSizeTokens,
      weights: this.#weights,
    });
    this.relays = new RelayRoster({ graceMs, relaysMax });
    this.pairs = new PairPlacer(options.pairs ?? pairDefaults, {
      relays: this.relays,
      table: this.#table,
      ranker: this.#ranker,
      book: this.book,
      weights: this.#weights,
      blockSizeTokens,
    });
    this.legEnds = new LegEnds({
      pairs: this.pairs,
      decision: (id) => this.decisions.byId(id),
      close: (key, now) => {
        const closed = this.book.close(key, "relay", now);
        if (closed !== undefined) this.#closed(closed, undefined);
      },
      firstToken: (id) => {
        this.firstToken(id);
      },
      learnPrefill: (worker, sample) => {
        this.#models.get(worker)?.observePrefill(sample);
        this.#speedChanged(worker);
      },
    });
  }

  /** Effects since the last call, in order. */
  takeEffects(): RouterEffect[] {
    const effects = this.#effects;
    this.#effects = [];
    return effects;
  }

  // ——— membership ———

  /** A worker's hello. Returns the stream that it replaces. Throws the refusals of `Members.admit`. */
  admit(
    facts: MemberFacts,
    streamId: number,
    now: MonoMs,
  ): { readonly replacedStream: number | undefined } {
    const { member, replacedStream, engineRestarted } = this.members.admit(facts, streamId, now);
    if (engineRestarted) this.#forgetEngine(member, now);
    this.#feeds.set(member.key, this.#createFeed(member));
    const model = this.#models.get(member.key);
    if (model === undefined) this.#models.set(member.key, new WorkerModel(facts.stepModel));
    else if (engineRestarted) model.restart(this.#guessSteps(member, model.steps));
    this.#usedAt.set(member.key, now);
    if (!this.#observers.has(member.key)) {
      this.#observers.set(member.key, new CacheObserver({ watchedMax: 1_024 }));
    }
    this.#memberChanged(member, true);
    return { replacedStream };
  }

  /** A part of a member's snapshot. */
  snapshot(key: WorkerId, part: SnapshotPart, now: MonoMs): FeedOutcome {
    return this.#feedOutcome(key, this.#feeds.get(key)?.snapshot(part), now);
  }

  /** A change of a member's blocks. */
  delta(key: WorkerId, change: BlockChange, now: MonoMs): FeedOutcome {
    const outcome = this.#feedOutcome(key, this.#feeds.get(key)?.delta(change), now);
    this.#observers.get(key)?.stored(change.stored);
    return outcome;
  }

  /** An engine's load report and, where known, what its counters did since the report before. */
  report(key: WorkerId, report: LoadReport, delta: CounterDelta | undefined): void {
    this.#feedIsCurrent(key, report.at);
    for (const closed of this.book.report(key, report)) this.#closed(closed, undefined);
    const member = this.members.get(key);
    const gate = member === undefined ? undefined : this.#gates.get(member.pool);
    if (member !== undefined) gate?.reported(key, report, this.#speedOf(key).steps);
    if (delta === undefined) return;
    this.#models.get(key)?.observeInterval(delta);
    this.#speedChanged(key);
  }

  /** Whether a member is to send its snapshot again because the index was full; asked with each of its reports. */
  repairDue(key: WorkerId, now: MonoMs): boolean {
    const slot = this.members.get(key)?.slot;
    if (slot === undefined || this.#feeds.get(key)?.synced !== true) return false;
    const lostPairs = this.index.lostPairsOf(slot);
    const { blockCount } = this.index;
    const loss = { lostPairs, blockCount, blocksMax: this.#options.blocksMax };
    return this.#repair.isDue(key, loss, now);
  }

  /** The engine became able or unable to take requests. */
  setReady(key: WorkerId, ready: boolean): void {
    const member = this.members.get(key);
    if (member === undefined || member.ready === ready) return;
    member.ready = ready;
    this.#memberChanged(member, true);
  }

  /** A worker's stream ended. */
  streamLost(streamId: number, now: MonoMs): void {
    const member = this.members.streamLost(streamId, now);
    if (member === undefined) return;
    member.suspect = true;
    this.#memberChanged(member, true);
  }

  /** A worker said goodbye, here or to a peer. */
  goodbye(key: WorkerId): void {
    this.#remove(key, true);
  }

  /** What a peer says of a member. */
  notice(router: string, notice: MemberNotice, now: MonoMs): void {
    const member = this.members.notice(router, notice, now);
    if (member === undefined) return;
    if (notice.goodbye && member.streamId === undefined) this.#remove(member.key, true);
    else this.#memberChanged(member, false);
  }

  /**
   * A peer router is gone: the streams that it held are held by it no longer. The requests that it placed still run
   * on their engines; their records reach other routers, and reports and hard ends close the rest.
   */
  routerLost(router: string, now: MonoMs): void {
    for (const gate of this.#gates.values()) gate.shares.routerLost(router);
    this.relays.routerLost(router, now);
    for (const member of this.members.routerLost(router, now)) {
      this.#memberChanged(member, false);
    }
  }

  /** A peer's snapshot named every member that it holds; `keys` are `workerId/dpRank`. */
  peerHoldsOnly(router: string, keys: ReadonlySet<string>, now: MonoMs): void {
    for (const member of this.members.heldOnly(router, keys, now)) {
      this.#memberChanged(member, false);
    }
  }

  /**
   * A peer's snapshot named every reservation that this life of it has open. What an earlier life placed may still
   * run on its engine, and the new one knows nothing of it: records, reports and hard ends close that.
   */
  peerOpenOnly(router: string, epoch: bigint, open: ReadonlySet<string>, now: MonoMs): void {
    const prefix = `${router}.${epoch}.`;
    const closed = this.book.closeWhere(
      (r) => !r.own && r.decisionId.startsWith(prefix) && !open.has(r.decisionId),
      "released",
      now,
    );
    for (const { reservation } of closed) this.#freed(reservation.workerId);
  }

  /** Ends what has run out. Call about every 250 ms. */
  tick(now: MonoMs): void {
    for (const member of this.members.expired(now)) this.#remove(member.key, false);
    this.relays.tick(now);
    this.pairs.links.tick(now);
    for (const closed of this.book.expire(now)) this.#closed(closed, undefined);
    for (const [key, usedAt] of this.#usedAt) {
      if (now - usedAt >= unusedMsMax) this.#doubtModel(key, now);
    }
  }

  // ——— placement ———

  /** Policy of a pool. */
  policyOf(pool: string): PolicyName {
    return this.#policies.get(pool)?.name ?? this.#options.policy;
  }

  /** Whether a pool's requests are placed when they arrive, whatever room its workers have. */
  setPlaceOnArrival(pool: string, placesOnArrival: boolean): void {
    if (placesOnArrival) this.#onArrival.add(pool);
    else this.#onArrival.delete(pool);
    const gate = this.#gates.get(pool);
    if (gate === undefined) return;
    gate.placesOnArrival = placesOnArrival;
    gate.admission.freed();
  }

  /** Changes the policy of a pool, whose state begins anew; returns the one before. */
  setPolicy(pool: string, policy: PolicyName): PolicyName {
    const before = this.policyOf(pool);
    this.#policies.set(pool, this.#createPolicy(pool, policy));
    return before;
  }

  #policyFor(pool: string): PlacementPolicy {
    let policy = this.#policies.get(pool);
    if (policy === undefined) {
      policy = this.#createPolicy(pool, this.#options.policy);
      this.#policies.set(pool, policy);
    }
    return policy;
  }

  #createPolicy(pool: string, name: PolicyName): PlacementPolicy {
    const seed = seedOf(`${this.#options.decisionPrefix}/${pool}`);
    return createPolicy(name, seed, this.#weights);
  }

  /** What is known of an engine's speed. */
  modelOf(key: WorkerId): WorkerModel | undefined {
    return this.#models.get(key);
  }

  /** The pool that serves a model, or `undefined`. */
  poolOf(model: string): string | undefined {
    return this.members.poolOf(model);
  }

  /** Longest context that a worker of the pool takes, tokens; 0 when none is known. */
  contextMax(pool: string): number {
    return this.#table.contextMax(pool);
  }

  /** Members of a pool. */
  poolMembers(pool: string): Member[] {
    return [...this.members.ofPool(pool)];
  }

  /** Chooses a worker and, unless it is a dry run, reserves it. Always returns a decision, also a refusal. */
  place(asked: PlaceInput, now: MonoMs): Decision {
    return this.#place(asked, now, undefined) as Decision;
  }

  /**
   * Places a request when its turn comes and a worker has room, or refuses it. Returns `undefined` when it has been decided
   * already, otherwise the wait; call `pump` at `wakeAt` from then on.
   */
  placeInTurn(request: AdmittedRequest, now: MonoMs): WaitingRequest | undefined {
    const { input, hints, bytes } = request;
    const gate = this.#gate(input.pool);
    const options = this.#options.admission ?? admissionDefaults;
    const ask = {
      className: classFor(options.classes, hints.priority) ?? options.defaultClass,
      tenant: hints.tenant,
      ttftMs: hints.ttftMs,
      bytes: bytes + input.hashes.byteLength,
      constrained: input.subset !== undefined,
    };
    this.#isPumping = true;
    let arrival;
    try {
      arrival = gate.admission.arrive(request, ask, now);
    } finally {
      this.#isPumping = false;
    }
    if (arrival.kind === "answered") return undefined;
    if (arrival.kind === "refused") {
      this.#shed(request, arrival.refusal, { ask, waitedMs: 0, position: 0, blockedBy: "" });
      return undefined;
    }
    const { waiter, waitMsMax } = arrival;
    return {
      waitMsMax,
      cancel: (at) => {
        gate.admission.cancel(waiter, at);
      },
    };
  }

  /** Decides the waiting requests whose time has come. Cheap when nobody waits. */
  pump(now: MonoMs): void {
    if (this.#isPumping) return;
    this.#isPumping = true;
    try {
      for (const gate of this.#gates.values()) this.#pumpGate(gate, now);
    } finally {
      this.#isPumping = false;
    }
  }

  /** Refuses everyone who waits: this router stops. */
  stopWaiting(now: MonoMs): void {
    for (const gate of this.#gates.values()) this.#shedLate(gate.admission.stop(now), now);
  }

  #pumpGate(gate: Gate, now: MonoMs): void {
    if (gate.admission.wakeAt(now) === undefined) return;
    this.#shedLate(gate.admission.pump(now), now);
  }

  #shedLate(late: readonly LateRefusal<AdmittedRequest>[], now: MonoMs): void {
    for (const { waiter, refusal } of late) {
      const { ask, position, blockedBy, queuedAt } = waiter;
      this.#shed(waiter.item, refusal, { ask, waitedMs: now - queuedAt, position, blockedBy });
    }
  }

  /** When `pump` is due; `undefined` while nobody waits. */
  wakeAt(now: MonoMs): number | undefined {
    let soonest: number | undefined;
    for (const gate of this.#gates.values()) {
      const at = gate.admission.wakeAt(now);
      if (at !== undefined && (soonest === undefined || at < soonest)) soonest = at;
    }
    return soonest;
  }

  /** Gates by pool, for metrics. */
  get gates(): ReadonlyMap<string, Gate> {
    return this.#gates;
  }

  /** Waiting demand and service of each pool, for the other routers. */
  demand(now: MonoMs): { readonly pool: string; readonly tenants: readonly TenantDemand[] }[] {
    return [...this.#gates].map(([pool, gate]) => ({ pool, tenants: gate.demand(now) }));
  }

  /** Whether requests wait here or at another router. */
  isShort(now: MonoMs): boolean {
    for (const { admission, shares } of this.#gates.values()) {
      if (admission.waitingCount > 0 || shares.isDivided(now)) return true;
    }
    return false;
  }

  /** What another router says of its demand in a pool. */
  takePeerDemand(
    router: string,
    pool: string,
    tenants: readonly TenantDemand[],
    now: MonoMs,
  ): void {
    this.#gate(pool).takeDemand(router, tenants, now);
  }

  /** What to add to monotonic time to get wall time, ms: routers take turns by it. */
  setWallOffset(ms: number): void {
    this.#wallOffsetMs = ms;
    for (const gate of this.#gates.values()) gate.shares.setWallOffset(ms);
  }

  #gate(pool: string): Gate {
    const known = this.#gates.get(pool);
    if (known !== undefined) return known;
    if (this.#gates.size >= gatesMax) {
      // A pool without members has nobody waiting: its requests are refused at once.
      for (const [name, old] of this.#gates) {
        const isIdle = old.admission.waitingCount === 0;
        if (isIdle && this.poolMembers(name).length === 0) this.#gates.delete(name);
      }
    }
    const created: Gate = new PoolGate<AdmittedRequest>(
      {
        admission: this.#options.admission ?? admissionDefaults,
        rooms: this.#options.rooms ?? roomDefaults,
        // Peers know each other by instance, without the epoch.
        self: this.#options.decisionPrefix.replace(/\.[^.]*$/, ""),
        lastReport: (worker) => this.book.lastReport(worker),
        runningMaxOf: (worker) => this.members.get(worker)?.facts?.runningRequestsMax ?? 0,
      },
      {
        place: (request, now, waiter) => this.#tryPlace({ gate: created, request, waiter }, now),
        estimate: (request, now) => this.#estimate(request.input, now),
        workerCount: () => this.#table.readyCount(pool),
      },
    );
    created.shares.setWallOffset(this.#wallOffsetMs);
    created.placesOnArrival = this.#onArrival.has(pool);
    this.#gates.set(pool, created);
    return created;
  }

  #tryPlace(pass: GatePass, now: MonoMs): Attempt {
    const made = this.#place(pass.request.input, now, pass);
    if ("kind" in made) return made;
    const { admission, outcome } = made;
    pass.request.decided(made);
    if (outcome.kind !== "placed" || admission === undefined) {
      return { kind: "answered", costMs: 0, tokens: 0 };
    }
    const uncached = made.promptTokens - (made.chosen?.matchedTokens ?? 0);
    const tokens = uncached + made.expectedOutputTokens;
    return { kind: "answered", costMs: admission.chargedMs, tokens };
  }

  #estimate(asked: PlaceInput, now: MonoMs): AskEstimate {
    const input = this.#withinContext(asked);
    const ranked = this.#rank(input, this.#eligible(input), now);
    const [cheapest] = ranked.ranking.candidates;
    if (cheapest === undefined) return { costMs: 1, firstTokenMs: 0 };
    return estimateOf(cheapest, { ...ranked.request, itlMs: 0 });
  }

  #shed(
    request: AdmittedRequest,
    refusal: Refusal,
    was: Pick<DecisionAdmission, "waitedMs" | "position" | "blockedBy"> & {
      readonly ask: { readonly className: string; readonly tenant: string };
    },
  ): void {
    const { ask, waitedMs, position, blockedBy } = was;
    const { reason, retryAfterMs, isTenantLimit, message } = refusal;
    // Not an Error: a trace of the stack costs more than all else that a refusal takes.
    const refused = { code: isTenantLimit ? "tenant_limited" : "overloaded", message } as const;
    const decision = this.#refuse(request.input, refused, {
      className: ask.className,
      tenant: ask.tenant,
      chargedMs: 0,
      chargedDecodeMs: 0,
      waitedMs,
      position,
      blockedBy,
      shedReason: reason,
      retryAfterMs,
    });
    request.decided(decision);
  }

  #rank(input: PlaceInput, eligible: Eligible, now: MonoMs, session = input.session ?? "") {
    const expectedOutputTokens = this.#expectedOutput(eligible, input.tokensMax);
    const blockCount = input.hashes.length / 2;
    if (blockCount > 0) this.index.matchPrefix(input.hashes, blockCount, this.#depths);
    const turn = this.#turns.get(input.pool) ?? 0;
    const request: Mutable<PolicyRequest> = {
      promptTokens: input.promptTokens,
      expectedOutputTokens,
      hashes: input.hashes,
      blockSizeTokens: this.#options.blockSizeTokens,
      session,
      turn,
      now,
    };
    const home = this.#homes.homeOf(session, now);
    if (home !== undefined && this.members.get(home)?.pool === input.pool) {
      request.home = home;
      request.affinityMs = this.#options.affinityMs ?? 0;
    }
    const policy = this.#policyFor(input.pool);
    const question = {
      eligible,
      request,
      depths: blockCount > 0 ? this.#depths : undefined,
      isBlind: policy.name === "kv-blind",
      least: 1 + this.#options.fallbacksMax,
      now,
    };
    const isOwn = policy.name === "kv" || policy.name === "kv-blind";
    const ranking = isOwn
      ? this.#ranker.rank(question)
      : shortRanking(rank(this.#ranker.inputs(question), request, policy), question.least);
    return { ranking, request, policy };
  }

  #place(
    asked: PlaceInput,
    now: MonoMs,
    pass: GatePass | undefined,
  ): Decision | Extract<Attempt, { kind: "no_room" }> {
    const input = this.#withinContext(asked);
    const eligible = this.#eligible(input);
    const policyName = this.policyOf(input.pool);
    if (eligible.count === 0) {
      const paired = this.#pairInstead(input, eligible, pass, now);
      return paired ?? this.#noWorker(input, eligible, policyName);
    }

    const { ranking, request, policy } = this.#rank(
      input,
      eligible,
      now,
      pass?.request.hints.session,
    );
    let ordered = ranking.candidates;
    if (pass !== undefined) {
      const { hints } = pass.request;
      const account = this.#accountOf(pass);
      const ask = {
        promptTokens: request.promptTokens,
        expectedOutputTokens: request.expectedOutputTokens,
        itlMs: hints.itlMs ?? pass.gate.admission.classOf(account.className).itlMs,
      };
      let choice = pass.gate.choose(ordered, ask, account, now);
      if (ranking.leftOut > 0 && !(choice.kind === "take" && choice.index === 0)) {
        // The best has no room for it, so every worker counts.
        ordered = ranking.all();
        choice = pass.gate.choose(ordered, ask, account, now);
      }
      if (choice.kind === "no_room") return this.#pairInstead(input, eligible, pass, now) ?? choice;
      if (choice.index > 0) ordered = withFirst(ordered, choice.index);
      ordered = ordered.slice(0, ranking.candidates.length);
    }
    const [chosen] = ordered;
    if (chosen === undefined) return this.#noWorker(input, eligible, policyName);
    const paired = this.pairs.offers(input.pool)
      ? this.#considerPair({ input, request, policy, pass, whole: chosen, now })
      : undefined;
    if (paired?.kind === "no_room") return paired;
    if (paired?.kind === "pair") {
      const decision = this.#placePair(paired, eligible);
      decision.candidates = ordered;
      decision.chosen = paired.chosen;
      decision.leftOut += ranking.leftOut;
      return this.#reservePair(decision, paired);
    }
    if (!input.dryRun) this.#turns.set(input.pool, request.turn + 1);

    const decision = new DecisionRecord(this.#subject(input, policyName), placed);
    decision.filtered = eligible.filtered;
    decision.leftOut = ranking.leftOut + eligible.filteredLeftOut;
    decision.expectedOutputTokens = request.expectedOutputTokens;
    decision.workerId = chosen.workerId;
    decision.endpoints = endpointsOf(ordered, 1 + this.#options.fallbacksMax);
    decision.candidates = ordered;
    decision.marginMs = ranking.marginMs;
    decision.tieBreak = ranking.tieBreak;
    decision.indexAgeMs = this.#indexAgeMs(chosen.workerId, now);
    decision.pair = paired?.choice;
    if (pass !== undefined) decision.admission = this.#charged(pass, chosen, request, now);
    if (!input.dryRun && !this.#reserve(decision, input, now)) {
      return this.refuse(input, bookFull(this.book.openCount));
    }
    if (!input.dryRun) {
      this.#homes.placed(request.session, chosen.workerId, now);
      const { workerId, matchedBlocks, predictedTtftMs } = chosen;
      policy.placed?.(request, {
        decisionId: decision.id,
        workerId,
        matchedBlocks,
        predictedTtftMs,
      });
    }
    this.decisions.add(decision);
    return decision;
  }

  /** The request as a pair, when nobody can take it whole now; `undefined` when no pair can either. */
  #pairInstead(
    input: PlaceInput,
    eligible: Eligible,
    pass: GatePass | undefined,
    now: MonoMs,
  ): Decision | undefined {
    if (!this.pairs.offers(input.pool)) return undefined;
    const { ranking, request, policy } = this.#rank(
      input,
      eligible,
      now,
      pass?.request.hints.session,
    );
    const { candidates, leftOut } = ranking;
    const paired = this.#considerPair({ input, request, policy, pass, whole: undefined, now });
    if (paired.kind !== "pair") return undefined;
    const decision = this.#placePair(paired, eligible);
    decision.candidates = candidates;
    decision.chosen = paired.chosen;
    decision.leftOut += leftOut;
    return this.#reservePair(decision, paired);
  }

  /** Compares running whole, as it would on `whole`, with the best pair that admission has room for. */
  #considerPair(of: PairTry): Paired | WholeForm | NoRoom {
    const { input, request, policy, pass, whole, now } = of;
    const ask: PairAsk = {
      requestId: input.requestId,
      pool: input.pool,
      isPairable: input.isPairable === true,
      promptTokens: input.promptTokens,
      isCounted: input.loadOnlyReason === "",
      expectedOutputTokens: request.expectedOutputTokens,
      depths: input.hashes.length > 0 ? this.#depths : undefined,
      isBlind: policy.name === "kv-blind",
      homeRow: request.home === undefined ? -1 : this.#table.rowOf(request.home),
      affinityMs: request.home === undefined ? 0 : (request.affinityMs ?? 0),
      allows: (row) => isAllowed(input, this.#table.worker(row)),
      wholeCostMs: whole?.costMs,
      isComparable: policy.name === "kv" || policy.name === "kv-blind",
      relaysMax: 1 + this.#options.fallbacksMax,
      now,
    };
    const verdict = this.pairs.consider(ask);
    const { found } = verdict;
    if (found === undefined) return { kind: "whole", choice: verdict.choice };
    const sides = this.pairs.sides(found, ask);
    if (pass !== undefined) {
      const noRoom = this.#findPairWithoutRoom(pass, found, sides, request, now);
      if (noRoom !== undefined) {
        if (verdict.choice.why === "always") return noRoom;
        return { kind: "whole", choice: PairPlacer.withoutRoom(verdict).choice };
      }
    }
    const chosen = PairPlacer.chosenOf(found, sides);
    return { ...of, kind: "pair", choice: verdict.choice, verdict, found, sides, chosen };
  }

  #findPairWithoutRoom(
    pass: GatePass,
    found: FoundPair,
    sides: PairSides,
    request: PolicyRequest,
    now: MonoMs,
  ): NoRoom | undefined {
    const account = this.#accountOf(pass);
    const waitedMs = pass.waiter === undefined ? 0 : now - pass.waiter.queuedAt;
    const own = { ...account, waitedMs };
    const itlMs = pass.request.hints.itlMs ?? pass.gate.admission.classOf(account.className).itlMs;
    const asks = pairRoomAsks(found.candidate, request);
    for (const side of ["prefill", "decode"] as const) {
      const ask = { ...asks[side], itlMs: side === "decode" ? itlMs : 0 };
      const choice = pass.gate.choose([sides[side]], ask, own, now);
      if (choice.kind === "no_room") return choice;
    }
    return undefined;
  }

  #placePair(paired: Paired, eligible: Eligible): DecisionRecord {
    const { input, request, policy, pass, choice, verdict, found, sides, now } = paired;
    if (!input.dryRun) this.#turns.set(input.pool, request.turn + 1);
    const decision = new DecisionRecord(this.#subject(input, policy.name), placed);
    decision.filtered = eligible.filtered;
    decision.leftOut = eligible.filteredLeftOut;
    decision.expectedOutputTokens = request.expectedOutputTokens;
    decision.workerId = found.candidate.decodeWorkerId;
    decision.endpoints = verdict.relays.map(({ facts }) => facts.h2Address);
    decision.indexAgeMs = this.#indexAgeMs(found.candidate.prefillWorkerId, now);
    decision.pair = choice;
    if (pass !== undefined) {
      const admission = this.#charged(pass, sides.decode, request, now);
      const prefillMs = workMs(sides.prefill, request.promptTokens);
      decision.admission = { ...admission, chargedMs: prefillMs + admission.chargedDecodeMs };
    }
    return decision;
  }

  #reservePair(decision: DecisionRecord, paired: Paired): Decision {
    const { input, request, policy, choice, verdict, found, sides, now } = paired;
    if (input.dryRun) {
      this.decisions.add(decision);
      return decision;
    }
    const { candidate } = found;
    const { prefillWorkerId, decodeWorkerId } = candidate;
    const isReserved = this.pairs.reserve(this.book, {
      decisionId: decision.id,
      prefillKey: prefillKeyOf(decision.id),
      found,
      promptTokens: input.promptTokens,
      expectedOutputTokens: request.expectedOutputTokens,
      now,
    });
    if (!isReserved) return this.refuse(input, bookFull(this.book.openCount));
    this.decisions.add(decision);
    for (const key of [prefillWorkerId, decodeWorkerId]) {
      this.#usedAt.set(key, now);
      this.#startModel(key);
    }
    if (input.hashes.length > 0) {
      this.#observers.get(prefillWorkerId)?.watch(decision.id, input.hashes, now);
    }
    const gate = this.#gates.get(input.pool);
    const asks = pairRoomAsks(candidate, request);
    gate?.placed(sides.prefill, asks.prefill, now);
    gate?.placed(sides.decode, asks.decode, now);
    const [relay] = verdict.relays;
    if (relay !== undefined) this.relays.given(relay.facts.instance);
    this.#effects.push({ kind: "reserved", decision, uncachedTokens: 0, pair: candidate });
    this.#homes.placed(request.session, decodeWorkerId, now);
    policy.placed?.(request, {
      decisionId: decision.id,
      workerId: decodeWorkerId,
      matchedBlocks: paired.chosen.matchedBlocks,
      predictedTtftMs: choice.candidates[0]?.predictedTtftMs ?? 0,
    });
    return decision;
  }

  #charged(
    pass: GatePass,
    chosen: ScoredCandidate,
    request: PlacementRequest,
    now: MonoMs,
  ): DecisionAdmission {
    const { waiter } = pass;
    const chargedDecodeMs = decodeCostMs(chosen, request, chosen.decodeMs);
    return {
      ...this.#accountOf(pass),
      chargedMs: workMs(chosen, request.promptTokens) + chargedDecodeMs,
      chargedDecodeMs,
      waitedMs: waiter === undefined ? 0 : now - waiter.queuedAt,
      position: waiter?.position ?? 0,
      blockedBy: waiter?.blockedBy ?? "",
      shedReason: "",
      retryAfterMs: 0,
    };
  }

  #accountOf(pass: GatePass): { readonly className: string; readonly tenant: string } {
    if (pass.waiter !== undefined) return pass.waiter.ask;
    const { classes, defaultClass } = this.#options.admission ?? admissionDefaults;
    const { priority, tenant } = pass.request.hints;
    return { className: classFor(classes, priority) ?? defaultClass, tenant };
  }

  /**
   * The first token of a request has been seen. Only baselines want to know, those of peers that sit in the path of
   * answers: a router hears of it from nobody before the access log, and ours needs it no earlier.
   */
  firstToken(decisionId: string): void {
    for (const policy of this.#policies.values()) policy.firstToken?.(decisionId);
  }

  /** Takes a refusal that was made before placement, so that it can be explained. */
  refuse(input: PlaceInput, error: MeshError): Decision {
    return this.#refuse(input, error, undefined);
  }

  #refuse(
    input: PlaceInput,
    error: { readonly code: MeshErrorCode; readonly message: string },
    admission: DecisionAdmission | undefined,
  ): Decision {
    const outcome = { kind: "refused", code: error.code, message: error.message } as const;
    const subject = this.#subject(input, this.policyOf(input.pool));
    const decision = new DecisionRecord(subject, outcome);
    decision.admission = admission;
    this.decisions.add(decision);
    return decision;
  }

  /** A reservation that a peer made. */
  peerReserved(reservation: PeerReservation, now: MonoMs): void {
    const model = this.#models.get(reservation.workerId);
    const { promptTokens, uncachedTokens, expectedOutputTokens } = reservation;
    const cached = promptTokens - uncachedTokens;
    const prefillMs = model?.prefillMs(uncachedTokens, cached) ?? 0;
    const load = this.book.load(reservation.workerId, now);
    const stepMs =
      model?.decodeStepMs(load.decoding + 1, load.decodingContextTokens + promptTokens) ?? 0;
    const at = monoMs(now - reservation.ageMs);
    if (this.#usedAt.has(reservation.workerId)) this.#usedAt.set(reservation.workerId, now);
    const pool = this.members.get(reservation.workerId)?.pool;
    const stepTokensMax = this.members.get(reservation.workerId)?.facts?.stepTokensMax ?? 0;
    const steps = model?.steps ?? defaultStepModel;
    const on = { steps, load, matchedTokens: cached, stepTokensMax };
    const placed = {
      workMs: busyPrefillMs(on, uncachedTokens),
      tokens: uncachedTokens + expectedOutputTokens / 2,
    };
    if (pool !== undefined) this.#gates.get(pool)?.rooms.opened(reservation.workerId, placed, now);
    const { decisionId, workerId, awaits } = reservation;
    const opened = {
      decisionId,
      workerId,
      own: false,
      openedAt: at,
      promptTokens,
      uncachedTokens,
      expectedOutputTokens,
      prefillMs,
      prefillEndsAt: at,
      endsAt: at,
      hardEndAt: at,
    };
    const decodeMs = expectedOutputTokens * stepMs;
    if (awaits !== undefined) this.#peerAwaits({ ...opened, ...decodeLeg }, awaits, decodeMs);
    else if (isPrefillKey(decisionId)) this.book.open({ ...opened, leg: "prefill" }, 0);
    else this.book.open(opened, decodeMs);
  }

  /** The decode leg of a peer's pair, whose prompt is being computed. Its prefill leg was told before. */
  #peerAwaits(
    leg: Reservation,
    awaits: NonNullable<PeerReservation["awaits"]>,
    decodeMs: number,
  ): void {
    const { decisionId, workerId, promptTokens, openedAt } = leg;
    const { prefillWorker, transferBytes, beginsInMs } = awaits;
    const isPrefillOpen = this.book.isOpen(prefillKeyOf(decisionId));
    if (!this.book.open({ ...leg, beginsInMs }, decodeMs)) return;
    const bytesPerToken = this.pairs.members.bytesPerToken(this.#table.rowOf(prefillWorker));
    const movedTokens = Math.min(promptTokens, Math.round(transferBytes / bytesPerToken));
    const pair = { decisionId, prefillWorker, decodeWorker: workerId, transferBytes, movedTokens };
    const prefillMs = Math.max(0, this.#prefillEndOf(decisionId, prefillWorker) - openedAt);
    const afterMs = Math.max(0, beginsInMs - prefillMs);
    this.pairs.legs.opened({ ...pair, beginsInMs: afterMs }, isPrefillOpen, openedAt);
    // Its end was told before, or there was no room for it: nothing else would say that its decode is here.
    if (!isPrefillOpen) this.book.arrived(decisionId, 0, openedAt);
  }

  #prefillEndOf(decisionId: string, worker: WorkerId): number {
    const key = prefillKeyOf(decisionId);
    return this.book.reservationsOf(worker).find((r) => r.decisionId === key)?.prefillEndsAt ?? 0;
  }

  /** A peer says that a reservation ended; with the decode leg of a pair its prefill leg is over too. */
  peerClosed(decisionId: string, now: MonoMs): void {
    this.#closePrefill(decisionId, "released", now);
    const closed = this.book.close(decisionId, "released", now);
    if (closed !== undefined) this.#freed(closed.reservation.workerId);
  }

  /** The prefill leg of a pair is over with its decode leg, if nobody has told of its end. */
  #closePrefill(decisionId: string, reason: CloseReason, now: MonoMs): void {
    if (!this.pairs.legs.mayHavePrefill(decisionId)) return;
    const closed = this.book.close(prefillKeyOf(decisionId), reason, now);
    if (closed !== undefined) this.#closed(closed, undefined);
  }

  /** Closes a reservation without a record; whether it was open. */
  release(decisionId: string, now: MonoMs): boolean {
    this.#closePrefill(decisionId, "released", now);
    const closed = this.book.close(decisionId, "released", now);
    if (closed === undefined) return false;
    this.#closed(closed, undefined);
    return true;
  }

  /**
   * Closes the books of one decision with what Envoy's access log says. Returns the observation; `undefined`
   * when this router did not make the decision or has forgotten it.
   */
  served(decisionId: string, record: ServedRecord, now: MonoMs): Observation | undefined {
    const decision = this.decisions.byId(decisionId);
    this.#closePrefill(decisionId, "access_log", now);
    const closed = this.book.close(decisionId, "access_log", now);
    if (decision?.workerId === undefined) {
      // The book may outlive the log of decisions; peers hold the reservation too and must hear of its end.
      if (closed !== undefined) {
        this.#observers.get(closed.reservation.workerId)?.finish(decisionId);
        this.#closed(closed, undefined);
      }
      return undefined;
    }
    if (decision.observed?.closedBy === "access_log") return decision.observed;
    const chosen = decision.chosen;
    const pair = decision.pair?.form === "pair" ? decision.pair.candidates[0] : undefined;
    // Every relay of the list carries out the same placement.
    const servedAsPicked =
      pair === undefined
        ? record.servedEndpoint === (decision.endpoints[0] ?? "")
        : decision.endpoints.includes(record.servedEndpoint);
    const prompted = pair?.prefillWorkerId ?? decision.workerId;
    const cachedBlocks = this.#observers.get(prompted)?.finish(decisionId);
    const cached = this.#cachedTokens(decision, servedAsPicked ? cachedBlocks : undefined, record);
    const isStreamed = decision.answer === "stream";
    const observation: Observation = {
      ...record,
      ...cached,
      ttftMs: isStreamed ? record.ttftMs : 0,
      servedAsPicked,
      closedBy: "access_log",
    };
    decision.observed = observation;
    if (chosen !== undefined && servedAsPicked && record.ttftMs > 0 && record.status === 200) {
      // What the first token of a pair took says nothing of one engine; relays tell of each leg.
      if (isStreamed && pair === undefined)
        this.#learn(decision, observation, chosen.load.prefillBacklogMs);
      this.#settleCharge(decision, chosen, observation, now);
    }
    if (closed !== undefined) this.#closed(closed, observation);
    return observation;
  }

  /** Charges what an answer's decode took beyond what was expected, or gives back what it did not take. */
  #settleCharge(
    decision: Decision,
    chosen: ScoredCandidate,
    observed: Observation,
    now: MonoMs,
  ): void {
    const { admission } = decision;
    if (admission === undefined) return;
    // Where an answer that came whole had its first token is not seen, so it counts as it was predicted.
    const ttftMs =
      observed.ttftMs > 0 ? observed.ttftMs : admission.waitedMs + chosen.predictedTtftMs;
    const decodeMs = Math.max(0, observed.durationMs - ttftMs);
    const costMs = decodeCostMs(chosen, decision, decodeMs) - admission.chargedDecodeMs;
    const { className, tenant } = admission;
    this.#gates.get(decision.pool)?.admission.correct(className, tenant, costMs, now);
  }

  #learn(decision: Decision, observed: Observation, backlogMs: number): void {
    const model = this.#models.get(decision.workerId as WorkerId);
    const chosen = decision.chosen;
    if (model === undefined || chosen === undefined) return;
    // The proxy's clock runs while a request waits here; the engine knows nothing of that.
    const ttftMs = observed.ttftMs - (decision.admission?.waitedMs ?? 0);
    if (ttftMs <= 0) return;
    model.observeError(chosen.predictedTtftMs, ttftMs);
    // Only requests that found no prefill work before them show what prefill alone costs.
    if (backlogMs > 0 || chosen.load.decoding > 0 || observed.attempts > 1) return;
    const cachedTokens = observed.cachedTokens >= 0 ? observed.cachedTokens : chosen.matchedTokens;
    model.observePrefill({
      newTokens: decision.promptTokens - cachedTokens,
      cachedTokens,
      ms: ttftMs,
    });
    this.#speedChanged(decision.workerId as WorkerId);
  }

  #cachedTokens(
    decision: Decision,
    cachedBlocks: number | undefined,
    record: ServedRecord,
  ): { cachedTokens: number; cachedDifference: CachedDifference } {
    const block = this.#options.blockSizeTokens;
    const reusable = reusableTokens(decision.promptTokens, block);
    const isRead = decision.loadOnlyReason === "";
    // A prompt without a full block before its last token has nothing to reuse, whatever the engine did.
    const blocks = isRead && reusable === 0 ? 0 : cachedBlocks;
    if (blocks === undefined || record.ttftMs <= 0) {
      return { cachedTokens: -1, cachedDifference: "unknown" };
    }
    const cachedTokens = Math.min(blocks * block, reusable);
    const predicted = decision.chosen?.matchedTokens ?? 0;
    const suspect = decision.chosen?.suspect === true;
    const cachedDifference =
      cachedTokens === predicted
        ? "none"
        : cachedTokens > predicted
          ? suspect
            ? "index_gap"
            : "concurrent"
          : suspect
            ? "index_gap"
            : "evicted";
    return { cachedTokens, cachedDifference };
  }

  /** False when the book is full. */
  #reserve(decision: Decision, input: PlaceInput, now: MonoMs): boolean {
    const chosen = decision.chosen;
    if (chosen === undefined) return false;
    const uncachedTokens = input.promptTokens - chosen.matchedTokens;
    const opened = this.book.open(
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
    if (!opened) return false;
    this.#usedAt.set(chosen.workerId, now);
    this.#startModel(chosen.workerId);
    if (input.hashes.length > 0) {
      this.#observers.get(chosen.workerId)?.watch(decision.id, input.hashes, now);
    }
    const gate = this.#gates.get(input.pool);
    gate?.placed(chosen, decision, now);
    this.#effects.push({ kind: "reserved", decision, uncachedTokens });
    return true;
  }

  /**
   * The length of a prompt that was not read is guessed from the size of its body, which may hold pictures or more than
   * one prompt. The guess refuses nothing, and counts for no more than an engine can take.
   */
  #withinContext(input: PlaceInput): PlaceInput {
    if (input.loadOnlyReason === "") return input;
    const contextMax = this.#table.contextMax(input.pool);
    if (contextMax === 0 || input.promptTokens < contextMax) return input;
    return { ...input, promptTokens: contextMax - 1 };
  }

  #eligible(input: PlaceInput): Eligible {
    const { pool, promptTokens, subset, excluded, loadOnlyReason } = input;
    return this.#table.eligible({
      pool,
      promptTokens,
      isCounted: loadOnlyReason === "",
      subset,
      excluded,
    });
  }

  /**
   * Speed assumed of an engine that has to be measured anew: what its worker announces, what was known of it, or what
   * is known of engines like it, whichever is fastest. An engine thought too slow would get no request in a mesh with
   * time to spare, and nothing would ever show that it is not; one thought too fast is put right by its first requests.
   */
  #guessSteps(member: Member, known: StepModel): StepModel {
    const announced = member.facts?.stepModel ?? defaultStepModel;
    return this.#stepsLike(member).reduce(fasterOf, fasterOf(announced, known));
  }

  /** What is known of the other engines of its pool whose workers announce the same. */
  #stepsLike(member: Member): StepModel[] {
    return this.poolMembers(member.pool).flatMap((other) => {
      const like = isSameModel(other.facts?.stepModel, member.facts?.stepModel);
      const steps = other === member || !like ? undefined : this.#models.get(other.key)?.steps;
      return steps ?? [];
    });
  }

  /** An engine that is not the fastest of its kind and was given nothing for long is measured anew. */
  #doubtModel(key: WorkerId, now: MonoMs): void {
    this.#usedAt.set(key, now);
    const member = this.members.get(key);
    const model = this.#models.get(key);
    if (member === undefined || model === undefined) return;
    const known = model.steps;
    const isSlower = this.#stepsLike(member).some((steps) => fasterOf(known, steps) === steps);
    if (!isSlower) return;
    model.restart(this.#guessSteps(member, known));
    this.#speedChanged(key);
  }

  #speedOf(key: WorkerId): KnownSpeed {
    const model = this.#models.get(key);
    return {
      steps: model?.steps ?? defaultStepModel,
      outputTokensMean: model?.outputTokensMean,
    };
  }

  #speedChanged(key: WorkerId): void {
    this.#table.speedChanged(key, this.#speedOf(key));
  }

  /** A worker of which only peers have told may get requests too, and its times show how fast it is. */
  #startModel(key: WorkerId): void {
    if (!this.#models.has(key)) this.#models.set(key, new WorkerModel(undefined));
  }

  #expectedOutput({ outputTokensMean }: Eligible, tokensMax: number | undefined): number {
    const expected = Number.isNaN(outputTokensMean)
      ? this.#options.outputTokensDefault
      : Math.round(outputTokensMean);
    return Math.max(1, Math.min(expected, tokensMax ?? expected));
  }

  #noWorker(input: PlaceInput, eligible: Eligible, policy: PolicyName): Decision {
    const { filtered, filteredCounts, filteredLeftOut } = eligible;
    // A worker that is not ready now would take this prompt no more than the others.
    const contextMax = this.#table.contextMax(input.pool);
    const tooLong =
      input.loadOnlyReason === "" && contextMax > 0 && input.promptTokens >= contextMax;
    const outcome: DecisionOutcome = tooLong
      ? {
          kind: "refused",
          code: "context_length_exceeded",
          message:
            `the prompt has ${input.promptTokens} tokens; model ${input.model} takes fewer than ` +
            `${contextMax} with room for an answer`,
        }
      : {
          kind: "no_worker",
          code: "no_ready_worker",
          message: `no worker of pool ${input.pool} can take the request: ${describeFiltered(filteredCounts)}`,
        };
    const decision = new DecisionRecord(this.#subject(input, policy), outcome);
    decision.filtered = filtered;
    decision.leftOut = filteredLeftOut;
    this.decisions.add(decision);
    return decision;
  }

  #subject(input: PlaceInput, policy: PolicyName): DecisionSubject {
    this.#decisionCount++;
    return {
      id: `${this.#options.decisionPrefix}.${this.#decisionCount}`,
      requestId: input.requestId,
      decidedUnixUs: input.unixUs,
      pool: input.pool,
      model: input.model,
      answer: input.answer ?? "",
      policy,
      promptTokens: input.promptTokens,
      promptBlocks: input.hashes.length / 2,
      loadOnlyReason: input.loadOnlyReason,
    };
  }

  #indexAgeMs(key: WorkerId, now: MonoMs): number {
    const member = this.members.get(key);
    return member?.slot === undefined ? 0 : now - member.blocksHeardAt;
  }

  #feedOutcome(key: WorkerId, outcome: FeedOutcome | undefined, now: MonoMs): FeedOutcome {
    const member = this.members.get(key);
    const feed = this.#feeds.get(key);
    if (member === undefined || feed === undefined || outcome === undefined)
      return { kind: "applied" };
    member.appliedSeq = feed.appliedSeq;
    member.blocksHeardAt = now;
    if (outcome.kind === "resync") member.resyncs++;
    if (member.suspect !== !feed.synced) {
      member.suspect = !feed.synced;
      this.#memberChanged(member, true);
    }
    return outcome;
  }

  /** A report comes after every change of blocks before it, so a feed in step is as new as the report. */
  #feedIsCurrent(key: WorkerId, at: MonoMs): void {
    const member = this.members.get(key);
    if (member === undefined || this.#feeds.get(key)?.synced !== true) return;
    if (at > member.blocksHeardAt) member.blocksHeardAt = at;
  }

  #createFeed(member: Member): BlockFeed {
    const slot = member.slot;
    const { index } = this;
    const capacityBlocks = (member.facts?.capacityTokens ?? 0) / this.#options.blockSizeTokens;
    return new BlockFeed({
      blocksMax: capacityBlocks > 0 ? Math.ceil(capacityBlocks * 2) + 1_024 : 8_000_000,
      sink: {
        store: (hashes) => {
          if (slot !== undefined) index.store(slot, hashes);
        },
        remove: (hashes) => {
          if (slot !== undefined) index.remove(slot, hashes);
        },
        clear: () => {
          if (slot !== undefined) index.clear(slot);
        },
      },
    });
  }

  #memberChanged(member: Member, tellPeers: boolean): void {
    this.#table.memberChanged(member, this.#speedOf(member.key));
    this.pairs.memberChanged(member);
    this.#gates.get(member.pool)?.admission.freed();
    this.#effects.push({ kind: "member_changed", member, tellPeers });
  }

  /** The engine's cache and requests are gone. */
  #forgetEngine(member: Member, now: MonoMs): void {
    if (member.slot !== undefined) this.index.clear(member.slot);
    this.#observers.get(member.key)?.clear();
    this.#gates.get(member.pool)?.rooms.forget(member.key);
    for (const closed of this.book.workerGone(member.key, now)) this.#closed(closed, undefined);
  }

  #remove(key: WorkerId, goodbye: boolean): void {
    const member = this.members.get(key);
    if (member === undefined) return;
    if (member.slot !== undefined) this.index.clear(member.slot);
    this.book.forget(key);
    this.pairs.memberLeft(key);
    this.#table.memberLeft(key);
    const gate = this.#gates.get(member.pool);
    gate?.rooms.forget(key);
    gate?.shares.workerLeft();
    this.members.remove(key);
    this.#feeds.delete(key);
    this.#repair.forget(key);
    this.#models.delete(key);
    this.#usedAt.delete(key);
    this.#observers.delete(key);
    this.#policies.get(member.pool)?.workerLeft?.(key);
    this.#effects.push({ kind: "member_left", member, goodbye });
  }

  /** A worker may have room that it had not. */
  #freed(worker: WorkerId): void {
    const pool = this.members.get(worker)?.pool;
    if (pool !== undefined) this.#gates.get(pool)?.admission.freed();
  }

  #closed(closed: Closed, observed: Observation | undefined): void {
    const { reservation, reason } = closed;
    this.#freed(reservation.workerId);
    if (!reservation.own) return;
    for (const policy of this.#policies.values()) policy.closed?.(reservation.decisionId);
    if (reason !== "access_log") {
      this.#observers.get(reservation.workerId)?.finish(reservation.decisionId);
      const decision = this.decisions.byId(reservation.decisionId);
      if (decision?.observed === undefined && decision !== undefined) {
        decision.observed = unheard(reason);
      }
    }
    this.#effects.push({ kind: "closed", closed, observed });
  }
}

function bookFull(openCount: number): MeshError {
  return new MeshError(
    "overloaded",
    `${openCount} requests are open, the most that the load book holds`,
  );
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

function isSameModel(a: StepModel | undefined, b: StepModel | undefined): boolean {
  if (a === undefined || b === undefined) return a === b;
  return (Object.keys(a) as (keyof StepModel)[]).every((name) => a[name] === b[name]);
}

function describeFiltered(counts: ReadonlyMap<string, number>): string {
  if (counts.size === 0) return "it has no member";
  return [...counts].map(([reason, count]) => `${count} ${reason}`).join(", ");
}

function unheard(reason: string): Observation {
  return {
    ttftMs: 0,
    durationMs: 0,
    servedEndpoint: "",
    servedAsPicked: false,
    status: 0,
    responseFlags: "",
    attempts: 0,
    cachedTokens: -1,
    cachedDifference: "unknown",
    closedBy: reason,
    responseBytes: 0,
  };
}
