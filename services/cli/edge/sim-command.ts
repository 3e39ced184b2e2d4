import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Command } from "commander";
import { placementPolicies } from "../core/demo-profile.ts";
import { comparisonJson, renderComparison } from "../core/replay/comparison.ts";
import type { ReplayResult } from "../core/replay/result.ts";
import { exitCodes, processIo, type CommandIo } from "./command-io.ts";
import { simBaselines, type BaselinesFlags } from "./sim-baselines.ts";
import { entryPoints, packageRoot, serviceNode } from "./up/mesh.ts";

interface Flags {
  readonly policy: string;
  readonly preference: string;
  readonly rate?: string;
  readonly duration?: string;
  readonly warmup?: string;
  readonly seed?: string;
  readonly view: string;
  readonly workers?: string;
  readonly routers?: string;
  readonly json?: boolean;
}

/** What the simulator says of one policy: the fields of a replay that exist on virtual time. */
interface SimLine {
  readonly policy: string;
  readonly view: string;
  readonly tookMs: number;
  readonly result: Omit<
    ReplayResult,
    | "url"
    | "model"
    | "api"
    | "errorsByKind"
    | "errorExamples"
    | "unpicked"
    | "goodput"
    | "usageMissing"
    | "lengthDiffers"
    | "generator"
    | "machineCpuRatio"
    | "valid"
    | "invalidReasons"
  >;
}

/** A virtual run as a replay's result: nothing was late, nothing is unpicked, no machine was loaded. */
function asReplay({ policy, result }: SimLine): ReplayResult {
  const none = { count: 0, mean: null, p50: null, p90: null, p99: null, max: null };
  return {
    ...result,
    url: "virtual",
    model: policy,
    api: "completions",
    errorsByKind: result.errors === 0 ? {} : { unanswered: result.errors },
    errorExamples: [],
    unpicked: 0,
    goodput: null,
    usageMissing: 0,
    lengthDiffers: 0,
    generator: {
      lateMs: none,
      eventLoopDelayMsP99: 0,
      cpuCores: 0,
      cpuMsPerRequest: 0,
      cpuUsPerChunk: 0,
      chunkCount: 0,
    },
    machineCpuRatio: null,
    valid: result.ttftMs.count > 0,
    invalidReasons: result.ttftMs.count > 0 ? [] : ["no request after warm-up was answered"],
  };
}

const preferenceHelp = "what kv favours: balanced, or first-token";
const policyHelp = `some of ${placementPolicies.join(",")}, or all`;

/** Rows of the replay's table that mean nothing on virtual time. */
const realTimeRows = /^(machine CPU|generator )/;

/** Runs the simulator in a process of its own and prints what it found; resolves to the exit code. */
async function sim(workload: string, flags: Flags, io: CommandIo): Promise<number> {
  const { json, ...passed } = flags;
  const words = Object.entries(passed).map(([name, value]) => `--${name}=${value}`);
  const main = join(packageRoot, entryPoints.engine[0]);
  const child = spawn(serviceNode, [main, "sim", workload, ...words], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<number>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve(code ?? exitCodes.failed));
  });
  const results: Record<string, ReplayResult> = {};
  for await (const text of createInterface({ input: child.stdout })) {
    const line = JSON.parse(text) as SimLine;
    results[line.policy] = asReplay(line);
    const seconds = line.result.durationMs / 1_000;
    io.err(`${line.policy}: ${seconds.toFixed(0)} s in ${(line.tookMs / 1_000).toFixed(1)} s`);
  }
  const code = await ended;
  if (code !== 0) return code;
  const first = Object.values(results)[0] as ReplayResult;
  if (json === true) {
    io.out(JSON.stringify(comparisonJson(results)));
  } else {
    const isTerminal = process.stdout.isTTY;
    const color = isTerminal && process.env["NO_COLOR"] === undefined;
    const width = isTerminal ? process.stdout.columns : 120;
    const view = flags.view === "exact" ? ", exact view of every cache" : "";
    io.out(
      `${first.workload} on virtual time: ${first.ratePerSecond.toFixed(1)} requests/s for ` +
        `${(first.durationMs / 1_000).toFixed(0)} s, first ${(first.warmupMs / 1_000).toFixed(0)} s warm-up${view}`,
    );
    const table = renderComparison(results, { color, width }).split("\n");
    for (const row of table) if (!realTimeRows.test(row)) io.out(row);
  }
  const valid = Object.values(results).every((run) => run.valid && run.errors === 0);
  return valid ? exitCodes.done : exitCodes.failed;
}

/**
 * `kvmesh sim WORKLOAD`: the table of a replay from a virtual fleet, in seconds instead of minutes. Exit code 0 when
 * every request was answered, 1 otherwise, 2 for wrong arguments.
 */
export function simCommand(): Command {
  const command = new Command("sim")
    .enablePositionalOptions()
    .description("replay a workload on a virtual fleet that runs the production router and workers")
    .argument("<workload>", "agentic, conversation, or a file")
    .option("--policy <list>", policyHelp, "all")
    .option("--preference <name>", preferenceHelp, "balanced")
    .option("--rate <n>", "times as fast as recorded (default: the workload's own)")
    .option("--duration <seconds>", "length of the run of each policy (default: 60)")
    .option("--warmup <share>", "share of the run left out of the figures (default: a third)")
    .option("--seed <n>", "seed of delays (default: 1)")
    .option("--view <view>", "what routers know of caches: live, or exact without delay", "live")
    .option("--workers <n>", "engines (default: the workload's own)")
    .option("--routers <n>", "routers (default: 1)")
    .option("--json", "print the comparison as one JSON line")
    .action(async (workload: string, flags: Flags) => {
      process.exitCode = await sim(workload, flags, processIo);
    });
  command.addCommand(
    new Command("baselines")
      .description("compare all policies over both workloads at several loads")
      .option("--policy <list>", policyHelp, "all")
      .option("--preference <name>", preferenceHelp, "balanced")
      .option("--workloads <list>", "of agentic, conversation and files (default: the first two)")
      .option("--loads <list>", "multiples of a workload's own rate (default: 0.75,1,1.25)")
      .option("--windows <n>", "parts of a workload that are run and summed up (default: 4)")
      .option("--duration <seconds>", "length of a part (default: 60)")
      .option("--warmup <share>", "share of a part left out of the figures (default: a third)")
      .option("--seed <n>", "seed of delays (default: 1)")
      .option("--json", "print one JSON line for each run")
      .option("--markdown", "print the table of the README")
      .action(async (flags: BaselinesFlags) => {
        process.exitCode = await simBaselines(flags, processIo);
      }),
  );
  return command;
}
