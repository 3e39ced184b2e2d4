import type { MonoMs } from "../../../shared/core/ids.ts";
import {
  compareText,
  mergeMembers,
  poolCluster,
  relaysCluster,
  sameEndpoints,
  type DiscoveryEndpoint,
  type DiscoveryMember,
  type DiscoverySnapshot,
  type EndpointSet,
} from "./discovery-view.ts";

/** Settings of `Discovery`. */
export interface DiscoveryOptions {
  /** Epoch of this router; first part of every version. */
  readonly epoch: string;
  /** When this router started. */
  readonly startedAt: MonoMs;
  /** For so long after the start the view may be incomplete: removals are limited. Milliseconds. */
  readonly graceMs: number;
  /** Pools that exist even without members. */
  readonly pools: readonly string[];
  /** Pools at most; members of further ones are left out and counted. */
  readonly poolsMax: number;
}

/** How much this router knows of the others' members. */
export type Knowledge = "none" | "partial" | "complete";

/**
 * What this router tells Envoy: one cluster per pool and its endpoints, from the union view of all live routers.
 *
 * Deterministic: the same calls at the same times give the same snapshots. Invariants, each with a test:
 * 1. Nothing is answered before `setKnowledge` says that the view is worth telling.
 * 2. An Envoy that already has endpoints is not answered from a partial view until the grace period ends: the first
 *    answer replaces all that it has.
 * 3. Within the grace period a pool never loses more than half of the endpoints that it was last told to have.
 * 4. An endpoint leaves only when the members given leave it out.
 * 5. Versions grow and change only when what they name changes.
 */
export class Discovery {
  readonly #options: DiscoveryOptions;
  #knowledge: Knowledge = "none";
  #members: readonly DiscoveryMember[] = [];
  #relays: readonly string[] = [];
  #pools: ReadonlySet<string>;
  #snapshot: DiscoverySnapshot;
  #changes = 0;
  #heldCount = 0;
  #refusedPoolsCount = 0;

