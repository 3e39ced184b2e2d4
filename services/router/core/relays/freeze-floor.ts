import { decodeStepMs, prefillExtraMs, type StepModel } from "../../../shared/core/step-model.ts";

/** Longest steps without a token after which an engine may count as frozen. */
const longestSteps = 2;
/** Step budget assumed when an engine does not tell, tokens (vLLM's default on large devices). */
const stepTokensMaxDefault = 8_192;

/**
 * For how long a stream may show nothing before its engine counts as frozen, ms: at least what is set, and two of the engine's
 * longest steps, which hold a whole budget of somebody else's prompt beside what decodes there. A 70B model takes half a second for
 * one; moving its streams away for that would compute their prompts again, and so on at the next engine.
 */
export function freezeFloorMs(
  setMs: number,
  engine: {
    readonly steps: StepModel;
    /** 0 when the engine does not tell. */
    readonly stepTokensMax: number;
    readonly decoding: number;
    readonly contextTokens: number;
  },
): number {
  const { steps, stepTokensMax, decoding, contextTokens } = engine;
  const budget = stepTokensMax > 0 ? stepTokensMax : stepTokensMaxDefault;
  const promptMs = steps.c0 + prefillExtraMs(steps, budget, 0);
  return Math.max(setMs, longestSteps * (promptMs + decodeStepMs(steps, decoding, contextTokens)));
}
