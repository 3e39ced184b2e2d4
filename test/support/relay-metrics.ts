import type { TestMesh } from "./mesh.ts";
import { metricOf } from "./router-books.ts";

/** Base address of a relay's metrics and health, as it says itself when it is ready. */
export function relayHttpOf(mesh: TestMesh, relay: string): string {
  const line = mesh
    .process(relay)
    .log(2_000)
    .findLast((one) => one.includes('"event":"relay_ready"'));
  if (line === undefined) throw new Error(`${relay} has not said that it is ready`);
  const { ports } = JSON.parse(line) as { readonly ports: { readonly metrics: number } };
  return `http://127.0.0.1:${String(ports.metrics)}`;
}

/** Sum of a metric over relays, those of its samples whose labels include the given ones. */
export async function relayMetric(
  relays: readonly string[],
  name: string,
  labels: Readonly<Record<string, string>> = {},
): Promise<number> {
  const values = await Promise.all(relays.map((relay) => metricOf(relay, name, labels)));
  return values.reduce((sum, value) => sum + value, 0);
}
