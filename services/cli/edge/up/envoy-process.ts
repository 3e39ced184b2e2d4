import { existsSync } from "node:fs";
import { join } from "node:path";
import { env } from "node:process";
import { fileURLToPath } from "node:url";
import { MeshError } from "../../../shared/core/errors.ts";
import { nodeBinary, ManagedProcess } from "./launcher.ts";

/** How to run one Envoy. */
export interface EnvoyLaunch {
  /** Program; see `findEnvoy`. */
  readonly binary: string;
  /** Bootstrap file, JSON or YAML. */
  readonly bootstrapFile: string;
  readonly logFile: string;
  readonly cwd: string;
  /** Worker threads. */
  readonly concurrency: number;
}

/** A line of the access log is in its file after so long, ms; Envoy's own default is 10 s. */
const accessLogMs = 250;

/** Envoy of set-up, or of `KVMESH_ENVOY`. Fails with `not_found` saying how to get it. */
export function findEnvoy(packageRoot: string): string {
  const chosen = env["KVMESH_ENVOY"];
  const binary = chosen ?? join(packageRoot, ".kvmesh/tools/envoy/envoy/_bin/envoy");
  if (existsSync(binary)) return binary;
  throw new MeshError(
    "not_found",
    chosen === undefined
      ? `no Envoy at ${binary}: run "npm start" or "npm test" once (their set-up fetches it), or name one with KVMESH_ENVOY`
      : `KVMESH_ENVOY names ${binary}, which does not exist`,
  );
}

/**
 * Envoy as a managed process that cannot outlive this one. It has no IPC channel, so the kernel kills it when its
 * parent dies (`setpriv --pdeathsig`); where there is no setpriv, a small Node process stands between and does it.
 */
export function envoyProcess(launch: EnvoyLaunch): ManagedProcess {
  const envoy: readonly string[] = [
    launch.binary,
    "-c",
    launch.bootstrapFile,
    "--concurrency",
    String(launch.concurrency),
    "--disable-hot-restart",
    "--file-flush-interval-msec",
    String(accessLogMs),
    "--log-level",
    "warning",
  ];
  const setpriv = findOnPath("setpriv");
  const common = { name: "envoy", cwd: launch.cwd, logFile: launch.logFile, readyMsMax: 15_000 };
  if (setpriv !== undefined) {
    return new ManagedProcess({
      ...common,
      command: [setpriv, "--pdeathsig", "KILL", "--", ...envoy],
      readiness: "none",
    });
  }
  const guard = fileURLToPath(new URL("./guard.ts", import.meta.url));
  return new ManagedProcess({
    ...common,
    command: [nodeBinary, guard, ...envoy],
    readiness: "ipc",
  });
}

function findOnPath(program: string): string | undefined {
  for (const folder of (env["PATH"] ?? "").split(":")) {
    if (folder !== "" && existsSync(join(folder, program))) return join(folder, program);
  }
  return undefined;
}
