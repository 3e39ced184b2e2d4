/**
 * Measures a router process under ext_proc traffic: `npm run bench -- router`. How and why: README.md.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { formatRatio, textTable } from "../../services/cli/core/text-table.ts";
import { BenchChild } from "./child-process.ts";
import { readSelfTimes } from "./cpu-profile.ts";
import type { ExchangeMode } from "./ext-proc-messages.ts";
import {
  describeMachine,
  machineFacts,
  median,
  quantile,
  repositoryRoot,
  shown,
} from "./figures.ts";
import type { Arrivals, RunResult } from "./load-generator.ts";
import { cpuMs, cpuSource, residentBytes } from "./process-figures.ts";
import { Cell, type CellReport, type Mesh, type Target, type TargetName } from "./router-cells.ts";
import { RouterLoad } from "./router-load.ts";
import type { Buckets } from "./router-metrics.ts";
import { RouterProcess } from "./router-process.ts";
import { disturbances, ratios } from "./router-verdict.ts";
import { ScriptedMembers } from "./scripted-members.ts";
import { writeBenchTable } from "./readme-table.ts";

const options = parseArgs({
  options: {
    members: { type: "string", default: "8" },
    large: { type: "string", default: "1000" },
    rounds: { type: "string", default: "5" },
    warmup: { type: "string", default: "8" },
    text: { type: "string", default: "2" },
    concurrency: { type: "string", default: "16" },
    sizes: { type: "string", default: "4,64,220,512" },
    modes: { type: "string", default: "buffered,duplex" },
    "no-references": { type: "boolean", default: false },
    "no-latency": { type: "boolean", default: false },
    baseline: { type: "string", default: "" },
    top: { type: "string", default: "20" },
    profile: { type: "boolean", default: false },
    readme: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
  },
}).values;

/** The stock pipeline takes tens of milliseconds a request. */
const stockRequestsMax = 40;
const stockSizeKb = 64;
/** The size at which a large fleet is compared with a small one. */
const largeSizeKb = 4;
/** How often prompts are sent in the warm-up. */
const warmupTimes = 3;
const latencySizeKb = 64;
const latencyRounds = 5;
const idleSeconds = 2;
const decisionMetric = "kvmesh_router_decision_duration_seconds";

function positive(name: string, text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new Error(`--${name} must be a number above 0, got ${text}`);
  return value;
}

function readModes(text: string): ExchangeMode[] {
  return text.split(",").map((mode) => {
    if (mode === "buffered" || mode === "duplex") return mode;
    throw new Error(`--modes takes buffered and duplex, got ${mode}`);
  });
}

const membersCount = positive("members", options.members);
const rounds = positive("rounds", options.rounds);
const textMbPerCell = positive("text", options.text);
const concurrency = positive("concurrency", options.concurrency);
const largeCount = Number(options.large);
const warmupRounds = Number(options.warmup);
const modes = readModes(options.modes);
const sizesKb = options.sizes.split(",").map((text) => positive("sizes", text));

const profileFolder = options.profile ? mkdtempSync(join(tmpdir(), "kvmesh-profile-")) : undefined;
const profilerArgs =
  profileFolder === undefined
    ? []
    : ["--cpu-prof", "--cpu-prof-dir", profileFolder, "--cpu-prof-interval", "500"];

async function startMesh(
  root: string,
  count: number,
  nodeArgs: readonly string[],
  keysFile?: string,
): Promise<Mesh> {
  const membersMax = Math.max(64, count);
  const router = await RouterProcess.start({ membersMax, root, nodeArgs, keysFile });
  const target = `127.0.0.1:${router.ports.control.toString()}`;
  const members = await ScriptedMembers.join({ count, target, keys: router.keys });
  await router.untilServing();
  return { router, members };
}

function targetOf(name: TargetName, mesh: Mesh): Target {
  const address = `127.0.0.1:${mesh.router.ports.hot.toString()}`;
  return { name, address, pid: mesh.router.pid, mesh };
}

