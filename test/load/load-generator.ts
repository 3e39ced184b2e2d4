/**
 * The load generator of the router benchmark, a process of its own. Told over IPC to prepare prompts and to send
 * them; answers with what happened. Hashes prompts while it prepares, so that the members can store the blocks of
 * a prompt right after it was placed, as engines do.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { hashBlocks, hashRoot } from "../../services/shared/core/block-hash.ts";
import { ChatTemplate } from "../../services/shared/core/chat-template.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { FusedBpe } from "../../services/shared/core/tokenizer/fused-bpe.ts";
import { parseTokenizerJson } from "../../services/shared/core/tokenizer/tokenizer-json.ts";
import { loadKeys } from "../../services/shared/edge/keys.ts";
import { AccessRecords } from "./access-records.ts";
import { benchModel, ChatPrompts } from "./chat-prompts.ts";
import {
  exchange,
  extProcMethod,
  prepareExchange,
  type PreparedExchange,
} from "./ext-proc-exchange.ts";
import type { ExchangeMode } from "./ext-proc-messages.ts";
import { repositoryRoot } from "./figures.ts";
import { LeanGrpcConnection } from "./lean-grpc-client.ts";
import { NaturalText } from "./natural-text.ts";
import { blockSizeTokens } from "./router-process.ts";
import { modelFolder, modelTokens, readChatTemplate } from "./scripted-members.ts";

/** Makes `count` new prompts, which replace those prepared before. */
export interface PrepareOrder {
  readonly kind: "prepare";
  readonly bodyBytes: number;
  readonly count: number;
}

/** What was prepared. */
export interface Prepared {
  readonly kind: "prepared";
  readonly count: number;
  readonly bytes: number;
  readonly unseenBytes: number;
  readonly sharingCount: number;
  /** How often the natural text has been used up so far; its rare words are then spelled anew. */
  readonly textWraps: number;
}

/** How requests follow each other. */
export type Arrivals =
  /** So many are under way at any time; the next begins when one ends. */
  | { readonly kind: "closed"; readonly concurrency: number }
  /** At random times, so many a second on average, whatever the answers do. */
  | { readonly kind: "open"; readonly perSecond: number };

/** Sends the first `count` prepared prompts. */
export interface RunOrder {
  readonly kind: "run";
  readonly target: string;
  readonly mode: ExchangeMode;
  readonly count: number;
  readonly arrivals: Arrivals;
  /** Whether the target is a router: it gets access-log records, and its members get blocks. */
  readonly isRouter: boolean;
}

/** What became of them. */
export interface RunResult {
  readonly kind: "ran";
  readonly answered: number;
  readonly failures: number;
  /** Text of the first failure. */
  readonly failure: string;
  /** How far the sending times lagged behind the plan at worst, ms; 0 in a closed loop. */
  readonly lagMsMax: number;
  /** From the first request to the end of the last, ms. */
  readonly elapsedMs: number;
  readonly decisionMs: readonly number[];
  readonly exchangeMs: readonly number[];
}

/** Prompts placed since the last such message, about as long as a step of a busy engine takes. */
export interface Served {
  readonly kind: "served";
  readonly prompts: readonly { readonly worker: string; readonly hashes: Uint32Array }[];
}

interface Job {
  readonly prepared: PreparedExchange;
  readonly hashes: Uint32Array;
}

/** Envoy opens one connection for each of its worker threads; two is its usual number on small machines. */
const connectionCount = 2;
const servedIntervalMs = 25;
const [keysFile = ""] = process.argv.slice(2);
const root = hashRoot(loadKeys(keysFile).hashSeed, { model: benchModel });
const tokenizer = new FusedBpe(
  parseTokenizerJson(readFileSync(join(modelFolder, "tokenizer.json"))),
);
const template = new ChatTemplate(readChatTemplate(), modelTokens);
const text = new NaturalText(join(repositoryRoot, "node_modules"), 1);
const sources = new Map<number, ChatPrompts>();
const random = new SeededRandom(2);
const connections = new Map<string, readonly LeanGrpcConnection[]>();
let jobs: Job[] = [];
let requests = 0;

