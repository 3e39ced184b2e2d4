import { DemandRate } from "./drain-rate.ts";
import { PositionHeap } from "./position-heap.ts";
import type { MonoMs } from "../../../shared/core/ids.ts";
import type { Waiter } from "./waiter.ts";

/** What the queue needs to know of a class. */
export interface FairClass {
  readonly name: string;
  /** Higher goes first, always. */
  readonly priority: number;
  /** Share among classes of one priority. */
  readonly weight: number;
}

/** One tenant inside one class. */
interface Flow<T> {
  readonly name: string;
  readonly weight: number;
  readonly order: PositionHeap<Waiter<T>>;
  /** What it has asked for lately, whatever became of it. */
  readonly asks: DemandRate;
  /** Virtual time at which its next request begins. */
  tag: number;
  /** Order in which flows began to wait, for ties. */
  activeSeq: number;
  queuedMs: number;
  bytes: number;
  place: number;
}

interface ClassNode<T> {
  readonly spec: FairClass;
  readonly level: Level<T>;
  readonly flows: Map<string, Flow<T>>;
  readonly active: PositionHeap<Flow<T>>;
  readonly asks: DemandRate;
  /** Virtual time among the class's tenants. */
  now: number;
  /** Virtual time at which the class's next request begins, among classes of its priority. */
  tag: number;
  activeSeq: number;
  queuedMs: number;
  count: number;
  place: number;
}

interface Level<T> {
  readonly priority: number;
  readonly classes: ClassNode<T>[];
  readonly active: PositionHeap<ClassNode<T>>;
  now: number;
}

/** Demand of one tenant in one class. */
export interface FlowDemand {
  readonly className: string;
  readonly tenant: string;
  readonly queuedMs: number;
}

/** A time from now on for which more requests are expected to come as they came lately. */
export interface Horizon {
  readonly ms: number;
  readonly now: MonoMs;
}

/** Waiters of one tenant that are looked at to tell which of them go before one of theirs. */
const ownLookedAtMax = 256;
/** Name of the flow that tenants share when there are more of them than flows. */
const overflowTenant = "\u0000other";

interface Tagged {
  readonly tag: number;
  readonly activeSeq: number;
}

const byTag = (a: Tagged, b: Tagged): boolean =>
  a.tag < b.tag || (a.tag === b.tag && a.activeSeq < b.activeSeq);

function createLevel<T>(priority: number): Level<T> {
  const active = new PositionHeap<ClassNode<T>>({
    before: byTag,
    place: (node) => node.place,
    setPlace: (node, place) => {
      node.place = place;
    },
  });
  return { priority, classes: [], active, now: 0 };
}

function createClass<T>(spec: FairClass, level: Level<T>): ClassNode<T> {
  const active = new PositionHeap<Flow<T>>({
    before: byTag,
    place: (flow) => flow.place,
    setPlace: (flow, place) => {
      flow.place = place;
    },
  });
  return {
    spec,
    level,
    flows: new Map(),
    active,
    asks: new DemandRate(),
    now: 0,
    tag: 0,
    activeSeq: 0,
    queuedMs: 0,
    count: 0,
    place: -1,
  };
}

function createFlow<T>(name: string, weight: number, tag: number): Flow<T> {
  const order = new PositionHeap<Waiter<T>>({
    before: (a, b) => a.deadline < b.deadline || (a.deadline === b.deadline && a.seq < b.seq),
    place: (waiter) => waiter.orderPlace,
    setPlace: (waiter, place) => {
      waiter.orderPlace = place;
    },
  });
  return {
    name,
    weight,
    order,
    asks: new DemandRate(),
    tag,
    activeSeq: 0,
    queuedMs: 0,
    bytes: 0,
    place: -1,
  };
}

/**
 * Waiting requests in the order in which they are served: strict priorities; inside one the classes by weight; inside a
 * class the tenants by weight; inside a tenant the earliest deadline.
 *
 * Weights work by start-time fair queueing (Goyal, Vin, Cheng 1996) over worker time: serving a request moves its tenant's
 * and its class's virtual time on by cost ÷ weight, and the one that is least far goes next. Whoever was idle starts at the
 * present, so that nobody saves up. Requests served without waiting are charged as well, and what a request turns out to
 * cost later is charged then. Over any time in which two tenants wait all along, their shares differ from their weights by
 * at most one request of each.
 *
 * At most `tenantsMax` tenants have an account of their own in a class; more share one.
 */
