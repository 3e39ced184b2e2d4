import { formatRatio, textTable } from "./text-table.ts";

/** Mean and quantiles, ms; `null` when nothing was measured. */
interface Summary {
  readonly mean: number | null;
  readonly p50: number | null;
  readonly p99: number | null;
}

/** Figures of one policy at one load of one workload. */
export interface BaselineFigures {
  readonly workload: string;
  /** As a multiple of the workload's own rate. */
  readonly load: number;
  readonly policy: string;
  readonly result: {
    readonly ratePerSecond: number;
    readonly requestsMeasured: number;
    readonly errors: number;
    readonly ttftMs: Summary;
    readonly tpotMs: Summary;
    readonly durationOfRequestMs: Summary;
    readonly hitTokenRatio: number | null;
  };
}

type Result = BaselineFigures["result"];

interface Figure {
  readonly title: string;
  readonly value: (result: Result) => number | null;
  readonly show: (value: number) => string;
  readonly better: "low" | "high";
}

const milliseconds = (value: number): string =>
  value >= 100 ? Math.round(value).toLocaleString("en-US") : value.toFixed(1);

const figures: readonly Figure[] = [
  { title: "TTFT mean, ms", value: (r) => r.ttftMs.mean, show: milliseconds, better: "low" },
  { title: "p50", value: (r) => r.ttftMs.p50, show: milliseconds, better: "low" },
  { title: "p99", value: (r) => r.ttftMs.p99, show: milliseconds, better: "low" },
  { title: "TPOT mean, ms", value: (r) => r.tpotMs.mean, show: milliseconds, better: "low" },
  { title: "p99", value: (r) => r.tpotMs.p99, show: milliseconds, better: "low" },
  {
    title: "whole mean, ms",
    value: (r) => r.durationOfRequestMs.mean,
    show: milliseconds,
    better: "low",
  },
  { title: "hit ratio", value: (r) => r.hitTokenRatio, show: formatRatio, better: "high" },
];

/** The best value of a figure among runs; `undefined` when none has one. */
function bestOf(figure: Figure, runs: readonly BaselineFigures[]): number | undefined {
  const values = runs.flatMap((run) => figure.value(run.result) ?? []);
  if (values.length === 0) return undefined;
  return figure.better === "low" ? Math.min(...values) : Math.max(...values);
}

/** Runs in groups of one workload and load, in the order in which these first appear. */
export function groupRuns(runs: readonly BaselineFigures[]): BaselineFigures[][] {
  const groups = new Map<string, BaselineFigures[]>();
  for (const run of runs) {
    const key = `${run.workload} ${String(run.load)}`;
    const group = groups.get(key);
    if (group === undefined) groups.set(key, [run]);
    else group.push(run);
  }
  return [...groups.values()];
}

/** One table for each workload and load, policies one below the other, the best of each figure marked with `*`. */
export function renderBaselines(runs: readonly BaselineFigures[]): string {
  const tables = groupRuns(runs).map((group) => {
    const [first] = group;
    if (first === undefined) return "";
    const best = figures.map((figure) => bestOf(figure, group));
    const rows = group.map(({ policy, result }) => [
      policy,
      ...figures.map((figure, i) => {
        const value = figure.value(result);
        if (value === null) return "– ";
        return `${figure.show(value)}${value === best[i] ? "*" : " "}`;
      }),
      result.errors === 0 ? "" : `${String(result.errors)} unanswered`,
    ]);
    const columns = [
      { title: "" },
      ...figures.map(({ title }) => ({ title: `${title} `, align: "right" as const })),
      { title: "" },
    ];
    const heading =
      `${first.workload}, load ${String(first.load)}: ${first.result.ratePerSecond.toFixed(1)} requests/s, ` +
      `${first.result.requestsMeasured.toLocaleString("en-US")} measured`;
    return [heading, ...textTable(columns, rows)].join("\n");
  });
  return tables.join("\n\n");
}

/** Figures that the short table shows, by title. */
const shortFigures: readonly { readonly heading: string; readonly figure: number }[] = [
  { heading: "TTFT mean", figure: 0 },
  { heading: "p99", figure: 2 },
  { heading: "TPOT", figure: 3 },
  { heading: "hit ratio", figure: 6 },
];

/**
 * A Markdown table with a row for each policy and, side by side, the times in ms and hit ratio of each workload and load; the
 * best of each column is bold.
 */
export function baselinesMarkdown(runs: readonly BaselineFigures[]): string {
  const groups = groupRuns(runs);
  const policies = [...new Set(runs.map((run) => run.policy))];
  const titles = groups.flatMap((group) =>
    shortFigures.map(
      ({ heading }, i) => (i === 0 ? `${group[0]?.workload ?? ""}: ` : "") + heading,
    ),
  );
  const rows = policies.map((policy) => [
    policy,
    ...groups.flatMap((group) =>
      shortFigures.map(({ figure: at }) => {
        const figure = figures[at] as Figure;
        const run = group.find((one) => one.policy === policy);
        const value = run === undefined ? null : figure.value(run.result);
        if (value === null) return "–";
        const shown = figure.show(value);
        return value === bestOf(figure, group) ? `**${shown}**` : shown;
      }),
    ),
  ]);
  const cells = [["ms", ...titles], ...rows];
  const widths = cells.reduce<number[]>(
    (most, row) => row.map((cell, i) => Math.max(most[i] ?? 4, cell.length)),
    [],
  );
  const line = (row: readonly string[]): string =>
    `| ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join(" | ")} |`;
  const rule = `| ${widths.map((width, i) => (i === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`)).join(" | ")} |`;
  return [line(cells[0] as string[]), rule, ...cells.slice(1).map(line)].join("\n");
}
