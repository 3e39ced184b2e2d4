import { hashRoot } from "../../../shared/core/block-hash.ts";
import { monoMs } from "../../../shared/core/ids.ts";
import { SeededRandom } from "../../../shared/core/random.ts";
import type { StepModel } from "../../../shared/core/step-model.ts";
import { EngineCore } from "../engine/engine.ts";
import type {
  EngineListener,
  EngineSequence,
  StepStart,
  TokenSampler,
} from "../engine/engine-types.ts";
import { MeshBlockHasher } from "../engine/mesh-block-hasher.ts";
import type { MeasuredRun } from "./measured-run.ts";

/** What a replay says about one request, beside what was measured. ms. */
export interface ReplayedRequest {
  readonly arrivalMs: number;
  readonly scheduledMs: number;
  readonly firstTokenMs: number;
  readonly lastTokenMs: number;
  readonly preemptions: number;
}

/** A replay of a run. */
export interface ReplayedRun {
  /** In order of arrival. */
  readonly requests: readonly ReplayedRequest[];
  readonly steps: readonly StepStart[];
  readonly preemptions: number;
}

/** Options of a replay. */
export interface ReplayOptions {
  readonly asyncScheduling?: boolean;
}

/** Answers are cut by length here, so any tokens do; a fit replays hundreds of times. */
const countingSampler: TokenSampler = {
  endToken: -1,
  start: () => ({ a: 0, b: 0 }),
  next: (state) => state.a++,
};

/**
 * Replays a run's arrivals and lengths through the engine core on a virtual clock. Prompts share no
 * prefix; a preempted sequence finds what is left of its own blocks, as in the real engine.
 */
export function replayRun(
  run: MeasuredRun,
  model: StepModel,
  options: ReplayOptions = {},
): ReplayedRun {
  const { limits } = run;
  const root = hashRoot(new Uint8Array(32), { model: run.name });
  const engine = new EngineCore({
    model,
    blockSizeTokens: limits.blockSizeTokens,
    capacityBlocks: limits.capacityBlocks,
    stepTokensMax: limits.stepTokensMax,
    runningMax: limits.runningMax,
    contextTokensMax: Math.min(32_768, (limits.capacityBlocks - 1) * limits.blockSizeTokens),
    asyncScheduling: options.asyncScheduling ?? true,
    blockEvents: false,
    hasher: new MeshBlockHasher(limits.blockSizeTokens, () => root),
    sampler: countingSampler,
  });
  const steps: StepStart[] = [];
  const listener: EngineListener = {
    stepStarted(start) {
      steps.push(start);
    },
  };
  const random = new SeededRandom(7);
  const sequences: EngineSequence[] = [];
  for (const [index, request] of run.requests.entries()) {
    const now = monoMs(request.arrivalMs);
    engine.advance(now, listener);
    const promptTokens = new Uint32Array(request.inputTokens);
    for (let i = 0; i < promptTokens.length; i++) promptTokens[i] = random.int(0x7fffffff);
    sequences.push(
      engine.submit(
        {
          id: String(index),
          promptTokens,
          outputTokensMax: request.outputTokens,
          ignoreEnd: true,
        },
        now,
      ),
    );
    if (engine.stepEndsAt === undefined) engine.advance(now, listener);
  }
  let end = engine.stepEndsAt;
  while (end !== undefined) end = engine.advance(end, listener);
  return {
    steps,
    preemptions: engine.stats().preemptions,
    requests: sequences.map((sequence) => ({
      arrivalMs: sequence.submittedAt,
      scheduledMs: sequence.scheduledAt ?? NaN,
      firstTokenMs: sequence.firstTokenAt ?? NaN,
      lastTokenMs: sequence.lastTokenAt ?? NaN,
      preemptions: sequence.preemptions,
    })),
  };
}
