import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { isAlive, type ManagedProcess } from "../../services/cli/edge/up/launcher.ts";
import { checkPorts } from "../../services/cli/edge/up/port-check.ts";
import { StateFolder } from "../../services/cli/edge/up/state-folder.ts";
import { eventually } from "../support/mesh.ts";
import { serviceProcess } from "../support/service-process.ts";

const processes = 2;

let folder: string;
let router: ManagedProcess;
let httpPorts: number[];

/** A first port from which on the ports of all processes are free, below those that systems hand out themselves. */
async function findBase(): Promise<number> {
  for (;;) {
    const base = 12_000 + Math.floor(Math.random() * 15_000);
    const wanted = Array.from({ length: processes * 3 }, (_, i) => ({
      process: "router",
      host: "127.0.0.1",
      port: base + 10 * Math.floor(i / 3) + (i % 3),
      setting: "",
    }));
    if ((await checkPorts(wanted)).length === 0) return base;
  }
}

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-router-processes-"));
  const state = new StateFolder(folder);
  const base = await findBase();
  httpPorts = Array.from({ length: processes }, (_, i) => base + 2 + 10 * i);
  router = serviceProcess(state, {
    name: "router",
    service: "router",
    settings: {
      instance: "node",
      hotPort: base,
      controlPort: base + 1,
      httpPort: base + 2,
      processes,
      keysFile: state.prepare(""),
      drainServeMs: 0,
    },
  });
  await router.start();
});

afterEach(async () => {
  await router.stop(10_000);
  rmSync(folder, { recursive: true, force: true });
});

/** The router processes, by their supervisor's children. */
function children(): number[] {
  const pid = String(router.pid);
  const text = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
  return text.split(" ").filter(Boolean).map(Number);
}

/** How many peers each process has heard in full; −1 for one that does not answer. */
function syncedPeers(): Promise<number[]> {
  return Promise.all(
    httpPorts.map(async (port) => {
      try {
        const text = await (await fetch(`http://127.0.0.1:${String(port)}/metrics`)).text();
        return Number(/^kvmesh_router_peers\{state="synced"\} (\d+)$/m.exec(text)?.[1] ?? -1);
      } catch {
        return -1;
      }
    }),
  );
}

async function untilAllSynced(): Promise<void> {
  const others = Array.from({ length: processes }, () => processes - 1);
  await eventually(
    "every process has heard every other one",
    async () => JSON.stringify(await syncedPeers()) === JSON.stringify(others),
    20_000,
  );
}

test("the processes of one router know each other, come back when killed, and end with their supervisor", async () => {
  await untilAllSynced();
  const before = children();
  expect(before.length).toBe(processes);
  const [victim] = before;
  if (victim === undefined) throw new Error("no process");
  process.kill(victim, "SIGKILL");
  await eventually("another process has taken its place", () => {
    const now = children();
    return now.length === processes && !now.includes(victim);
  });
  await untilAllSynced();
  const running = children();
  router.kill("SIGTERM");
  await eventually("the supervisor is gone", () => !router.running, 10_000);
  expect(running.filter(isAlive)).toEqual([]);
});

test("processes end by themselves when their supervisor is killed", async () => {
  const running = children();
  router.kill("SIGKILL");
  await eventually("every process is gone", () => !running.some(isAlive), 15_000);
});
