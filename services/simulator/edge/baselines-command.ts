import { parseArgs } from "node:util";
import type { PolicyName } from "../../router/core/placement/policy.ts";
import { loadWorkload } from "../../shared/edge/workload-files.ts";
import type { FleetResult } from "../core/fleet/fleet-result.ts";
import { fleetStepModel } from "../core/fleet/fleet-run.ts";
import { runWindows } from "../core/fleet/fleet-windows.ts";
import { TokenPrompts } from "../core/fleet/token-prompts.ts";
import { numberFlag, policiesFlag, preferenceFlag, refuseFlag, wholeFlag } from "./sim-flags.ts";

/** One line that the command writes: the figures of one policy at one load of one workload. */
export interface BaselinesLine {
  readonly workload: string;
  /** As a multiple of the workload's own rate. */
  readonly load: number;
  readonly policy: PolicyName;
  readonly result: FleetResult;
  /** Real time that the runs took, ms. */
  readonly tookMs: number;
}

/** Most loads in one call. */
const loadsMax = 16;

/**
 * `main.ts sim baselines [flags]`: every policy over both workloads at several loads, each over several parts of the workload
 * with empty engines, on virtual time. Writes one JSON line (`BaselinesLine`) per workload, load and policy. Throws
 * `invalid_request` that names the flag.
 */
export function baselinesCommand(
  argv: readonly string[],
  io: { readonly write: (line: string) => void; readonly nowMs: () => number },
): void {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      policy: { type: "string", default: "all" },
      preference: { type: "string", default: "balanced" },
      workloads: { type: "string", default: "agentic,conversation" },
      loads: { type: "string", default: "0.75,1,1.25" },
      windows: { type: "string" },
      duration: { type: "string" },
      warmup: { type: "string" },
      seed: { type: "string" },
    },
  });
  const policies = policiesFlag(values.policy);
  const preference = preferenceFlag(values.preference);
  const loads = values.loads
    .split(",")
    .map((text) => numberFlag(text, "loads", { min: 0.01, below: 100, fallback: 1 }));
  if (loads.length > loadsMax) throw refuseFlag("loads", `more than ${loadsMax}`);
  const windows = wholeFlag(values.windows, "windows", { min: 1, below: 101, fallback: 4 });
  const durationS = numberFlag(values.duration, "duration", {
    min: 1,
    below: 86_400,
    fallback: 60,
  });
  const warmupRatio = numberFlag(values.warmup, "warmup", { min: 0, below: 1, fallback: 1 / 3 });
  const seed = wholeFlag(values.seed, "seed", { min: 0, below: 2 ** 32, fallback: 1 });
  for (const name of values.workloads.split(",")) {
    const prepared = loadWorkload(name);
    const { workload, defaults } = prepared;
    const prompts = new TokenPrompts(workload);
    for (const load of loads) {
      const rateFactor = defaults.rateFactor * load;
      const wholeS = (workload.requests.at(-1)?.atMs ?? 0) / rateFactor / 1_000;
      if (durationS > wholeS) {
        throw refuseFlag("duration", `${name} lasts ${wholeS.toFixed(0)} s at load ${load}`);
      }
      for (const policy of policies) {
        const startedMs = io.nowMs();
        const result = runWindows({
          prepared,
          prompts,
          policy,
          preference,
          rateFactor,
          windows,
          durationMs: durationS * 1_000,
          warmupRatio,
          seed,
          view: "live",
          engines: defaults.workers,
          routers: 1,
          meshBlockSizeTokens: workload.blockTokens % 32 === 0 ? 32 : 16,
          announcedModel: fleetStepModel,
        });
        const tookMs = io.nowMs() - startedMs;
        const line: BaselinesLine = { workload: workload.name, load, policy, result, tookMs };
        io.write(JSON.stringify(line));
      }
    }
  }
}
