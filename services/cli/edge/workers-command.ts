import { workersJson, workersView } from "../core/workers-view.ts";
import { exitCodes, type CommandIo } from "./command-io.ts";
import { connectRouters, type MeshAddress } from "./running-mesh.ts";

/** `kvmesh workers`: prints pools, workers and routers as one router sees them now. */
export async function workersCommand(
  options: MeshAddress & { readonly json?: boolean | undefined },
  io: CommandIo,
): Promise<number> {
  const routers = connectRouters(options);
  try {
    const topology = await routers.topology();
    if (options.json === true) io.out(JSON.stringify(workersJson(topology)));
    else for (const line of workersView(topology)) io.out(line);
    return exitCodes.done;
  } finally {
    routers.close();
  }
}
