import type { ReplayResult } from "../replay/result.ts";
import { formatCount, formatRatio, textTable } from "../text-table.ts";
import type { DisaggLoad, Knees } from "./disagg-loads.ts";
import type { DisaggScale } from "./disagg-profile.ts";

/** How requests are run, in the order of the table. */
export const disaggModes = ["aggregated", "disaggregated", "free choice"] as const;

/** One of `disaggModes`. */
export type DisaggMode = (typeof disaggModes)[number];

/** What was counted of one run beside the replay. CPU in cores over the run; `null` where the system does not tell. */
export interface DisaggCounts {
  /** Placed requests that ran as pairs, and all. */
  readonly pairs: number;
  readonly placed: number;
  /** KV that engines pulled from each other, bytes. */
  readonly kvBytes: number;
  /** Pulled blocks that were not what was asked for, and blocks computed because of that. */
  readonly kvBadBlocks: number;
  readonly routerCores: number | null;
  readonly relayCores: number | null;
  readonly engineCores: number | null;
  readonly envoyCores: number | null;
}

/** One run. */
export interface DisaggRun {
  readonly result: ReplayResult;
  readonly counts: DisaggCounts;
}

/** One load in all modes. */
export interface DisaggComparison {
  readonly load: DisaggLoad;
  readonly knees: Knees;
  /** Requests a second that were offered in the mean. */
  readonly rate: number;
  readonly runs: Readonly<Record<DisaggMode, DisaggRun>>;
}

/** Free choice keeps up when its goodput is at least this share of the better forced mode's. */
export const freeShareMin = 0.95;

/** Goodput of free choice as a share of the better of the two forced modes; 1 when neither has any. */
export function freeShare({ runs }: DisaggComparison): number {
  const of = (mode: DisaggMode): number => runs[mode].result.goodput?.perSecond ?? 0;
  const better = Math.max(of("aggregated"), of("disaggregated"));
  return better === 0 ? 1 : of("free choice") / better;
}

const missing = "–";
const show = (value: number | null, digits: number): string =>
  value === null ? missing : value.toFixed(digits);

interface Row {
  readonly label: string;
  readonly value: (run: DisaggRun) => string;
}

const rows: readonly Row[] = [
  { label: "goodput, requests/s", value: ({ result: r }) => show(r.goodput?.perSecond ?? null, 2) },
  { label: "  kept both targets", value: ({ result: r }) => formatRatio(r.goodput?.ratio ?? NaN) },
  { label: "TTFT mean, ms", value: ({ result: r }) => show(r.ttftMs.mean, 0) },
  { label: "     p99", value: ({ result: r }) => show(r.ttftMs.p99, 0) },
  { label: "ITL mean, ms", value: ({ result: r }) => show(r.tpotMs.mean, 2) },
  { label: "     p99", value: ({ result: r }) => show(r.tpotMs.p99, 2) },
  { label: "run as pairs", value: ({ counts: c }) => formatRatio(c.pairs / c.placed) },
  { label: "KV moved, MB", value: ({ counts: c }) => (c.kvBytes / 1e6).toFixed(1) },
  { label: "requests", value: ({ result: r }) => formatCount(r.requests) },
  { label: "errors", value: ({ result: r }) => formatCount(r.errors) },
  {
    label: "unplaced",
    value: ({ result: r }) => (r.unpicked === null ? missing : formatCount(r.unpicked)),
  },
  { label: "cores: routers", value: ({ counts: c }) => show(c.routerCores, 3) },
  { label: "       relay", value: ({ counts: c }) => show(c.relayCores, 3) },
  { label: "       engines", value: ({ counts: c }) => show(c.engineCores, 3) },
  { label: "       Envoy", value: ({ counts: c }) => show(c.envoyCores, 3) },
  { label: "       generator", value: ({ result: r }) => show(r.generator.cpuCores, 3) },
  { label: "machine CPU", value: ({ result: r }) => formatRatio(r.machineCpuRatio ?? NaN) },
  { label: "valid", value: ({ result: r }) => (r.valid ? "yes" : "no") },
];

/** How the demo is scaled, in a line or two. */
export function scaleText({ factor, blockBytes, linkBytesPerS, runningMax }: DisaggScale): string {
  return (
    `KV blocks have ${formatCount(blockBytes)} bytes and links ${(linkBytesPerS / 1e6).toFixed(2)} MB/s: a ${formatCount(factor)}th of ` +
    `Llama-3.1-70B's over 400 Gbit/s. Engines run ${String(runningMax)} sequences at once, so that two cores can carry the answers.`
  );
}

