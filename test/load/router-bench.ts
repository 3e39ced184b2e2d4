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
import type { ExchangeMode } from "./ext-proc-exchange.ts";
import {
  describeMachine,
  machineFacts,
  median,
  quantile,
  repositoryRoot,
  shown,
} from "./figures.ts";
import type { Prepared, PrepareOrder, RunOrder, RunResult, Served } from "./load-generator.ts";
import { cpuMs, cpuSource, residentBytes } from "./process-figures.ts";
import { addBuckets, bucketQuantile, type Buckets } from "./router-metrics.ts";
import { RouterProcess } from "./router-process.ts";
import { ScriptedMembers } from "./scripted-members.ts";

const options = parseArgs({
  options: {
    members: { type: "string", default: "8" },
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "3" },
    sizes: { type: "string", default: "4,64,220,512" },
    modes: { type: "string", default: "buffered,duplex" },
    "rate-scale": { type: "string", default: "1" },
    "no-references": { type: "boolean", default: false },
    baseline: { type: "string", default: "" },
    top: { type: "string", default: "20" },
    profile: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
  },
}).values;

/** Requests a second by body size, KB: enough to measure, few enough that nothing queues. */
const ratesPerSecond: Readonly<Record<number, number>> = { 4: 200, 64: 60, 220: 20, 512: 8 };
/** The stock pipeline is slower: at the router's rate it would queue. */
const stockPerSecond = 10;
const stockSizeKb = 64;
const idleSeconds = 2;
const decisionMetric = "kvmesh_router_decision_duration_seconds";

type TargetName = "router" | "baseline" | "empty" | "stock";

interface Target {
  readonly name: TargetName;
  readonly address: string;
  readonly pid: number;
  /** For routers. */
  readonly mesh: Mesh | undefined;
}

/** A router and its members. */
interface Mesh {
  readonly router: RouterProcess;
  readonly members: ScriptedMembers;
}

/** One row of the report while it is measured. */
interface Cell {
  readonly target: Target;
  readonly mode: ExchangeMode;
  readonly sizeKb: number;
  readonly cpuUs: number[];
  readonly decisionMs: number[];
  readonly exchangeMs: number[];
  readonly ownBuckets: Map<number, number>;
  lagMsMax: number;
}

/** One row of the report. */
interface CellReport {
  readonly target: TargetName;
  readonly mode: ExchangeMode;
  readonly sizeKb: number;
  readonly requests: number;
  readonly cpuUsPerRequest: number;
  readonly cpuUsByRound: readonly number[];
  readonly decisionMsP50: number;
  readonly decisionMsP99: number;
  readonly exchangeMsP50: number;
  readonly exchangeMsP99: number;
  /** From the router's own histogram; NaN for references. */
  readonly ownDecisionMsP50: number;
  readonly ownDecisionMsP99: number;
  readonly lagMsMax: number;
}

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
const seconds = positive("seconds", options.seconds);
const rateScale = positive("rate-scale", options["rate-scale"]);
const modes = readModes(options.modes);
const sizesKb = options.sizes.split(",").map((text) => positive("sizes", text));

const profileFolder = options.profile ? mkdtempSync(join(tmpdir(), "kvmesh-profile-")) : undefined;
const profilerArgs =
  profileFolder === undefined
    ? []
    : ["--cpu-prof", "--cpu-prof-dir", profileFolder, "--cpu-prof-interval", "500"];

async function startMesh(
  root: string,
  nodeArgs: readonly string[],
  keysFile?: string,
): Promise<Mesh> {
  const membersMax = Math.max(64, membersCount);
  const router = await RouterProcess.start({ membersMax, root, nodeArgs, keysFile });
  const target = `127.0.0.1:${router.ports.control.toString()}`;
  const members = await ScriptedMembers.join({ count: membersCount, target, keys: router.keys });
  await router.untilServing();
  return { router, members };
}

function targetOf(name: "router" | "baseline", mesh: Mesh): Target {
  const address = `127.0.0.1:${mesh.router.ports.hot.toString()}`;
  return { name, address, pid: mesh.router.pid, mesh };
}

const mesh = await startMesh(repositoryRoot, profilerArgs);
const { router } = mesh;
const routers = [targetOf("router", mesh)];
if (options.baseline !== "") {
  const other = await startMesh(resolve(options.baseline), [], router.keysFile);
  routers.push(targetOf("baseline", other));
}

