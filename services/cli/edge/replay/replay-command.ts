import { createWriteStream, type WriteStream } from "node:fs";
import { finished } from "node:stream/promises";
import { Command, InvalidArgumentError, Option } from "commander";
import { request } from "undici";
import { workloadFacts, type Workload } from "../../../shared/core/workload/workload.ts";
import { loadWorkload } from "../../../shared/edge/workload-files.ts";
import { renderComparison } from "../../core/replay/comparison.ts";
import type { LatencyTargets } from "../../core/replay/goodput.ts";
import type { ReplayResult } from "../../core/replay/result.ts";
import { checkTokenCount } from "./exchange.ts";
import { runReplay, type ReplayProgress } from "./generator.ts";

interface Flags {
  readonly url: string;
  readonly model?: string;
  readonly rateFactor?: number;
  readonly rate?: number;
  readonly duration?: number;
  readonly warmup: number;
  readonly api: "completions" | "chat";
  readonly verify?: boolean;
  readonly out?: string;
  readonly json?: boolean;
  readonly header: readonly string[];
  readonly blockTokens?: number;
  readonly spreadTickMs?: number;
  readonly openMax: number;
  readonly ttftTarget?: number;
  readonly itlTarget?: number;
}

function positive(text: string): number {
  const value = Number(text);
  if (!(value > 0) || !Number.isFinite(value)) throw new InvalidArgumentError("must be above 0");
  return value;
}

function positiveWhole(text: string): number {
  const value = positive(text);
  if (!Number.isInteger(value)) throw new InvalidArgumentError("must be a whole number");
  return value;
}

function share(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !(value >= 0 && value < 1)) {
    throw new InvalidArgumentError("must be at least 0 and below 1");
  }
  return value;
}

function parseHeaders(lines: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    lines.map((line) => {
      const match = /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):\s*(.*)$/.exec(line);
      if (match === null) throw new RangeError(`header ${JSON.stringify(line)} is not name: value`);
      return [(match[1] as string).toLowerCase(), match[2] as string];
    }),
  );
}

/** A model as the endpoint lists it. */
interface ListedModel {
  readonly id: string;
  /** Longest prompt plus answer in tokens; absent when the endpoint does not say. */
  readonly contextTokensMax?: number;
}

/** Models that the endpoint lists. Throws `RangeError` when it does not answer. */
async function listModels(url: string, headers: Record<string, string>): Promise<ListedModel[]> {
  const listUrl = `${rootOf(url)}/v1/models`;
  let body: unknown;
  try {
    const answer = await request(listUrl, {
      headers,
      headersTimeout: 10_000,
      bodyTimeout: 10_000,
    });
    body = await answer.body.json();
  } catch (error) {
    throw new RangeError(
      `cannot list models at ${listUrl}: ${(error as Error).message}; name one with --model`,
      { cause: error },
    );
  }
  const list: unknown =
    typeof body === "object" && body !== null && "data" in body ? body.data : undefined;
  return (Array.isArray(list) ? list : []).flatMap((one: unknown) => {
    if (typeof one !== "object" || one === null || !("id" in one)) return [];
    if (typeof one.id !== "string") return [];
    const max = "max_model_len" in one ? one.max_model_len : undefined;
    return [{ id: one.id, ...(typeof max === "number" ? { contextTokensMax: max } : {}) }];
  });
}

const rootOf = (url: string): string => url.replace(/\/+$/, "").replace(/\/v1$/, "");

/** The model named, or the first one listed. What the endpoint does not tell of a named one stays unknown. */
async function chooseModel(flags: Flags, headers: Record<string, string>): Promise<ListedModel> {
  const { model: id, url } = flags;
  if (id !== undefined) {
    const listed = await listModels(url, headers).catch(() => []);
    return listed.find((one) => one.id === id) ?? { id };
  }
  const [first] = await listModels(url, headers);
  if (first === undefined) {
    throw new RangeError(`${rootOf(url)}/v1/models lists no model; name one with --model`);
  }
  return first;
}

