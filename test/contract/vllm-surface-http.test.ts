import { readFileSync } from "node:fs";
import { request as httpRequest } from "node:http";
import { decode } from "@msgpack/msgpack";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { Dealer } from "zeromq";
import { realClock } from "../../services/shared/edge/clock.ts";
import type { SpanOptions, Tracing } from "../../services/shared/edge/tracing.ts";
import { EngineConfig } from "../../services/simulator/config.ts";
import {
  loadEngineModel,
  startEngine,
  type EngineModel,
  type RunningEngine,
} from "../../services/simulator/edge/engine-process.ts";

const fixtures = new URL("../fixtures/vllm/", import.meta.url);

/** One recorded exchange: curl arguments and the answer. */
interface Exchange {
  readonly args: string;
  readonly status: number;
  readonly body: string;
}

function readTranscript(name: string): Exchange[] {
  const text = readFileSync(new URL(name, fixtures), "utf8");
  return text
    .split(/^### /m)
    .slice(1)
    .map((part) => {
      const [args = "", ...rest] = part.split("\n");
      const answer = rest.join("\n");
      const split = answer.search(/\r?\n\r?\n/);
      return {
        args,
        status: Number(/^HTTP\/1.1 (\d+)/.exec(answer)?.[1]),
        body: answer.slice(split).trim().split(/^## /m)[0]?.trim() ?? "",
      };
    });
}

interface SpanRecord {
  readonly name: string;
  readonly options: SpanOptions;
  readonly endUnixUs: number;
}

interface Rig {
  readonly engine: RunningEngine;
  readonly url: string;
  readonly spans: SpanRecord[];
  readonly exits: number[];
}

const rigs: Rig[] = [];

async function start(settings: Record<string, unknown> = {}): Promise<Rig> {
  const spans: SpanRecord[] = [];
  const exits: number[] = [];
  const tracing: Tracing = {
    start(name, options = {}) {
      if (options.parent?.sampled === false) return undefined;
      return {
        context: { traceId: "", spanId: "", sampled: true },
        set: () => undefined,
        event: () => undefined,
        fail: () => undefined,
        end: (endUnixUs = 0) => {
          spans.push({ name, options, endUnixUs });
        },
      };
    },
    stop: () => Promise.resolve(),
  };
  const config = EngineConfig.parse({
    port: 0,
    model: "tiny",
    blockSizeTokens: 32,
    kvTokens: 32 * 95,
    contextTokensMax: 2_048,
    logLevel: "silent",
    ...settings,
    events: { port: 0, replayPort: 0, ...(settings["events"] as object | undefined) },
  });
  const engine = await startEngine(config, {
    clock: realClock,
    log: pino({ level: "silent" }),
    tracing,
    exit: (code) => exits.push(code),
    model,
  });
  const rig = { engine, url: `http://127.0.0.1:${String(engine.ports.http)}`, spans, exits };
  rigs.push(rig);
  return rig;
}

const post = async (
  url: string,
  body: unknown,
  headers: Record<string, string> = {},
  signal?: AbortSignal,
): Promise<Response> =>
  fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
    ...(signal === undefined ? {} : { signal }),
  });

type Json = Record<string, unknown>;

/** Keys in order and kinds of values; arrays by their first element. */
function shape(value: unknown): unknown {
  if (Array.isArray(value)) return value.length === 0 ? [] : [shape(value[0])];
  if (typeof value === "object" && value !== null) {
    return Object.entries(value).map(([key, inner]) => [key, shape(inner)]);
  }
  return value === null ? "null" : typeof value;
}

const chunksOf = (text: string): string[] =>
  text
    .split("\n\n")
    .map((part) => part.trim())
    .filter((part) => part.startsWith("data: "))
    .map((part) => part.slice(6));

let model: EngineModel;
let main: Rig;
beforeAll(async () => {
  model = await loadEngineModel("");
  main = await start();
});
afterEach(async () => {
  for (const rig of rigs.splice(1)) await rig.engine.close();
});
afterAll(async () => {
  await main.engine.close();
});

const recorded = readTranscript("http-transcript.txt");
const completion = (args: RegExp): Exchange => {
  const found = recorded.find((exchange) => args.test(exchange.args));
  if (found === undefined) throw new Error(`no exchange ${String(args)}`);
  return found;
};
const bodyOf = (exchange: Exchange): string => /-d (.*)$/.exec(exchange.args)?.[1] ?? "";

