import { readSamples } from "../../services/cli/core/metrics-text.ts";

/** Counts of a histogram by upper bound, cumulative. */
export type Buckets = ReadonlyMap<number, number>;

/** A scrape of a router's metrics. */
export class RouterMetrics {
  readonly #text: string;

  constructor(text: string) {
    this.#text = text;
  }

  /** Reads the metrics of the process that serves them at `port`. */
  static async read(port: number): Promise<RouterMetrics> {
    const response = await fetch(`http://127.0.0.1:${String(port)}/metrics`);
    return new RouterMetrics(await response.text());
  }

  /** Sum of a metric over its labels. */
  total(name: string): number {
    return readSamples(this.#text, [name]).reduce((sum, { value }) => sum + value, 0);
  }

  /** The buckets of a histogram. */
  buckets(name: string): Buckets {
    const samples = readSamples(this.#text, [`${name}_bucket`]);
    return new Map(
      samples.map(({ labels, value }) => [
        labels["le"] === "+Inf" ? Number.POSITIVE_INFINITY : Number(labels["le"]),
        value,
      ]),
    );
  }
}

/** Adds what happened between two scrapes to `sum`. */
export function addBuckets(sum: Map<number, number>, before: Buckets, after: Buckets): void {
  for (const [bound, count] of after) {
    sum.set(bound, (sum.get(bound) ?? 0) + count - (before.get(bound) ?? 0));
  }
}

/** Quantile of a histogram as Prometheus computes it: linear within the bucket. NaN when empty. */
export function bucketQuantile(buckets: Buckets, q: number): number {
  const bounds = [...buckets.keys()].sort((a, b) => a - b);
  const total = buckets.get(Number.POSITIVE_INFINITY) ?? Number.NaN;
  const rank = total * q;
  let lower = 0;
  let below = 0;
  for (const bound of bounds) {
    const count = buckets.get(bound) ?? 0;
    if (count >= rank && count > below) {
      return Number.isFinite(bound)
        ? lower + ((bound - lower) * (rank - below)) / (count - below)
        : lower;
    }
    lower = bound;
    below = count;
  }
  return Number.NaN;
}