/** Fails for the address of one API in place of the endpoint's root: the path is the replay's to add. */
export function requireRoot(url: string): void {
  const path = /\/(?:v1\/)?(?:chat\/)?completions\/*$/.exec(url)?.[0];
  if (path === undefined) return;
  const api = path.includes("chat") ? "chat" : "completions";
  throw new RangeError(
    `--url is the root of the endpoint: use --url ${url.slice(0, -path.length)} --api ${api}`,
  );
}

/** What a person should know before a run begins; nothing for a short one that fits. */
export function remarksBefore(
  workload: Workload,
  plan: {
    readonly rateFactor: number;
    readonly durationMs: number | undefined;
    readonly model: ListedModel;
  },
): string[] {
  const { rateFactor, model } = plan;
  const wholeMs = (workload.requests.at(-1)?.atMs ?? 0) / rateFactor;
  const durationMs = plan.durationMs ?? wholeMs;
  const due = workload.requests.filter((one) => one.atMs / rateFactor <= durationMs);
  const remarks: string[] = [];
  if (durationMs > longRunMs) {
    remarks.push(
      `${due.length} requests over ${(durationMs / 60_000).toFixed(1)} minutes; --duration 60 ends after the first`,
    );
  }
  const max = model.contextTokensMax;
  const tooLong =
    max === undefined ? 0 : due.filter((one) => one.inputTokens + one.outputTokens > max).length;
  if (max !== undefined && tooLong > 0) {
    remarks.push(
      `${tooLong} of ${due.length} requests are longer than the ${max} tokens that ${model.id} takes, and will be refused`,
    );
  }
  return remarks;
}

/** Runs above this are announced, ms. */
const longRunMs = 120_000;

function progressLine(progress: ReplayProgress): string {
  const { phase, elapsedMs, durationMs, sent, due, open, errors } = progress;
  const done = Math.min(1, elapsedMs / durationMs);
  const bar = "█".repeat(Math.round(done * 24)).padEnd(24, "░");
  return `${bar} ${(elapsedMs / 1_000).toFixed(0)} s ${phase}, sent ${sent} of ${due}, open ${open}, errors ${errors}`;
}

async function closeFile(file: WriteStream | undefined): Promise<void> {
  if (file === undefined) return;
  file.end();
  await finished(file);
}

async function replay(source: string, flags: Flags, signal: AbortSignal): Promise<ReplayResult> {
  const { workload, defaults } = loadWorkload(source, {
    ...(flags.blockTokens === undefined ? {} : { blockTokens: flags.blockTokens }),
    ...(flags.spreadTickMs === undefined ? {} : { spreadTickMs: flags.spreadTickMs }),
  });
  requireRoot(flags.url);
  const headers = parseHeaders(flags.header);
  const rateFactor =
    flags.rate === undefined
      ? (flags.rateFactor ?? defaults.rateFactor)
      : flags.rate / workloadFacts(workload).ratePerSecond;
  const durationMs = flags.duration === undefined ? undefined : flags.duration * 1_000;
  const model = await chooseModel(flags, headers);
  for (const remark of remarksBefore(workload, { rateFactor, durationMs, model })) {
    process.stderr.write(`${remark}\n`);
  }
  const file = flags.out === undefined ? undefined : createWriteStream(flags.out);
  let fileError: Error | undefined;
  file?.on("error", (error) => {
    fileError ??= error;
  });
  const showsProgress = process.stderr.isTTY && flags.json !== true;
  const result = await runReplay({
    workload,
    url: flags.url,
    model: model.id,
    rateFactor,
    durationMs,
    warmupRatio: flags.warmup,
    api: flags.api,
    headers,
    openMax: flags.openMax,
    verify: flags.verify === true ? checkTokenCount : undefined,
    targets: targetsOf(flags),
    signal,
    onProgress: showsProgress
      ? (progress) => process.stderr.write(`\r\u001b[K${progressLine(progress)}`)
      : undefined,
    onRecord:
      file === undefined ? undefined : (record) => file.write(`${JSON.stringify(record)}\n`),
  });
  if (showsProgress) process.stderr.write("\r\u001b[K");
  await closeFile(fileError === undefined ? file : undefined);
  if (fileError !== undefined)
    throw new RangeError(`cannot write ${flags.out ?? ""}: ${fileError.message}`);
  return result;
}

/** The targets asked for; one that is not named is always kept. */
function targetsOf({ ttftTarget, itlTarget }: Flags): LatencyTargets | undefined {
  if (ttftTarget === undefined && itlTarget === undefined) return undefined;
  return { ttftMs: ttftTarget ?? Infinity, itlMs: itlTarget ?? Infinity };
}

function printResult(result: ReplayResult, flags: Flags): void {
  if (flags.json === true) {
    process.stdout.write(`${JSON.stringify(result)}\n`);
    return;
  }
  const { generator, goodput } = result;
  const color = process.stdout.isTTY && process.env["NO_COLOR"] === undefined;
  const width = process.stdout.isTTY ? process.stdout.columns : 120;
  process.stdout.write(
    `${result.workload} against ${result.url}: ${result.ratePerSecond.toFixed(1)} requests/s for ` +
      `${(result.durationMs / 1_000).toFixed(0)} s, first ${(result.warmupMs / 1_000).toFixed(0)} s warm-up\n` +
      `${renderComparison({ [result.model]: result }, { color, width })}\n` +
      (goodput === null
        ? ""
        : `goodput: ${goodput.perSecond.toFixed(2)} requests/s kept their targets, ${(goodput.ratio * 100).toFixed(1)} %\n`) +
      `generator: ${generator.cpuCores.toFixed(2)} cores, ${generator.cpuMsPerRequest.toFixed(2)} ms per request, ` +
      `${generator.cpuUsPerChunk.toFixed(0)} µs per chunk\n` +
      result.errorExamples.map((example) => `${example}\n`).join(""),
  );
}

/**
 * `kvmesh replay WORKLOAD --url …`: replays a workload against any OpenAI endpoint and prints what it
 * saw. Exit code 0 for a valid run without errors, 1 otherwise, 2 for wrong arguments.
 */
export function replayCommand(): Command {
  return new Command("replay")
    .description("replay a workload against any OpenAI endpoint, open loop, at its own times")
    .argument("<workload>", "agentic, conversation, or a file (.jsonl, .csv, plain or gzip)")
    .requiredOption("--url <url>", "root of the endpoint, such as http://127.0.0.1:8080")
    .option("--model <name>", "model to ask for (default: the first one the endpoint lists)")
    .addOption(
      new Option("--rate-factor <n>", "times as fast as recorded (default: the workload's own)")
        .argParser(positive)
        .conflicts("rate"),
    )
    .option("--rate <n>", "requests per second, mean of the whole workload", positive)
    .option("--duration <seconds>", "length of the run (default: the whole workload)", positive)
    .addOption(
      new Option("--warmup <share>", "share of the run left out of the statistics")
        .argParser(share)
        .default(1 / 3, "a third"),
    )
    .addOption(
      new Option("--api <api>", "API to call")
        .choices(["completions", "chat"])
        .default("completions"),
    )
    .option("--verify", "read every answer in full and count its tokens")
    .option("--out <file>", "write one JSON line per request")
    .option("--json", "print the result as one JSON line")
    .option(
      "--header <line>",
      "more request headers, name: value",
      (line: string, before: readonly string[]) => [...before, line],
      [],
    )
    .option("--block-tokens <n>", "tokens per block id of the file", positiveWhole)
    .option("--spread-tick-ms <n>", "spread arrivals over ticks of this length", positive)
    .option("--ttft-target <ms>", "count what has its first token within so long", positive)
    .option("--itl-target <ms>", "count what has a token at least so often in the mean", positive)
    .option("--open-max <n>", "most requests open at once", positiveWhole, 4_096)
    .action(async (source: string, flags: Flags) => {
      const stop = new AbortController();
      const onSignal = (): void => stop.abort();
      process.once("SIGINT", onSignal);
      process.once("SIGTERM", onSignal);
      try {
        const result = await replay(source, flags, stop.signal);
        printResult(result, flags);
        process.exitCode = result.valid && result.errors === 0 ? 0 : 1;
      } catch (error) {
        process.stderr.write(`kvmesh replay: ${(error as Error).message}\n`);
        process.exitCode = 2;
      } finally {
        process.removeListener("SIGINT", onSignal);
        process.removeListener("SIGTERM", onSignal);
      }
    });
}