export class FairQueue<T> {
  readonly #levels: Level<T>[] = [];
  readonly #classes = new Map<string, ClassNode<T>>();
  readonly #weightOf: (tenant: string) => number;
  readonly #tenantsMax: number;
  #activeSeq = 0;
  #searchIn = 0;
  #count = 0;
  #bytes = 0;
  #queuedMs = 0;

  /** `classes` is not empty; names are distinct. `weightOf` gives a tenant's weight, > 0. */
  constructor(options: {
    readonly classes: readonly FairClass[];
    readonly weightOf: (tenant: string) => number;
    readonly tenantsMax: number;
  }) {
    this.#weightOf = options.weightOf;
    this.#tenantsMax = options.tenantsMax;
    for (const spec of options.classes) {
      let level = this.#levels.find((l) => l.priority === spec.priority);
      if (level === undefined) {
        level = createLevel(spec.priority);
        this.#levels.push(level);
      }
      const node = createClass(spec, level);
      level.classes.push(node);
      this.#classes.set(spec.name, node);
    }
    this.#levels.sort((a, b) => b.priority - a.priority);
  }

  /** Requests waiting. */
  get count(): number {
    return this.#count;
  }

  /** Bytes that they hold. */
  get bytes(): number {
    return this.#bytes;
  }

  /** What they are expected to cost, ms of worker time. */
  get queuedMs(): number {
    return this.#queuedMs;
  }

  /** Requests of a class that wait. */
  countOf(className: string): number {
    return this.#class(className).count;
  }

  /** Requests and bytes of a tenant that wait in a class. */
  heldBy(className: string, tenant: string): { readonly count: number; readonly bytes: number } {
    const flow = this.#known(this.#class(className), tenant);
    return { count: flow?.order.size ?? 0, bytes: flow?.bytes ?? 0 };
  }

  /** Number of tenants of a class that wait. */
  tenantsWaiting(className: string): number {
    return this.#class(className).active.size;
  }

