import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import { decodeStepMs, prefillExtraMs, type StepModel } from "../../../shared/core/step-model.ts";
import type { LoadReport } from "../load/reservation.ts";
import type { WorkerLoad } from "../load/worker-book.ts";
import type { ScoredCandidate } from "../placement/candidate.ts";
import { Admission, type AdmissionPort, type Attempt } from "./admission.ts";
import type { AdmissionOptions } from "./options.ts";
import { RouterShares, type TenantDemand } from "./router-shares.ts";
import type { AskEstimate, Waiter } from "./waiter.ts";
import { WorkerRooms, type RoomOptions, type RoomQuestion } from "./worker-rooms.ts";

/** Step budget assumed when an engine does not tell, tokens (vLLM's default on large devices). */
const stepTokensMaxDefault = 8_192;
/** KV capacity assumed when an engine does not tell, tokens. */
const capacityTokensDefault = 100_000;

/** A request as its room is looked for. */
export interface RoomAsk {
  readonly promptTokens: number;
  readonly expectedOutputTokens: number;
  /** Time between tokens that it asks for, ms; 0 for none. */
  readonly itlMs: number;
}

/** What admission does about ranked workers. */
export type RoomChoice =
  /** Index of the worker to take. */
  | { readonly kind: "take"; readonly index: number }
  | { readonly kind: "no_room"; readonly estimate: AskEstimate; readonly roomAt: number };

/**
 * Prefill work of a request on a busy worker, ms: its tokens, and the part of the decode steps beside which they are
 * computed that they fill. A lone prompt takes longer, since it pays whole steps; a worker full of prompts does not.
 */
export function workMs(candidate: ScoredCandidate, promptTokens: number): number {
  return busyPrefillMs(candidate, promptTokens - candidate.matchedTokens);
}

/** The same of a request whose uncached tokens another router tells. */
export function busyPrefillMs(
  on: {
    readonly steps: StepModel;
    readonly load: Pick<WorkerLoad, "decoding" | "decodingContextTokens">;
    readonly matchedTokens: number;
    readonly stepTokensMax: number;
  },
  uncachedTokens: number,
): number {
  const { steps, load, matchedTokens } = on;
  const newTokens = Math.max(1, uncachedTokens);
  const budget = on.stepTokensMax > 0 ? on.stepTokensMax : stepTokensMaxDefault;
  const stepMs = decodeStepMs(steps, load.decoding, load.decodingContextTokens);
  return prefillExtraMs(steps, newTokens, matchedTokens) + (newTokens / budget) * stepMs;
}

/** Worker time of an answer's decode: the share of the worker's blocks that it fills, for as long as it runs, ms. */
export function decodeCostMs(
  candidate: ScoredCandidate,
  ask: { readonly promptTokens: number; readonly expectedOutputTokens: number },
  decodeMs: number,
): number {
  const capacity = candidate.capacityTokens > 0 ? candidate.capacityTokens : capacityTokensDefault;
  return ((ask.promptTokens + ask.expectedOutputTokens / 2) / capacity) * decodeMs;
}

/** What a request is expected to cost a worker. */
export function estimateOf(candidate: ScoredCandidate, ask: RoomAsk): AskEstimate {
  return {
    costMs: workMs(candidate, ask.promptTokens) + decodeCostMs(candidate, ask, candidate.decodeMs),
    firstTokenMs: candidate.prefillMs,
  };
}

/** The pool's way to place a request; see `AdmissionPort.place` and `AdmissionPort.estimate`. */
export interface PoolPlacer<T> {
  place(item: T, now: MonoMs, waiter: Waiter<T> | undefined): Attempt;
  estimate(item: T, now: MonoMs): AskEstimate;
  /** Workers that take requests. */
  workerCount(): number;
}

/** Admission of one pool with what it knows of the pool's workers and of the other routers. */
export class PoolGate<T> implements AdmissionPort<T> {
  readonly admission: Admission<T>;
  readonly rooms: WorkerRooms;
  readonly shares: RouterShares;
  readonly #placer: PoolPlacer<T>;
  readonly #lastReport: (worker: WorkerId) => LoadReport | undefined;
  readonly #runningMaxOf: (worker: WorkerId) => number;
  /** Whether the cheapest worker is taken, whatever room it has: policies are then compared by what they choose. */
  placesOnArrival = false;

