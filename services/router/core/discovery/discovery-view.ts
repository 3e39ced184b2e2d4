/** One engine of the union view of all live routers. */
export interface DiscoveryMember {
  /** Identity of the worker; several ranks of one engine may share it. */
  readonly workerId: string;
  /** Pool that it serves in. */
  readonly pool: string;
  /** Where the engine serves, `ip:port`, IPv6 in brackets. */
  readonly endpoint: string;
  /** A draining engine finishes what it has and gets nothing new. */
  readonly state: "ready" | "draining";
}

/** One endpoint as Envoy is told of it. */
export interface DiscoveryEndpoint {
  readonly address: string;
  /** Set when every member behind the address is draining. */
  readonly isDraining: boolean;
  /** Workers behind the address, sorted. */
  readonly workerIds: readonly string[];
}

/** The endpoints of one cluster, sorted by address. */
export interface EndpointSet {
  readonly cluster: string;
  readonly endpoints: readonly DiscoveryEndpoint[];
}

/** Everything that Envoy is told, at one moment. */
export interface DiscoverySnapshot {
  /** `<epoch>.<n>`; changes when the list of clusters does. */
  readonly clustersVersion: string;
  /** `<epoch>.<n>`; changes when any endpoint does. */
  readonly endpointsVersion: string;
  /** Cluster names, sorted, relays included. */
  readonly clusters: readonly string[];
  /** By cluster name. A cluster whose endpoints are not known yet is missing: Envoy then keeps what it has. */
  readonly endpoints: ReadonlyMap<string, EndpointSet>;
}

/** Cluster of the processes that carry out pairs and guarded streams. */
export const relaysCluster = "relays";

/** Cluster name of a pool. */
export function poolCluster(pool: string): string {
  return `pool-${pool}`;
}

/** Text order that does not depend on a locale. */
export function compareText(left: string, right: string): number {
  return left < right ? -1 : left > right ? 1 : 0;
}

/** Merges members into endpoints, sorted by address, whatever order they come in. */
export function mergeMembers(members: readonly DiscoveryMember[]): DiscoveryEndpoint[] {
  const byAddress = new Map<string, { isDraining: boolean; workerIds: Set<string> }>();
  for (const { endpoint, state, workerId } of members) {
    const known = byAddress.get(endpoint);
    if (known === undefined) {
      byAddress.set(endpoint, {
        isDraining: state === "draining",
        workerIds: new Set([workerId]),
      });
    } else {
      known.isDraining &&= state === "draining";
      known.workerIds.add(workerId);
    }
  }
  return [...byAddress]
    .sort(([left], [right]) => compareText(left, right))
    .map(([address, { isDraining, workerIds }]) => ({
      address,
      isDraining,
      workerIds: [...workerIds].sort(compareText),
    }));
}

/** Whether two endpoint lists say the same. Both are sorted. */
export function sameEndpoints(
  left: readonly DiscoveryEndpoint[],
  right: readonly DiscoveryEndpoint[],
): boolean {
  return (
    left.length === right.length &&
    left.every((endpoint, index) => {
      const other = right[index];
      return (
        other !== undefined &&
        endpoint.address === other.address &&
        endpoint.isDraining === other.isDraining &&
        endpoint.workerIds.join() === other.workerIds.join()
      );
    })
  );
}
