import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";

/** What one tenant asks of one router in one class. */
export interface TenantDemand {
  readonly className: string;
  readonly tenant: string;
  /** Worker time of its requests that wait there, ms. */
  readonly queuedMs: number;
  /** Worker time served to it there since the router started, ms; falls only by what turns out to have been less. */
  readonly servedMs: number;
}

/** Weight and precedence of a tenant's demand. */
export interface DemandTerms {
  readonly priority: number;
  readonly weight: number;
}

/** Service that another router gave. */
export interface RemoteService {
  readonly className: string;
  readonly tenant: string;
  readonly costMs: number;
}

interface Account {
  readonly className: string;
  readonly tenant: string;
  servedMs: number;
  changedAt: number;
}

interface Peer {
  queued: readonly TenantDemand[];
  /** The same evened out over the last few messages. */
  smooth: Map<string, SmoothDemand>;
  readonly served: Map<string, number>;
  heardAt: number;
}

type Queued = Omit<TenantDemand, "servedMs">;
type SmoothDemand = { -readonly [K in keyof Queued]: Queued[K] };

/** A question for a turn. */
export interface TurnQuestion {
  readonly worker: WorkerId;
  readonly roomAt: number;
  /** What asks, as demand. */
  readonly ask: Queued;
  /** Worker time that the pool can give per ms. */
  readonly capacityMsPerMs: number;
}

/** A router that has said nothing for so long has no demand, ms. */
const peerStaleMs = 500;
/** A worker's room changes hands at most so often, ms. Clocks of hosts must agree to a small part of it. */
const roundMs = 180;
/** Fractional part of the golden ratio: steps by it fill a circle most evenly. */
const goldenRatio = 0.618_033_988_749_895;
/** Workers whose places are kept. */
const workersMax = 4_096;
/** For so long after a change nobody owns it, ms: what routers tell each other is known to all by then. */
const handOverMs = 50;
/** Demands are weighed against what the pool can give within this time, ms. */
const horizonMs = 25;
/** Demands told to peers at once. */
const demandsMax = 256;
/** Rounds that are looked ahead at for a turn. */
const roundsAhead = 8;
/** How far one message moves a router's demand, 0 to 1: it comes and goes faster than the others hear of it. */
const smoothStep = 0.2;
/** Less demand than this is none, ms. */
const leastMs = 1;
/** Shares are worked out anew so often, ms. */
const shareFreshMs = 5;
/** An account that changed within it is told, ms. */
const tellAgainMs = 5_000;

const keyOf = (className: string, tenant: string): string => `${className}\u0000${tenant}`;

/**
 * How several routers divide what workers can take. Each router knows the demand that waits at the others, evened out over a
 * quarter of a second, and works out what every tenant should get of the next moment (priorities, then weights, nobody more
 * than it asks for); a router's share is what the tenants that wait at it should get. At any moment each worker's room
 * belongs to one router, for as large a part of the workers and of the time as its share is, by a rule over worker and
 * moment that all know, so that two routers never fill the same room; a new owner lets a moment pass until it knows what
 * the one before has placed.
 *
 * While nobody waits anywhere, nothing is divided.
 */
export class RouterShares {
  readonly #self: string;
  readonly #termsOf: (className: string, tenant: string) => DemandTerms | undefined;
  readonly #accountsMax: number;
  readonly #accounts = new Map<string, Account>();
  readonly #peers = new Map<string, Peer>();
  #wallOffsetMs = 0;
  #sharesAt = -Infinity;
  readonly #shares = new Map<string, number>();
  readonly #places = new Map<WorkerId, number>();
  /** What this router told of itself, evened out as the others do. */
  readonly #own = new Map<string, SmoothDemand>();

