import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import type { LoadReport } from "../load/reservation.ts";

/** When a worker counts as having room. */
export interface RoomOptions {
  /** Longest prefill work before a request on a worker that it is sent to, ms; 0 follows the usual time of a prompt. */
  readonly queueMsTarget: number;
  /** Requests that one worker may have open. */
  readonly openMax: number;
  /** Share of a worker's KV capacity that may be planned for, 0 to 1. */
  readonly kvRatioMax: number;
  /** Share of a busy worker's prefill time that is handed out, 0 to 1; what is left keeps its steps short. */
  readonly busyRatioMax: number;
}

/** Settings that suit vLLM's defaults. */
export const roomDefaults: RoomOptions = {
  queueMsTarget: 0,
  openMax: 512,
  kvRatioMax: 0.95,
  busyRatioMax: 0.97,
};

/** What is asked of a worker. */
export interface RoomQuestion {
  readonly worker: WorkerId;
  /** Requests open there, other traffic included. */
  readonly openRequests: number;
  /** Prefill backlog by the load book, ms. */
  readonly bookBacklogMs: number;
  readonly report: LoadReport | undefined;
  /** Requests that its engine runs at once: more would wait there, where nobody orders them. 0 when unknown. */
  readonly runningMax: number;
  /** 0 when unknown. */
  readonly capacityTokens: number;
  /** KV tokens that the request would add there. */
  readonly newTokens: number;
  /** Time of a decode step with the request in it, ms. */
  readonly stepMs: number;
  /** Time between tokens that the request asks for, ms; 0 for none. */
  readonly itlMs: number;
}

/** Whether a worker has room. */
export interface Room {
  /** When it has, as far as is known: the present when it has now. */
  readonly at: number;
  /** It can hold no more, so that not even a request that would find its queue short may go there. */
  readonly isFull: boolean;
}

/** Requests remembered of one worker, for comparison with its reports. */
const openedKept = 256;
/** A request counts in an engine's gauges at most so long after its decision, ms. */
const dispatchLagMs = 50;
/** Lowest automatic target, ms: about two steps, so that an engine does not run dry between decisions. */
const queueMsTargetMin = 60;
/** How soon to look again at a worker that is full in a way that no clock ends, ms. */
const lookAgainMs = 20;
/** How far one report moves the estimate of how long work takes, and how far all may. */
const paceStep = 0.03;
const paceMax = 4;

interface WorkerState {
  /** When the prompts placed so far will have been computed. */
  freeAt: number;
  /** What work takes, as a factor of what was predicted. */
  pace: number;
  readonly at: Float64Array;
  readonly ms: Float64Array;
  readonly tokens: Float64Array;
  /** KV tokens of requests that the last report did not count in its use of the cache. */
  unseenTokens: number;
  /** Number of requests ever opened; the last `openedKept` are in the arrays. */
  opened: number;
}

/**
 * How much prefill work each worker has before it, as admission sees it: the load book says what was placed, the engine's
 * reports what is left of it. A report that nobody waits ends a backlog that only predictions believe in, and one that many
 * wait brings back one that they have forgotten; what was wrong each time also corrects, slowly, how long work is taken to
 * last, since a pool would otherwise run below what it can do, or above, for as long as predictions are off.
 */
export class WorkerRooms {
  readonly #options: RoomOptions;
  readonly #workers = new Map<WorkerId, WorkerState>();
  #promptMs = 0;

  constructor(options: RoomOptions) {
    this.#options = options;
  }

  /** Usual prefill work of one prompt, ms. */
  get promptMs(): number {
    return this.#promptMs;
  }