let servedBy: Mesh | undefined;
const generator = new BenchChild(join(import.meta.dirname, "load-generator.ts"), {
  name: "load generator",
  args: [router.keysFile],
  onMessage: (message) => {
    for (const { worker, hashes } of (message as Served).prompts) {
      servedBy?.members.get(worker).storeNew(hashes);
    }
  },
});
await generator.answer("ready");

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
for (const sizeKb of sizesKb) {
  for (const mode of modes) {
    for (const target of [...routers, ...references.map((reference) => reference.target)]) {
      if (target.mesh === undefined && mode !== "buffered") continue;
      if (target.name === "stock" && sizeKb !== stockSizeKb) continue;
      cells.push({
        target,
        mode,
        sizeKb,
        cpuUs: [],
        decisionMs: [],
        exchangeMs: [],
        ownBuckets: new Map(),
        lagMsMax: 0,
      });
    }
  }
}

function rateOf(sizeKb: number): number {
  return rateScale * (ratesPerSecond[sizeKb] ?? Math.max(1, 4_000 / sizeKb));
}

const text = { bytes: 0, unseenBytes: 0, prompts: 0, sharing: 0, wraps: 0 };

async function prepare(sizeKb: number, forSeconds: number): Promise<number> {
  const count = Math.max(4, Math.round(rateOf(sizeKb) * forSeconds));
  const order: PrepareOrder = { kind: "prepare", bodyBytes: sizeKb * 1_024, count };
  const prepared = await generator.ask<Prepared>(order, "prepared");
  text.bytes += prepared.bytes;
  text.unseenBytes += prepared.unseenBytes;
  text.prompts += prepared.count;
  text.sharing += prepared.sharingCount;
  text.wraps = prepared.textWraps;
  return count;
}

async function runCell(
  cell: Cell,
  prepared: number,
  forSeconds: number,
  counts: boolean,
): Promise<void> {
  const { target, mode, sizeKb } = cell;
  servedBy = target.mesh;
  const perSecond = target.name === "stock" ? stockPerSecond * rateScale : rateOf(sizeKb);
  const count = Math.min(prepared, Math.max(4, Math.round(perSecond * forSeconds)));
  const order: RunOrder = {
    kind: "run",
    target: target.address,
    mode,
    count,
    perSecond,
    isRouter: target.mesh !== undefined,
  };
  const noBuckets: Buckets = new Map();
  const scrape = async (): Promise<Buckets> =>
    (await target.mesh?.router.metrics())?.buckets(decisionMetric) ?? noBuckets;
  const before = await scrape();
  const startMs = cpuMs(target.pid);
  const result = await generator.ask<RunResult>(order, "ran");
  const usedMs = cpuMs(target.pid) - startMs;
  const after = await scrape();
  if (result.failures > 0) {
    throw new Error(
      `${target.name} ${mode} ${sizeKb.toString()} KB: ${result.failures.toString()} of ` +
        `${count.toString()} requests failed, first: ${result.failure}`,
    );
  }
  if (!counts) return;
  cell.cpuUs.push((usedMs * 1_000) / result.answered);
  cell.decisionMs.push(...result.decisionMs);
  cell.exchangeMs.push(...result.exchangeMs);
  cell.lagMsMax = Math.max(cell.lagMsMax, result.lagMsMax);
  addBuckets(cell.ownBuckets, before, after);
}

/** All cells once: each size and mode gets prompts of its own, which all its targets are sent. */
async function runRound(forSeconds: number, counts: boolean): Promise<void> {
  for (const sizeKb of sizesKb) {
    for (const mode of modes) {
      const prepared = await prepare(sizeKb, forSeconds);
      for (const cell of cells) {
        if (cell.sizeKb !== sizeKb || cell.mode !== mode) continue;
        await runCell(cell, prepared, forSeconds, counts);
      }
    }
  }
}

function report(cell: Cell): CellReport {
  return {
    target: cell.target.name,
    mode: cell.mode,
    sizeKb: cell.sizeKb,
    requests: cell.decisionMs.length,
    cpuUsPerRequest: median(cell.cpuUs),
    cpuUsByRound: cell.cpuUs.map(Math.round),
    decisionMsP50: median(cell.decisionMs),
    decisionMsP99: quantile(cell.decisionMs, 0.99),
    exchangeMsP50: median(cell.exchangeMs),
    exchangeMsP99: quantile(cell.exchangeMs, 0.99),
    ownDecisionMsP50: 1_000 * bucketQuantile(cell.ownBuckets, 0.5),
    ownDecisionMsP99: 1_000 * bucketQuantile(cell.ownBuckets, 0.99),
    lagMsMax: cell.lagMsMax,
  };
}

const before = machineFacts();
await runRound(1, false);
await sleep(500);
const idleStartMs = cpuMs(router.pid);
await sleep(idleSeconds * 1_000);
const idleMsPerSecond = (cpuMs(router.pid) - idleStartMs) / idleSeconds;
const measuredSinceUs = Number(process.hrtime.bigint() / 1_000n);
for (let round = 0; round < rounds; round++) await runRound(seconds, true);
const measuredUntilUs = Number(process.hrtime.bigint() / 1_000n);