  /** Accounts kept over all classes, for bounds and tests. */
  get flowCount(): number {
    let count = 0;
    for (const node of this.#classes.values()) count += node.flows.size;
    return count;
  }

  /** Adds a waiter. O(log n). */
  add(waiter: Waiter<T>): void {
    const node = this.#class(waiter.ask.className);
    const flow = this.#flow(node, waiter.ask.tenant);
    waiter.account = flow.name;
    if (flow.order.size === 0) {
      flow.tag = Math.max(flow.tag, node.now);
      flow.activeSeq = ++this.#activeSeq;
      if (node.count === 0) {
        node.tag = Math.max(node.tag, node.level.now);
        node.activeSeq = ++this.#activeSeq;
      }
    }
    this.#insert(node, flow, waiter);
  }

  /** Takes a waiter out without serving it; false when it does not wait. */
  remove(waiter: Waiter<T>): boolean {
    if (waiter.orderPlace < 0) return false;
    const node = this.#class(waiter.ask.className);
    const flow = node.flows.get(waiter.account);
    if (flow === undefined) return false;
    flow.order.remove(waiter);
    const cost = waiter.estimate.costMs;
    flow.queuedMs = flow.order.size === 0 ? 0 : flow.queuedMs - cost;
    flow.bytes -= waiter.ask.bytes;
    node.count--;
    node.queuedMs = node.count === 0 ? 0 : node.queuedMs - cost;
    this.#count--;
    this.#bytes -= waiter.ask.bytes;
    this.#queuedMs = this.#count === 0 ? 0 : this.#queuedMs - cost;
    if (flow.order.size === 0) node.active.remove(flow);
    if (node.count === 0) node.level.active.remove(node);
    return true;
  }

  /** Puts back a waiter that was taken out a moment ago, at the turn that its tenant had. */
  restore(waiter: Waiter<T>): void {
    const node = this.#class(waiter.ask.className);
    this.#insert(node, this.#flow(node, waiter.account), waiter);
  }

  /** The request whose turn it is, or `undefined`. O(priorities). */
  head(): Waiter<T> | undefined {
    for (const level of this.#levels) {
      const node = level.active.first;
      if (node !== undefined) return node.active.first?.order.first;
    }
    return undefined;
  }

  /** Priority of the request whose turn it is; −∞ when nobody waits. */
  headPriority(): number {
    for (const level of this.#levels) if (level.active.size > 0) return level.priority;
    return -Infinity;
  }

  /** A request of this tenant arrived, whatever becomes of it. */
  asked(className: string, tenant: string, costMs: number, now: MonoMs): void {
    const node = this.#class(className);
    node.asks.asked(costMs, now);
    this.#known(node, tenant)?.asks.asked(costMs, now);
  }

  /** A request of this tenant begins to be served, whether it waited or not: its turn is used. O(log n). */
  serve(className: string, tenant: string, costMs: number): void {
    const node = this.#class(className);
    const flow = this.#flow(node, tenant);
    const { level } = node;
    const begins = Math.max(flow.tag, node.now);
    node.now = begins;
    flow.tag = begins + costMs / flow.weight;
    node.active.moved(flow);
    const classBegins = Math.max(node.tag, level.now);
    level.now = classBegins;
    node.tag = classBegins + costMs / node.spec.weight;
    level.active.moved(node);
  }

  /**
   * Charges service that this queue did not hand out itself (another router's, or more than was expected); negative
   * gives back. Nobody's virtual time falls behind the present for it.
   */
  charge(className: string, tenant: string, costMs: number): void {
    const node = this.#classes.get(className);
    if (node === undefined || costMs === 0) return;
    const flow = costMs > 0 ? this.#flow(node, tenant) : node.flows.get(tenant);
    if (flow === undefined) return;
    flow.tag = Math.max(node.now, Math.max(flow.tag, node.now) + costMs / flow.weight);
    node.active.moved(flow);
    const { level } = node;
    node.tag = Math.max(level.now, Math.max(node.tag, level.now) + costMs / node.spec.weight);
    level.active.moved(node);
  }

  /**
   * Brings the present up to the one who waits with the least service, so that newcomers do not go before those whom
   * other routers have served. Call after charging service of other routers.
   */
  catchUp(): void {
    for (const level of this.#levels) {
      const next = level.active.first;
      if (next !== undefined) level.now = Math.max(level.now, next.tag);
      for (const node of level.classes) {
        const flow = node.active.first;
        if (flow !== undefined) node.now = Math.max(node.now, flow.tag);
      }
    }
  }

  /**
   * Worker time that goes to others before a request that arrives now would begin, ms: all of higher priority, and of its
   * own priority what is served until the virtual time at which it begins. With a horizon that includes requests that
   * are expected to come in it and then go before: whoever has had less than its share so far is not done with what waits
   * now. O(classes + tenants waiting in its class).
   */
  workBefore(className: string, tenant: string, horizon?: Horizon): number {
    const node = this.#class(className);
    const flow = this.#known(node, tenant);
    return this.#before({ node, flow, tenant, ownMs: flow?.queuedMs ?? 0 }, horizon);
  }

  /** The same for a request that waits already, as far as its tenant's first 256 tell. O(as above, and those). */
  workAhead(waiter: Waiter<T>, horizon?: Horizon): number {
    const node = this.#class(waiter.ask.className);
    const flow = node.flows.get(waiter.account);
    let ownMs = 0;
    const own = flow?.order.entries ?? [];
    for (let i = 0; i < own.length && i < ownLookedAtMax; i++) {
      const other = own[i] as Waiter<T>;
      const isBefore =
        other.deadline < waiter.deadline ||
        (other.deadline === waiter.deadline && other.seq < waiter.seq);
      if (isBefore) ownMs += other.estimate.costMs;
    }
    return this.#before({ node, flow, tenant: waiter.account, ownMs }, horizon);
  }

  #before(
    request: {
      readonly node: ClassNode<T>;
      readonly flow: Flow<T> | undefined;
      readonly tenant: string;
      /** Work of its own tenant before it. */
      readonly ownMs: number;
    },
    horizon: Horizon | undefined,
  ): number {
    const { node, flow, tenant, ownMs } = request;
    const { level } = node;
    const expected = (asks: DemandRate): number =>
      horizon === undefined ? 0 : asks.rate(horizon.now) * horizon.ms;
    let before = 0;
    for (const other of this.#levels) {
      if (other.priority <= level.priority) break;
      for (const c of other.classes) before += c.queuedMs;
    }
    const weight = flow?.weight ?? this.#weightOf(tenant);
    const begins = Math.max(flow?.tag ?? 0, node.now) + ownMs / weight;
    let inClass = ownMs;
    for (const other of node.active.entries) {
      if (other === flow) continue;
      const share = Math.max(0, other.weight * (begins - other.tag));
      inClass += Math.min(other.queuedMs + expected(other.asks), share);
    }
    const classBegins = Math.max(node.tag, level.now) + inClass / node.spec.weight;
    before += inClass;
    for (const other of level.active.entries) {
      if (other === node) continue;
      const share = Math.max(0, other.spec.weight * (classBegins - other.tag));
      before += Math.min(other.queuedMs + expected(other.asks), share);
    }
    return before;
  }

  /** Everyone of a class who waits, in no particular order. */
  *waitersOf(className: string): Generator<Waiter<T>> {
    for (const flow of this.#class(className).active.entries) yield* flow.order.entries;
  }

  /**
   * A request to give up for one of a higher priority: of the lowest priority that waits, of its tenant with most work
   * waiting, one that is not next. `undefined` when nobody below `priority` waits. O(tenants waiting there).
   */
  last(priority: number): Waiter<T> | undefined {
    for (let i = this.#levels.length - 1; i >= 0; i--) {
      const level = this.#levels[i] as Level<T>;
      if (level.priority >= priority) return undefined;
      if (level.active.size === 0) continue;
      let most: Flow<T> | undefined;
      for (const node of level.active.entries) {
        for (const flow of node.active.entries) {
          if (most === undefined || flow.queuedMs > most.queuedMs) most = flow;
        }
      }
      return most?.order.entries.at(-1);
    }
    return undefined;
  }

  /** Demand by class and tenant; the largest `max`, the rest of each class added up under one name. */
  demands(max: number): FlowDemand[] {
    const all: FlowDemand[] = [];
    for (const [className, node] of this.#classes) {
      for (const { name, queuedMs } of node.active.entries) {
        all.push({ className, tenant: name, queuedMs });
      }
    }
    all.sort((a, b) => b.queuedMs - a.queuedMs || (a.tenant < b.tenant ? -1 : 1));
    const rest = new Map<string, number>();
    for (const { className, queuedMs } of all.slice(max)) {
      rest.set(className, (rest.get(className) ?? 0) + queuedMs);
    }
    const others = [...rest].map(([className, queuedMs]) => ({
      className,
      tenant: overflowTenant,
      queuedMs,
    }));
    return [...all.slice(0, max), ...others];
  }

  #insert(node: ClassNode<T>, flow: Flow<T>, waiter: Waiter<T>): void {
    const wasIdle = flow.order.size === 0;
    flow.order.push(waiter);
    const cost = waiter.estimate.costMs;
    flow.queuedMs += cost;
    flow.bytes += waiter.ask.bytes;
    node.queuedMs += cost;
    node.count++;
    this.#count++;
    this.#bytes += waiter.ask.bytes;
    this.#queuedMs += cost;
    if (wasIdle) node.active.push(flow);
    if (node.count === 1) node.level.active.push(node);
  }

  #class(name: string): ClassNode<T> {
    const node = this.#classes.get(name);
    if (node === undefined) throw new RangeError(`no class ${name}`);
    return node;
  }

