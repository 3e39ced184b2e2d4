import { execFileSync } from "node:child_process";
import { cpus, loadavg, totalmem } from "node:os";
import { join } from "node:path";

/** The repository's root. */
export const repositoryRoot = join(import.meta.dirname, "../..");

/** What a figure depends on besides the code. */
export interface MachineFacts {
  readonly cpu: string;
  readonly cpuCount: number;
  readonly memoryGiB: number;
  readonly node: string;
  readonly commit: string;
  readonly at: string;
  readonly loadAverage: readonly number[];
}

function commit(): string {
  const git = (...args: string[]): string =>
    execFileSync("git", args, { cwd: repositoryRoot, encoding: "utf8" }).trim();
  try {
    const changed = git("status", "--porcelain", "--", "services", "test/load");
    return git("rev-parse", "--short=12", "HEAD") + (changed === "" ? "" : " with changes");
  } catch {
    return "unknown";
  }
}

/** The machine now. */
export function machineFacts(): MachineFacts {
  return {
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cpuCount: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    node: process.version,
    commit: commit(),
    at: new Date().toISOString(),
    loadAverage: loadavg().map((load) => Math.round(load * 100) / 100),
  };
}

/** The facts as two lines. */
export function describeMachine(facts: MachineFacts): string {
  return (
    `${facts.cpu}, ${facts.cpuCount} CPUs, ${facts.memoryGiB} GiB, node ${facts.node}\n` +
    `commit ${facts.commit}, ${facts.at}, load average ${facts.loadAverage.join(" ")}`
  );
}

/** The value below which a share `q` of the values lies; NaN without values. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * q))] ?? Number.NaN;
}

/** The middle value; NaN without values. */
export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** A figure with three digits. */
export function shown(value: number): string {
  if (!Number.isFinite(value)) return "–";
  if (value >= 1_000) return Math.round(value).toLocaleString("en-US");
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