describe("answers", () => {
  test("whole completions and chats have the recorded keys, order and kinds", async () => {
    for (const [path, args] of [
      ["/v1/completions", /completions .*"temperature":0}$/],
      ["/v1/chat/completions", /chat\/completions .*"max_tokens":4/],
    ] as const) {
      const exchange = completion(args);
      const response = await post(`${main.url}${path}`, bodyOf(exchange), { "x-request-id": "r1" });
      expect(response.status).toBe(200);
      expect(response.headers.get("x-request-id")).toBe("r1");
      const got = (await response.json()) as Json;
      expect(shape(got)).toEqual(shape(JSON.parse(exchange.body)));
      expect(got["id"]).toBe(path.includes("chat") ? "chatcmpl-r1" : "cmpl-r1");
    }
  });

  test("streams have the recorded chunks: first, middle, last, usage, [DONE]", async () => {
    for (const [path, args] of [
      ["/v1/completions", /my-req-1 -d/],
      ["/v1/completions", /my-req-1c -d/],
      ["/v1/chat/completions", /chat\/completions .*"stream":true/],
    ] as const) {
      const exchange = completion(args);
      const response = await post(`${main.url}${path}`, {
        ...(JSON.parse(bodyOf(exchange)) as Json),
        ignore_eos: true,
      });
      expect(response.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
      const got = chunksOf(await response.text());
      const want = chunksOf(exchange.body);
      expect(got.at(-1)).toBe("[DONE]");
      expect(got).toHaveLength(want.length);
      expect(got.slice(0, -1).map((chunk) => shape(JSON.parse(chunk)))).toEqual(
        want.slice(0, -1).map((chunk) => shape(JSON.parse(chunk))),
      );
    }
  });

  test("tokenize and detokenize have the recorded shape and are inverse", async () => {
    const exchange = completion(/tokenize .*return_token_strs/);
    const tokenized = (await (await post(`${main.url}/tokenize`, bodyOf(exchange))).json()) as {
      tokens: number[];
    };
    expect(shape(tokenized)).toEqual(shape(JSON.parse(exchange.body)));
    const back = await post(`${main.url}/detokenize`, { model: "tiny", tokens: tokenized.tokens });
    expect(await back.json()).toEqual({ prompt: "hello world" });
  });

  test("a chat's prompt is what /tokenize gives for its messages", async () => {
    const messages = [
      { role: "system", content: "Be brief." },
      { role: "user", content: [{ type: "text", text: "Grüße 👋" }] },
    ];
    const { tokens } = (await (await post(`${main.url}/tokenize`, { messages })).json()) as {
      tokens: number[];
    };
    const answer = (await (
      await post(`${main.url}/v1/chat/completions`, {
        messages,
        max_tokens: 1,
        return_token_ids: true,
      })
    ).json()) as { prompt_token_ids: number[] };
    expect(answer.prompt_token_ids).toEqual(tokens);
  });

  test("the tokens of an answer are the oracle's, whole, streamed and continued", async () => {
    const prompt = Array.from({ length: 70 }, (_, i) => i * 3 + 1);
    const ask = { prompt, seed: 9, max_tokens: 30, ignore_eos: true, return_token_ids: true };
    const oracle = (await (
      await post(`${main.url}/sim/oracle`, {
        tokens: prompt,
        seed: 9,
        max_tokens: 30,
        ignore_eos: true,
      })
    ).json()) as { tokens: number[]; text: string };
    expect(oracle.tokens).toHaveLength(30);
    const whole = (await (await post(`${main.url}/v1/completions`, ask)).json()) as {
      choices: { token_ids: number[]; text: string }[];
    };
    expect(whole.choices[0]).toMatchObject({ token_ids: oracle.tokens, text: oracle.text });
    const stream = await post(`${main.url}/v1/completions`, { ...ask, stream: true });
    const ids = chunksOf(await stream.text())
      .slice(0, -1)
      .flatMap((c) => (JSON.parse(c) as { choices: { token_ids: number[] }[] }).choices)
      .flatMap((choice) => choice.token_ids);
    expect(ids).toEqual(oracle.tokens);
    const rest = (await (
      await post(`${main.url}/v1/completions`, {
        ...ask,
        prompt: [...prompt, ...oracle.tokens.slice(0, 12)],
        max_tokens: 18,
      })
    ).json()) as { choices: { token_ids: number[] }[] };
    expect(rest.choices[0]?.token_ids).toEqual(oracle.tokens.slice(12));
  });

  test("n and lists of prompts give choices in order; the usage adds up", async () => {
    const response = await post(`${main.url}/v1/completions`, {
      prompt: [
        [1, 2, 3],
        [4, 5],
      ],
      n: 2,
      seed: 3,
      max_tokens: 4,
      ignore_eos: true,
    });
    const got = (await response.json()) as { choices: Json[]; usage: Json };
    expect(got.choices.map((choice) => choice["index"])).toEqual([0, 1, 2, 3]);
    expect(new Set(got.choices.map((choice) => choice["text"])).size).toBe(4);
    expect(got.usage).toMatchObject({ prompt_tokens: 5, completion_tokens: 16 });
  });

  test("a stop string ends the answer in front of it", async () => {
    const ask = { prompt: [5, 6, 7], max_tokens: 12, ignore_eos: true };
    const all = (await (await post(`${main.url}/v1/completions`, ask)).json()) as {
      choices: { text: string }[];
    };
    const text = all.choices[0]?.text ?? "";
    const words = text.split(" ");
    const stop = `${words[5] ?? ""} ${words[6]?.slice(0, 2) ?? ""}`;
    for (const stream of [false, true]) {
      const response = await post(`${main.url}/v1/completions`, { ...ask, stop, stream });
      const chunks = stream
        ? chunksOf(await response.text()).slice(0, -1)
        : [await response.text()];
      const choices = chunks.flatMap((chunk) => (JSON.parse(chunk) as { choices: Json[] }).choices);
      expect(choices.map((choice) => choice["text"]).join("")).toBe(
        text.slice(0, text.indexOf(stop)),
      );
      expect(choices.at(-1)).toMatchObject({ finish_reason: "stop", stop_reason: stop });
    }
  });

  test("cached tokens count full blocks and never the last prompt token", async () => {
    const prompt = Array.from({ length: 64 }, (_, i) => i + 1_000);
    const usage = async (): Promise<unknown> => {
      const body = { prompt, max_tokens: 1, cache_salt: "mine" };
      const got = (await (await post(`${main.url}/v1/completions`, body)).json()) as {
        usage: { prompt_tokens_details: Json };
      };
      return got.usage.prompt_tokens_details["cached_tokens"];
    };
    expect(await usage()).toBe(0);
    expect(await usage()).toBe(32);
  });
});

