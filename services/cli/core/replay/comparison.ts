import { formatCount, formatRatio, textTable } from "../text-table.ts";
import type { ReplayResult } from "./result.ts";

/** How a comparison is shown. */
export interface ComparisonOptions {
  /** Whether ANSI colours may be used. */
  readonly color: boolean;
  /** Columns of the terminal; below what the table needs, the policies stand one below the other. */
  readonly width: number;
}

interface Row {
  readonly label: string;
  readonly value: (result: ReplayResult) => number | null;
  readonly show: (value: number) => string;
  /** Which end is better, for the mark of the best value; `none` is never marked. */
  readonly better: "low" | "high" | "none";
}

const milliseconds = (value: number): string =>
  value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);

const rows: readonly Row[] = [
  { label: "TTFT mean, ms", value: (r) => r.ttftMs.mean, show: milliseconds, better: "low" },
  { label: "     p50", value: (r) => r.ttftMs.p50, show: milliseconds, better: "low" },
  { label: "     p99", value: (r) => r.ttftMs.p99, show: milliseconds, better: "low" },
  { label: "TPOT mean, ms", value: (r) => r.tpotMs.mean, show: milliseconds, better: "low" },
  { label: "     p50", value: (r) => r.tpotMs.p50, show: milliseconds, better: "low" },
  { label: "     p99", value: (r) => r.tpotMs.p99, show: milliseconds, better: "low" },
  { label: "token hit ratio", value: (r) => r.hitTokenRatio, show: formatRatio, better: "high" },
  { label: "requests", value: (r) => r.requestsMeasured, show: formatCount, better: "none" },
  { label: "errors", value: (r) => r.errors, show: formatCount, better: "none" },
  { label: "unplaced", value: (r) => r.unpicked, show: formatCount, better: "none" },
  { label: "machine CPU", value: (r) => r.machineCpuRatio, show: formatRatio, better: "none" },
  {
    label: "generator late p99, ms",
    value: (r) => r.generator.lateMs.p99,
    show: milliseconds,
    better: "none",
  },
  {
    label: "generator loop p99, ms",
    value: (r) => r.generator.eventLoopDelayMsP99,
    show: milliseconds,
    better: "none",
  },
];

const missing = "–";
/** Stands in a result for engines that the answers do not name. */
const unnamedWorker = "unknown";
const untold =
  "the answers name neither decision nor engine; those of a mesh's trusted listener do (port 8081)";
const bold = (text: string): string => `\u001b[1;32m${text}\u001b[0m`;
const dim = (text: string): string => `\u001b[2m${text}\u001b[0m`;
const warn = (text: string): string => `\u001b[33m${text}\u001b[0m`;

/** Index of the one best value among those there are; -1 when all are equal or only one is there. */
function bestIndex(values: readonly (number | null)[], better: Row["better"]): number {
  if (better === "none") return -1;
  const known = values.filter((value) => value !== null);
  if (known.length < 2) return -1;
  const best = better === "low" ? Math.min(...known) : Math.max(...known);
  const at = values.indexOf(best);
  return values.lastIndexOf(best) === at ? at : -1;
}

function workerRows(results: readonly ReplayResult[]): string[][] {
  const names = [...new Set(results.flatMap((result) => Object.keys(result.workers)))].sort();
  return names.map((name) => [
    name === unnamedWorker ? "to unnamed engines" : `to ${name}`,
    ...results.map((result) => formatCount(result.workers[name] ?? 0)),
  ]);
}

function notes(results: Readonly<Record<string, ReplayResult>>): string[] {
  return Object.entries(results).flatMap(([policy, result]) => [
    ...result.invalidReasons.map((reason) => `${policy}: not valid: ${reason}`),
    ...(result.errors === 0
      ? []
      : [
          `${policy}: errors: ${Object.entries(result.errorsByKind)
            .map(([kind, n]) => `${kind} ${String(n)}`)
            .join(", ")}`,
        ]),
    ...(result.unpicked === null ? [`${policy}: ${untold}`] : []),
    ...(result.usageMissing === 0
      ? []
      : [`${policy}: ${String(result.usageMissing)} answers without usage`]),
    ...(result.lengthDiffers === 0
      ? []
      : [`${policy}: ${String(result.lengthDiffers)} answers shorter or longer than asked`]),
  ]);
}

