import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import {
  baselinesMarkdown,
  renderBaselines,
  type BaselineFigures,
} from "../core/baseline-table.ts";
import { exitCodes, type CommandIo } from "./command-io.ts";
import { entryPoints, packageRoot, serviceNode } from "./up/mesh.ts";

/** Flags of the command; those not given are the simulator's own. */
export interface BaselinesFlags {
  readonly policy: string;
  readonly preference?: string;
  readonly workloads?: string;
  readonly loads?: string;
  readonly windows?: string;
  readonly duration?: string;
  readonly warmup?: string;
  readonly seed?: string;
  readonly json?: boolean;
  readonly markdown?: boolean;
}

/**
 * `kvmesh sim baselines`: every policy over both workloads at several loads. Prints tables, with `json` one line for each run
 * as it ends, with `markdown` the table of the README. Exit code 0 when every request was answered.
 */
export async function simBaselines(flags: BaselinesFlags, io: CommandIo): Promise<number> {
  const { json, markdown, ...passed } = flags;
  const words = Object.entries(passed).map(([name, value]) => `--${name}=${value}`);
  const main = join(packageRoot, entryPoints.engine[0]);
  const child = spawn(serviceNode, [main, "sim", "baselines", ...words], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<number>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve(code ?? exitCodes.failed));
  });
  const runs: BaselineFigures[] = [];
  for await (const text of createInterface({ input: child.stdout })) {
    const run = JSON.parse(text) as BaselineFigures & { readonly tookMs: number };
    runs.push(run);
    if (json === true) io.out(text);
    const seconds = (run.tookMs / 1_000).toFixed(1);
    io.err(`${run.workload} at load ${String(run.load)}, ${run.policy}: ${seconds} s`);
  }
  const code = await ended;
  if (code !== 0) return code;
  if (markdown === true) io.out(baselinesMarkdown(runs));
  else if (json !== true) io.out(renderBaselines(runs));
  return runs.every((run) => run.result.errors === 0) ? exitCodes.done : exitCodes.failed;
}