function prepare({ bodyBytes, count }: PrepareOrder): Prepared {
  let source = sources.get(bodyBytes);
  if (source === undefined) {
    source = new ChatPrompts(text, { bodyBytes, seed: bodyBytes });
    sources.set(bodyBytes, source);
  }
  const sums = { bytes: 0, unseenBytes: 0, sharingCount: 0 };
  jobs = [];
  for (let i = 0; i < count; i++) {
    const prompt = source.next();
    sums.bytes += prompt.body.length;
    sums.unseenBytes += prompt.unseenBytes;
    sums.sharingCount += Number(prompt.sharesPrefix);
    const ids = tokenizer.encode(template.render(prompt.turns, { addGenerationPrompt: true }));
    jobs.push({
      prepared: prepareExchange(prompt.body),
      hashes: hashBlocks(root, ids, blockSizeTokens),
    });
  }
  return { kind: "prepared", count, ...sums, textWraps: text.wraps };
}

async function connectionsTo(target: string): Promise<readonly LeanGrpcConnection[]> {
  let list = connections.get(target);
  if (list === undefined) {
    list = await Promise.all(
      Array.from({ length: connectionCount }, () => LeanGrpcConnection.open(target, extProcMethod)),
    );
    connections.set(target, list);
  }
  return list;
}

/** Runs `send` for every job as the order says; returns how late the worst one was, ms. */
async function follow(
  arrivals: Arrivals,
  list: readonly Job[],
  send: (job: Job) => Promise<void>,
): Promise<number> {
  if (arrivals.kind === "closed") {
    const rest = list.values();
    const worker = async (): Promise<void> => {
      for (const job of rest) await send(job);
    };
    await Promise.all(Array.from({ length: arrivals.concurrency }, worker));
    return 0;
  }
  let lagMsMax = 0;
  const open: Promise<void>[] = [];
  let at = performance.now();
  for (const job of list) {
    at += (-Math.log(1 - random.next()) * 1_000) / arrivals.perSecond;
    const wait = at - performance.now();
    if (wait > 1) await sleep(wait);
    else lagMsMax = Math.max(lagMsMax, -wait);
    open.push(send(job));
  }
  await Promise.all(open);
  return lagMsMax;
}

async function run(order: RunOrder): Promise<RunResult> {
  const { target, mode, isRouter } = order;
  const list = await connectionsTo(target);
  const records = isRouter ? new AccessRecords(target) : undefined;
  let served: { worker: string; hashes: Uint32Array }[] = [];
  const tell = (): void => {
    if (served.length > 0) process.send?.({ kind: "served", prompts: served } satisfies Served);
    served = [];
  };
  const teller = setInterval(tell, servedIntervalMs);
  const decisionMs: number[] = [];
  const exchangeMs: number[] = [];
  let failures = 0;
  let failure = "";

  const send = async (job: Job): Promise<void> => {
    const requestId = `bench-${(++requests).toString()}`;
    const connection = list[requests % list.length] as LeanGrpcConnection;
    try {
      const outcome = await exchange(connection, mode, job.prepared, requestId);
      decisionMs.push(outcome.decisionMs);
      exchangeMs.push(outcome.exchangeMs);
      if (records === undefined || outcome.metadata === undefined) return;
      records.add(outcome.metadata);
      const mesh = outcome.metadata["kvmesh"] as Readonly<Record<string, string>>;
      served.push({ worker: mesh["worker"] ?? "", hashes: job.hashes });
    } catch (error) {
      failures++;
      if (failure === "") failure = error instanceof Error ? error.message : String(error);
    }
  };

  const startedAt = performance.now();
  const lagMsMax = await follow(order.arrivals, jobs.slice(0, order.count), send);
  const elapsedMs = performance.now() - startedAt;
  clearInterval(teller);
  tell();
  if (records !== undefined) {
    // The last requests end, and so do their reservations.
    await sleep(120);
    records.close();
  }
  const answered = decisionMs.length;
  return { kind: "ran", answered, failures, failure, lagMsMax, elapsedMs, decisionMs, exchangeMs };
}

process.on("message", (order: PrepareOrder | RunOrder) => {
  if (order.kind === "prepare") process.send?.(prepare(order));
  else {
    void run(order).then((result) => {
      process.send?.(result);
    });
  }
});
process.on("disconnect", () => process.exit(0));
process.send?.({ kind: "ready" });