const mesh = await startMesh(repositoryRoot, membersCount, profilerArgs);
const { router } = mesh;
const routers = [targetOf("router", mesh)];
if (options.baseline !== "") {
  const other = await startMesh(resolve(options.baseline), membersCount, [], router.keysFile);
  routers.push(targetOf("baseline", other));
}
if (largeCount > 0 && sizesKb.includes(largeSizeKb)) {
  routers.push(targetOf("large", await startMesh(repositoryRoot, largeCount, [], router.keysFile)));
}

const load = await RouterLoad.start(router.keysFile);

async function startReference(
  name: "empty" | "stock",
): Promise<{ target: Target; child: BenchChild }> {
  const child = new BenchChild(join(import.meta.dirname, "reference-server.ts"), {
    name,
    args: [name],
  });
  const { port } = await child.answer<{ readonly port: number }>("ready");
  return {
    child,
    target: { name, address: `127.0.0.1:${port.toString()}`, pid: child.pid, mesh: undefined },
  };
}

const references = options["no-references"]
  ? []
  : [await startReference("empty"), await startReference("stock")];

const cells: Cell[] = [];
/** CPU of each router while nobody asks anything and its members report. */
const idleMsPerSecond = new Map<Target, number>();
for (const sizeKb of sizesKb) {
  for (const mode of modes) {
    for (const target of [...routers, ...references.map((reference) => reference.target)]) {
      if (target.mesh === undefined && mode !== "buffered") continue;
      if (target.name === "stock" && sizeKb !== stockSizeKb) continue;
      if (target.name === "large" && (sizeKb !== largeSizeKb || mode !== "buffered")) continue;
      cells.push(new Cell(target, mode, sizeKb));
    }
  }
}

function send(
  target: Target,
  mode: ExchangeMode,
  count: number,
  arrivals: Arrivals,
): Promise<RunResult> {
  const { name, address, mesh: served } = target;
  const to = { name, address, wantsRecords: served !== undefined };
  return load.send(to, { mode, count, arrivals }, (prompts) => served?.members.storeNew(prompts));
}

async function runCell(cell: Cell, prepared: number, counts: boolean): Promise<void> {
  const { target, mode } = cell;
  const count = target.name === "stock" ? Math.min(prepared, stockRequestsMax) : prepared;
  const noBuckets: Buckets = new Map();
  const scrape = async (): Promise<Buckets> =>
    (await target.mesh?.router.metrics())?.buckets(decisionMetric) ?? noBuckets;
  const before = await scrape();
  const startMs = cpuMs(target.pid);
  const startedAt = performance.now();
  const result = await send(target, mode, count, { kind: "closed", concurrency });
  const ms = cpuMs(target.pid) - startMs;
  const idleMs = ((performance.now() - startedAt) * (idleMsPerSecond.get(target) ?? 0)) / 1_000;
  if (counts) cell.add(result, { ms, idleMs }, before, await scrape());
}

/** All cells once: each size and mode gets prompts of its own, which all its targets are sent. */
async function runRound(megabytes: number, counts: boolean): Promise<void> {
  for (const sizeKb of sizesKb) {
    for (const mode of modes) {
      const prepared = await load.prepare(sizeKb, megabytes);
      for (const cell of cells) {
        if (cell.sizeKb !== sizeKb || cell.mode !== mode) continue;
        await runCell(cell, prepared, counts);
      }
    }
  }
}

/** Decision times at half of what the closed loop reached: median over all rounds, p99 of the best. */
async function decisionsAtHalfLoad(
  perSecondMax: number,
): Promise<{ perSecond: number; msP50: number; msP99: number; lagMsMax: number }> {
  const [target] = routers;
  if (target === undefined) throw new Error("no router");
  const all: number[] = [];
  const tails: number[] = [];
  let lagMsMax = 0;
  const perSecond = perSecondMax / 2;
  for (let round = 0; round < latencyRounds; round++) {
    const count = await load.prepare(latencySizeKb, 2 * textMbPerCell);
    const result = await send(target, "buffered", count, { kind: "open", perSecond });
    all.push(...result.decisionMs);
    tails.push(quantile(result.decisionMs, 0.99));
    lagMsMax = Math.max(lagMsMax, result.lagMsMax);
  }
  return { perSecond, msP50: median(all), msP99: Math.min(...tails), lagMsMax };
}

