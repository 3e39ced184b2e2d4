/**
 * Step times of one engine, ms:
 * prefill = c0 + c1·n + c2·n·(cached + n/2) for n new tokens on a cached prefix,
 * decode = d0 + d1·B + d2·(tokens of context in the batch).
 * Form and coefficients: fits to the vLLM 0.24 kernel tables of aiconfigurator (Apache-2.0), FP8 weights, BF16 KV.
 */
export interface StepModel {
  /** Fixed cost of a prefill step, ms. */
  readonly c0: number;
  /** Cost per new token, ms. */
  readonly c1: number;
  /** Attention cost, ms per (new token × context token). */
  readonly c2: number;
  /** Fixed cost of a decode step, ms. */
  readonly d0: number;
  /** Cost per sequence of the batch, ms. */
  readonly d1: number;
  /** Cost per context token of the batch, ms. */
  readonly d2: number;
}

/** Time to prefill `newTokens` on top of `cachedTokens`, ms; 0 when there is nothing to compute. */
export function prefillMs(model: StepModel, newTokens: number, cachedTokens: number): number {
  if (newTokens <= 0) return 0;
  return model.c0 + prefillExtraMs(model, newTokens, cachedTokens);
}

/** Prefill time without the fixed cost of a step, ms: what a chunk adds to a step that runs anyway. */
export function prefillExtraMs(model: StepModel, newTokens: number, cachedTokens: number): number {
  return model.c1 * newTokens + model.c2 * newTokens * (cachedTokens + newTokens / 2);
}

/** Time of one decode step, ms; 0 with an empty batch. */
export function decodeStepMs(model: StepModel, batch: number, contextTokensTotal: number): number {
  if (batch <= 0) return 0;
  return model.d0 + model.d1 * batch + model.d2 * contextTokensTotal;
}

/** Calibrated fits by `system/model/tensor parallel size`. */
export const stepModels: Readonly<Record<string, StepModel>> = {
  "h100_sxm/llama-3.1-8b/tp1": {
    c0: 3.637,
    c1: 0.01217,
    c2: 7.89e-7,
    d0: 5.016,
    d1: 0.009636,
    d2: 4.3e-5,
  },
  "h200_sxm/llama-3.1-8b/tp1": {
    c0: 3.26,
    c1: 0.01093,
    c2: 8e-7,
    d0: 4.29,
    d1: 0.0117,
    d2: 3.08e-5,
  },
  "h100_sxm/qwen3-32b/tp2": { c0: 7.33, c1: 0.0388, c2: 1.61e-6, d0: 9.9, d1: 0.032, d2: 4.38e-5 },
  "h200_sxm/qwen3-32b/tp2": { c0: 6.38, c1: 0.0357, c2: 1.6e-6, d0: 8.49, d1: 0.034, d2: 3.17e-5 },
  "h100_sxm/llama-3.1-70b/tp4": {
    c0: 9.34,
    c1: 0.0557,
    c2: 9.8e-7,
    d0: 11.33,
    d1: 0.0508,
    d2: 2.71e-5,
  },
  "h200_sxm/llama-3.1-70b/tp4": {
    c0: 8.11,
    c1: 0.0542,
    c2: 9.77e-7,
    d0: 9.93,
    d1: 0.0515,
    d2: 1.95e-5,
  },
  "h200_sxm/llama-3.1-70b/tp8": {
    c0: 6.9,
    c1: 0.0418,
    c2: 4.9e-7,
    d0: 8.11,
    d1: 0.0424,
    d2: 9.75e-6,
  },
};
