import type { Registry } from "prom-client";

/** Label values by name. A label that is left out has no value. */
export type Labels<Name extends string> = Readonly<Partial<Record<Name, string | number>>>;

/** One line of a metric. */
export interface MetricLine {
  /** Set where the line's name is not the metric's, as for the parts of a histogram. */
  readonly metricName?: string;
  readonly labels: Readonly<Record<string, string | number>>;
  readonly value: number;
}

/** A metric with its lines, in the form that a registry of prom-client reads. */
export interface MetricReading {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge" | "histogram";
  readonly aggregator: "sum";
  readonly values: readonly MetricLine[];
}

/** What a metric is made of. */
export interface MetricOptions {
  readonly name: string;
  readonly help: string;
  readonly labelNames: readonly string[];
  readonly registry: Registry;
}

interface Cell {
  readonly labels: Readonly<Record<string, string | number>>;
  value: number;
}

type Registered = Parameters<Registry["registerMetric"]>[0];

const noLabels: Readonly<Record<string, string | number>> = {};

/**
 * The values of a metric by their labels. Counting is on the path of every request: a lookup by one label's text, or
 * none at all without labels, where prom-client sorts, hashes and checks the labels each time (20 ns against 200). That
 * library still writes the text: its registry reads the metric through `get`.
 */
class Cells<Name extends string> {
  readonly #names: readonly string[];
  readonly #cells = new Map<string, Cell>();
  readonly #only: Cell | undefined;
  /** The cell used last: most metrics of a request get the same labels as for the one before. */
  #last: Cell | undefined;

  constructor(names: readonly string[]) {
    this.#names = names;
    if (names.length > 0) return;
    this.#only = { labels: noLabels, value: 0 };
    this.#cells.set("", this.#only);
  }

