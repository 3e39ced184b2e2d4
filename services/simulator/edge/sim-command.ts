import { parseArgs } from "node:util";
import type { PolicyName } from "../../router/core/placement/policy.ts";
import { loadWorkload } from "../../shared/edge/workload-files.ts";
import { fleetStepModel, runFleet } from "../core/fleet/fleet-run.ts";
import type { FleetResult } from "../core/fleet/fleet-result.ts";
import { TokenPrompts } from "../core/fleet/token-prompts.ts";
import { numberFlag, policiesFlag, preferenceFlag, refuseFlag, wholeFlag } from "./sim-flags.ts";

/** One line that the command writes: the figures of one policy. */
export interface SimLine {
  readonly policy: PolicyName;
  readonly view: "live" | "exact";
  readonly result: FleetResult;
  /** Real time that the run took, ms. */
  readonly tookMs: number;
}

/**
 * `main.ts sim WORKLOAD [flags]`: replays a workload on a virtual fleet, one policy after the other, each with empty
 * engines, and writes one JSON line (`SimLine`) per policy. Throws `invalid_request` that names the flag.
 */
export function simCommand(
  argv: readonly string[],
  io: { readonly write: (line: string) => void; readonly nowMs: () => number },
): void {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: {
      policy: { type: "string", default: "all" },
      preference: { type: "string", default: "balanced" },
      rate: { type: "string" },
      duration: { type: "string" },
      warmup: { type: "string" },
      seed: { type: "string" },
      view: { type: "string", default: "live" },
      workers: { type: "string" },
      routers: { type: "string" },
    },
  });
  const [source] = positionals;
  if (source === undefined || positionals.length > 1) {
    throw refuseFlag("workload", "name one workload: agentic, conversation, or a file");
  }
  const { view } = values;
  if (view !== "live" && view !== "exact")
    throw refuseFlag("view", `${view} is neither live nor exact`);
  const policies = policiesFlag(values.policy);
  const preference = preferenceFlag(values.preference);
  const prepared = loadWorkload(source);
  const { workload, defaults } = prepared;
  const rateFactor = numberFlag(values.rate, "rate", {
    min: 1e-6,
    below: 1e6,
    fallback: defaults.rateFactor,
  });
  const wholeS = (workload.requests.at(-1)?.atMs ?? 0) / rateFactor / 1_000;
  const durationS = numberFlag(values.duration, "duration", {
    min: 1,
    below: 86_400,
    fallback: Math.min(60, wholeS),
  });
  if (durationS > wholeS + 0.001) {
    throw refuseFlag(
      "duration",
      `the workload lasts ${wholeS.toFixed(0)} s at rate factor ${rateFactor}; lower the rate or the duration`,
    );
  }
  const whole = (text: string | undefined, field: string, fallback: number, below: number) =>
    wholeFlag(text, field, { min: field === "seed" ? 0 : 1, below, fallback });
  const prompts = new TokenPrompts(workload);
  for (const policy of policies) {
    const startedMs = io.nowMs();
    const { result } = runFleet({
      prepared,
      prompts,
      policy,
      preference,
      rateFactor,
      durationMs: durationS * 1_000,
      warmupRatio: numberFlag(values.warmup, "warmup", { min: 0, below: 1, fallback: 1 / 3 }),
      seed: whole(values.seed, "seed", 1, 2 ** 32),
      view,
      engines: whole(values.workers, "workers", defaults.workers, 65),
      routers: whole(values.routers, "routers", 1, 9),
      // As the demo does: workloads whose blocks are whole multiples of 32 are routed in blocks of 32.
      meshBlockSizeTokens: workload.blockTokens % 32 === 0 ? 32 : 16,
      announcedModel: fleetStepModel,
    });
    const line: SimLine = { policy, view, result, tookMs: io.nowMs() - startedMs };
    io.write(JSON.stringify(line));
  }
}