  constructor(
    options: {
      readonly admission: AdmissionOptions;
      readonly rooms: RoomOptions;
      readonly self: string;
      readonly lastReport: (worker: WorkerId) => LoadReport | undefined;
      /** Requests that an engine runs at once; 0 when unknown. */
      readonly runningMaxOf: (worker: WorkerId) => number;
    },
    placer: PoolPlacer<T>,
  ) {
    const { admission } = options;
    this.#placer = placer;
    this.#lastReport = options.lastReport;
    this.#runningMaxOf = options.runningMaxOf;
    this.rooms = new WorkerRooms(options.rooms);
    this.shares = new RouterShares({
      self: options.self,
      accountsMax: admission.tenantsMax,
      termsOf: (className, tenant) => {
        const spec = admission.classes.find((c) => c.name === className);
        if (spec === undefined) return undefined;
        const { weight } = admission.tenants.get(tenant) ?? admission.tenantDefault;
        return { priority: spec.priority, weight: spec.weight * weight };
      },
    });
    const { shares } = this;
    this.admission = new Admission(admission, this, (className, tenant, costMs, now) => {
      shares.served(className, tenant, costMs, now);
    });
  }

  place(item: T, now: MonoMs, waiter: Waiter<T> | undefined): Attempt {
    return this.#placer.place(item, now, waiter);
  }

  estimate(item: T, now: MonoMs): AskEstimate {
    return this.#placer.estimate(item, now);
  }

  workerMsPerMs(): number {
    return this.#placer.workerCount();
  }

  elsewhereMs(className: string, tenant: string, now: MonoMs): number {
    return this.shares.tenantElsewhereMs(className, tenant, now);
  }

  promptMs(): number {
    return this.rooms.promptMs;
  }

  /**
   * Chooses among ranked workers: the cheapest with room, among those that are this router's while routers divide them. A
   * worker without room is taken as long as another has some if its first token is expected before any of theirs, since what
   * it has cached is then worth its queue; and while others wait for the work that this saves, also if it comes a little
   * later.
   */
  choose(
    candidates: readonly ScoredCandidate[],
    ask: RoomAsk,
    own: { readonly className: string; readonly tenant: string },
    now: MonoMs,
  ): RoomChoice {
    if (this.placesOnArrival) return { kind: "take", index: 0 };
    const isDivided = this.shares.isDivided(now);
    let soonest = Infinity;
    let cheapest = -1;
    let ttftMs = Infinity;
    /** Workers without room, or whose room is another router's, but with a queue that a request might stand. */
    let queued: number[] | undefined;
    for (let index = 0; index < candidates.length; index++) {
      const candidate = candidates[index] as ScoredCandidate;
      const room = this.rooms.roomFor(this.#question(candidate, ask), now);
      const at = isDivided ? this.#turnAt(candidate, { ask, own, roomAt: room.at }, now) : room.at;
      if (at > now) {
        soonest = Math.min(soonest, at);
        if (!room.isFull && cheapest < 0) (queued ??= []).push(index);
        continue;
      }
      if (index === 0) return { kind: "take", index };
      if (cheapest < 0) cheapest = index;
      ttftMs = Math.min(ttftMs, this.#firstTokenMs(candidate, now));
    }
    if (cheapest < 0) {
      const estimate = estimateOf(candidates[0] as ScoredCandidate, ask);
      return { kind: "no_room", estimate, roomAt: Math.min(soonest, now + turnMsMax) };
    }
    const chosen = candidates[cheapest] as ScoredCandidate;
    const perMs = this.#savedWorkWeight(isDivided, now);
    const early = queued?.find((i) => {
      const other = candidates[i] as ScoredCandidate;
      const saved = workMs(chosen, ask.promptTokens) - workMs(other, ask.promptTokens);
      let firstTokenMs = this.#firstTokenMs(other, now);
      if (isDivided) {
        // Its owner fills up what room there is, and has placed something that is not known here yet.
        const filledMs = this.rooms.queueMsTarget + unheardMs + other.prefillMs;
        firstTokenMs = Math.max(firstTokenMs, filledMs);
      }
      return firstTokenMs <= ttftMs + Math.max(0, saved) * perMs;
    });
    return { kind: "take", index: early ?? cheapest };
  }

  /** What a ms of work saved is worth in ms of one request's first token: all who wait are served sooner by it. */
  #savedWorkWeight(isDivided: boolean, now: MonoMs): number {
    const workers = Math.max(1, this.workerMsPerMs());
    const here = this.admission.waitingCount;
    if (!isDivided) return Math.min(savedWorkWeightMax, here / workers);
    const elsewhere = this.shares.queuedElsewhereMs(now) / Math.max(1, this.rooms.promptMs);
    return Math.min(savedWorkWeightMax, (dividedWeight * (here + elsewhere)) / workers);
  }

  #turnAt(
    candidate: ScoredCandidate,
    question: {
      readonly ask: RoomAsk;
      readonly own: { readonly className: string; readonly tenant: string };
      readonly roomAt: number;
    },
    now: MonoMs,
  ): number {
    const { ask, own, roomAt } = question;
    const { className, tenant } = own;
    const queuedMs = workMs(candidate, ask.promptTokens);
    return this.shares.turnAt(
      {
        worker: candidate.workerId,
        roomAt,
        ask: { className, tenant, queuedMs },
        capacityMsPerMs: this.workerMsPerMs(),
      },
      now,
    );
  }