  /** `termsOf` gives what a tenant of a class is owed; `undefined` for a class that is unknown here. */
  constructor(options: {
    readonly self: string;
    readonly termsOf: (className: string, tenant: string) => DemandTerms | undefined;
    readonly accountsMax: number;
  }) {
    this.#self = options.self;
    this.#termsOf = options.termsOf;
    this.#accountsMax = options.accountsMax;
  }

  /** What to add to monotonic time to get wall time, ms; routers agree on moments by it. */
  setWallOffset(ms: number): void {
    this.#wallOffsetMs = ms;
  }

  /** This router served a request, or one turned out to cost more or less. */
  served(className: string, tenant: string, costMs: number, now: MonoMs): void {
    const key = keyOf(className, tenant);
    let account = this.#accounts.get(key);
    if (account === undefined) {
      if (this.#accounts.size >= this.#accountsMax) this.#forgetOldest();
      account = { className, tenant, servedMs: 0, changedAt: now };
      this.#accounts.set(key, account);
    }
    account.servedMs += costMs;
    account.changedAt = now;
  }

  /** What to tell the other routers: everyone who waits here, and whoever was served lately. At most 256 each. */
  demand(queued: readonly Omit<TenantDemand, "servedMs">[], now: MonoMs): TenantDemand[] {
    smoothen(this.#own, queued);
    this.#sharesAt = -Infinity;
    const told = new Map<string, TenantDemand>();
    for (const { className, tenant, queuedMs } of queued.slice(0, demandsMax)) {
      const servedMs = this.#accounts.get(keyOf(className, tenant))?.servedMs ?? 0;
      told.set(keyOf(className, tenant), { className, tenant, queuedMs, servedMs });
    }
    const recent = [...this.#accounts.values()]
      .filter((account) => now - account.changedAt <= tellAgainMs)
      .sort((a, b) => b.changedAt - a.changedAt || (a.tenant < b.tenant ? -1 : 1));
    for (const { className, tenant, servedMs } of recent.slice(0, demandsMax)) {
      const key = keyOf(className, tenant);
      if (!told.has(key)) told.set(key, { className, tenant, queuedMs: 0, servedMs });
    }
    return [...told.values()];
  }

  /**
   * What another router told. Returns the service that it gave since it told last; of a router or an account that is new
   * here nothing is charged, since it may be old.
   */
  take(router: string, demands: readonly TenantDemand[], now: MonoMs): RemoteService[] {
    let peer = this.#peers.get(router);
    const isNew = peer === undefined;
    if (peer === undefined) {
      peer = { queued: [], smooth: new Map(), served: new Map(), heardAt: now };
      this.#peers.set(router, peer);
    }
    const services: RemoteService[] = [];
    for (const { className, tenant, servedMs } of demands) {
      const key = keyOf(className, tenant);
      const before = peer.served.get(key) ?? (isNew ? servedMs : 0);
      // A counter that went far back belongs to a new life of the router.
      const costMs = servedMs >= before / 2 ? servedMs - before : servedMs;
      if (costMs !== 0) services.push({ className, tenant, costMs });
      peer.served.delete(key);
      peer.served.set(key, servedMs);
    }
    while (peer.served.size > this.#accountsMax) {
      const [oldest] = peer.served.keys();
      if (oldest === undefined) break;
      peer.served.delete(oldest);
    }
    peer.queued = demands.filter((demand) => demand.queuedMs > 0);
    smoothen(peer.smooth, peer.queued);
    peer.heardAt = now;
    this.#sharesAt = -Infinity;
    return services;
  }

  /** A router is gone. */
  routerLost(router: string): void {
    this.#peers.delete(router);
    this.#sharesAt = -Infinity;
  }

  /** Whether any other router has somebody waiting, so that room has to be divided. */
  isDivided(now: MonoMs): boolean {
    for (const peer of this.#peers.values()) {
      if (peer.queued.length > 0 && now - peer.heardAt <= peerStaleMs) return true;
    }
    return false;
  }

  /**
   * When a worker that takes more at `roomAt`, as far as is known here, is this router's to fill: `roomAt` itself if it is
   * so already, +∞ when not soon.
   */
  turnAt(question: TurnQuestion, now: MonoMs): number {
    const { worker, roomAt } = question;
    if (!this.isDivided(now)) return roomAt;
    this.#refresh(question, now);
    return (this.#shares.get(this.#self) ?? 0) >= 1 ? roomAt : this.#oursFrom(worker, roomAt);
  }

  /** Worker time that waits at other routers, ms. */
  queuedElsewhereMs(now: MonoMs): number {
    let sum = 0;
    for (const { queued, heardAt } of this.#peers.values()) {
      if (now - heardAt > peerStaleMs) continue;
      for (const { queuedMs } of queued) sum += queuedMs;
    }
    return sum;
  }

  /** Worker time of one tenant that waits at other routers, ms. */
  tenantElsewhereMs(className: string, tenant: string, now: MonoMs): number {
    const key = keyOf(className, tenant);
    let sum = 0;
    for (const { smooth, heardAt } of this.#peers.values()) {
      if (now - heardAt <= peerStaleMs) sum += smooth.get(key)?.queuedMs ?? 0;
    }
    return sum;
  }

  /** A worker left. */
  workerLeft(): void {
    this.#places.clear();
  }

  #forgetOldest(): void {
    let oldest: [string, Account] | undefined;
    for (const entry of this.#accounts) {
      if (oldest === undefined || entry[1].changedAt < oldest[1].changedAt) oldest = entry;
    }
    if (oldest !== undefined) this.#accounts.delete(oldest[0]);
  }

  #refresh({ ask, capacityMsPerMs }: TurnQuestion, now: MonoMs): void {
    if (now - this.#sharesAt < shareFreshMs) return;
    this.#sharesAt = now;
    // What came since this router told last is known to nobody else yet, so it counts only where nothing was told.
    const byRouter = new Map<string, readonly Queued[]>([
      [this.#self, this.#own.size > 0 ? [...this.#own.values()] : [ask]],
    ]);
    for (const [name, peer] of this.#peers) {
      if (now - peer.heardAt <= peerStaleMs) byRouter.set(name, [...peer.smooth.values()]);
    }
    this.#shares.clear();
    const capacityMs = Math.max(1, capacityMsPerMs * horizonMs);
    const shares = divide(byRouter, this.#termsOf, capacityMs);
    // In one order for all routers, since what each owns depends on it.
    for (const router of [...shares.keys()].sort()) {
      this.#shares.set(router, shares.get(router) ?? 0);
    }
  }

  /**
   * From when on, after a time, a worker is this router's. The routers' shares lie one after the other on a line from 0 to
   * 1; every worker has a place on it, the workers evenly spaced, and moves on by the golden ratio each round. So at any
   * moment each router has its share of the workers, rounded, and every worker comes to each router as evenly as can be.
   * Rounds of different workers begin at different times.
   */
  #oursFrom(worker: WorkerId, from: number): number {
    const place = this.#placeOf(worker);
    const moment = from + this.#wallOffsetMs + place * roundMs;
    const round = Math.floor(moment / roundMs);
    const sinceMs = moment - round * roundMs;
    let wasOurs = this.#ownerAt(place + (round - 1) * goldenRatio) === this.#self;
    for (let ahead = 0; ahead < roundsAhead; ahead++) {
      const isOurs = this.#ownerAt(place + (round + ahead) * goldenRatio) === this.#self;
      // What another owner before has placed is not known to all at once.
      const begins = ahead * roundMs - sinceMs + (wasOurs ? 0 : handOverMs);
      if (isOurs) return from + Math.max(0, begins);
      wasOurs = isOurs;
    }
    return Infinity;
  }

  #ownerAt(place: number): string | undefined {
    let left = place - Math.floor(place);
    let last: string | undefined;
    for (const [router, share] of this.#shares) {
      if (share <= 0) continue;
      if (left < share) return router;
      left -= share;
      last = router;
    }
    return last;
  }

  /** Place of a worker among those of the pool, 0 to 1. */
  #placeOf(worker: WorkerId): number {
    const known = this.#places.get(worker);
    if (known !== undefined) return known;
    const workers = [...this.#places.keys(), worker].sort();
    if (workers.length > workersMax) {
      this.#places.clear();
      return unitHash(worker);
    }
    for (const [i, name] of workers.entries()) this.#places.set(name, i / workers.length);
    return this.#places.get(worker) ?? 0;
  }
}

/** Moves what is known of a router's demand towards what it told now. */
function smoothen(known: Map<string, SmoothDemand>, told: readonly Queued[]): void {
  for (const demand of known.values()) demand.queuedMs *= 1 - smoothStep;
  for (const { className, tenant, queuedMs } of told) {
    const key = keyOf(className, tenant);
    const demand = known.get(key);
    if (demand === undefined) {
      known.set(key, { className, tenant, queuedMs: smoothStep * queuedMs });
    } else demand.queuedMs += smoothStep * queuedMs;
  }
  for (const [key, { queuedMs }] of known) if (queuedMs < leastMs) known.delete(key);
}

/**
 * Each router's part of the next `capacityMs` of worker time: demands are filled by priority, inside one by weight, each
 * at most as far as it goes; a tenant's part belongs to the routers at which it waits, by how much waits there.
 */
export function divide(
  byRouter: ReadonlyMap<string, readonly Omit<TenantDemand, "servedMs">[]>,
  termsOf: (className: string, tenant: string) => DemandTerms | undefined,
  capacityMs: number,
): Map<string, number> {
  const total = new Map<string, { terms: DemandTerms; queuedMs: number; givenMs: number }>();
  for (const demands of byRouter.values()) {
    for (const { className, tenant, queuedMs } of demands) {
      const key = keyOf(className, tenant);
      const terms = termsOf(className, tenant);
      if (terms === undefined || queuedMs <= 0) continue;
      const entry = total.get(key) ?? { terms, queuedMs: 0, givenMs: 0 };
      entry.queuedMs += queuedMs;
      total.set(key, entry);
    }
  }
  fill([...total.values()], capacityMs);
  let given = 0;
  const shares = new Map<string, number>();
  for (const [router, demands] of byRouter) {
    let mine = 0;
    for (const { className, tenant, queuedMs } of demands) {
      const entry = total.get(keyOf(className, tenant));
      if (entry !== undefined && queuedMs > 0) mine += (entry.givenMs * queuedMs) / entry.queuedMs;
    }
    shares.set(router, mine);
    given += mine;
  }
  for (const [router, mine] of shares) shares.set(router, given > 0 ? mine / given : 0);
  return shares;
}

function fill(
  entries: readonly { terms: DemandTerms; queuedMs: number; givenMs: number }[],
  capacityMs: number,
): void {
  let left = capacityMs;
  for (const priority of [...new Set(entries.map((e) => e.terms.priority))].sort((a, b) => b - a)) {
    // Those who ask for least per weight are full first; what they leave goes to the others.
    const level = entries
      .filter((e) => e.terms.priority === priority)
      .sort((a, b) => a.queuedMs / a.terms.weight - b.queuedMs / b.terms.weight);
    let weight = level.reduce((sum, e) => sum + e.terms.weight, 0);
    for (const entry of level) {
      const fair = weight > 0 ? (left * entry.terms.weight) / weight : 0;
      entry.givenMs = Math.min(entry.queuedMs, fair);
      left -= entry.givenMs;
      weight -= entry.terms.weight;
    }
  }
}

/** A value in (0, 1) for a text: FNV-1a with MurmurHash3's finaliser. */
function unitHash(text: string): number {
  let h = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193);
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (((h ^ (h >>> 16)) >>> 0) + 0.5) / 0x1_0000_0000;
}