/** What is compared and why at this rate. */
export function loadText({ load, knees, rate }: Omit<DisaggComparison, "runs">): string {
  const { ttftMs, itlMs } = load.targets;
  return (
    `${load.name}: first token within ${formatCount(ttftMs)} ms, then one every ${String(itlMs)} ms in the mean of a request; ` +
    `${rate.toFixed(2)} requests/s (closed form: whole up to ${knees.aggregated.toFixed(2)}, pairs up to ${knees.disaggregated.toFixed(2)})`
  );
}

/** One load's runs side by side, with what makes them invalid below. */
export function comparisonLines(comparison: DisaggComparison): string[] {
  const runs = disaggModes.map((mode) => comparison.runs[mode]);
  const columns = [
    { title: "" },
    ...disaggModes.map((title) => ({ title, align: "right" as const })),
  ];
  const share = freeShare(comparison);
  const notes = disaggModes.flatMap((mode) => {
    const { result, counts } = comparison.runs[mode];
    return [
      ...result.invalidReasons.map((reason) => `${mode}: not valid: ${reason}`),
      ...result.errorExamples.map((example) => `${mode}: ${example}`),
      ...(counts.kvBadBlocks === 0 ? [] : [`${mode}: ${String(counts.kvBadBlocks)} bad KV blocks`]),
    ];
  });
  return [
    loadText(comparison),
    ...textTable(
      columns,
      rows.map(({ label, value }) => [label, ...runs.map(value)]),
    ),
    `free choice has ${formatRatio(share)} of the better one's goodput${share >= freeShareMin ? "" : `, below ${formatRatio(freeShareMin)}`}`,
    ...notes,
  ];
}

const round = (value: number | null, digits: number): number | null =>
  value === null ? null : Number(value.toFixed(digits));

/** Everything as a value for `--json`. */
export function disaggJson(
  comparisons: readonly DisaggComparison[],
  scale: DisaggScale,
): Readonly<Record<string, unknown>> {
  const runs = comparisons.flatMap((one) => disaggModes.map((mode) => one.runs[mode]));
  const sum = (of: (run: DisaggRun) => number): number =>
    runs.reduce((total, run) => total + of(run), 0);
  return {
    schema: 1,
    demo: "disagg",
    valid: runs.every(({ result }) => result.valid),
    requests: sum(({ result }) => result.requests),
    errors: sum(({ result }) => result.errors),
    unpicked: sum(({ result }) => result.unpicked ?? 0),
    scale,
    loads: comparisons.map((one) => ({
      name: one.load.name,
      inputTokens: one.load.inputTokens,
      outputTokens: one.load.outputTokens,
      targets: one.load.targets,
      rate: round(one.rate, 3),
      knees: one.knees,
      freeShare: round(freeShare(one), 4),
      modes: Object.fromEntries(
        disaggModes.map((mode) => [mode, modeJson(one.runs[mode])] as const),
      ),
    })),
  };
}

function modeJson({ result, counts }: DisaggRun): Readonly<Record<string, unknown>> {
  return {
    goodputPerSecond: round(result.goodput?.perSecond ?? null, 3),
    keptRatio: round(result.goodput?.ratio ?? null, 4),
    ttftMsMean: round(result.ttftMs.mean, 1),
    ttftMsP99: round(result.ttftMs.p99, 1),
    itlMsMean: round(result.tpotMs.mean, 3),
    itlMsP99: round(result.tpotMs.p99, 3),
    pairRatio: counts.placed === 0 ? null : round(counts.pairs / counts.placed, 4),
    kvBytes: counts.kvBytes,
    requests: result.requests,
    errors: result.errors,
    unpicked: result.unpicked,
    cores: {
      routers: round(counts.routerCores, 4),
      relays: round(counts.relayCores, 4),
      engines: round(counts.engineCores, 4),
      envoy: round(counts.envoyCores, 4),
      generator: round(result.generator.cpuCores, 4),
    },
    machineCpuRatio: round(result.machineCpuRatio, 4),
    valid: result.valid,
    invalidReasons: result.invalidReasons,
  };
}