  #firstTokenMs(candidate: ScoredCandidate, now: MonoMs): number {
    const { workerId, load, prefillMs } = candidate;
    return this.rooms.backlogMs(workerId, load.prefillBacklogMs, now) + prefillMs;
  }

  /** A request was placed on a worker by this router. */
  placed(candidate: ScoredCandidate, ask: Omit<RoomAsk, "itlMs">, now: MonoMs): void {
    const { workerId } = candidate;
    const placed = {
      workMs: workMs(candidate, ask.promptTokens),
      tokens: newKvTokens(candidate, ask),
    };
    this.rooms.opened(workerId, placed, now);
  }

  /** Takes an engine's report. */
  reported(worker: WorkerId, report: LoadReport, steps: StepModel): void {
    this.rooms.reported(worker, report, longestStepMs(steps));
    if (this.admission.waitingCount > 0) this.admission.freed();
  }

  /** What to tell the other routers. */
  demand(now: MonoMs): TenantDemand[] {
    return this.shares.demand(this.admission.queue.demands(demandsToldMax), now);
  }

  /** What another router told. */
  takeDemand(router: string, demands: readonly TenantDemand[], now: MonoMs): void {
    const { queue } = this.admission;
    for (const { className, tenant, costMs } of this.shares.take(router, demands, now)) {
      queue.charge(className, tenant, costMs);
    }
    queue.catchUp();
    this.admission.freed();
  }

  #question(candidate: ScoredCandidate, ask: RoomAsk): RoomQuestion {
    const { load, steps } = candidate;
    const stepMs =
      ask.itlMs > 0
        ? decodeStepMs(steps, load.decoding + 1, load.decodingContextTokens + ask.promptTokens)
        : 0;
    return {
      worker: candidate.workerId,
      openRequests: load.openRequests + candidate.foreignRequests,
      bookBacklogMs: load.prefillBacklogMs,
      report: this.#lastReport(candidate.workerId),
      runningMax: this.#runningMaxOf(candidate.workerId),
      capacityTokens: candidate.capacityTokens,
      newTokens: newKvTokens(candidate, ask),
      stepMs,
      itlMs: ask.itlMs,
    };
  }
}

/** KV tokens that a request adds to a worker, its answer half grown. */
function newKvTokens(candidate: ScoredCandidate, ask: Omit<RoomAsk, "itlMs">): number {
  const newTokens = Math.max(1, ask.promptTokens - candidate.matchedTokens);
  return newTokens + ask.expectedOutputTokens / 2;
}

/** Most that a ms of work saved weighs beside a ms of one request's first token; it brings all who wait forward. */
const savedWorkWeightMax = 4;
/** Demands looked at and told to other routers. */
const demandsToldMax = 256;
/** How soon to look again where other routers have all room, ms. */
const turnMsMax = 1_000;
/** Worker time that another router has placed on a worker on average before it is known here, ms. */
const unheardMs = 15;
/** What waits at several routers counts only by so much for each: all of them act on it, and late. */
const dividedWeight = 0.5;

/** Time of a step full of new tokens, ms. */
function longestStepMs(steps: StepModel): number {
  return steps.d0 + prefillExtraMs(steps, stepTokensMaxDefault, 0);
}
