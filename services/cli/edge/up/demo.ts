import { existsSync, readFileSync } from "node:fs";
import { MeshError } from "../../../shared/core/errors.ts";
import { realClock } from "../../../shared/edge/clock.ts";
import { rotated, type RunProgress } from "../../core/progress-line.ts";
import type { ReplayResult } from "../../core/replay/result.ts";
import type { CommandIo } from "../command-io.ts";
import { runReplayInProcess } from "../replay/replay-process.ts";
import type { PolicyOptions } from "../router-client.ts";
import type { Mesh } from "./mesh.ts";
import { ProgressPrinter } from "./progress-printer.ts";
import { readTraffic, unpickedBetween } from "./traffic-counts.ts";

/** A comparison of policies on one mesh. */
export interface DemoOptions {
  readonly mesh: Mesh;
  /** Name or file of the workload. */
  readonly workload: string;
  readonly rateFactor: number;
  readonly durationMs: number;
  readonly model: string;
  /** Envoy's listener for trusted callers: its answers name the engine that served them. */
  readonly url: string;
  /** In the order of the table; run in rotated order. */
  readonly policies: readonly string[];
  /** Worker ids by engine endpoint. */
  readonly workerNames: ReadonlyMap<string, string>;
  readonly io: CommandIo;
  readonly signal: AbortSignal;
}

/** Share of each run that warms caches and is not counted. */
const warmupRatio = 1 / 3;

/**
 * Replays the workload once per policy, in the same processes but for the engines, which start again empty before
 * each. Results come in the order of `policies`; the order of the runs moves by one with every call.
 */
export async function comparePolicies(
  options: DemoOptions,
): Promise<Readonly<Record<string, ReplayResult>>> {
  const { mesh, policies, io } = options;
  const order = rotated(policies, nextRotation(mesh));
  io.err(`policies run in the order ${order.join(", ")} (moves by one with every start)`);
  const results = new Map<string, ReplayResult>();
  for (const [index, policy] of order.entries()) {
    await restartEngines(mesh, options.signal);
    // A queue before the workers would level out what policies choose badly.
    await setPolicy(mesh, policy, { placeOnArrival: true });
    results.set(policy, await replay(options, { name: policy, index, count: order.length }));
  }
  const ordered: Record<string, ReplayResult> = {};
  for (const policy of policies) {
    const result = results.get(policy);
    if (result !== undefined) ordered[policy] = result;
  }
  return ordered;
}

/** Sets the policy, and what goes with it, on every router. Fails with `worker_lost` when one did not take it. */
export async function setPolicy(mesh: Mesh, policy: string, options: PolicyOptions): Promise<void> {
  const { appliedBy } = await mesh.routers.setPolicy(policy, options);
  const wanted = mesh.options.ports.routers.length;
  if (appliedBy.length < wanted) {
    throw new MeshError(
      "worker_lost",
      `policy ${policy} was taken by ${appliedBy.length} of ${wanted} routers: ${appliedBy.join(", ")}`,
    );
  }
}

/**
 * Starts every engine anew and waits until the mesh serves with the new ones: each router has seen a later life of
 * every engine, so that nothing of the earlier caches is believed in.
 */
export async function restartEngines(mesh: Mesh, signal: AbortSignal): Promise<void> {
  const before = await engineLives(mesh);
  await Promise.all(mesh.names("engine").map((name) => mesh.restartProcess(name, signal)));
  const deadline = realClock.now() + mesh.options.readyMsMax;
  for (;;) {
    signal.throwIfAborted();
    const now = await engineLives(mesh);
    const old = [...before].filter(([member, life]) => (now.get(member) ?? 0n) <= life);
    if (old.length === 0) break;
    if (realClock.now() > deadline) {
      const names = old.map(([member]) => member).join(", ");
      throw new MeshError(
        "deadline_exceeded",
        `engines started again, but not seen as new: ${names}`,
      );
    }
    await realClock.sleep(50, signal);
  }
  await mesh.untilServing(signal);
}

/** Engine life of each worker at each router. */
async function engineLives(mesh: Mesh): Promise<Map<string, bigint>> {
  const lives = new Map<string, bigint>();
  for (const [address, seen] of await mesh.routers.topologies()) {
    if (seen instanceof MeshError) continue;
    for (const worker of seen.pools.flatMap((pool) => pool.workers)) {
      lives.set(`${worker.workerId} at router ${address}`, worker.engineLife);
    }
  }
  return lives;
}

async function replay(
  options: DemoOptions,
  run: Pick<RunProgress, "name" | "index" | "count">,
): Promise<ReplayResult> {
  const { mesh, workload, url, model, rateFactor, durationMs, signal, io } = options;
  const before = await readTraffic(mesh);
  const progress = new ProgressPrinter(io);
  const result = await runReplayInProcess(
    { workload, url, model, rateFactor, durationMs, warmupRatio, api: "completions" },
    {
      signal,
      onProgress: (now) => {
        progress.show({ ...run, ...now });
      },
    },
  );
  progress.end();
  signal.throwIfAborted();
  const unpicked = unpickedBetween(before, await readTraffic(mesh));
  return { ...result, unpicked, workers: named(result.workers, options.workerNames) };
}

/** Measured requests by worker id instead of endpoint; a worker that served none stands with 0. */
function named(
  byEndpoint: Readonly<Record<string, number>>,
  names: ReadonlyMap<string, string>,
): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of names.values()) counts[name] = 0;
  for (const [endpoint, count] of Object.entries(byEndpoint)) {
    const name = names.get(endpoint) ?? endpoint;
    counts[name] = (counts[name] ?? 0) + count;
  }
  return counts;
}

/** Number of earlier comparisons in this state folder; counted up. */
function nextRotation(mesh: Mesh): number {
  const { state } = mesh.options;
  const path = state.file("rotation.json");
  let number = 0;
  if (existsSync(path)) {
    const read: unknown = JSON.parse(readFileSync(path, "utf8"));
    if (typeof read === "number" && Number.isInteger(read) && read >= 0) number = read;
  }
  state.write("rotation.json", number + 1);
  return number;
}
