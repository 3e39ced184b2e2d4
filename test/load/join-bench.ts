/**
 * Measures how soon a router that starts serves from a full index: `npm run bench -- join [--members 8]
 * [--blocks 1000000]`. The members live in a process of their own with their snapshots prepared, and dial the router as
 * soon as it listens, each on a connection of its own. Exits with 1 when it takes longer than it may.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { createKeysFile } from "../../services/shared/edge/keys.ts";
import { BenchChild } from "./child-process.ts";
import { describeMachine, machineFacts, median, shown } from "./figures.ts";
import { cpuMs, residentBytes } from "./process-figures.ts";
import { RouterProcess } from "./router-process.ts";
import { RouterProfile } from "./router-profile.ts";

const options = parseArgs({
  options: {
    members: { type: "string", default: "8" },
    blocks: { type: "string", default: "1000000" },
    rounds: { type: "string", default: "5" },
    profile: { type: "boolean", default: false },
    top: { type: "string", default: "20" },
    json: { type: "boolean", default: false },
  },
}).values;
/** From the first dial until the index is full and the router is ready, ms. */
const fullMsMax = 2_000;
/** How long one round may take, ms. */
const roundMsMax = 60_000;

interface Round {
  /** From its start until it listens. */
  readonly listenMs: number;
  /** From then until the index is full and it says that it is ready. */
  readonly fullMs: number;
  readonly cpuMs: number;
  readonly residentBytes: number;
}

const folder = mkdtempSync(join(tmpdir(), "kvmesh-join-"));
process.once("exit", () => {
  rmSync(folder, { recursive: true, force: true });
});
const keysFile = join(folder, "mesh.keys");
createKeysFile(keysFile);
const machine = machineFacts();
const members = new BenchChild(join(import.meta.dirname, "join-members-process.ts"), {
  name: "members",
  args: [keysFile, options.members, options.blocks],
});
const { blocks } = await members.answer<{ readonly blocks: number }>("prepared");

async function isFull(router: RouterProcess): Promise<boolean> {
  const { status } = await fetch(`http://127.0.0.1:${String(router.ports.http)}/healthz`);
  if (status !== 200) return false;
  return (await router.metrics()).total("kvmesh_router_index_pairs") >= blocks;
}

async function round(profile: RouterProfile | undefined): Promise<Round> {
  const startedAt = performance.now();
  const router = await RouterProcess.start({
    membersMax: Math.max(64, Number(options.members)),
    keysFile,
    nodeArgs: profile?.nodeArgs ?? [],
  });
  try {
    const listensAt = performance.now();
    const cpuBefore = cpuMs(router.pid);
    const joined = members.ask({ target: `127.0.0.1:${String(router.ports.control)}` }, "joined");
    while (!(await isFull(router))) {
      if (performance.now() - listensAt > roundMsMax) throw new Error("the index does not fill");
      await sleep(20);
    }
    const fullAt = performance.now();
    await joined;
    return {
      listenMs: listensAt - startedAt,
      fullMs: fullAt - listensAt,
      cpuMs: cpuMs(router.pid) - cpuBefore,
      residentBytes: residentBytes(router.pid),
    };
  } finally {
    await router.stop();
  }
}

const profile = options.profile ? new RouterProfile() : undefined;
const rounds: Round[] = [];
const fromUs = Number(process.hrtime.bigint() / 1_000n);
for (let i = 0; i < (profile === undefined ? Number(options.rounds) : 1); i++) {
  rounds.push(await round(profile));
}
const toUs = Number(process.hrtime.bigint() / 1_000n);
await members.stop();

const fullMs = median(rounds.map((r) => r.fullMs));
const result = {
  bench: "join",
  machine,
  loadAverageAfter: machineFacts().loadAverage,
  members: Number(options.members),
  blocks,
  fullMs,
  fullMsMax,
  rounds,
};
if (options.json) console.log(JSON.stringify(result, undefined, 2));
else {
  console.log(describeMachine(machine));
  console.log(
    `${options.members} members with ${blocks.toLocaleString("en-US")} blocks: full and ready ${shown(fullMs)} ms after it ` +
      `listens (must be at most ${fullMsMax.toLocaleString("en-US")}: ${fullMs <= fullMsMax ? "met" : "SHORT"}; ` +
      `rounds ${rounds.map((r) => shown(r.fullMs)).join(", ")}), listening ${shown(median(rounds.map((r) => r.listenMs)))} ms ` +
      `after its start, CPU ${shown(median(rounds.map((r) => r.cpuMs)))} ms, resident ` +
      `${shown(median(rounds.map((r) => r.residentBytes)) / 1e6)} MB`,
  );
}
profile?.print({ fromUs, toUs, top: Number(options.top) });
if (fullMs > fullMsMax) process.exitCode = 1;