describe("errors", () => {
  const errors = readTranscript("http-errors-transcript.txt");
  const cases: [string, RegExp, Record<string, string>?][] = [
    ["unknown model", /"model":"nope"/],
    ["missing prompt", /\{"model":"tiny"\}$/],
    ["max_tokens below 1", /"max_tokens":-1/],
    ["wrong type", /"temperature":"hot"/],
    ["rank out of range", /rank: 3/, { "x-data-parallel-rank": "3" }],
  ];
  for (const [name, pattern, headers] of cases) {
    test(`${name}: status and body as recorded`, async () => {
      const exchange = errors.find((entry) => pattern.test(entry.args));
      const response = await post(
        `${main.url}/v1/completions`,
        bodyOf(exchange as Exchange),
        headers,
      );
      expect(response.status).toBe(exchange?.status);
      expect(await response.text()).toBe(exchange?.body);
    });
  }

  test("greedy n: as recorded", async () => {
    const exchange = completion(/"n":2/);
    const response = await post(`${main.url}/v1/completions`, bodyOf(exchange));
    expect([response.status, await response.text()]).toEqual([400, exchange.body]);
  });

  test("a prompt beyond the context: as recorded, also for streams", async () => {
    const exchange = errors.find((entry) => entry.args.includes("@run/long.json"));
    for (const stream of [false, true]) {
      const prompt = new Array<number>(3_000).fill(5);
      const response = await post(`${main.url}/v1/completions`, { model: "tiny", prompt, stream });
      expect([response.status, await response.text()]).toEqual([400, exchange?.body]);
    }
  });

  test("prompt + max_tokens beyond the context is clipped", async () => {
    const prompt = new Array<number>(2_000).fill(5);
    const body = { prompt, max_tokens: 500, ignore_eos: true };
    const got = (await (await post(`${main.url}/v1/completions`, body)).json()) as {
      choices: Json[];
      usage: Json;
    };
    expect(got.usage["completion_tokens"]).toBe(48);
    expect(got.choices[0]?.["finish_reason"]).toBe("length");
  });

  test("malformed JSON, bad UTF-8 and an unknown token id get 400 of the right type", async () => {
    for (const body of ["{bad json", '"text"', "[]"]) {
      const response = await post(`${main.url}/v1/completions`, body);
      expect(response.status).toBe(400);
      expect(await response.json()).toMatchObject({ error: { type: "Bad Request", code: 400 } });
    }
    const bytes = Buffer.concat([
      Buffer.from('{"prompt":"'),
      Buffer.from([0xff]),
      Buffer.from('"}'),
    ]);
    const response = await fetch(`${main.url}/v1/completions`, { method: "POST", body: bytes });
    expect(response.status).toBe(400);
    const token = await post(`${main.url}/v1/completions`, { prompt: [9_999_999] });
    expect(await token.json()).toEqual({
      error: {
        message: "Token id 9999999 is out of vocabulary",
        type: "BadRequestError",
        param: null,
        code: 400,
      },
    });
  });

  test("unknown paths get 404, wrong methods 405, large bodies 413", async () => {
    expect((await fetch(`${main.url}/nope`)).status).toBe(404);
    expect((await fetch(`${main.url}/v1/completions`)).status).toBe(405);
    const small = await start({ bodyBytesMax: 2_000 });
    const response = await post(`${small.url}/v1/completions`, { prompt: "x".repeat(3_000) });
    expect(response.status).toBe(413);
  });

  test("beyond the queue limit requests get the 503 that means another worker", async () => {
    const rig = await start({ queuedRequestsMax: 1, speedup: 1 });
    const abort = new AbortController();
    const long = { prompt: [1, 2], max_tokens: 1_500, ignore_eos: true, stream: true };
    await post(`${rig.url}/v1/completions`, long, {}, abort.signal);
    const refused = await post(`${rig.url}/v1/completions`, { prompt: [1], max_tokens: 1 });
    expect(refused.status).toBe(503);
    expect(refused.headers.get("retry-after")).toBeNull();
    expect(await refused.json()).toMatchObject({
      error: { type: "Service Unavailable", param: null, code: 503 },
    });
    expect((await fetch(`${rig.url}/health`)).status).toBe(200);
    expect(await (await fetch(`${rig.url}/metrics`)).text()).toMatch(
      /vllm:admission_rejections_total\{model_name="tiny",reason="max_num_queued_reqs"\} 1/,
    );
    abort.abort();
  });
});

