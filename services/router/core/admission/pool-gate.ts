import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import { decodeStepMs, prefillExtraMs, type StepModel } from "../../../shared/core/step-model.ts";
import type { LoadReport } from "../load/reservation.ts";
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
  const { steps, load, matchedTokens } = candidate;
  const newTokens = Math.max(1, promptTokens - matchedTokens);
  const budget = candidate.stepTokensMax > 0 ? candidate.stepTokensMax : stepTokensMaxDefault;
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

  constructor(
    options: {
      readonly admission: AdmissionOptions;
      readonly rooms: RoomOptions;
      readonly self: string;
      readonly lastReport: (worker: WorkerId) => LoadReport | undefined;
    },
    placer: PoolPlacer<T>,
  ) {
    const { admission } = options;
    this.#placer = placer;
    this.#lastReport = options.lastReport;
    this.admission = new Admission(admission, this);
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

  promptMs(): number {
    return this.rooms.promptMs;
  }

  /**
   * Chooses among ranked workers. As long as one of them has room the cheapest is taken, even if that one has not: its cost
   * holds its queue already, and a worker that is cheap only because of what it has cached stops being so. While routers
   * divide the room, the cheapest is taken of which this router may use room.
   */
  choose(
    candidates: readonly ScoredCandidate[],
    ask: RoomAsk,
    own: { readonly className: string; readonly tenant: string },
    now: MonoMs,
  ): RoomChoice {
    const isDivided = this.shares.isDivided(now);
    let soonest = Infinity;
    let demand: Omit<TenantDemand, "servedMs">[] | undefined;
    for (let index = 0; index < candidates.length; index++) {
      const candidate = candidates[index] as ScoredCandidate;
      const roomAt = this.rooms.roomAt(this.#question(candidate, ask), now);
      if (roomAt > now) {
        soonest = Math.min(soonest, roomAt);
        continue;
      }
      if (!isDivided) return { kind: "take", index: 0 };
      demand ??= this.#demandWith(candidate, ask, own);
      const { workerId, load } = candidate;
      const backlogMs = this.rooms.backlogMs(workerId, load.prefillBacklogMs, now);
      const question = {
        worker: workerId,
        costMs: workMs(candidate, ask.promptTokens),
        freeMs: this.rooms.queueMsTarget - backlogMs,
        own: demand,
        capacityMsPerMs: this.workerMsPerMs(),
      };
      if (this.shares.allows(question, now)) return { kind: "take", index };
      soonest = Math.min(soonest, now + dividedRetryMs);
    }
    const cheapest = candidates[0] as ScoredCandidate;
    return { kind: "no_room", estimate: estimateOf(cheapest, ask), roomAt: soonest };
  }

  /** A request was placed on a worker by this router. */
  placed(worker: WorkerId, prefillWorkMs: number, now: MonoMs): void {
    this.rooms.opened(worker, prefillWorkMs, now);
    this.shares.dispatched(worker, prefillWorkMs, now);
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

  #demandWith(
    candidate: ScoredCandidate,
    ask: RoomAsk,
    own: { readonly className: string; readonly tenant: string },
  ): Omit<TenantDemand, "servedMs">[] {
    const demands: Omit<TenantDemand, "servedMs">[] = this.admission.queue.demands(demandsToldMax);
    const { className, tenant } = own;
    demands.push({ className, tenant, queuedMs: estimateOf(candidate, ask).costMs });
    return demands;
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
      queuedPrefillTokens: load.queuedPrefillTokens,
      report: this.#lastReport(candidate.workerId),
      capacityTokens: candidate.capacityTokens,
      newTokens: Math.max(1, ask.promptTokens - candidate.matchedTokens),
      stepMs,
      itlMs: ask.itlMs,
    };
  }
}

/** Demands looked at and told to other routers. */
const demandsToldMax = 256;
/** How soon to look again at room that another router may use, ms. */
const dividedRetryMs = 10;

/** Time of a step full of new tokens, ms. */
function longestStepMs(steps: StepModel): number {
  return steps.d0 + prefillExtraMs(steps, stepTokensMaxDefault, 0);
}
