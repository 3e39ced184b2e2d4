import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { repositoryRoot, shown, type MachineFacts } from "./figures.ts";
import type { CellReport } from "./router-cells.ts";
import type { Ratio } from "./router-verdict.ts";

const begin = "<!-- written by `npm run bench -- router --readme` -->";
const end = "<!-- end of what the benchmark writes -->";

/** What the table is made of. */
export interface BenchSummary {
  readonly machine: MachineFacts;
  readonly cells: readonly CellReport[];
  readonly ratios: readonly Ratio[];
  readonly disturbances: readonly string[];
}

function cpu(cells: readonly CellReport[], target: string, mode: string, sizeKb: number): string {
  const cell = cells.find((c) => c.target === target && c.mode === mode && c.sizeKb === sizeKb);
  return cell === undefined ? "–" : shown(cell.cpuUsPerRequest);
}

function table({ machine, cells, ratios }: BenchSummary): string {
  const sizes = [...new Set(cells.map((cell) => cell.sizeKb))];
  const ratioOf = (sizeKb: number): string => {
    const name = `${sizeKb.toString()} KB against an empty`;
    const found = ratios.find((ratio) => ratio.name.startsWith(name));
    return found === undefined ? "–" : `**${found.value.toFixed(2)}**`;
  };
  const head = [
    "body",
    "kvmesh, BUFFERED",
    "kvmesh, FULL_DUPLEX",
    "empty grpc-js handler",
    "ratio",
    "stock pipeline",
  ];
  const rows = sizes.map((kb) => [
    `${kb.toString()} KB`,
    `${cpu(cells, "router", "buffered", kb)} µs`,
    `${cpu(cells, "router", "duplex", kb)} µs`,
    `${cpu(cells, "empty", "buffered", kb)} µs`,
    ratioOf(kb),
    cpu(cells, "stock", "buffered", kb).replace(/(\d)$/, "$1 µs"),
  ]);
  const widths = head.map((name, i) =>
    Math.max(...[head, ...rows].map((row) => row[i]?.length ?? name.length)),
  );
  const line = (row: readonly string[]): string =>
    `| ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join(" | ")} |`;
  const rule = widths.map((width, i) =>
    i === 0 ? "-".repeat(width) : `${"-".repeat(width - 1)}:`,
  );
  return [
    line(head),
    `| ${rule.join(" | ")} |`,
    ...rows.map(line),
    "",
    `${machine.cpu}, ${machine.cpuCount.toString()} CPUs, Node ${machine.node.slice(1)}, commit ${machine.commit}.`,
  ].join("\n");
}

/** Replaces the benchmark's part of the README. Throws when the run was disturbed or the README has no place for it. */
export function writeBenchTable(summary: BenchSummary): void {
  if (summary.disturbances.length > 0) throw new Error("a disturbed run is not written down");
  const path = join(repositoryRoot, "README.md");
  const text = readFileSync(path, "utf8");
  const from = text.indexOf(begin);
  const to = text.indexOf(end);
  if (from < 0 || to < from) throw new Error(`README.md needs the lines ${begin} and ${end}`);
  writeFileSync(
    path,
    `${text.slice(0, from + begin.length)}\n\n${table(summary)}\n\n${text.slice(to)}`,
  );
}