/** A gauge or counter of the engine, summed over its labels. */
async function metric(rig: Rig, name: string): Promise<number> {
  const text = await (await fetch(`${rig.url}/metrics`)).text();
  return text
    .split("\n")
    .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
    .reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

async function until(done: () => Promise<boolean> | boolean): Promise<void> {
  const end = performance.now() + 5_000;
  while (!(await done())) {
    if (performance.now() > end) throw new Error("condition not reached in 5 s");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

describe("metrics", () => {
  test("every vllm: family exists in the recording, with its type, labels and bounds", async () => {
    await post(`${main.url}/v1/completions`, { prompt: [1, 2, 3], max_tokens: 2 });
    const families = (text: string): Map<string, Set<string>> => {
      const out = new Map<string, Set<string>>();
      for (const line of text.split("\n")) {
        const match = /^(vllm:[a-z0-9_]+)\{([^}]*)\}/.exec(line);
        if (match === null || match[1]?.endsWith("_created") === true) continue;
        const [, name = "", labels = ""] = match;
        const pairs = [...labels.matchAll(/([a-z_]+)="([^"]*)"/g)].map(
          ([, key = "", value = ""]) =>
            key === "le" ? `le=${String(Number(value.replace("+Inf", "Infinity")))}` : key,
        );
        const set = out.get(name) ?? new Set();
        out.set(name, set.add(pairs.sort().join(",")));
      }
      return out;
    };
    const want = families(readFileSync(new URL("metrics-idle.txt", fixtures), "utf8"));
    const got = families(await (await fetch(`${main.url}/metrics`)).text());
    expect(got.size).toBeGreaterThan(40);
    for (const [name, labels] of got) {
      if (name === "vllm:cache_config_info") continue;
      expect([name, [...labels].sort()]).toEqual([name, [...(want.get(name) ?? [])].sort()]);
    }
    const types = (text: string): Map<string, string> =>
      new Map(
        [...text.matchAll(/^# TYPE (vllm:\S+) (\S+)$/gm)].map(([, name = "", type = ""]) => [
          name,
          type,
        ]),
      );
    const wantTypes = types(readFileSync(new URL("metrics-idle.txt", fixtures), "utf8"));
    for (const [name, type] of types(await (await fetch(`${main.url}/metrics`)).text())) {
      expect([name, type]).toEqual([name, wantTypes.get(name)]);
    }
  });

  test("running requests and used blocks are gauges; both end at zero", async () => {
    const abort = new AbortController();
    const long = {
      prompt: new Array<number>(100).fill(3),
      max_tokens: 900,
      ignore_eos: true,
      stream: true,
    };
    await post(`${main.url}/v1/completions`, long, {}, abort.signal);
    await until(async () => (await metric(main, "vllm:kv_cache_usage_perc")) > 0);
    expect(await metric(main, "vllm:num_requests_running")).toBe(1);
    const before = await metric(main, "vllm:request_success_total");
    abort.abort();
    await until(async () => (await metric(main, "vllm:num_requests_running")) === 0);
    await until(async () => (await metric(main, "vllm:kv_cache_usage_perc")) === 0);
    // A client that goes away is not counted as a finished request.
    expect(await metric(main, "vllm:request_success_total")).toBe(before);
  });
});

describe("discovery", () => {
  test("models, version, load and event sources", async () => {
    const json = async (path: string): Promise<Json> =>
      (await (await fetch(`${main.url}${path}`)).json()) as Json;
    expect(await json("/v1/models")).toMatchObject({
      object: "list",
      data: [{ id: "tiny", object: "model", max_model_len: 2_048, parent: null }],
    });
    expect(await json("/version")).toEqual({ version: "0.32.0" });
    expect(await json("/load")).toEqual({ server_load: 0 });
    const { ports } = main.engine;
    expect(await json("/kv_event_sources")).toEqual({
      "0": {
        enable_kv_cache_events: true,
        publisher: "zmq",
        endpoint: `tcp://127.0.0.1:${String(ports.events)}`,
        replay_endpoint: `tcp://127.0.0.1:${String(ports.replay)}`,
        buffer_steps: 10_000,
        hwm: 100_000,
        max_queue_size: 100_000,
        topic: `kv@127.0.0.1:${String(ports.http)}@tiny`,
      },
    });
  });

  test("a load report comes in the head when asked for", async () => {
    const response = await post(
      `${main.url}/v1/completions`,
      { prompt: [1], max_tokens: 1 },
      { "endpoint-load-metrics-format": "JSON" },
    );
    expect(response.headers.get("endpoint-load-metrics")).toMatch(
      /^JSON \{"named_metrics": \{"num_requests_waiting": 0.0, "kv_cache_usage_perc": [0-9.]+\}\}$/,
    );
    await response.text();
  });
});

describe("events", () => {
  test("what a request stored can be replayed; a reset is told with the next step", async () => {
    const rig = await start();
    const prompt = Array.from({ length: 70 }, (_, i) => i);
    const ask = { prompt, max_tokens: 1, session_id: "s1" };
    await (await post(`${rig.url}/v1/completions`, ask)).text();
    expect(await (await post(`${rig.url}/reset_prefix_cache`, {})).json()).toEqual({
      success: true,
    });
    const dealer = new Dealer({ linger: 0, receiveTimeout: 5_000 });
    dealer.connect(`tcp://127.0.0.1:${String(rig.engine.ports.replay)}`);
    const types = async (): Promise<unknown[][]> => {
      await dealer.send([Buffer.alloc(0), Buffer.alloc(8)]);
      const out: unknown[][] = [];
      for (;;) {
        const frames = await dealer.receive();
        const payload = frames.at(-1) as Buffer;
        if (payload.length === 0) return out;
        const [, events] = decode(payload) as [number, Json[]];
        out.push(events.map((event) => [event["type"], event["session_id"]]));
      }
    };
    expect(await types()).toEqual([[["BlockStored", "s1"]]]);
    await (await post(`${rig.url}/v1/completions`, ask)).text();
    expect(await types()).toEqual([
      [["BlockStored", "s1"]],
      [
        ["AllBlocksCleared", undefined],
        ["BlockStored", "s1"],
      ],
    ]);
    dealer.close();
  });
});

describe("spans", () => {
  const traceId = "0af7651916cd43dd8448eb211c80319c";
  const lines = readFileSync(new URL("otlp-llm-request-spans.jsonl", fixtures), "utf8").trim();
  const spans = lines.split("\n").map((line) => JSON.parse(line) as { name: string; attrs: Json });
  const wanted = spans.find(
    (span) => "gen_ai.request.temperature" in span.attrs && span.name === "llm_request",
  );

  test("llm_request has vLLM's attributes and joins the caller's trace", async () => {
    const rig = await start();
    const body = { prompt: [1, 2, 3], max_tokens: 4, temperature: 1, ignore_eos: true };
    const traceparent = `00-${traceId}-b7ad6b7169203331-01`;
    await (await post(`${rig.url}/v1/completions`, body, { traceparent })).text();
    expect(rig.spans).toHaveLength(1);
    const [span] = rig.spans as [SpanRecord];
    expect(span.name).toBe("llm_request");
    expect(span.options.parent).toMatchObject({ traceId, spanId: "b7ad6b7169203331" });
    expect(Object.keys(span.options.attributes ?? {}).sort()).toEqual(
      Object.keys(wanted?.attrs ?? {}).sort(),
    );
    const attributes = span.options.attributes as Record<string, number>;
    expect(attributes["gen_ai.usage.completion_tokens"]).toBe(4);
    const seconds = (span.endUnixUs - (span.options.startUnixUs ?? 0)) / 1e6;
    expect(seconds).toBeCloseTo(attributes["gen_ai.latency.e2e"] ?? 0, 4);
  });

  test("an unsampled caller gives no span, a malformed one a span of its own", async () => {
    const rig = await start();
    const body = { prompt: [1, 2, 3], max_tokens: 1 };
    const unsampled = { traceparent: `00-${traceId}-b7ad6b7169203331-00` };
    await (await post(`${rig.url}/v1/completions`, body, unsampled)).text();
    expect(rig.spans).toHaveLength(0);
    await (await post(`${rig.url}/v1/completions`, body, { traceparent: "00-zz" })).text();
    expect(rig.spans).toHaveLength(1);
    expect(rig.spans[0]?.options.parent).toBeUndefined();
  });
});

describe("faults and shutdown", () => {
  const fault = async (rig: Rig, body: unknown): Promise<Response> =>
    post(`${rig.url}/sim/faults`, body);
  const stream = { prompt: [1, 2, 3], max_tokens: 400, ignore_eos: true, stream: true };

  test("a fault outside its range is refused with field and range", async () => {
    for (const [body, text] of [
      [{ kind: "explode" }, /kind must be one of crash, freeze/],
      [{ kind: "freeze" }, /ms must be a number from 1 to 600000/],
      [{ kind: "drop_events", ratio: 2, ms: 10 }, /ratio must be a number from 0 to 1/],
    ] as const) {
      const response = await fault(main, body);
      expect(response.status).toBe(400);
      expect(JSON.stringify(await response.json())).toMatch(text);
    }
  });

  test("error_500 fails as many requests as asked, truncate_stream cuts a stream", async () => {
    const rig = await start();
    await fault(rig, { kind: "error_500", count: 2 });
    const statuses = [];
    for (let i = 0; i < 3; i++) {
      statuses.push(
        (await post(`${rig.url}/v1/completions`, { prompt: [1], max_tokens: 1 })).status,
      );
    }
    expect(statuses).toEqual([500, 500, 200]);
    await fault(rig, { kind: "truncate_stream", count: 1 });
    const cut = await post(`${rig.url}/v1/completions`, stream);
    let received = "";
    await expect(async () => {
      const decoder = new TextDecoder();
      for await (const part of cut.body as unknown as AsyncIterable<Uint8Array>) {
        received += decoder.decode(part);
      }
    }).rejects.toThrow();
    expect(received).not.toContain("[DONE]");
    expect(chunksOf(received).length).toBeGreaterThanOrEqual(2);
    await until(async () => (await metric(rig, "vllm:num_requests_running")) === 0);
  });

  test("a frozen engine sends nothing while HTTP goes on, then continues", async () => {
    const rig = await start();
    const begun = performance.now();
    await fault(rig, { kind: "freeze", ms: 400 });
    const answer = post(`${rig.url}/v1/completions`, { prompt: [1], max_tokens: 1 });
    expect((await fetch(`${rig.url}/health`)).status).toBe(200);
    expect(performance.now() - begun).toBeLessThan(350);
    expect((await answer).status).toBe(200);
    expect(performance.now() - begun).toBeGreaterThan(400);
  });

  test("a crash ends streams with an error and whole answers with 500, then exits 1", async () => {
    const rig = await start();
    const open = await post(`${rig.url}/v1/completions`, stream);
    const whole = post(`${rig.url}/v1/completions`, { ...stream, stream: false });
    await until(async () => (await metric(rig, "vllm:num_requests_running")) === 2);
    await fault(rig, { kind: "crash" });
    const chunks = chunksOf(await open.text());
    expect(chunks.at(-1)).toBe("[DONE]");
    expect(JSON.parse(chunks.at(-2) ?? "")).toMatchObject({ error: { code: 500 } });
    expect((await whole).status).toBe(500);
    await until(() => rig.exits.length > 0);
    expect(rig.exits).toEqual([1]);
  });

  test("by default a shutdown leaves open streams hanging until the client leaves", async () => {
    const rig = await start({ hangMsMax: 5_000 });
    const abort = new AbortController();
    const open = await post(`${rig.url}/v1/completions`, stream, {}, abort.signal);
    const reader = (open.body as ReadableStream<Uint8Array>).getReader();
    await reader.read();
    const begun = performance.now();
    const down = rig.engine.shutdown();
    await expect(
      fetch(`${rig.url}/health`, { signal: AbortSignal.timeout(300) }),
    ).rejects.toThrow();
    const rest = new TextDecoder();
    let text = "";
    const pump = (async () => {
      for (;;) {
        const part = await reader.read();
        if (part.done) return;
        text += rest.decode(part.value);
      }
    })().catch(() => undefined);
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(text).not.toContain("[DONE]");
    abort.abort();
    await pump;
    await down;
    expect(performance.now() - begun).toBeLessThan(4_000);
  });

  test("with a shutdown timeout streams end normally, health stays 200, new requests get 500", async () => {
    const rig = await start({ shutdownTimeoutMs: 20_000 });
    const open = await post(`${rig.url}/v1/completions`, { ...stream, max_tokens: 60 });
    const down = rig.engine.shutdown();
    expect((await fetch(`${rig.url}/health`)).status).toBe(200);
    const refused = await post(`${rig.url}/v1/completions`, { prompt: [1], max_tokens: 1 });
    expect(refused.status).toBe(500);
    expect(await refused.text()).toContain("cannot schedule new futures after shutdown");
    const chunks = chunksOf(await open.text());
    expect(chunks).toHaveLength(61);
    expect(chunks.at(-1)).toBe("[DONE]");
    await down;
  });

  test("a client that reads slowly gets merged chunks, no token lost, and holds back nobody", async () => {
    const rig = await start({ speedup: 1_000, contextTokensMax: 100_000, kvTokens: 200_000 });
    const count = 30_000;
    const oracle = (await (
      await post(`${rig.url}/sim/oracle`, { tokens: [1, 2], max_tokens: count, ignore_eos: true })
    ).json()) as { tokens: number[] };
    const body = JSON.stringify({
      prompt: [1, 2],
      max_tokens: count,
      ignore_eos: true,
      stream: true,
      return_token_ids: true,
    });
    const text = await new Promise<string>((resolve, reject) => {
      const request = httpRequest(`${rig.url}/v1/completions`, { method: "POST" }, (response) => {
        let all = "";
        response.setEncoding("utf8");
        response.pause();
        setTimeout(() => response.resume(), 1_000);
        response.on("data", (part: string) => (all += part));
        response.on("end", () => {
          resolve(all);
        });
        response.on("error", reject);
      });
      request.on("error", reject);
      request.end(body);
    });
    const chunks = chunksOf(text);
    const ids = chunks
      .slice(0, -1)
      .flatMap((chunk) => (JSON.parse(chunk) as { choices: { token_ids: number[] }[] }).choices)
      .flatMap((choice) => choice.token_ids);
    expect(ids).toEqual(oracle.tokens);
    expect(chunks.length).toBeLessThan(count);
  });
});