/** Services run for days, so what is compiled after some thousands of requests is not measured before that. */
async function warmUp(): Promise<void> {
  const sizeKb = Math.min(...sizesKb);
  const small = cells.filter((cell) => cell.sizeKb === sizeKb);
  for (let round = 0; round < warmupRounds; round++) {
    const prepared = await load.prepare(sizeKb, textMbPerCell);
    // The same prompts again save text for the rounds that count.
    for (let time = 0; time < warmupTimes; time++) {
      for (const cell of small) await runCell(cell, prepared, false);
    }
  }
  await runRound(textMbPerCell / 2, false);
}

const before = machineFacts();
await warmUp();
await sleep(500);
const idleStartMs = routers.map(({ pid }) => cpuMs(pid));
await sleep(idleSeconds * 1_000);
routers.forEach((target, i) => {
  const ms = cpuMs(target.pid) - (idleStartMs[i] ?? 0);
  idleMsPerSecond.set(target, ms / idleSeconds);
});
const measuredSinceUs = Number(process.hrtime.bigint() / 1_000n);
for (let round = 0; round < rounds; round++) await runRound(textMbPerCell, true);
const measuredUntilUs = Number(process.hrtime.bigint() / 1_000n);
const reports = cells.map((cell) => cell.report());
const fastest = reports.find(
  (c) => c.target === "router" && c.mode === "buffered" && c.sizeKb === latencySizeKb,
);
const halfLoad =
  options["no-latency"] || fastest === undefined
    ? undefined
    : await decisionsAtHalfLoad(fastest.perSecond);

/** The last records are on their way for a moment yet. */
const settledMsMax = 5_000;
let metrics = await router.metrics();
for (let waited = 0; waited < settledMsMax; waited += 100) {
  if (metrics.total("kvmesh_router_reservations_open") === 0) break;
  await sleep(100);
  metrics = await router.metrics();
}
const hits = metrics.total("kvmesh_router_prefix_hit_ratio_sum");
const decisions = metrics.total("kvmesh_router_prefix_hit_ratio_count");
const result = {
  bench: "router",
  machine: before,
  loadAverageAfter: machineFacts().loadAverage,
  cpuSource: cpuSource(router.pid),
  members: membersCount,
  rounds,
  concurrency,
  text: {
    prompts: load.text.prompts,
    sharingShare: load.text.sharing / load.text.prompts,
    unseenShare: load.text.unseenBytes / load.text.bytes,
    wraps: load.text.wraps,
  },
  cells: reports,
  ratios: ratios(reports, { large: largeCount, few: membersCount }),
  disturbances: disturbances(reports),
  halfLoad,
  router: {
    idleCpuMsPerSecond: Object.fromEntries(
      [...idleMsPerSecond].map(([target, ms]) => [target.name, ms]),
    ),
    residentBytes: residentBytes(router.pid),
    indexBlocks: metrics.total("kvmesh_router_index_blocks"),
    prefixHitRatioMean: hits / decisions,
    loadOnly: metrics.total("kvmesh_router_load_only_total"),
    reservationsOpen: metrics.total("kvmesh_router_reservations_open"),
    recordsOwn: metrics.total("kvmesh_router_access_log_records_total"),
  },
  /** What the router is compared with. */
  others: Object.fromEntries(
    [...routers.slice(1), ...references.map((reference) => reference.target)].map((target) => [
      target.name,
      { residentBytes: residentBytes(target.pid) },
    ]),
  ),
};

for (const target of routers) target.mesh?.members.close();
for (const { child } of references) await child.stop();
await load.stop();
for (const target of routers) await target.mesh?.router.stop();

// Figures of something that did not happen are worse than none.
if (result.router.loadOnly > 0) throw new Error("prompts were placed without tokens");
if (!(result.router.prefixHitRatioMean > 0.3)) throw new Error("prompts found no cached prefix");
if (result.router.reservationsOpen > 0) throw new Error("reservations were left open");

function baselineRatio(cell: CellReport): string {
  const theirs = result.cells.find(
    (c) => c.target === "baseline" && c.mode === cell.mode && c.sizeKb === cell.sizeKb,
  );
  if (cell.target !== "router" || theirs === undefined) return "";
  return `${(cell.cpuUsPerRequest / theirs.cpuUsPerRequest).toFixed(3)}x`;
}

