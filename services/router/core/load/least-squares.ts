/** Features larger than so many times their scale are no measurement (the longest prompts come to 2,000). */
const featureMax = 10_000;
/** No time is known better than to a microsecond; smaller noise would leave no room to learn afterwards. */
const noiseMin = 1e-3;
/** Targets beyond it are no measurement either; in ms, nearly three hours. */
const targetMax = 1e7;

/**
 * Recursive least squares with forgetting over a few features, kept near a prior: starts at `prior` with
 * `priorWeight` virtual observations. Coefficients below zero are reported as zero: step times never shrink
 * with work. (Standard RLS; see for example Haykin, Adaptive Filter Theory, ch. 10.)
 */
export class RecursiveLeastSquares {
  readonly #size: number;
  readonly #forgetting: number;
  readonly #scale: readonly number[];
  readonly #weights: Float64Array;
  readonly #covariance: Float64Array;
  /** Sum of the variances at the start. */
  readonly #traceMax: number;
  #count = 0;

  /**
   * `scale[i]` is a typical size of feature i, so that all normalised features are near 1;
   * `forgetting` is the weight of the past per observation, such as 0.995.
   */
  constructor(options: {
    readonly prior: readonly number[];
    readonly scale: readonly number[];
    readonly priorWeight: number;
    readonly forgetting: number;
  }) {
    this.#size = options.prior.length;
    this.#scale = options.scale;
    this.#forgetting = options.forgetting;
    this.#weights = Float64Array.from(options.prior, (w, i) => w * (options.scale[i] ?? 1));
    this.#covariance = new Float64Array(this.#size * this.#size);
    let trace = 0;
    for (let i = 0; i < this.#size; i++) {
      const spread = Math.max(1e-3, Math.abs(this.#weights[i] ?? 0));
      const variance = (spread * spread) / options.priorWeight;
      this.#covariance[i * this.#size + i] = variance;
      trace += variance;
    }
    this.#traceMax = trace;
  }

  /** Observations taken. */
  get count(): number {
    return this.#count;
  }

  /** Coefficient of feature `i`, never negative. */
  coefficient(i: number): number {
    return Math.max(0, (this.#weights[i] ?? 0) / (this.#scale[i] ?? 1));
  }

  /**
   * Takes one observation with noise of about `noise` (same unit as `target`). Ignores what cannot have been
   * measured: what is not finite, features below 0 or absurdly large, noise that is not above 0.
   */
  observe(features: readonly number[], target: number, noise: number): void {
    const n = this.#size;
    const x = features.map((f, i) => f / (this.#scale[i] ?? 1));
    if (!(Math.abs(target) <= targetMax && noise > 0 && noise <= targetMax)) return;
    if (!x.every((f) => f >= 0 && f <= featureMax)) return;
    const px = new Float64Array(n);
    let predicted = 0;
    const noiseTaken = Math.max(noiseMin, noise);
    let spread = noiseTaken * noiseTaken * this.#forgetting;
    for (let i = 0; i < n; i++) {
      predicted += (this.#weights[i] as number) * (x[i] as number);
      for (let j = 0; j < n; j++) {
        px[i] = (px[i] as number) + (this.#covariance[i * n + j] as number) * (x[j] as number);
      }
      spread += (px[i] as number) * (x[i] as number);
    }
    const error = target - predicted;
    for (let i = 0; i < n; i++) {
      this.#weights[i] = (this.#weights[i] as number) + ((px[i] as number) / spread) * error;
    }
    let trace = 0;
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        const k = i * n + j;
        const reduced =
          (this.#covariance[k] as number) - ((px[i] as number) * (px[j] as number)) / spread;
        this.#covariance[k] = reduced;
        if (i === j) trace += reduced;
      }
    }
    // Samples that are all alike teach one direction; forgetting would let the uncertainty of the others grow
    // without end, until rounding makes it meaningless. It never exceeds what it was at the start.
    const growth = Math.min(1 / this.#forgetting, this.#traceMax / trace);
    if (growth > 1)
      for (let k = 0; k < n * n; k++)
        this.#covariance[k] = (this.#covariance[k] as number) * growth;
    this.#count++;
  }
}
