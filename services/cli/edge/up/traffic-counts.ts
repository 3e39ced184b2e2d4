import { request } from "undici";
import { readSamples } from "../../core/metrics-text.ts";
import type { Mesh } from "./mesh.ts";

/** What Envoy and the routers have counted since they started. */
export interface TrafficCounts {
  /** Requests that went unplaced: let through without a router's answer, or served by another than picked. */
  readonly unpicked: number;
}

/** Reads the counts of now. Fails when Envoy or a router does not answer. */
export async function readTraffic(mesh: Mesh): Promise<TrafficCounts> {
  const { ports, host } = mesh.options;
  const [stats, routers] = await Promise.all([
    mesh.admin.stats("\\.ext_proc\\.failure_mode_allowed$"),
    Promise.all(
      ports.routers.map((router) => readUnpicked(`http://${host}:${router.http}/metrics`)),
    ),
  ]);
  const allowed = [...stats.values()].reduce((sum, value) => sum + value, 0);
  return { unpicked: allowed + routers.reduce((sum, value) => sum + value, 0) };
}

/** Unpicked requests between two counts. A count that fell (its process started again) counts from zero. */
export function unpickedBetween(before: TrafficCounts, after: TrafficCounts): number {
  return after.unpicked >= before.unpicked ? after.unpicked - before.unpicked : after.unpicked;
}

/**
 * Requests that a router saw served by another endpoint than it had picked, from its metrics. Requests without any
 * decision (`no_decision`) are left out: Envoy counts them too, also while no router lives.
 */
async function readUnpicked(url: string): Promise<number> {
  const { body } = await request(url, { signal: AbortSignal.timeout(2_000) });
  const samples = readSamples(await body.text(), ["kvmesh_router_unpicked_total"]);
  return samples
    .filter((sample) => sample.labels["reason"] !== "no_decision")
    .reduce((sum, sample) => sum + sample.value, 0);
}
