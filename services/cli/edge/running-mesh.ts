import { MeshError } from "../../shared/core/errors.ts";
import { RouterClient } from "./router-client.ts";
import { StateFolder, type MeshRun, type RunState } from "./up/state-folder.ts";
import { defaultStatePath } from "./up/mesh.ts";

/** How a reading command finds the mesh. */
export interface MeshAddress {
  /** Control addresses given by hand, host:port. */
  readonly router?: readonly string[] | undefined;
  /** State folder; default `.kvmesh` beside package.json. */
  readonly state?: string | undefined;
}

/** State folder of the command line. */
export function stateOf(address: MeshAddress): StateFolder {
  return new StateFolder(address.state ?? defaultStatePath);
}

/** Client of the routers named, or else of the mesh that runs on this machine. Fails with `not_found`. */
export function connectRouters(address: MeshAddress): RouterClient {
  if (address.router !== undefined && address.router.length > 0) {
    return new RouterClient(address.router);
  }
  return new RouterClient(requireRun(address).routers.map((router) => router.control));
}

/** What the mesh of this machine says of itself. Fails with `not_found` and what to do. */
export function requireRun(address: MeshAddress): MeshRun {
  const folder = stateOf(address);
  const state = folder.readRun();
  if (state.kind === "running") return state.run;
  throw new MeshError("not_found", runText(state, folder));
}

/** What the state of `run.json` means, for people. */
export function runText(state: RunState, folder: StateFolder): string {
  switch (state.kind) {
    case "running":
      return `runs, pid ${state.run.supervisorPid}, ${state.run.urls.openai}`;
    case "none":
      return `no mesh runs here (no run.json in ${folder.path}): start one with "npm start" or "kvmesh up", or name a router with --router host:port`;
    case "stale":
      return `the mesh of ${folder.path} died (pid ${state.run.supervisorPid} is gone): start it again with "npm start" or "kvmesh up"`;
    case "unreadable":
      return `cannot use ${state.problem}`;
  }
}
