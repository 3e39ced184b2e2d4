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
    for (let i = 0; i < this.#size; i++) {
      const spread = Math.max(1e-3, Math.abs(this.#weights[i] ?? 0));
      this.#covariance[i * this.#size + i] = (spread * spread) / options.priorWeight;
    }
  }

  /** Observations taken. */
  get count(): number {
    return this.#count;
  }

  /** Coefficient of feature `i`, never negative. */
  coefficient(i: number): number {
    return Math.max(0, (this.#weights[i] ?? 0) / (this.#scale[i] ?? 1));
  }

  /** Takes one observation with noise of about `noise` (same unit as `target`). Ignores what is not finite. */
  observe(features: readonly number[], target: number, noise: number): void {
    if (!Number.isFinite(target) || features.some((f) => !Number.isFinite(f))) return;
    const n = this.#size;
    const x = features.map((f, i) => f / (this.#scale[i] ?? 1));
    const px = new Float64Array(n);
    let predicted = 0;
    let spread = noise * noise * this.#forgetting;
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
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        const k = i * n + j;
        const reduced =
          (this.#covariance[k] as number) - ((px[i] as number) * (px[j] as number)) / spread;
        this.#covariance[k] = Math.min(1e12, reduced / this.#forgetting);
      }
    }
    this.#count++;
  }
}
