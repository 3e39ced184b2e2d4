import { spawn } from "node:child_process";
import { join } from "node:path";
import type { PlannedService } from "../core/mesh-plan.ts";
import { Interrupts } from "./interrupts.ts";
import { entryPoints, packageRoot, serviceNode } from "./up/mesh.ts";

/** `--processes n` of a router is short for its setting. */
function withoutShortForms(service: PlannedService, flags: readonly string[]): string[] {
  if (service !== "router") return [...flags];
  return flags.flatMap((flag, index) => {
    if (flag.startsWith("--processes=")) return ["--set", flag.slice(2)];
    if (flag === "--processes") return [];
    return flags[index - 1] === "--processes" ? ["--set", `processes=${flag}`] : [flag];
  });
}

/**
 * Runs one service in the foreground with its own flags and resolves to its exit code. It gets its own process group
 * and one signal each, so that Ctrl-C is not heard twice, and ends when this process is gone.
 */
export async function serviceCommand(
  service: PlannedService,
  flags: readonly string[],
): Promise<number> {
  const [main, ...words] = entryPoints[service];
  const child = spawn(serviceNode, [join(packageRoot, main), ...words, ...withoutShortForms(service, flags)], {
    stdio: ["inherit", "inherit", "inherit", "ipc"],
    detached: true,
  });
  const interrupts = new Interrupts(() => child.kill("SIGKILL"));
  interrupts.signal.addEventListener("abort", () => {
    child.kill(interrupts.cause === "SIGINT" ? "SIGINT" : "SIGTERM");
  });
  try {
    return await new Promise<number>((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", (code, signal) => {
        resolve(code ?? (signal === "SIGINT" ? 130 : 143));
      });
    });
  } finally {
    interrupts.release();
  }
}
