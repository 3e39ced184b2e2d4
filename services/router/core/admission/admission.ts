import type { MonoMs } from "../../../shared/core/ids.ts";
import { DemandRate, DrainRate } from "./drain-rate.ts";
import { FairQueue } from "./fair-queue.ts";
import type { AdmissionClass, AdmissionOptions } from "./options.ts";
import { PositionHeap } from "./position-heap.ts";
import { RateLimits } from "./rate-limit.ts";
import type { Ask, AskEstimate, Refusal, ShedReason, Waiter } from "./waiter.ts";

/** What became of an attempt to place a request. */
export type Attempt =
  /** It has its answer. `costMs` and `tokens` are what it took; both 0 when nothing was placed. */
  | { readonly kind: "answered"; readonly costMs: number; readonly tokens: number }
  /** No worker that may serve it has room before `roomAt`, as far as is known. */
  | { readonly kind: "no_room"; readonly estimate: AskEstimate; readonly roomAt: number };

/** The pool behind admission. */
export interface AdmissionPort<T> {
  /**
   * Places a request on a worker that has room, and answers it. `waiter` is given when it has waited; it is then no longer
   * in the queue's books.
   */
  place(item: T, now: MonoMs, waiter: Waiter<T> | undefined): Attempt;
  /** What a request is expected to cost, without placing it. */
  estimate(item: T, now: MonoMs): AskEstimate;
  /** Worker time that the pool can give per ms when it is busy: its workers, as a rule. */
  workerMsPerMs(now: MonoMs): number;
  /** Usual worker time of one prompt, ms. */
  promptMs(): number;
  /** Worker time of a tenant's requests that wait at other routers, ms; none when absent. */
  elsewhereMs?(className: string, tenant: string, now: MonoMs): number;
}

/** What became of a request that arrived. */
export type Arrival<T> =
  | { readonly kind: "answered" }
  /** `waitMsMax`: by then it is placed or refused, ms. */
  | { readonly kind: "waits"; readonly waiter: Waiter<T>; readonly waitMsMax: number }
  | { readonly kind: "refused"; readonly refusal: Refusal };

/** A waiting request that was refused after all. */
export interface LateRefusal<T> {
  readonly waiter: Waiter<T>;
  readonly refusal: Refusal;
}

/** Hears of service given to a tenant, ms of worker time; negative when less was given than was told. */
export type ServiceListener = (
  className: string,
  tenant: string,
  costMs: number,
  now: MonoMs,
) => void;

interface ClassState {
  readonly spec: AdmissionClass;
  /** Since when its queue has not been empty. */
  busySince: MonoMs | undefined;
  overloaded: boolean;
  /** When it last refused somebody for a wait too long. */
  refusedAt: number;
  /** Worker time placed or queued of this class. */
  readonly admitted: DemandRate;
}

/** Bounds of the time after which a refused caller is told to try again, ms. */
const retryMsMin = 1_000;
const retryMsMax = 30_000;
/** Shortest wait allowed in an overloaded class, ms: below it the queue would be empty half of the time. */
const overloadWaitMsMin = 50;
/** A burst may last as long as so many usual prompts take one worker: long ones keep a queue from emptying for longer. */
const burstPrompts = 30;
/** Requests limited to some workers that may be passed over in one go when those have no room. */
const passedOverMax = 8;
/**
 * How long after its arrival a request's wait is predicted anew, ms: those that will not make it should hear so soon, and
 * by then more is known than when they came.
 */
const secondLookMs = 40;
/** What a limit that is not kept in time is allowed beyond, as a factor: predictions err. */
const slack = 4;
/** What a tenant's first waiting request may be predicted to wait, as a factor of the limit; well below `slack`. */
const firstSlack = 3;
/**
 * Part of the time left that a wait predicted anew may take in an overloaded class: there somebody comes at once who waits
 * less, so that only the next few stay.
 */
const secondLookRatio = 0.05;

const stopRefusal: Refusal = {
  reason: "shutting_down",
  isTenantLimit: false,
  retryAfterMs: retryMsMin,
  message: "this router stops",
};