function print(): void {
  const { router: figures } = result;
  const mb = (bytes: number): string => `${Math.round(bytes / 1e6).toString()} MB`;
  console.log(describeMachine(result.machine));
  console.log(
    `load average after ${result.loadAverageAfter.join(" ")}, CPU from ${result.cpuSource}`,
  );
  console.log(
    `${membersCount.toString()} members; ${rounds.toString()} rounds, ${concurrency.toString()} requests at once; ` +
      `${result.text.prompts.toString()} prompts, ${formatRatio(result.text.sharingShare)} share a prefix, ` +
      `${formatRatio(result.text.unseenShare)} of bytes unseen` +
      (result.text.wraps > 0 ? `, edition ${(result.text.wraps + 1).toString()} of the text` : ""),
  );
  const columns = [
    { title: "target" },
    { title: "mode" },
    ...[
      "KB",
      "requests",
      "CPU µs",
      ...(options.baseline === "" ? [] : ["vs baseline"]),
      "requests/s",
      "decision p50 ms",
      "p99",
      "own p50 ms",
      "p99",
    ].map((title) => ({ title, align: "right" as const })),
  ];
  const rows = result.cells.map((cell) => [
    cell.target,
    cell.mode,
    cell.sizeKb.toString(),
    cell.requests.toString(),
    shown(cell.cpuUsPerRequest),
    ...(options.baseline === "" ? [] : [baselineRatio(cell)]),
    shown(cell.perSecond),
    ...[cell.decisionMsP50, cell.decisionMsP99, cell.ownDecisionMsP50, cell.ownDecisionMsP99].map(
      shown,
    ),
  ]);
  for (const line of textTable(columns, rows)) console.log(line);
  console.log("");
  for (const { name, value, bound, must, aim } of result.ratios) {
    const met = bound === "at most" ? value <= must : value >= must;
    const limit = `${bound} ${must.toString()}${aim === undefined ? "" : `, aim ${aim.toString()}`}`;
    console.log(`${met ? "met  " : "SHORT"} ${shown(value).padStart(6)}  ${name} (${limit})`);
  }
  for (const reason of result.disturbances) console.log(`VOID: ${reason}`);
  if (halfLoad !== undefined) {
    console.log(
      `decision at ${shown(halfLoad.perSecond)} requests/s of ${latencySizeKb.toString()} KB, half of the closed loop: ` +
        `p50 ${shown(halfLoad.msP50)} ms, p99 ${shown(halfLoad.msP99)} ms (best of ${latencyRounds.toString()}), ` +
        `generator late by ${shown(halfLoad.lagMsMax)} ms at worst`,
    );
  }
  console.log(
    `router: idle ${shown(figures.idleCpuMsPerSecond["router"] ?? 0)} ms CPU a second (in the figures above), ` +
      `resident ${mb(figures.residentBytes)}, ${figures.indexBlocks.toString()} blocks indexed, ` +
      `${formatRatio(figures.prefixHitRatioMean)} of prompt tokens cached`,
  );
  for (const [name, { residentBytes: bytes }] of Object.entries(result.others)) {
    const idle = figures.idleCpuMsPerSecond[name];
    const told = idle === undefined ? "" : `, idle ${shown(idle)} ms CPU a second`;
    console.log(`${name}: resident ${mb(bytes)}${told}`);
  }
}

if (options.json) console.log(JSON.stringify(result, undefined, 2));
else print();
if (options.readme) writeBenchTable(result);
if (profileFolder !== undefined) {
  const { functions, groups } = readSelfTimes(profileFolder, {
    fromUs: measuredSinceUs,
    toUs: measuredUntilUs,
  });
  for (const [title, times] of [
    ["function", functions.slice(0, Number(options.top))],
    ["package or folder", groups.slice(0, Number(options.top))],
  ] as const) {
    console.log(`\nself time of the router's main thread by ${title}, all rows above together`);
    for (const { place, ms, share } of times) {
      console.log(`${formatRatio(share).padStart(8)} ${shown(ms).padStart(8)} ms  ${place}`);
    }
  }
  rmSync(profileFolder, { recursive: true, force: true });
}