/**
 * The runs side by side, one column per policy in the order given, best latency and hit ratio marked,
 * with what makes a run invalid below. Where the terminal is too narrow each policy gets its own block.
 * No line end at the end.
 */
export function renderComparison(
  results: Readonly<Record<string, ReplayResult>>,
  { color, width }: ComparisonOptions,
): string {
  const policies = Object.keys(results);
  const runs = Object.values(results);
  const body = [
    ...rows.map((row) => [
      row.label,
      ...runs.map((run) => {
        const value = row.value(run);
        return value === null ? missing : row.show(value);
      }),
    ]),
    ...workerRows(runs),
  ];
  const titles = [{ title: "" }, ...policies.map((title) => ({ title, align: "right" as const }))];
  const lines = textTable(titles, body);
  const needed = lines.reduce((most, line) => Math.max(most, line.length), 0);
  if (needed > width && policies.length > 1) {
    return policies
      .map((policy) =>
        renderComparison({ [policy]: results[policy] as ReplayResult }, { color, width }),
      )
      .join("\n\n");
  }
  const marked = color ? lines.map((line, i) => markLine(line, i, { body, runs })) : lines;
  const remarks = notes(results).map((note) => (color ? warn(note) : note));
  return [...marked, ...remarks].join("\n");
}

/** Puts colour on a finished line, so that widths are counted without it. */
function markLine(
  line: string,
  index: number,
  { body, runs }: { body: readonly (readonly string[])[]; runs: readonly ReplayResult[] },
): string {
  if (index === 0) return dim(line);
  const row = rows[index - 1];
  if (row === undefined) return line;
  const best = bestIndex(runs.map(row.value), row.better);
  if (best === -1) return line;
  // Cells are set one after the other, so the best one is found behind those before it.
  const cells = body[index - 1] as readonly string[];
  let from = (cells[0] as string).length;
  for (let i = 1; i <= best; i++) {
    from = line.indexOf(cells[i] as string, from) + (cells[i] as string).length;
  }
  const cell = cells[best + 1] as string;
  const at = line.indexOf(cell, from);
  return line.slice(0, at) + bold(cell) + line.slice(at + cell.length);
}

function round(value: number | null, digits: number): number | null {
  return value === null ? null : Number(value.toFixed(digits));
}

/** One policy in the machine-readable comparison. `null` where nothing was measured. */
export interface PolicyFigures {
  readonly ttftMsMean: number | null;
  readonly ttftMsP50: number | null;
  readonly ttftMsP99: number | null;
  readonly tpotMsMean: number | null;
  readonly hitTokenRatio: number | null;
  /** Measured requests by the worker that served them. */
  readonly workers: Readonly<Record<string, number>>;
}

/** The machine-readable comparison, printed as one line. */
export interface ComparisonJson {
  readonly schema: 1;
  readonly workload: string;
  /** Requests per second that were due. */
  readonly rate: number;
  /** Whether every run is valid. */
  readonly valid: boolean;
  /** Sums over all policies, warm-up included. */
  readonly requests: number;
  readonly errors: number;
  /** Sum over the policies that know; 0 when none does. */
  readonly unpicked: number;
  readonly policies: Readonly<Record<string, PolicyFigures>>;
}

/** Turns the runs of one comparison into its JSON form. Throws `RangeError` when there is no run. */
export function comparisonJson(results: Readonly<Record<string, ReplayResult>>): ComparisonJson {
  const runs = Object.values(results);
  const first = runs[0];
  if (first === undefined) throw new RangeError("a comparison needs at least one run");
  const sum = (value: (run: ReplayResult) => number): number =>
    runs.reduce((total, run) => total + value(run), 0);
  return {
    schema: 1,
    workload: first.workload,
    rate: Number(first.ratePerSecond.toFixed(2)),
    valid: runs.every((run) => run.valid),
    requests: sum((run) => run.requests),
    errors: sum((run) => run.errors),
    unpicked: sum((run) => run.unpicked ?? 0),
    policies: Object.fromEntries(
      Object.entries(results).map(([policy, run]) => [
        policy,
        {
          ttftMsMean: round(run.ttftMs.mean, 2),
          ttftMsP50: round(run.ttftMs.p50, 2),
          ttftMsP99: round(run.ttftMs.p99, 2),
          tpotMsMean: round(run.tpotMs.mean, 3),
          hitTokenRatio: round(run.hitTokenRatio, 4),
          workers: run.workers,
        },
      ]),
    ),
  };
}
