/**
 * Measures a router whose workers have nothing to do: `npm run bench -- idle [--members 1000] [--interval 1000]`. The
 * members live in a process of their own, each on a connection of its own, and report once per interval.
 */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { BenchChild } from "./child-process.ts";
import { describeMachine, machineFacts, median, shown } from "./figures.ts";
import { cpuMs, cpuSource, residentBytes } from "./process-figures.ts";
import { RouterProcess } from "./router-process.ts";
import { RouterProfile } from "./router-profile.ts";

const options = parseArgs({
  options: {
    members: { type: "string", default: "1000" },
    interval: { type: "string", default: "1000" },
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "4" },
    profile: { type: "boolean", default: false },
    top: { type: "string", default: "20" },
    json: { type: "boolean", default: false },
  },
}).values;
const count = Number(options.members);
const seconds = Number(options.seconds);
/** Joining leaves garbage and code that is not compiled yet, ms. */
const settleMs = 5_000;

function nowUs(): number {
  return Number(process.hrtime.bigint() / 1_000n);
}

/** CPU of a process in each round, ms a second. */
async function roundsOf(pid: number): Promise<number[]> {
  const rounds: number[] = [];
  for (let round = 0; round < Number(options.rounds); round++) {
    const startUs = nowUs();
    const startMs = cpuMs(pid);
    await sleep(seconds * 1_000);
    rounds.push(((cpuMs(pid) - startMs) * 1e6) / (nowUs() - startUs));
  }
  return rounds;
}

const machine = machineFacts();
const profile = options.profile ? new RouterProfile() : undefined;
const router = await RouterProcess.start({
  membersMax: Math.max(64, count),
  nodeArgs: profile?.nodeArgs ?? [],
});
await sleep(settleMs / 5);
const aloneMs = median(await roundsOf(router.pid));
const members = new BenchChild(join(import.meta.dirname, "members-process.ts"), {
  name: "members",
  args: [
    router.keysFile,
    `127.0.0.1:${router.ports.control.toString()}`,
    options.members,
    options.interval,
  ],
});
await members.answer("joined");
await router.untilServing();
await sleep(settleMs);
const before = await router.metrics();
const fromUs = nowUs();
const withMembers = await roundsOf(router.pid);
const toUs = nowUs();
const after = await router.metrics();
const reports = "kvmesh_router_load_reports_total";
const perSecond = ((after.total(reports) - before.total(reports)) * 1e6) / (toUs - fromUs);
const cpuMsPerSecond = median(withMembers);
const result = {
  bench: "idle",
  machine,
  loadAverageAfter: machineFacts().loadAverage,
  cpuSource: cpuSource(router.pid),
  members: count,
  reportsPerSecond: perSecond,
  aloneCpuMsPerSecond: aloneMs,
  cpuMsPerSecond,
  cpuMsPerSecondByRound: withMembers.map((ms) => Math.round(ms * 10) / 10),
  cpuUsPerReport: ((cpuMsPerSecond - aloneMs) * 1_000) / perSecond,
  residentBytes: residentBytes(router.pid),
};
await members.stop();
await router.stop();

// Half the reports would be half the work.
if (perSecond < (0.9 * count * 1_000) / Number(options.interval)) {
  throw new Error(`only ${shown(perSecond)} reports a second were sent; the machine is too busy`);
}
if (options.json) console.log(JSON.stringify(result, undefined, 2));
else {
  console.log(describeMachine(machine));
  console.log(
    `load average after ${result.loadAverageAfter.join(" ")}, CPU from ${result.cpuSource}`,
  );
  console.log(
    `${count.toString()} members, ${shown(perSecond)} reports a second: ${shown(cpuMsPerSecond / 10)} % of a core ` +
      `(must be at most 5), of it ${shown(aloneMs / 10)} % without members; ` +
      `${shown(result.cpuUsPerReport)} µs a report, resident ${Math.round(result.residentBytes / 1e6).toString()} MB`,
  );
}
profile?.print({ fromUs, toUs, top: Number(options.top) });