const metrics = await router.metrics();
const hits = metrics.total("kvmesh_router_prefix_hit_ratio_sum");
const decisions = metrics.total("kvmesh_router_prefix_hit_ratio_count");
const result = {
  bench: "router",
  machine: before,
  loadAverageAfter: machineFacts().loadAverage,
  cpuSource: cpuSource(router.pid),
  members: membersCount,
  rounds,
  seconds,
  rateScale,
  text: {
    prompts: text.prompts,
    sharingShare: text.sharing / text.prompts,
    unseenShare: text.unseenBytes / text.bytes,
    wraps: text.wraps,
  },
  cells: cells.map(report),
  router: {
    idleCpuMsPerSecond: idleMsPerSecond,
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
await generator.stop();
for (const target of routers) await target.mesh?.router.stop();

// Figures of something that did not happen are worse than none.
if (result.router.loadOnly > 0) throw new Error("prompts were placed without tokens");
if (!(result.router.prefixHitRatioMean > 0.3)) throw new Error("prompts found no cached prefix");
if (result.router.reservationsOpen > 0) throw new Error("reservations were left open");

function ratio(sizeKb: number, mode: ExchangeMode, of: TargetName): string {
  const find = (name: TargetName, m: ExchangeMode): number | undefined =>
    result.cells.find((c) => c.target === name && c.mode === m && c.sizeKb === sizeKb)
      ?.cpuUsPerRequest;
  const ours = find("router", mode);
  const theirs = find(of, of === "baseline" ? mode : "buffered");
  if (ours === undefined || theirs === undefined) return "–";
  if (of === "baseline") return `${(ours / theirs).toFixed(3)}x`;
  return of === "stock" ? `${shown(theirs / ours)}x less` : `${shown(ours / theirs)}x`;
}

function print(): void {
  const { router: figures } = result;
  const mb = (bytes: number): string => `${Math.round(bytes / 1e6).toString()} MB`;
  console.log(describeMachine(result.machine));
  console.log(
    `load average after ${result.loadAverageAfter.join(" ")}, CPU from ${result.cpuSource}`,
  );
  console.log(
    `${membersCount.toString()} members; ${rounds.toString()} rounds of ${seconds.toString()} s; ` +
      `${result.text.prompts.toString()} prompts, ${formatRatio(result.text.sharingShare)} share a prefix, ` +
      `${formatRatio(result.text.unseenShare)} of bytes unseen` +
      (result.text.wraps > 0 ? " until the text was used up: use fewer rounds" : ""),
  );
  const columns = [
    { title: "target" },
    { title: "mode" },
    ...[
      "KB",
      "requests",
      "CPU µs",
      ...(options.baseline === "" ? [] : ["vs baseline"]),
      "vs empty",
      "vs stock",
      "decision p50 ms",
      "p99",
      "own p50 ms",
      "p99",
      "exchange p50 ms",
      "p99",
      "lag max",
    ].map((title) => ({ title, align: "right" as const })),
  ];
  const rows = result.cells.map((cell) => [
    cell.target,
    cell.mode,
    cell.sizeKb.toString(),
    cell.requests.toString(),
    shown(cell.cpuUsPerRequest),
    ...(options.baseline === ""
      ? []
      : [cell.target === "router" ? ratio(cell.sizeKb, cell.mode, "baseline") : ""]),
    cell.target === "router" ? ratio(cell.sizeKb, cell.mode, "empty") : "",
    cell.target === "router" ? ratio(cell.sizeKb, cell.mode, "stock") : "",
    ...[
      cell.decisionMsP50,
      cell.decisionMsP99,
      cell.ownDecisionMsP50,
      cell.ownDecisionMsP99,
      cell.exchangeMsP50,
      cell.exchangeMsP99,
      cell.lagMsMax,
    ].map(shown),
  ]);
  for (const line of textTable(columns, rows)) console.log(line);
  console.log(
    `router: idle ${shown(figures.idleCpuMsPerSecond)} ms CPU a second (in the figures above), ` +
      `resident ${mb(figures.residentBytes)}, ${figures.indexBlocks.toString()} blocks indexed, ` +
      `${formatRatio(figures.prefixHitRatioMean)} of prompt tokens cached`,
  );
  for (const [name, { residentBytes: bytes }] of Object.entries(result.others)) {
    console.log(`${name}: resident ${mb(bytes)}`);
  }
}

if (options.json) console.log(JSON.stringify(result, undefined, 2));
else print();
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