  /** The account that a tenant is on, if there is one. */
  #known(node: ClassNode<T>, tenant: string): Flow<T> | undefined {
    const own = node.flows.get(tenant);
    if (own !== undefined || node.flows.size < this.#tenantsMax) return own;
    return node.flows.get(overflowTenant);
  }

  #flow(node: ClassNode<T>, tenant: string): Flow<T> {
    const known = node.flows.get(tenant);
    if (known !== undefined) return known;
    if (node.flows.size >= this.#tenantsMax) this.#forgetIdle(node);
    const name = node.flows.size >= this.#tenantsMax ? overflowTenant : tenant;
    let flow = node.flows.get(name);
    if (flow === undefined) {
      flow = createFlow(name, name === tenant ? this.#weightOf(tenant) : 1, node.now);
      node.flows.set(name, flow);
    }
    return flow;
  }

  /**
   * An idle tenant whose virtual time has passed is the same as one never seen. After a fruitless search the next one
   * waits, so that a flood of names costs little each.
   */
  #forgetIdle(node: ClassNode<T>): void {
    if (this.#searchIn-- > 0) return;
    const before = node.flows.size;
    for (const [name, flow] of node.flows) {
      if (flow.order.size === 0 && flow.tag <= node.now) node.flows.delete(name);
    }
    this.#searchIn = node.flows.size < before ? 0 : this.#tenantsMax >>> 3;
  }
}
