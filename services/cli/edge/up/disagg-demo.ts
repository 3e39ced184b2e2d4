import { writeFileSync } from "node:fs";
import { request } from "undici";
import { realClock } from "../../../shared/edge/clock.ts";
import { MeshError } from "../../../shared/core/errors.ts";
import {
  comparedRate,
  disaggLoads,
  kneesOf,
  workloadLines,
  type DisaggLoad,
} from "../../core/disagg/disagg-loads.ts";
import { rolesOf, type DisaggProfile } from "../../core/disagg/disagg-profile.ts";
import {
  disaggModes,
  type DisaggComparison,
  type DisaggCounts,
  type DisaggMode,
  type DisaggRun,
} from "../../core/disagg/disagg-report.ts";
import { mergeSettings } from "../../core/mesh-plan.ts";
import { readSamples } from "../../core/metrics-text.ts";
import type { CommandIo } from "../command-io.ts";
import { runReplayInProcess } from "../replay/replay-process.ts";
import { setPolicy } from "./demo.ts";
import type { Mesh } from "./mesh.ts";
import { cpuMsOfAll } from "./process-cpu.ts";
import { ProgressPrinter } from "./progress-printer.ts";
import { readTraffic, unpickedBetween } from "./traffic-counts.ts";

/** A comparison of whole requests with pairs on one mesh. */
export interface DisaggDemoOptions {
  readonly mesh: Mesh;
  readonly profile: DisaggProfile;
  /** The rate of the rule is multiplied with this. */
  readonly rateFactor: number;
  readonly durationMs: number;
  readonly model: string;
  /** Envoy's listener for trusted callers: it lets them name their targets. */
  readonly url: string;
  readonly io: CommandIo;
  readonly signal: AbortSignal;
}

/** Share of each run that fills the engines and is not counted: the longest answers take 14 s. */
const warmupRatio = 1 / 3;
/** Arrivals are the same in all modes and runs. */
const arrivalSeed = 11;

const settingOf: Readonly<Record<DisaggMode, string>> = {
  aggregated: "never",
  disaggregated: "always",
  "free choice": "auto",
};

/**
 * Replays each load in each mode, in the same routers, relays and Envoy; engines and workers start again before each, so that
 * nothing is cached and each mode has the roles that suit it (`rolesOf`). Arrivals are the same in all modes of a load.
 */
export async function compareForms(options: DisaggDemoOptions): Promise<DisaggComparison[]> {
  const { mesh, profile, durationMs } = options;
  const comparisons: DisaggComparison[] = [];
  for (const [index, load] of disaggLoads.entries()) {
    const knees = kneesOf(load, profile.fleet);
    const rate = comparedRate(knees) * options.rateFactor;
    const file = mesh.options.state.file(`disagg-${String(index)}.jsonl`);
    writeFileSync(file, workloadLines(load, { rate, durationMs, seed: arrivalSeed }));
    const runs: Partial<Record<DisaggMode, DisaggRun>> = {};
    for (const [at, mode] of disaggModes.entries()) {
      await renewFleet(mesh, rolesOf(mode, profile.fleet), options.signal);
      await setForm(mesh, settingOf[mode], { placeOnArrival: true });
      const place = index * disaggModes.length + at;
      runs[mode] = await runMode(options, { load, mode, file, place });
    }
    comparisons.push({ load, knees, rate, runs: runs as Record<DisaggMode, DisaggRun> });
  }
  return comparisons;
}

/** Sets on every router whether requests run as pairs. */
export async function setForm(
  mesh: Mesh,
  disaggregation: string,
  { placeOnArrival }: { readonly placeOnArrival: boolean },
): Promise<void> {
  await setPolicy(mesh, "kv", { placeOnArrival, disaggregation });
}

/**
 * Starts engines and workers anew, the workers with these roles (`both` where none is given), and waits until every router has the
 * later ones and the mesh serves.
 */
export async function renewFleet(
  mesh: Mesh,
  roles: readonly string[],
  signal: AbortSignal,
): Promise<void> {
  const { plan } = mesh.options;
  const before = await workersSeen(mesh);
  const roleOf = new Map<string, string>();
  for (const [index, worker] of plan.workers.entries()) {
    const role = roles[index] ?? "both";
    const { workerId } = worker.settings as { readonly workerId: string };
    roleOf.set(workerId, role);
    mesh.changeSettings({
      ...worker,
      settings: mergeSettings(worker.settings, { engine: { role } }),
    });
  }
  await Promise.all(mesh.names("worker").map((name) => mesh.process(name).stop(stopMs)));
  await Promise.all(mesh.names("engine").map((name) => mesh.restartProcess(name, signal)));
  await Promise.all(mesh.names("worker").map((name) => mesh.startProcess(name, signal)));
  const deadline = realClock.now() + mesh.options.readyMsMax;
  for (;;) {
    signal.throwIfAborted();
    const now = await workersSeen(mesh);
    const late = [...before].flatMap(([key, old]) => {
      const seen = now.get(key);
      const isNew = seen !== undefined && seen.startMs > old.startMs && seen.state === "ready";
      return isNew && seen.role === roleOf.get(seen.workerId) ? [] : [key];
    });
    if (late.length === 0) break;
    if (realClock.now() > deadline) {
      const names = late.join(", ");
      throw new MeshError("deadline_exceeded", `started again, but not seen as new: ${names}`);
    }
    await realClock.sleep(50, signal);
  }
  await mesh.untilServing(signal);
}

