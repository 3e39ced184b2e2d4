import type { PreparedWorkload } from "../../../shared/core/workload/prepared-file.ts";
import { stepModels, type StepModel } from "../../../shared/core/step-model.ts";
import type { Preference } from "../../../router/core/placement/estimate.ts";
import type { PolicyName } from "../../../router/core/placement/policy.ts";
import { Fleet, type FleetRecord } from "./fleet.ts";
import { defaultDelays, type FleetDelays, type FleetOptions } from "./fleet-options.ts";
import { summariseFleet, type FleetResult } from "./fleet-result.ts";
import type { TokenPrompts } from "./token-prompts.ts";

/** Longest time after the last arrival that answers may take, ms. */
const drainMsMax = 600_000;

/** What to run. */
export interface FleetRunOptions {
  readonly prepared: PreparedWorkload;
  readonly prompts: TokenPrompts;
  readonly policy: PolicyName;
  /** What our own cost favours; `balanced` when absent. */
  readonly preference?: Preference;
  readonly rateFactor: number;
  /** Where in the workload the run begins, ms of the run's own time; 0 when absent. */
  readonly fromMs?: number;
  /** Length of the run, ms. */
  readonly durationMs: number;
  /** Share of the run left out of the figures. */
  readonly warmupRatio: number;
  readonly seed: number;
  readonly view: "live" | "exact";
  readonly engines: number;
  readonly routers: number;
  readonly meshBlockSizeTokens: number;
  readonly announcedModel: StepModel | undefined;
  readonly delays?: FleetDelays;
  readonly tellsTokensMax?: boolean;
}

/** A finished run with its fleet, for a closer look. */
export interface FleetRun {
  readonly result: FleetResult;
  readonly records: readonly FleetRecord[];
  readonly fleet: Fleet;
  /** When the run began on the fleet's clock, ms. */
  readonly startMs: number;
}

/** Engine that workloads are meant for: one H100 with an 8B model under vLLM's defaults. */
export const fleetStepModel = stepModels["h100_sxm/llama-3.1-8b/tp1"] as StepModel;

/** The fleet that a workload is meant for. */
export function fleetOptions(run: FleetRunOptions): FleetOptions {
  const { defaults } = run.prepared;
  return {
    seed: run.seed,
    engines: run.engines,
    routers: run.routers,
    engine: {
      model: fleetStepModel,
      blockSizeTokens: 16,
      kvTokens: defaults.kvTokensPerWorker,
      contextTokensMax: Math.min(131_072, defaults.kvTokensPerWorker),
      stepTokensMax: 8_192,
      runningMax: 1_024,
    },
    announcedModel: run.announcedModel,
    meshBlockSizeTokens: run.meshBlockSizeTokens,
    policy: run.policy,
    ...(run.preference === undefined ? {} : { preference: run.preference }),
    delays: run.delays ?? defaultDelays,
    view: run.view,
    tellsTokensMax: run.tellsTokensMax ?? true,
    graceMs: 5_000,
  };
}

/**
 * Replays `durationMs` of a workload through a new fleet, open loop, as the replay against real
 * processes does, and waits until every answer has ended.
 * Throws `RangeError` when the workload has no request in that time.
 */
export function runFleet(run: FleetRunOptions): FleetRun {
  const { workload } = run.prepared;
  const fleet = new Fleet(fleetOptions(run));
  const startMs = fleet.time.now;
  const fromMs = run.fromMs ?? 0;
  let due = 0;
  for (const [index, request] of workload.requests.entries()) {
    const atMs = request.atMs / run.rateFactor - fromMs;
    if (atMs < 0) continue;
    if (atMs > run.durationMs) break;
    due++;
    fleet.request(startMs + atMs, () => ({
      index,
      promptTokens: run.prompts.tokens(index),
      outputTokens: request.outputTokens,
      ...(request.session === undefined ? {} : { session: request.session }),
    }));
  }
  if (due === 0) {
    throw new RangeError(
      `workload ${workload.name} has no request in the ${run.durationMs.toFixed(0)} ms from ${fromMs.toFixed(0)} ms on`,
    );
  }
  fleet.time.runUntil(startMs + run.durationMs);
  const endMs = startMs + run.durationMs + drainMsMax;
  while (fleet.openCount > 0 && fleet.time.now < endMs) fleet.time.runUntil(fleet.time.now + 500);
  const result = summariseFleet(fleet.records, {
    workload: workload.name,
    policy: run.policy,
    rateFactor: run.rateFactor,
    ratePerSecond: (due / run.durationMs) * 1_000,
    durationMs: run.durationMs,
    warmupMs: run.durationMs * run.warmupRatio,
    startMs,
  });
  return { result, records: fleet.records, fleet, startMs };
}