const answered: Arrival<never> = { kind: "answered" };

/**
 * The one place of a pool where requests wait or are refused.
 *
 * A request is placed at once when nobody waits whose turn comes before and a worker has room. Otherwise it waits in the
 * `FairQueue` unless its wait, predicted from the work before it and the rate at which the queue drains, is longer than it
 * may be: its time to first token less its prompt's time, or its class's longest wait. A class whose queue has not been
 * empty for longer than a burst (`burstMs`, or longer where prompts are long) is overloaded: a longer queue then serves nobody better, so that waits are kept as short as keeps
 * workers busy, until nobody has been refused for as long (the idea of controlled delay: Nichols and Jacobson 2012; for
 * servers Maurer, "Fail at Scale", 2015).
 *
 * Every request is answered, refused or cancelled exactly once. Bounded by count, bytes and time; where the queue is full
 * a request of higher priority takes the place of one of the lowest.
 */
export class Admission<T> {
  readonly queue: FairQueue<T>;
  readonly #options: AdmissionOptions;
  readonly #port: AdmissionPort<T>;
  readonly #classes = new Map<string, ClassState>();
  readonly #rates: RateLimits;
  readonly #drain = new DrainRate();
  readonly #demand = new DemandRate();
  readonly #expiry: PositionHeap<Waiter<T>>;
  #late: LateRefusal<T>[] = [];
  #seq = 0;
  /** The request at the head that found no room, and until when trying it again is useless. */
  #blockedSeq = -1;
  #blockedUntil = 0;
  /** When the request at the head was last expected to find room. */
  #roomAt = 0;
  #stopped = false;
  readonly #onServed: ServiceListener | undefined;