/** Longest time for a worker to say goodbye, ms. */
const stopMs = 3_000;

interface WorkerSeen {
  readonly workerId: string;
  readonly startMs: bigint;
  readonly state: string;
  readonly role: string;
}

/** Each worker at each router. */
async function workersSeen(mesh: Mesh): Promise<Map<string, WorkerSeen>> {
  const seen = new Map<string, WorkerSeen>();
  for (const [address, topology] of await mesh.routers.topologies()) {
    if (topology instanceof MeshError) continue;
    for (const worker of topology.pools.flatMap((pool) => pool.workers)) {
      const { workerId, workerStartMs: startMs, state, role } = worker;
      seen.set(`${workerId} at router ${address}`, { workerId, startMs, state, role });
    }
  }
  return seen;
}

async function runMode(
  options: DisaggDemoOptions,
  run: {
    readonly load: DisaggLoad;
    readonly mode: DisaggMode;
    readonly file: string;
    readonly place: number;
  },
): Promise<DisaggRun> {
  const { mesh, url, model, durationMs, signal, io } = options;
  const { load, mode, file, place } = run;
  const { targets } = load;
  const progress = new ProgressPrinter(io);
  const [traffic, counted, startedAt] = [
    await readTraffic(mesh),
    await readCounts(mesh),
    realClock.now(),
  ];
  const replayed = await runReplayInProcess(
    {
      workload: file,
      url,
      model,
      rateFactor: 1,
      durationMs,
      warmupRatio,
      targets,
      api: "completions",
      headers: {
        "x-kvmesh-slo-ttft-ms": String(targets.ttftMs),
        "x-kvmesh-slo-itl-ms": String(targets.itlMs),
      },
    },
    {
      signal,
      onProgress: (now) => {
        const count = disaggLoads.length * disaggModes.length;
        progress.show({ name: mode, index: place, count, ...now });
      },
    },
  );
  progress.end();
  signal.throwIfAborted();
  const wallMs = realClock.now() - startedAt;
  const unpicked = unpickedBetween(traffic, await readTraffic(mesh));
  const counts = between(counted, await readCounts(mesh), wallMs);
  return { result: { ...replayed, workload: load.name, unpicked }, counts };
}

/** Counters of now; CPU in ms, undefined where unknown. */
interface Counts {
  readonly pairs: number;
  readonly placed: number;
  readonly kvBytes: number;
  readonly kvBadBlocks: number;
  readonly routerMs: number | undefined;
  readonly relayMs: number | undefined;
  readonly engineMs: number | undefined;
  readonly envoyMs: number | undefined;
}

async function readCounts(mesh: Mesh): Promise<Counts> {
  const { host, ports } = mesh.options;
  const sum = async (
    targets: readonly number[],
    name: string,
    labels: Readonly<Record<string, string>> = {},
  ): Promise<number> => {
    const texts = await Promise.all(targets.map((port) => metricsAt(`http://${host}:${port}`)));
    return texts
      .flatMap((text) => readSamples(text, [name]))
      .filter((one) => Object.entries(labels).every(([key, value]) => one.labels[key] === value))
      .reduce((total, one) => total + one.value, 0);
  };
  const routers = ports.routers.map((router) => router.http);
  const engines = ports.engines.map((engine) => engine.http);
  const cpu = (kind: Parameters<Mesh["names"]>[0]): number | undefined =>
    cpuMsOfAll(mesh.names(kind).map((name) => mesh.process(name).pid));
  return {
    pairs: await sum(routers, "kvmesh_router_pair_decisions_total", { form: "pair" }),
    placed: await sum(routers, "kvmesh_router_decisions_total", { outcome: "placed" }),
    kvBytes: await sum(engines, "kvmesh_engine_kv_pulled_bytes_total"),
    kvBadBlocks: await sum(engines, "kvmesh_engine_kv_bad_blocks_total"),
    routerMs: cpu("router"),
    relayMs: cpu("relay"),
    engineMs: cpu("engine"),
    envoyMs: cpu("envoy"),
  };
}

async function metricsAt(url: string): Promise<string> {
  const { body } = await request(`${url}/metrics`, { signal: AbortSignal.timeout(2_000) });
  return body.text();
}

function between(before: Counts, after: Counts, wallMs: number): DisaggCounts {
  const cores = (from: number | undefined, to: number | undefined): number | null =>
    from === undefined || to === undefined || to < from ? null : (to - from) / wallMs;
  return {
    pairs: after.pairs - before.pairs,
    placed: after.placed - before.placed,
    kvBytes: after.kvBytes - before.kvBytes,
    kvBadBlocks: after.kvBadBlocks - before.kvBadBlocks,
    routerCores: cores(before.routerMs, after.routerMs),
    relayCores: cores(before.relayMs, after.relayMs),
    engineCores: cores(before.engineMs, after.engineMs),
    envoyCores: cores(before.envoyMs, after.envoyMs),
  };
}