  /** Prefill work that a worker may have before it and still be sent a request, ms. */
  get queueMsTarget(): number {
    const { queueMsTarget } = this.#options;
    return queueMsTarget > 0 ? queueMsTarget : Math.max(queueMsTargetMin, 1.5 * this.#promptMs);
  }

  /** How long work on a worker takes, as a factor of what is predicted. */
  paceOf(worker: WorkerId): number {
    return this.#workers.get(worker)?.pace ?? 1;
  }

  /** A request with so much prefill work was placed, here or by a peer. */
  opened(
    worker: WorkerId,
    placed: { readonly workMs: number; readonly tokens: number },
    now: number,
  ): void {
    const { workMs, tokens } = placed;
    let state = this.#workers.get(worker);
    if (state === undefined) {
      state = {
        freeAt: 0,
        pace: 1,
        at: new Float64Array(openedKept),
        ms: new Float64Array(openedKept),
        tokens: new Float64Array(openedKept),
        unseenTokens: 0,
        opened: 0,
      };
      this.#workers.set(worker, state);
    }
    const slot = state.opened++ % openedKept;
    state.at[slot] = now;
    state.ms[slot] = workMs;
    state.tokens[slot] = tokens;
    state.unseenTokens += tokens;
    const { busyRatioMax } = this.#options;
    state.freeAt = Math.max(state.freeAt, now) + (workMs * state.pace) / busyRatioMax;
    this.#promptMs =
      this.#promptMs === 0 ? workMs : this.#promptMs + (workMs - this.#promptMs) / 64;
  }

  /** Takes an engine's report; `stepMs` is the time of its longest step. */
  reported(worker: WorkerId, report: LoadReport, stepMs: number): void {
    const state = this.#workers.get(worker);
    if (state === undefined) return;
    const { at, waiting } = report;
    const kept = Math.min(state.opened, openedKept);
    let laterMs = 0;
    let waitingMs = 0;
    let waitingLeft = waiting;
    let unseenTokens = 0;
    for (let k = 1; k <= kept; k++) {
      const slot = (state.opened - k) % openedKept;
      const ms = (state.ms[slot] as number) * state.pace;
      if ((state.at[slot] as number) > at - dispatchLagMs) laterMs += ms;
      else if (waitingLeft > 0) {
        waitingLeft--;
        waitingMs += ms;
      } else break;
      unseenTokens += state.tokens[slot] as number;
    }
    state.unseenTokens = unseenTokens;
    // Those that wait beyond the ones placed here came another way.
    waitingMs += waitingLeft * this.#promptMs * state.pace;
    const believedMs = Math.max(0, state.freeAt - at - laterMs);
    const mostMs = waitingMs + stepMs;
    const isFull = report.kvUsageRatio > 0.9;
    if (believedMs > mostMs) {
      state.freeAt = at + mostMs + laterMs;
      if (!isFull) state.pace = Math.max(1 / paceMax, state.pace * (1 - paceStep));
    } else if (waitingMs > believedMs) {
      state.freeAt = at + waitingMs + laterMs;
      if (!isFull && waitingMs > believedMs + stepMs) {
        state.pace = Math.min(paceMax, state.pace * (1 + paceStep));
      }
    }
  }

  /** A worker left, or its engine began a new life. */
  forget(worker: WorkerId): void {
    this.#workers.delete(worker);
  }

  /** Prefill work before a request that is sent to a worker now, ms. */
  backlogMs(worker: WorkerId, bookBacklogMs: number, now: MonoMs): number {
    const state = this.#workers.get(worker);
    if (state === undefined) return bookBacklogMs;
    return Math.min(bookBacklogMs * state.pace, Math.max(0, state.freeAt - now));
  }

  /** Whether a worker has room for a request. */
  roomFor(question: RoomQuestion, now: MonoMs): Room {
    const { worker, openRequests, report, capacityTokens } = question;
    // An idle worker takes anything: what does not fit then never will.
    if (openRequests <= 0) return { at: now, isFull: false };
    const { openMax, kvRatioMax } = this.#options;
    const { runningMax } = question;
    if (openRequests >= (runningMax > 0 ? Math.min(openMax, runningMax) : openMax)) {
      return full(now);
    }
    if (report !== undefined && capacityTokens > 0) {
      const unseen = this.#workers.get(worker)?.unseenTokens ?? 0;
      const planned = report.kvUsageRatio * capacityTokens + unseen + question.newTokens;
      if (planned > kvRatioMax * capacityTokens) return full(now);
    }
    if (question.itlMs > 0 && question.stepMs > question.itlMs) return full(now);
    const overMs = this.backlogMs(worker, question.bookBacklogMs, now) - this.queueMsTarget;
    return { at: now + Math.max(0, overMs), isFull: false };
  }
}

/** No clock ends this; something has to be heard. */
function full(now: number): Room {
  return { at: now + lookAgainMs, isFull: true };
}
