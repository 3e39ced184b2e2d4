import { readFileSync } from "node:fs";
import { pino } from "pino";
import { realClock } from "../../services/shared/edge/clock.ts";
import type { SpanOptions, Tracing } from "../../services/shared/edge/tracing.ts";
import { EngineConfig } from "../../services/simulator/config.ts";
import {
  startEngine,
  type EngineModel,
  type RunningEngine,
} from "../../services/simulator/edge/engine-process.ts";

export type Json = Record<string, unknown>;

/** What the tests read of an answer. */
export interface AnswerJson extends Json {
  readonly choices: readonly {
    readonly index: number;
    readonly text: string;
    readonly message: { readonly content: string };
    readonly finish_reason: string;
    readonly token_ids: number[];
    readonly disaggregated_params: Json & { first_gen_tokens: number[] };
  }[];
  readonly usage: Json & {
    readonly completion_tokens: number;
    readonly prompt_tokens_details: { readonly cached_tokens: number };
  };
  readonly kv_transfer_params: Json & { readonly remote_block_ids: number[][] };
  readonly prompt_token_ids: number[];
}

/** A span as it was ended. */
export interface SpanRecord {
  readonly name: string;
  readonly options: SpanOptions;
}

/** One engine in this process, as far as a client sees it. */
export interface Engine {
  readonly running: RunningEngine;
  readonly url: string;
  readonly spans: SpanRecord[];
  /** Exit codes that the engine asked for. */
  readonly exits: number[];
  post(path: string, body: unknown, options?: PostOptions): Promise<Response>;
  /** Posts and reads a whole JSON answer, whatever its status. */
  ask(
    path: string,
    body: unknown,
    options?: PostOptions,
  ): Promise<{ status: number; json: AnswerJson }>;
  /** Value of a metric family with these labels, 0 when absent. */
  metric(name: string, labels?: string): Promise<number>;
}

export interface PostOptions {
  readonly headers?: Record<string, string>;
  readonly signal?: AbortSignal;
}

const engines: Engine[] = [];

/** Starts an engine with a KV connector on free ports. */
export async function startPairEngine(
  model: EngineModel,
  settings: Record<string, unknown> = {},
): Promise<Engine> {
  const spans: SpanRecord[] = [];
  const exits: number[] = [];
  const tracing: Tracing = {
    start: (name, options = {}) => ({
      context: { traceId: "", spanId: "", sampled: true },
      set: () => undefined,
      event: () => undefined,
      fail: () => undefined,
      end: () => {
        spans.push({ name, options });
      },
    }),
    stop: () => Promise.resolve(),
  };
  const config = EngineConfig.parse({
    port: 0,
    model: "tiny",
    blockSizeTokens: 16,
    kvTokens: 16 * 400,
    contextTokensMax: 4_096,
    logLevel: "silent",
    ...settings,
    kv: { enabled: true, ...(settings["kv"] as object | undefined) },
    events: { port: 0, replayPort: 0, ...(settings["events"] as object | undefined) },
  });
  const running = await startEngine(config, {
    clock: realClock,
    log: pino({ level: "silent" }),
    tracing,
    exit: (code) => exits.push(code),
    model,
  });
  const url = `http://127.0.0.1:${running.ports.http}`;
  const engine: Engine = {
    running,
    url,
    spans,
    exits,
    post: (path, body, options = {}) =>
      fetch(url + path, {
        method: "POST",
        headers: { "content-type": "application/json", ...options.headers },
        body: typeof body === "string" ? body : JSON.stringify(body),
        ...(options.signal === undefined ? {} : { signal: options.signal }),
      }),
    async ask(path, body, options) {
      const response = await engine.post(path, body, options);
      return { status: response.status, json: (await response.json()) as AnswerJson };
    },
    async metric(name, labels = "") {
      const text = await (await fetch(`${url}/metrics`)).text();
      for (const line of text.split("\n")) {
        if (line.startsWith(`${name}{`) || line.startsWith(`${name} `)) {
          if (line.includes(labels)) return Number(line.slice(line.lastIndexOf(" ") + 1));
        }
      }
      return 0;
    },
  };
  engines.push(engine);
  return engine;
}

/** Ends every engine started here. */
export async function stopPairEngines(): Promise<void> {
  for (const engine of engines.splice(0)) await engine.running.close();
}

/** A prompt of so many token ids that no other seed shares. */
export function promptOf(length: number, seed: number): number[] {
  return Array.from({ length }, (_, i) => 1_000 + ((seed * 7_919 + i * 31 + (i >> 3)) % 50_000));
}

/** Waits until `check` holds; fails with its last value after `msMax`. */
export async function until(check: () => Promise<boolean>, msMax: number): Promise<number> {
  const from = performance.now();
  while (!(await check())) {
    if (performance.now() - from > msMax) throw new Error(`not within ${msMax} ms`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  return performance.now() - from;
}

/** A file of `test/fixtures/pd`. */
export function pdFixture(name: string): Readonly<Record<string, Json>> {
  const url = new URL(`../fixtures/pd/${name}`, import.meta.url);
  return JSON.parse(readFileSync(url, "utf8")) as Readonly<Record<string, Json>>;
}

/** Keys in order and kinds of values, arrays by their first element. */
export function shapeOf(value: unknown): unknown {
  if (Array.isArray(value)) return value.length === 0 ? [] : [shapeOf(value[0])];
  if (typeof value === "object" && value !== null) {
    return Object.entries(value).map(([key, inner]) => [key, shapeOf(inner)]);
  }
  return value === null ? "null" : typeof value;
}

/** What vLLM's prefill leg carries. */
export const prefillParams = {
  do_remote_decode: true,
  do_remote_prefill: false,
  remote_engine_id: null,
  remote_block_ids: null,
  remote_host: null,
  remote_port: null,
};
