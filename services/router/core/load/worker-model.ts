import { decodeStepMs, prefillMs, type StepModel } from "../../../shared/core/step-model.ts";
import { RecursiveLeastSquares } from "./least-squares.ts";

/** Start values when a worker names no calibrated model: an 8B-class model on one current GPU. */
export const defaultStepModel: StepModel = {
  c0: 5,
  c1: 0.015,
  c2: 8e-7,
  d0: 6,
  d1: 0.012,
  d2: 4e-5,
};

/** One interval of an engine's counters, differences between two reports. */
export interface CounterDelta {
  /** Mean gap between tokens, ms. */
  readonly interTokenMs: number;
  /** Number of gaps. */
  readonly interTokenCount: number;
  /** Requests in the batch, mean of both reports. */
  readonly running: number;
  /** Context tokens in the batch. */
  readonly contextTokens: number;
  /** Prompt tokens computed in the interval. */
  readonly computedTokens: number;
  /** Requests finished. */
  readonly finished: number;
  /** Tokens generated. */
  readonly generatedTokens: number;
}

/**
 * How many observations a start value counts for: one of a calibrated model is near, others are guesses that the first
 * requests should overrule.
 */
const calibratedWeight = 50;
const guessedWeight = 2;
/** Longest mean answer believed, tokens. */
const outputTokensMax = 1_000_000;
/** Kept for the error quantile. */
const errorsKept = 128;

/**
 * What one engine's steps cost, learned while it runs: prefill from times to first token of requests that
 * did not queue, decode from its own inter-token counters. Starts from calibrated or default values.
 */
export class WorkerModel {
  #prefill: RecursiveLeastSquares;
  #decode: RecursiveLeastSquares;
  readonly #errors = new Float64Array(errorsKept);
  #errorCount = 0;
  #outputTokens: number | undefined;
  #current: StepModel;

  constructor(prior: StepModel | undefined) {
    const weight = prior === undefined ? guessedWeight : calibratedWeight;
    this.#current = prior ?? defaultStepModel;
    this.#prefill = learnPrefill(this.#current, weight);
    this.#decode = learnDecode(this.#current, weight);
  }

  /** Begins anew from a guess: what was learned may hold no longer. Lengths of answers and errors stay. */
  restart(guess: StepModel): void {
    this.#current = guess;
    this.#prefill = learnPrefill(guess, guessedWeight);
    this.#decode = learnDecode(guess, guessedWeight);
  }

  /** Coefficients now. */
  get steps(): StepModel {
    return this.#current;
  }

  /** Mean answer length seen on this engine, tokens; `undefined` before the first. */
  get outputTokensMean(): number | undefined {
    return this.#outputTokens;
  }

  /** Time to prefill, ms. */
  prefillMs(newTokens: number, cachedTokens: number): number {
    return prefillMs(this.#current, newTokens, cachedTokens);
  }

  /** Time of a decode step, ms. */
  decodeStepMs(batch: number, contextTokens: number): number {
    return decodeStepMs(this.#current, batch, contextTokens);
  }

  /** A request that found the engine without prefill work: its time from dispatch to first token, ms. */
  observePrefill(sample: { newTokens: number; cachedTokens: number; ms: number }): void {
    const { newTokens: n, cachedTokens: c, ms } = sample;
    if (n <= 0 || ms <= 0) return;
    this.#prefill.observe([1, n, n * (c + n / 2)], ms, Math.max(3, ms * 0.15));
    this.#refresh();
  }

  /** One interval of the engine's counters. */
  observeInterval(delta: CounterDelta): void {
    const answerTokens = delta.generatedTokens / delta.finished;
    if (delta.finished > 0 && answerTokens > 0 && Number.isFinite(answerTokens)) {
      // An answer has at least one token; counters that give absurd lengths must not reach a prediction.
      const mean = Math.max(1, Math.min(outputTokensMax, answerTokens));
      const weight = Math.min(0.5, delta.finished / 50);
      this.#outputTokens =
        this.#outputTokens === undefined ? mean : this.#outputTokens * (1 - weight) + mean * weight;
    }
    if (delta.interTokenCount < 8 || delta.running < 0.5) return;
    const steps = delta.interTokenCount / delta.running;
    // A prompt's own answer has no gap for it: only those of the others are longer.
    const othersShare = Math.max(0, delta.running - 1) / delta.running;
    const prefillMs = this.#current.c1 * delta.computedTokens * othersShare;
    const prefillShareMs = prefillMs / Math.max(1, steps);
    const stepMs = delta.interTokenMs - prefillShareMs;
    if (stepMs <= 0) return;
    this.#decode.observe(
      [1, delta.running, delta.contextTokens],
      stepMs,
      Math.max(1, stepMs * 0.2),
    );
    this.#refresh();
  }

  /** A finished request's prediction beside what happened. */
  observeError(predictedTtftMs: number, observedTtftMs: number): void {
    if (observedTtftMs <= 0) return;
    const ratio = Math.abs(predictedTtftMs - observedTtftMs) / observedTtftMs;
    this.#errors[this.#errorCount % errorsKept] = ratio;
    this.#errorCount++;
  }

  /** Median of |predicted − observed| ÷ observed over recent requests; `undefined` before the first. */
  errorRatioP50(): number | undefined {
    const count = Math.min(this.#errorCount, errorsKept);
    if (count === 0) return undefined;
    const sorted = this.#errors.slice(0, count).sort();
    return sorted[Math.floor(count / 2)];
  }

  #refresh(): void {
    this.#current = {
      c0: this.#prefill.coefficient(0),
      c1: Math.max(1e-6, this.#prefill.coefficient(1)),
      c2: this.#prefill.coefficient(2),
      d0: Math.max(0.1, this.#decode.coefficient(0)),
      d1: this.#decode.coefficient(1),
      d2: this.#decode.coefficient(2),
    };
  }
}

function learnPrefill(start: StepModel, priorWeight: number): RecursiveLeastSquares {
  return new RecursiveLeastSquares({
    prior: [start.c0, start.c1, start.c2],
    scale: [1, 2_000, 4_000_000],
    priorWeight,
    forgetting: 0.998,
  });
}

function learnDecode(start: StepModel, priorWeight: number): RecursiveLeastSquares {
  return new RecursiveLeastSquares({
    prior: [start.d0, start.d1, start.d2],
    scale: [1, 16, 50_000],
    priorWeight,
    forgetting: 0.995,
  });
}

/** Which of two engines is the faster for an ordinary request: 2,000 prompt tokens, an answer of 100. */
export function fasterOf(a: StepModel, b: StepModel): StepModel {
  const ordinaryMs = (steps: StepModel) =>
    prefillMs(steps, 2_000, 0) + 100 * decodeStepMs(steps, 1, 2_000);
  return ordinaryMs(b) < ordinaryMs(a) ? b : a;
}
