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
  readonly served: Map<string, number>;
  heardAt: number;
}

interface OwnDispatch {
  readonly worker: WorkerId;
  readonly costMs: number;
  readonly at: number;
}

/** A router that has said nothing for so long has no demand, ms. */
const peerStaleMs = 500;
/** What this router placed reaches its peers within so long, ms: one exchange and the way. */
const unseenMs = 70;
/** Ownership of what is left over changes so often, ms. Clocks of hosts must agree to a small part of it. */
const roundMs = 250;
/** For so long after each change nobody owns it, ms. */
const handOverMs = 50;
/** Demands are weighed against what the pool can give within this time, ms. */
const horizonMs = 100;
/** Demands told to peers at once. */
const demandsMax = 256;
/** Shares are worked out anew so often, ms. */
const shareFreshMs = 5;
/** An account that changed within it is told, ms. */
const tellAgainMs = 5_000;

const keyOf = (className: string, tenant: string): string => `${className}\u0000${tenant}`;

/**
 * How several routers divide what workers can take. Each router knows the demand that waits at the others, works out what
 * every tenant should get of the next moment (priorities, then weights, nobody more than it asks for), and takes of each
 * worker's room the part that the tenants waiting at it should get. What is left of a worker's room by rounding belongs to
 * one router at a time, chosen by weighted rendezvous hashing over worker and moment, so that all routers, asked alone,
 * name the same.
 *
 * While nobody waits anywhere, nothing is divided.
 */
export class RouterShares {
  readonly #self: string;
  readonly #termsOf: (className: string, tenant: string) => DemandTerms | undefined;
  readonly #accountsMax: number;
  readonly #accounts = new Map<string, Account>();
  readonly #peers = new Map<string, Peer>();
  #dispatched: OwnDispatch[] = [];
  #wallOffsetMs = 0;
  #sharesAt = -Infinity;
  readonly #shares = new Map<string, number>();

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
      peer = { queued: [], served: new Map(), heardAt: now };
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

  /** A request was placed on a worker by this router. */
  dispatched(worker: WorkerId, costMs: number, now: MonoMs): void {
    if (this.#peers.size === 0) return;
    this.#dropSeen(now);
    this.#dispatched.push({ worker, costMs, at: now });
  }

  /**
   * Whether this router may place a request of so much prefill work on a worker that, as far as is known here, takes
   * `freeMs` more. `own` is what waits here, the request included; `capacityMsPerMs` what the pool can give.
   */
  allows(
    question: {
      readonly worker: WorkerId;
      readonly costMs: number;
      readonly freeMs: number;
      readonly own: readonly Omit<TenantDemand, "servedMs">[];
      readonly capacityMsPerMs: number;
    },
    now: MonoMs,
  ): boolean {
    if (!this.isDivided(now)) return true;
    this.#refresh(question.own, question.capacityMsPerMs, now);
    const share = this.#shares.get(this.#self) ?? 0;
    if (share >= 1) return true;
    this.#dropSeen(now);
    let unseen = 0;
    for (const { worker, costMs } of this.#dispatched) {
      if (worker === question.worker) unseen += costMs;
    }
    const room = Math.max(0, question.freeMs) + unseen;
    if (unseen + question.costMs <= share * room) return true;
    if (this.#owner(question.worker, now) !== this.#self) return false;
    // What the others can use of their parts in whole requests of this size is theirs.
    let others = 0;
    for (const [router, part] of this.#shares) {
      if (router !== this.#self) others += Math.floor((part * room) / question.costMs);
    }
    return unseen < room - others * question.costMs;
  }

  /** This router's part of every worker's room, 0 to 1, as worked out last. */
  shareOf(router: string): number {
    return this.#shares.get(router) ?? 0;
  }

  #dropSeen(now: MonoMs): void {
    const list = this.#dispatched;
    let old = 0;
    while (old < list.length && now - (list[old] as OwnDispatch).at > unseenMs) old++;
    if (old > 0) this.#dispatched = list.slice(old);
  }

  #forgetOldest(): void {
    let oldest: [string, Account] | undefined;
    for (const entry of this.#accounts) {
      if (oldest === undefined || entry[1].changedAt < oldest[1].changedAt) oldest = entry;
    }
    if (oldest !== undefined) this.#accounts.delete(oldest[0]);
  }

  #refresh(
    own: readonly Omit<TenantDemand, "servedMs">[],
    capacityMsPerMs: number,
    now: MonoMs,
  ): void {
    if (now - this.#sharesAt < shareFreshMs) return;
    this.#sharesAt = now;
    const byRouter = new Map<string, readonly Omit<TenantDemand, "servedMs">[]>([
      [this.#self, own],
    ]);
    for (const [name, peer] of this.#peers) {
      if (now - peer.heardAt <= peerStaleMs) byRouter.set(name, peer.queued);
    }
    this.#shares.clear();
    const capacityMs = Math.max(1, capacityMsPerMs * horizonMs);
    for (const [router, share] of divide(byRouter, this.#termsOf, capacityMs)) {
      this.#shares.set(router, share);
    }
  }

  /** Who has what is left of a worker's room at this moment: weighted rendezvous hashing. */
  #owner(worker: WorkerId, now: MonoMs): string | undefined {
    const moment = now + this.#wallOffsetMs;
    const round = Math.floor(moment / roundMs);
    // What the owner before has placed is not known to all yet.
    if (moment - round * roundMs < handOverMs) return undefined;
    let best: string | undefined;
    let bestScore = Infinity;
    for (const [router, share] of this.#shares) {
      if (share <= 0) continue;
      const score = -Math.log(unitHash(`${worker}\u0000${round}\u0000${router}`)) / share;
      if (score < bestScore || (score === bestScore && best !== undefined && router < best)) {
        best = router;
        bestScore = score;
      }
    }
    return best;
  }
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
