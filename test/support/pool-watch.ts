import { setTimeout as sleep } from "node:timers/promises";
import type { TestMesh } from "./mesh.ts";

/** What Envoy's pool was at one moment. */
export interface PoolSighting {
  /** ms since 1970. */
  readonly at: number;
  /** Endpoints, sorted; what Envoy has, healthy or not. */
  readonly endpoints: readonly string[];
}

/** Looks at a cluster of Envoy every 100 ms until stopped. */
export interface PoolWatch {
  readonly sightings: readonly PoolSighting[];
  /** Ends the watch and returns all sightings; fails when there was none. */
  stop(): Promise<readonly PoolSighting[]>;
}

/** Starts a watch of `cluster`. Moments at which Envoy does not answer are left out. */
export function watchPool(mesh: TestMesh, cluster = "pool-default"): PoolWatch {
  const sightings: PoolSighting[] = [];
  const stopped = new AbortController();
  const looking = (async () => {
    while (!stopped.signal.aborted) {
      const clusters = await mesh.admin.clusters().catch(() => undefined);
      if (clusters !== undefined) {
        const endpoints = (clusters.get(cluster) ?? []).map((host) => host.endpoint).toSorted();
        sightings.push({ at: Date.now(), endpoints });
      }
      await sleep(100);
    }
  })();
  return {
    sightings,
    stop: async () => {
      stopped.abort();
      await looking;
      if (sightings.length === 0) throw new Error(`Envoy was never seen, cluster ${cluster}`);
      return sightings;
    },
  };
}

/** Endpoints of `expected` that were missing at some moment, each with the times; empty when the pool stayed whole. */
export function missingFrom(
  sightings: readonly PoolSighting[],
  expected: readonly string[],
): string[] {
  return sightings.flatMap(({ at, endpoints }) =>
    expected
      .filter((endpoint) => !endpoints.includes(endpoint))
      .map((endpoint) => `${new Date(at).toISOString()} without ${endpoint}`),
  );
}
