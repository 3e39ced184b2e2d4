import type { SeededRandom } from "../../services/shared/core/random.ts";
import { eventually, type TestMesh } from "./mesh.ts";
import { metricOf } from "./router-books.ts";

/** Gives an engine one of the faults of its README. */
export async function tellFault(engineUrl: string, fault: object): Promise<void> {
  const response = await fetch(`${engineUrl}/sim/faults`, {
    method: "POST",
    body: JSON.stringify(fault),
  });
  if (response.status !== 200) {
    throw new Error(
      `${JSON.stringify(fault)}: ${String(response.status)} ${await response.text()}`,
    );
  }
}

/** Draws one of the engines that run requests now; waits until there is one. */
export async function drawBusyEngine(mesh: TestMesh, random: SeededRandom): Promise<number> {
  return eventually(
    "an engine is busy",
    async () => {
      const running = await Promise.all(
        mesh.engineUrls.map((url) => metricOf(url, "vllm:num_requests_running").catch(() => 0)),
      );
      const busy = running.flatMap((count, index) => (count > 0 ? [index] : []));
      const drawn = busy[random.int(busy.length)];
      return drawn === undefined ? undefined : { drawn };
    },
    20_000,
  ).then(({ drawn }) => drawn);
}
