import { decodeStepMs, type StepModel } from "../../../shared/core/step-model.ts";

/**
 * What one step computes. Additive, so that it can be built while sequences are scheduled:
 * `decode*` counts sequences that compute one token, `prefill*` chunks of a prompt.
 */
export class StepLoad {
  decodeSequences = 0;
  /** Context of the decoding sequences, tokens. */
  decodeContextTokens = 0;
  prefillTokens = 0;
  /** Σ n·(cached + n/2) over the prefill chunks: the attention work of the step. */
  prefillAttention = 0;

  clear(): void {
    this.decodeSequences = 0;
    this.decodeContextTokens = 0;
    this.prefillTokens = 0;
    this.prefillAttention = 0;
  }

  addDecode(contextTokens: number): void {
    this.decodeSequences++;
    this.decodeContextTokens += contextTokens;
  }

  addPrefill(newTokens: number, contextTokens: number): void {
    this.prefillTokens += newTokens;
    this.prefillAttention += newTokens * (contextTokens + newTokens / 2);
  }
}

/**
 * Duration of a step in model time, ms. Weights are read once: a mixed step pays the larger of the two
 * fixed costs, then the decode terms and the compute and attention terms of its chunks. Equals
 * `prefillMs` for one chunk alone and `decodeStepMs` for decodes alone.
 */
export function stepMs(model: StepModel, load: StepLoad): number {
  const decode = decodeStepMs(model, load.decodeSequences, load.decodeContextTokens);
  if (load.prefillTokens === 0) return decode;
  const base = load.decodeSequences > 0 ? decode + Math.max(0, model.c0 - model.d0) : model.c0;
  return base + model.c1 * load.prefillTokens + model.c2 * load.prefillAttention;
}