  at(labels: Labels<Name> | undefined): Cell {
    if (this.#only !== undefined) return this.#only;
    const plain = labels as Readonly<Record<string, string | number>> | undefined;
    if (this.#last !== undefined && isSame(this.#names, this.#last.labels, plain))
      return this.#last;
    const key = this.#key(labels);
    let cell = this.#cells.get(key);
    if (cell === undefined) {
      cell = { labels: { ...plain }, value: 0 };
      this.#cells.set(key, cell);
    }
    this.#last = cell;
    return cell;
  }

  remove(labels: Labels<Name>): void {
    this.#cells.delete(this.#key(labels));
    this.#last = undefined;
  }

  lines(): MetricLine[] {
    return [...this.#cells.values()].map(({ labels, value }) => ({ labels, value }));
  }

  #key(labels: Labels<Name> | undefined): string {
    return labelKey(this.#names, labels as Readonly<Record<string, string | number>> | undefined);
  }
}

function isSame(
  names: readonly string[],
  a: Readonly<Record<string, string | number>>,
  b: Readonly<Record<string, string | number>> | undefined,
): boolean {
  for (const name of names) if (a[name] !== b?.[name]) return false;
  return true;
}

function labelKey(
  names: readonly string[],
  labels: Readonly<Record<string, string | number>> | undefined,
): string {
  const [first = "", second] = names;
  const text = String(labels?.[first] ?? "");
  if (second === undefined) return text;
  let key = text;
  for (let i = 1; i < names.length; i++) key += `\u0000${labels?.[names[i] as string] ?? ""}`;
  return key;
}

/** A count that only rises. */
export class MeshCounter<Name extends string = string> {
  readonly name: string;
  readonly #help: string;
  readonly #cells: Cells<Name>;

  constructor(options: MetricOptions) {
    this.name = options.name;
    this.#help = options.help;
    this.#cells = new Cells(options.labelNames);
    options.registry.registerMetric(this as unknown as Registered);
  }

  /** Adds 1, or a number that is not negative. */
  inc(value?: number): void;
  inc(labels: Labels<Name>, value?: number): void;
  inc(first?: Labels<Name> | number, second?: number): void {
    const value = typeof first === "number" ? first : (second ?? 1);
    if (!(value >= 0)) return;
    this.#cells.at(typeof first === "number" ? undefined : first).value += value;
  }

  /** Forgets the value of these labels. */
  remove(labels: Labels<Name>): void {
    this.#cells.remove(labels);
  }

  /** All values. */
  get(): Promise<MetricReading> {
    const { name } = this;
    return Promise.resolve({
      name,
      help: this.#help,
      type: "counter",
      aggregator: "sum",
      values: this.#cells.lines(),
    });
  }
}

/** A value that rises and falls. */
export class MeshGauge<Name extends string = string> {
  readonly name: string;
  readonly #help: string;
  readonly #cells: Cells<Name>;

  constructor(options: MetricOptions) {
    this.name = options.name;
    this.#help = options.help;
    this.#cells = new Cells(options.labelNames);
    options.registry.registerMetric(this as unknown as Registered);
  }

  /** Sets the value. */
  set(value: number): void;
  set(labels: Labels<Name>, value: number): void;
  set(first: Labels<Name> | number, second = 0): void {
    if (typeof first === "number") this.#cells.at(undefined).value = first;
    else this.#cells.at(first).value = second;
  }

  /** Adds 1, or a number. */
  inc(value = 1): void {
    this.#cells.at(undefined).value += value;
  }

  /** Takes 1 away, or a number. */
  dec(value = 1): void {
    this.#cells.at(undefined).value -= value;
  }

  /** Forgets the value of these labels. */
  remove(labels: Labels<Name>): void {
    this.#cells.remove(labels);
  }

  /** All values. */
  get(): Promise<MetricReading> {
    const { name } = this;
    return Promise.resolve({
      name,
      help: this.#help,
      type: "gauge",
      aggregator: "sum",
      values: this.#cells.lines(),
    });
  }
}

/** Counts of one set of labels by bucket, the last one for values above all bounds. */
export class Distribution {
  readonly #bounds: Float64Array;
  readonly #counts: Float64Array;
  #sum = 0;
  #count = 0;

  constructor(bounds: readonly number[]) {
    this.#bounds = Float64Array.from(bounds);
    this.#counts = new Float64Array(bounds.length + 1);
  }

  /** Counts a value; one that is no number is left out. */
  observe(value: number): void {
    if (!Number.isFinite(value)) return;
    const bounds = this.#bounds;
    let i = 0;
    while (i < bounds.length && value > (bounds[i] as number)) i++;
    this.#counts[i] = (this.#counts[i] as number) + 1;
    this.#sum += value;
    this.#count++;
  }

  /** The lines of this distribution in a histogram of this name. */
  lines(name: string, labels: Readonly<Record<string, string | number>>): MetricLine[] {
    let below = 0;
    const metricName = `${name}_bucket`;
    const lines = Array.from(this.#bounds, (bound, i): MetricLine => {
      below += this.#counts[i] as number;
      return { metricName, labels: { le: bound, ...labels }, value: below };
    });
    lines.push(
      { metricName, labels: { le: "+Inf", ...labels }, value: this.#count },
      { metricName: `${name}_sum`, labels, value: this.#sum },
      { metricName: `${name}_count`, labels, value: this.#count },
    );
    return lines;
  }
}

/** Counts of values by buckets. */
export class MeshHistogram<Name extends string = string> {
  readonly name: string;
  readonly #help: string;
  readonly #names: readonly string[];
  readonly #bounds: readonly number[];
  readonly #distributions = new Map<
    string,
    { labels: Readonly<Record<string, string | number>>; distribution: Distribution }
  >();
  readonly #only: Distribution | undefined;

  /** `bounds`: upper bounds of the buckets, rising. */
  constructor(options: MetricOptions, bounds: readonly number[]) {
    this.name = options.name;
    this.#help = options.help;
    this.#names = options.labelNames;
    this.#bounds = bounds;
    if (options.labelNames.length === 0) this.#only = this.labels({} as Labels<Name>);
    options.registry.registerMetric(this as unknown as Registered);
  }

  /** Counts a value. */
  observe(value: number): void;
  observe(labels: Labels<Name>, value: number): void;
  observe(first: Labels<Name> | number, second = Number.NaN): void {
    if (typeof first !== "number") this.labels(first).observe(second);
    else if (this.#only !== undefined) this.#only.observe(first);
  }

  /** The values of these labels. */
  labels(labels: Labels<Name>): Distribution {
    const plain = labels as Readonly<Record<string, string | number>>;
    const key = labelKey(this.#names, plain);
    let found = this.#distributions.get(key);
    if (found === undefined) {
      found = { labels: { ...plain }, distribution: new Distribution(this.#bounds) };
      this.#distributions.set(key, found);
    }
    return found.distribution;
  }

  /** Counts the seconds from now until the returned function is called, which also returns them. */
  startTimer(): () => number {
    const startedAt = performance.now();
    return () => {
      const seconds = (performance.now() - startedAt) / 1_000;
      this.observe(seconds);
      return seconds;
    };
  }

  /** All values. */
  get(): Promise<MetricReading> {
    const { name } = this;
    const values = [...this.#distributions.values()].flatMap(({ labels, distribution }) =>
      distribution.lines(name, labels),
    );
    return Promise.resolve({
      name,
      help: this.#help,
      type: "histogram",
      aggregator: "sum",
      values,
    });
  }
}