  /** `onServed` is called with every request served, for those who share the accounts. */
  constructor(options: AdmissionOptions, port: AdmissionPort<T>, onServed?: ServiceListener) {
    this.#options = options;
    this.#port = port;
    this.#onServed = onServed;
    const { tenants, tenantDefault, tenantsMax } = options;
    const termsOf = (tenant: string) => tenants.get(tenant) ?? tenantDefault;
    this.queue = new FairQueue({
      classes: options.classes,
      weightOf: (tenant) => termsOf(tenant).weight,
      tenantsMax,
    });
    this.#rates = new RateLimits({
      limitOf: (tenant) => {
        const terms = termsOf(tenant);
        const isLimited = terms.requestsPerSecond > 0 || terms.tokensPerSecond > 0;
        return isLimited ? terms : undefined;
      },
      bucketsMax: tenantsMax,
    });
    for (const spec of options.classes) {
      this.#classes.set(spec.name, {
        spec,
        busySince: undefined,
        overloaded: false,
        refusedAt: -Infinity,
        admitted: new DemandRate(),
      });
    }
    this.#expiry = new PositionHeap({
      before: (a, b) => a.expiresAt < b.expiresAt || (a.expiresAt === b.expiresAt && a.seq < b.seq),
      place: (waiter) => waiter.expiryPlace,
      setPlace: (waiter, place) => {
        waiter.expiryPlace = place;
      },
    });
  }

  /** Requests waiting. */
  get waitingCount(): number {
    return this.queue.count;
  }

  /** Every class. */
  get classes(): readonly AdmissionClass[] {
    return this.#options.classes;
  }

  /** The class that a name stands for. */
  classOf(name: string): AdmissionClass {
    return this.#state(name).spec;
  }

  /** Whether a class has been short of capacity for longer than a burst. */
  isOverloaded(className: string): boolean {
    return this.#state(className).overloaded;
  }

  /** How fast the queue drains, worker ms per ms. */
  drainRate(now: MonoMs): number {
    return this.#drain.rate(this.#port.workerMsPerMs(now), now);
  }

  /** A request arrived. Its `waiter`, if it waits, stands for it in `cancel`. */
  arrive(item: T, asked: Ask, now: MonoMs): Arrival<T> {
    const state = this.#state(asked.className);
    const ask =
      asked.className === state.spec.name ? asked : { ...asked, className: state.spec.name };
    if (this.#stopped) return { kind: "refused", refusal: stopRefusal };
    const rateWaitMs = this.#rates.waitMs(ask.tenant, now);
    if (rateWaitMs > 0) return this.#refuseRate(ask, rateWaitMs);
    const isFirst = this.queue.count === 0 || state.spec.priority > this.queue.headPriority();
    let estimate: AskEstimate;
    let roomAt = Math.max(now, this.#roomAt);
    if (isFirst) {
      const attempt = this.#port.place(item, now, undefined);
      if (attempt.kind === "answered") {
        this.#served(ask, attempt, now);
        if (attempt.costMs > 0) {
          this.#demand.asked(attempt.costMs, now);
          this.queue.asked(ask.className, ask.tenant, attempt.costMs, now);
          state.admitted.asked(attempt.costMs, now);
        }
        return answered;
      }
      ({ estimate } = attempt);
      roomAt = attempt.roomAt;
    } else estimate = this.#port.estimate(item, now);
    this.#demand.asked(estimate.costMs, now);
    this.queue.asked(ask.className, ask.tenant, estimate.costMs, now);
    return this.#enqueue({ item, ask, state, estimate, roomAt, triedAlready: isFirst }, now);
  }

  /** Forgets a waiting request: its client left. False when it does not wait any more. */
  cancel(waiter: Waiter<T>, now: MonoMs): boolean {
    return this.#takeOut(waiter, now);
  }

  /** Something happened that may have made room. */
  freed(): void {
    this.#blockedUntil = 0;
  }

  /** Places what may be placed now and returns what has to be refused. */
  pump(now: MonoMs): LateRefusal<T>[] {
    for (const state of this.#classes.values()) this.#noteLoad(state, now);
    for (
      let waiter = this.#expiry.first;
      waiter !== undefined && waiter.expiresAt <= now;
      waiter = this.#expiry.first
    ) {
      this.#expire(waiter, now);
    }
    this.#dispatch(now);
    const late = this.#late;
    if (late.length > 0) this.#late = [];
    return late;
  }

  /** When `pump` should be called next; `undefined` while nobody waits. */
  wakeAt(now: MonoMs): number | undefined {
    const first = this.#expiry.first;
    if (first === undefined) return this.#late.length > 0 ? now : undefined;
    if (this.#late.length > 0) return now;
    const head = this.queue.head();
    const isBlocked = head !== undefined && head.seq === this.#blockedSeq;
    return Math.min(first.expiresAt, isBlocked ? Math.max(now, this.#blockedUntil) : now);
  }

  /** Refuses everyone who waits, and from now on everyone who arrives: this router stops. */
  stop(now: MonoMs): LateRefusal<T>[] {
    this.#stopped = true;
    for (let waiter = this.#expiry.first; waiter !== undefined; waiter = this.#expiry.first) {
      this.#takeOut(waiter, now);
      this.#late.push({ waiter, refusal: stopRefusal });
    }
    const late = this.#late;
    this.#late = [];
    return late;
  }

  /** What a request of a tenant turned out to cost beyond what it was charged, ms; negative gives back. */
  correct(className: string, tenant: string, costMs: number, now: MonoMs): void {
    this.queue.charge(className, tenant, costMs);
    this.#onServed?.(className, tenant, costMs, now);
  }

  #enqueue(
    arrival: {
      readonly item: T;
      readonly ask: Ask;
      readonly state: ClassState;
      readonly estimate: AskEstimate;
      readonly roomAt: number;
      readonly triedAlready: boolean;
    },
    now: MonoMs,
  ): Arrival<T> {
    const { item, ask, state, estimate, roomAt, triedAlready } = arrival;
    this.#noteLoad(state, now);
    const limit = this.#limit(state, ask, estimate);
    const refusal = this.#refusalOf({ ask, state, limit, roomAt, estimate }, now);
    if (refusal !== undefined) return { kind: "refused", refusal };
    const { reason } = limit;
    const expiresMs =
      reason === "predicted_wait" ? Math.min(state.spec.waitMsMax, slack * limit.ms) : limit.ms;
    const waiter: Waiter<T> = {
      item,
      ask,
      seq: ++this.#seq,
      queuedAt: now,
      deadline: now + (reason === "deadline" ? limit.ms : state.spec.waitMsMax),
      estimate,
      position: this.queue.count,
      blockedBy: triedAlready ? "capacity" : "fairness",
      expiresAt: now + Math.min(expiresMs, secondLookMs),
      refusedAt: now + expiresMs,
      expiresFor: reason === "deadline" ? "deadline" : "wait_timeout",
      account: "",
      orderPlace: -1,
      expiryPlace: -1,
    };
    if (this.queue.count === 0) this.#drain.waits(true, now);
    state.busySince ??= now;
    state.admitted.asked(estimate.costMs, now);
    this.queue.add(waiter);
    this.#expiry.push(waiter);
    if (triedAlready && !ask.constrained) {
      this.#blockedSeq = waiter.seq;
      this.#blockedUntil = roomAt;
      this.#roomAt = roomAt;
    } else if (!triedAlready && this.queue.head() === waiter) {
      this.#dispatch(now);
      if (waiter.orderPlace < 0) return answered;
    }
    return { kind: "waits", waiter, waitMsMax: expiresMs };
  }

  /** Longest wait that a request may be predicted to have, ms, and what it is called when that is too long. */
  #limit(
    state: ClassState,
    ask: Ask,
    estimate: AskEstimate,
  ): { readonly ms: number; readonly reason: ShedReason } {
    const { waitMsMax, ttftMs } = state.spec;
    const wantedMs = ask.ttftMs ?? (ttftMs > 0 ? ttftMs : undefined);
    if (wantedMs !== undefined) {
      // What cannot be had even on an idle worker gets the wait of those who name nothing.
      const ms = Math.max(wantedMs - estimate.firstTokenMs, this.#overloadWaitMs());
      if (ms < waitMsMax) return { ms, reason: "deadline" };
    } else if (state.overloaded) {
      const ms = this.#overloadWaitMs();
      if (ms < waitMsMax) return { ms, reason: "predicted_wait" };
    }
    return { ms: waitMsMax, reason: "wait_timeout" };
  }

  #overloadWaitMs(): number {
    const { overloadWaitMs } = this.#options;
    if (overloadWaitMs > 0) return overloadWaitMs;
    return Math.max(overloadWaitMsMin, this.#port.promptMs());
  }

  #refusalOf(
    arrival: {
      readonly ask: Ask;
      readonly state: ClassState;
      readonly limit: { readonly ms: number; readonly reason: ShedReason };
      readonly roomAt: number;
      readonly estimate: AskEstimate;
    },
    now: MonoMs,
  ): Refusal | undefined {
    const { ask, state, limit, roomAt } = arrival;
    const { queue } = this;
    const { name, waitMsMax } = state.spec;
    const { countMax, bytesMax, tenantShareMax } = this.#options;
    const rate = this.#rateFor(state, now);
    const roomMs = Math.max(0, roomAt - now);
    const held = queue.heldBy(name, ask.tenant);
    // A tenant keeps its turns only while it has somebody waiting: the first one may wait for longer.
    const isOverloaded = limit.reason === "predicted_wait";
    const waitsElsewhere =
      (this.#port.elsewhereMs?.(name, ask.tenant, now) ?? 0) > arrival.estimate.costMs;
    const allowedMs =
      isOverloaded && held.count < (waitsElsewhere ? 1 : 2)
        ? Math.min(waitMsMax, firstSlack * limit.ms)
        : limit.ms;
    const horizon = { ms: allowedMs, now };
    const waitMs = roomMs + queue.workBefore(name, ask.tenant, horizon) / rate;
    const refuse = (reason: ShedReason, message: string): Refusal => ({
      reason,
      isTenantLimit: reason === "tenant_queue" || reason === "tenant_share",
      retryAfterMs: this.#retryAfterMs(waitMs, rate, now),
      message,
    });
    if (waitMsMax <= 0) {
      return refuse("sheddable", `no worker has room, and requests of class ${name} do not wait`);
    }
    const tenantCountMax = Math.ceil(countMax * tenantShareMax);
    if (held.count >= tenantCountMax || held.bytes + ask.bytes > bytesMax * tenantShareMax) {
      return refuse(
        "tenant_queue",
        `${held.count} requests with ${held.bytes} bytes of this tenant wait, of ${tenantCountMax} with ` +
          `${Math.floor(bytesMax * tenantShareMax)} bytes that may`,
      );
    }
    if (waitMs > allowedMs) {
      state.refusedAt = now;
      const alone = held.count > 0 && queue.tenantsWaiting(name) > 1;
      const others = alone ? roomMs + queue.workBefore(name, newcomer, horizon) / rate : Infinity;
      const facts = `the wait would be about ${Math.ceil(waitMs)} ms, longer than ${Math.floor(limit.ms)} ms`;
      return others <= limit.ms
        ? refuse("tenant_share", `this tenant's waiting requests fill its share: ${facts}`)
        : refuse(limit.reason === "deadline" ? "deadline" : "predicted_wait", facts);
    }
    while (queue.count >= countMax || queue.bytes + ask.bytes > bytesMax) {
      const victim = queue.last(state.spec.priority);
      if (victim === undefined) {
        return refuse(
          "queue_full",
          `${queue.count} requests with ${queue.bytes} bytes wait, of ${countMax} with ${bytesMax} bytes that may`,
        );
      }
      this.#takeOut(victim, now);
      const message = "requests of a higher priority took its place in a full queue";
      this.#late.push({ waiter: victim, refusal: refuse("queue_full", message) });
    }
    return undefined;
  }

  /** How fast the queue drains for a class: what those of higher priority ask for is not its. */
  #rateFor(state: ClassState, now: MonoMs): number {
    const rate = this.drainRate(now);
    return Math.max(0.05 * rate, rate - this.#above(state, now));
  }

  /** Worker time per ms that goes to higher priorities. */
  #above(state: ClassState, now: MonoMs): number {
    let rate = 0;
    for (const other of this.#classes.values()) {
      if (other.spec.priority > state.spec.priority) rate += other.admitted.rate(now);
    }
    return rate;
  }

  #refuseRate(ask: Ask, waitMs: number): Arrival<T> {
    return {
      kind: "refused",
      refusal: {
        reason: "tenant_rate",
        isTenantLimit: true,
        retryAfterMs: Math.ceil(waitMs),
        message: `the rate of tenant ${JSON.stringify(ask.tenant)} is used up for ${Math.ceil(waitMs)} ms`,
      },
    };
  }

  /**
   * When a refused request would find a place: what is before it drains, and so does what others ask for meanwhile.
   * Spread over a quarter more, so that those refused together do not come back together.
   */
  #retryAfterMs(waitMs: number, rate: number, now: MonoMs): number {
    const pressure = Math.max(1, this.#demand.rate(now) / rate);
    const spread = 1 + 0.25 * ((++this.#seq * 0.618_033_988_75) % 1);
    const ms = Math.max(retryMsMin, waitMs * pressure) * spread;
    return Math.ceil(Math.min(retryMsMax * spread, ms));
  }

  /** Refuses a waiter whose time is up, or will be before its turn comes by what is known now. */
  #expire(waiter: Waiter<T>, now: MonoMs): void {
    const { ask, queuedAt, refusedAt } = waiter;
    const state = this.#state(ask.className);
    const waitedMs = Math.round(now - queuedAt);
    const rate = this.#rateFor(state, now);
    const leftMs = refusedAt - now;
    const horizon = { ms: Math.max(0, leftMs), now };
    const waitMs = Math.max(0, this.#roomAt - now) + this.queue.workAhead(waiter, horizon) / rate;
    const isNear = state.overloaded && waiter.expiresFor !== "deadline";
    if (leftMs > 0 && waitMs <= (isNear ? secondLookRatio : 1) * leftMs) {
      waiter.expiresAt = refusedAt;
      this.#expiry.moved(waiter);
      return;
    }
    this.#takeOut(waiter, now);
    state.refusedAt = now;
    const reason =
      leftMs > 0 && waiter.expiresFor !== "deadline" ? "predicted_wait" : waiter.expiresFor;
    this.#late.push({
      waiter,
      refusal: {
        reason,
        isTenantLimit: false,
        retryAfterMs: this.#retryAfterMs(waitMs, rate, now),
        message:
          leftMs > 0
            ? `no worker had room for ${waitedMs} ms, and the wait would be about ${Math.ceil(waitMs)} ms more, ` +
              `longer than ${Math.floor(leftMs)} ms`
            : `no worker had room for ${waitedMs} ms`,
      },
    });
  }

  #dispatch(now: MonoMs): void {
    let passedOver: Waiter<T>[] | undefined;
    for (let head = this.queue.head(); head !== undefined; head = this.queue.head()) {
      if (head.seq === this.#blockedSeq && now < this.#blockedUntil) break;
      this.queue.remove(head);
      const attempt = this.#port.place(head.item, now, head);
      if (attempt.kind === "answered") {
        this.#expiry.remove(head);
        this.#drain.served(attempt.costMs, now);
        this.#served(head.ask, attempt, now);
        this.#left(head.ask.className, now);
        continue;
      }
      if (head.ask.constrained && (passedOver?.length ?? 0) < passedOverMax) {
        (passedOver ??= []).push(head);
        continue;
      }
      this.queue.restore(head);
      this.#blockedSeq = head.seq;
      this.#blockedUntil = attempt.roomAt;
      this.#roomAt = attempt.roomAt;
      break;
    }
    if (passedOver === undefined) return;
    for (const waiter of passedOver) this.queue.restore(waiter);
    const head = this.queue.head();
    if (head !== undefined && passedOver.includes(head)) {
      this.#blockedSeq = head.seq;
      this.#blockedUntil = now + retryPassedMs;
    }
  }

  #served(
    ask: Ask,
    attempt: { readonly costMs: number; readonly tokens: number },
    now: MonoMs,
  ): void {
    if (attempt.costMs === 0) return;
    this.queue.serve(ask.className, ask.tenant, attempt.costMs);
    this.#rates.use(ask.tenant, attempt.tokens, now);
    this.#onServed?.(ask.className, ask.tenant, attempt.costMs, now);
  }

  #takeOut(waiter: Waiter<T>, now: MonoMs): boolean {
    if (!this.queue.remove(waiter)) return false;
    this.#expiry.remove(waiter);
    this.#left(waiter.ask.className, now);
    return true;
  }

  /** Somebody of a class waits no longer. */
  #left(className: string, now: MonoMs): void {
    if (this.queue.count === 0) this.#drain.waits(false, now);
    if (this.queue.countOf(className) === 0) this.#state(className).busySince = undefined;
  }

  /** Notes when a class becomes overloaded, which cuts the waits of those already there, and when no longer. */
  #noteLoad(state: ClassState, now: MonoMs): void {
    const burstMs = Math.max(this.#options.burstMs, burstPrompts * this.#port.promptMs());
    const { name } = state.spec;
    if (state.overloaded) {
      if (state.busySince === undefined && now - state.refusedAt > burstMs)
        state.overloaded = false;
      return;
    }
    if (state.busySince === undefined || now - state.busySince <= burstMs) return;
    state.overloaded = true;
    const expiresAt = now + slack * this.#overloadWaitMs();
    for (const waiter of [...this.queue.waitersOf(name)]) {
      if (waiter.expiresFor === "deadline" || waiter.refusedAt <= expiresAt) continue;
      waiter.refusedAt = expiresAt;
      waiter.expiresAt = Math.min(waiter.expiresAt, expiresAt);
      this.#expiry.moved(waiter);
    }
  }

  #state(name: string): ClassState {
    const state = this.#classes.get(name) ?? this.#classes.get(this.#options.defaultClass);
    if (state === undefined) throw new RangeError(`no class ${this.#options.defaultClass}`);
    return state;
  }
}

/** A tenant that nobody is, to ask what a newcomer would find. */
const newcomer = "\u0000newcomer";
/** How soon to try again what is limited to workers without room, ms. */
const retryPassedMs = 20;