  constructor(options: DiscoveryOptions) {
    this.#options = options;
    this.#pools = new Set(options.pools);
    this.#snapshot = {
      clustersVersion: "",
      endpointsVersion: "",
      clusters: [],
      endpoints: new Map(),
    };
    this.#update(options.startedAt);
  }

  /** Endpoints that were told to stay although the members leave them out (invariant 3). */
  get heldCount(): number {
    return this.#heldCount;
  }

  /** Members left out because there are too many pools. */
  get refusedPoolsCount(): number {
    return this.#refusedPoolsCount;
  }

  /** Epoch of this router, first part of every version. */
  get epoch(): string {
    return this.#options.epoch;
  }

  /** End of the grace period; call `tick` then. */
  get graceEndsAt(): number {
    return this.#options.startedAt + this.#options.graceMs;
  }

  /** What there is to tell now. */
  get snapshot(): DiscoverySnapshot {
    return this.#snapshot;
  }

  /** Says how much is known; never goes back. Returns whether anything changed. */
  setKnowledge(knowledge: Knowledge): boolean {
    const rank = { none: 0, partial: 1, complete: 2 };
    if (rank[knowledge] <= rank[this.#knowledge]) return false;
    this.#knowledge = knowledge;
    return true;
  }

  /** Whether an Envoy may be answered; `hasForeignState`: it came with endpoints that we did not tell it. */
  mayAnswer(hasForeignState: boolean, now: MonoMs): boolean {
    switch (this.#knowledge) {
      case "none":
        return false;
      case "partial":
        return !hasForeignState || now >= this.graceEndsAt;
      case "complete":
        return true;
    }
  }

  /** Replaces the members. Returns whether the snapshot changed. */
  setMembers(members: readonly DiscoveryMember[], now: MonoMs): boolean {
    this.#members = members;
    return this.#update(now);
  }

  /** Replaces the relays, `ip:port` each. Returns whether the snapshot changed. */
  setRelays(relays: readonly string[], now: MonoMs): boolean {
    this.#relays = relays;
    return this.#update(now);
  }

  /** Lets go of what was held, once the grace period is over. Returns whether the snapshot changed. */
  tick(now: MonoMs): boolean {
    return this.#update(now);
  }

  #update(now: MonoMs): boolean {
    const byPool = this.#groupByPool();
    const isGrace = now < this.graceEndsAt;
    const sets = new Map<string, EndpointSet>();
    let held = 0;
    for (const [pool, members] of byPool) {
      const cluster = poolCluster(pool);
      const told = this.#snapshot.endpoints.get(cluster)?.endpoints ?? [];
      const wanted = mergeMembers(members);
      const endpoints = isGrace ? keepHalf(told, wanted) : wanted;
      held += endpoints.length - wanted.length;
      // A pool of which nothing was ever heard may have members that have not joined yet.
      if (endpoints.length === 0 && told.length === 0 && isGrace) continue;
      sets.set(cluster, { cluster, endpoints });
    }
    const relays = [...new Set(this.#relays)].sort(compareText);
    sets.set(relaysCluster, {
      cluster: relaysCluster,
      endpoints: relays.map((address) => ({ address, isDraining: false, workerIds: [] })),
    });
    this.#heldCount = held;
    const clusters = [relaysCluster, ...[...byPool.keys()].map(poolCluster)].sort(compareText);
    return this.#publish(clusters, sets);
  }

  /** Members by pool; a pool seen once stays, empty, so that its cluster's requests in flight are not cut. */
  #groupByPool(): Map<string, DiscoveryMember[]> {
    const pools = new Set(this.#pools);
    let refused = 0;
    const byPool = new Map<string, DiscoveryMember[]>([...pools].map((pool) => [pool, []]));
    const members = [...this.#members].sort((left, right) => compareText(left.pool, right.pool));
    for (const member of members) {
      let list = byPool.get(member.pool);
      if (list === undefined) {
        if (byPool.size >= this.#options.poolsMax) {
          refused += 1;
          continue;
        }
        list = [];
        byPool.set(member.pool, list);
      }
      list.push(member);
    }
    this.#pools = new Set(byPool.keys());
    this.#refusedPoolsCount = refused;
    return byPool;
  }

  #publish(clusters: readonly string[], endpoints: ReadonlyMap<string, EndpointSet>): boolean {
    const last = this.#snapshot;
    const hasClustersChanged =
      last.clustersVersion === "" || clusters.join() !== last.clusters.join();
    const hasEndpointsChanged =
      last.endpointsVersion === "" ||
      endpoints.size !== last.endpoints.size ||
      [...endpoints.values()].some(({ cluster, endpoints: now }) => {
        const before = last.endpoints.get(cluster);
        return before === undefined || !sameEndpoints(before.endpoints, now);
      });
    if (!hasClustersChanged && !hasEndpointsChanged) return false;
    this.#changes += 1;
    const version = `${this.#options.epoch}.${this.#changes.toString()}`;
    this.#snapshot = {
      clustersVersion: hasClustersChanged ? version : last.clustersVersion,
      endpointsVersion: hasEndpointsChanged ? version : last.endpointsVersion,
      clusters,
      endpoints,
    };
    return true;
  }
}

/**
 * The endpoints wanted, and of those that would leave as many as it takes to keep half of what was told before, first
 * the ones that still took requests. Sorted by address.
 */
function keepHalf(
  told: readonly DiscoveryEndpoint[],
  wanted: readonly DiscoveryEndpoint[],
): readonly DiscoveryEndpoint[] {
  const wantedAddresses = new Set(wanted.map(({ address }) => address));
  const leaving = told.filter(({ address }) => !wantedAddresses.has(address));
  const surplus = leaving.length - Math.floor(told.length / 2);
  if (surplus <= 0) return wanted;
  const kept = [...leaving]
    .sort((left, right) => Number(left.isDraining) - Number(right.isDraining))
    .slice(0, surplus);
  return [...wanted, ...kept].sort((left, right) => compareText(left.address, right.address));
}
