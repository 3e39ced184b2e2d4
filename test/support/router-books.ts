import { readSamples } from "../../services/cli/core/metrics-text.ts";
import type { Decision } from "../../services/shared/gen/kvmesh/router/v1/router.ts";
import { eventually, type TestMesh } from "./mesh.ts";

/** Sum of the samples of a metric whose labels include the given ones; 0 when there are none. */
export async function metricOf(
  httpUrl: string,
  name: string,
  labels: Readonly<Record<string, string>> = {},
): Promise<number> {
  const response = await fetch(`${httpUrl}/metrics`, { signal: AbortSignal.timeout(5_000) });
  const wanted = Object.entries(labels);
  return readSamples(await response.text(), [name])
    .filter((sample) => wanted.every(([label, value]) => sample.labels[label] === value))
    .reduce((sum, sample) => sum + sample.value, 0);
}

/** Gauges of a router that must be 0 when nothing is in progress. */
const booksAtRest = [
  "kvmesh_router_reservations_open",
  "kvmesh_router_ext_proc_streams_open",
  "kvmesh_router_body_memory_bytes",
];

/** Waits until no router holds a reservation, a stream or a byte of a body; fails with what it holds. */
export async function untilBooksClosed(mesh: TestMesh): Promise<void> {
  for (const url of mesh.routerHttp) {
    for (const name of booksAtRest) {
      let held = 0;
      await eventually(
        `${name} of ${url} is 0`,
        async () => {
          held = await metricOf(url, name);
          if (held !== 0) throw new Error(`it is ${String(held)}`);
          return true;
        },
        20_000,
      );
    }
  }
}

/** The decision of a request once its end was observed. */
export async function observedDecision(mesh: TestMesh, requestId: string): Promise<Decision> {
  return eventually(
    `the end of request ${requestId} is known`,
    async () => {
      const { decision } = await mesh.routers.explain({ kind: "request", id: requestId });
      return decision?.observed === undefined ? undefined : decision;
    },
    20_000,
  );
}

/** Where a router answers Envoy, `ip:port`, as it says itself when it is ready. */
export function hotAddressOf(mesh: TestMesh, router: string): string {
  const line = mesh
    .process(router)
    .log(500)
    .findLast((one) => one.includes('"event":"router_ready"'));
  if (line === undefined) throw new Error(`${router} has not said that it is ready`);
  const { ports } = JSON.parse(line) as { readonly ports: { readonly hot: number } };
  return `127.0.0.1:${String(ports.hot)}`;
}
