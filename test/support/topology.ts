import type { WorkerState } from "../../services/shared/gen/kvmesh/router/v1/router.ts";
import { eventually, type TestMesh } from "./mesh.ts";

/** Workers as each live router sees them, by router address and worker id. */
export type WorkerViews = ReadonlyMap<string, ReadonlyMap<string, WorkerState>>;

/** What the routers see now; routers that do not answer are left out. */
export async function workerViews(mesh: TestMesh): Promise<WorkerViews> {
  const views = new Map<string, ReadonlyMap<string, WorkerState>>();
  for (const [address, seen] of await mesh.routers.topologies()) {
    if (seen instanceof Error) continue;
    const workers = seen.pools.flatMap((pool) => pool.workers);
    views.set(address, new Map(workers.map((worker) => [worker.workerId, worker])));
  }
  return views;
}

/** Waits until every router sees a worker in a way that `check` accepts; returns what they see. */
export async function untilWorker(
  mesh: TestMesh,
  workerId: string,
  what: string,
  check: (worker: WorkerState | undefined) => boolean,
): Promise<readonly (WorkerState | undefined)[]> {
  let last: readonly (WorkerState | undefined)[] = [];
  try {
    return await eventually(
      what,
      async () => {
        last = [...(await workerViews(mesh)).values()].map((view) => view.get(workerId));
        return last.length === mesh.controls.length && last.every(check) && last;
      },
      30_000,
    );
  } catch (error) {
    const shown = last.map((one) =>
      one === undefined
        ? "unknown"
        : `${one.state}, life ${one.engineLife}, ${one.blocks} blocks, ${one.openRequests} open`,
    );
    throw new Error(`${(error as Error).message}; ${workerId} is ${shown.join(" and ")}`, {
      cause: error,
    });
  }
}

/** Waits until no router has an open reservation on any worker. */
export async function untilBooksEmpty(mesh: TestMesh): Promise<void> {
  const open = async (): Promise<string[]> =>
    [...(await workerViews(mesh))].flatMap(([router, view]) =>
      [...view.values()]
        .filter((worker) => worker.openRequests > 0)
        .map((worker) => `${router}: ${worker.workerId} has ${worker.openRequests}`),
    );
  try {
    await eventually("all books are empty", async () => (await open()).length === 0, 20_000);
  } catch (error) {
    throw new Error(`books stay open: ${(await open()).join(", ")}`, { cause: error });
  }
}
