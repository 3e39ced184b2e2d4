/** One request of a measured run; times in ms from the first arrival. */
export interface MeasuredRequest {
  readonly inputTokens: number;
  readonly outputTokens: number;
  readonly arrivalMs: number;
  readonly scheduledMs: number;
  readonly firstTokenMs: number;
  readonly lastTokenMs: number;
}

/** Engine limits under which a run was measured. */
export interface MeasuredLimits {
  readonly blockSizeTokens: number;
  readonly capacityBlocks: number;
  readonly stepTokensMax: number;
  readonly runningMax: number;
}

/** A run of a real engine: its limits and what each request saw, in order of arrival. */
export interface MeasuredRun {
  readonly name: string;
  readonly limits: MeasuredLimits;
  readonly requests: readonly MeasuredRequest[];
}

/** A run that lies in the calibration folder. */
export interface MeasuredRunSource {
  readonly name: string;
  /** File name in `services/simulator/calibration`. */
  readonly file: string;
  readonly limits: MeasuredLimits;
}

/** The measured runs we have; origin and licence are in the folder's README. */
export const measuredRunSources: readonly MeasuredRunSource[] = [
  {
    name: "rtx4090/llama-3.1-8b/tp1",
    file: "rtx4090-llama-3.1-8b-tp1.csv",
    limits: { blockSizeTokens: 16, capacityBlocks: 2_588, stepTokensMax: 2_048, runningMax: 256 },
  },
  {
    name: "rtxpro6000/qwen3-32b/tp2",
    file: "rtxpro6000-qwen3-32b-tp2.csv",
    // The recording does not say how many blocks there were; 128 sequences never fill this many.
    limits: { blockSizeTokens: 16, capacityBlocks: 24_000, stepTokensMax: 2_048, runningMax: 128 },
  },
];

const columns = [
  "input_tokens",
  "output_tokens",
  "arrival_ms",
  "scheduled_ms",
  "first_token_ms",
  "last_token_ms",
] as const;

/** Reads a run's CSV. Throws naming the line when a value is missing or no number. */
export function parseMeasuredRun(source: MeasuredRunSource, csv: string): MeasuredRun {
  const lines = csv.trim().split("\n");
  const names = (lines[0] ?? "").trim().split(",");
  const places = columns.map((column) => {
    const at = names.indexOf(column);
    if (at < 0) throw new RangeError(`${source.file}: column ${column} is missing`);
    return at;
  });
  const requests = lines.slice(1).map((line, index) => {
    const cells = line.split(",");
    const [input, output, arrival, scheduled, first, last] = places.map((at) => {
      const value = Number(cells[at] ?? "x");
      if (!Number.isFinite(value)) {
        throw new RangeError(
          `${source.file}:${String(index + 2)}: column ${String(at + 1)} is no number`,
        );
      }
      return value;
    }) as [number, number, number, number, number, number];
    return {
      inputTokens: input,
      outputTokens: output,
      arrivalMs: arrival,
      scheduledMs: scheduled,
      firstTokenMs: first,
      lastTokenMs: last,
    };
  });
  return { name: source.name, limits: source.limits, requests };
}
