import { join } from "node:path";
import type { PlannedService, Settings } from "../../services/cli/core/mesh-plan.ts";
import { ManagedProcess } from "../../services/cli/edge/up/launcher.ts";
import { entryPoints, packageRoot, serviceNode } from "../../services/cli/edge/up/mesh.ts";
import type { StateFolder } from "../../services/cli/edge/up/state-folder.ts";
import { cacheEnv } from "./test-cache.ts";

/** Processes that still run; a test process that ends early must not leave them behind. */
const known = new Set<ManagedProcess>();
process.once("exit", () => {
  for (const one of known) one.kill("SIGKILL");
});

/**
 * A process of ours beside those of a mesh, with whole settings of its own: another pool's engine, a worker that is to
 * be refused. Not started yet; the test ends it.
 */
export function serviceProcess(
  state: StateFolder,
  options: {
    readonly name: string;
    readonly service: PlannedService;
    readonly settings: Settings;
  },
): ManagedProcess {
  const { name, service, settings } = options;
  const [main, ...words] = entryPoints[service];
  const process = new ManagedProcess({
    name,
    command: [
      serviceNode,
      join(packageRoot, main),
      ...words,
      "--config",
      state.write(`config/${name}.json`, { [service]: settings }),
    ],
    cwd: packageRoot,
    env: cacheEnv,
    logFile: state.beginLog(name),
    readiness: "ipc",
    readyMsMax: 60_000,
  });
  known.add(process);
  return process;
}
