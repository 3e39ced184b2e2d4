import { afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Placer } from "../../services/relay/edge/placer.ts";
import type {
  PlacementLeg,
  RelayEngine,
} from "../../services/shared/core/placement-token/placement.ts";
import { loadEngineModel, type EngineModel } from "../../services/simulator/edge/engine-process.ts";
import {
  legAt,
  post,
  readStream,
  startTestRelay,
  type TestRelay,
} from "../support/relay-requests.ts";
import { promptOf, startPairEngine, stopPairEngines, until, type Engine } from "./engine-pair.ts";

/* The relay with simulated engines that really move KV bytes and draw tokens from what was really loaded. */

let model: EngineModel;
beforeAll(async () => {
  model = await loadEngineModel("");
});
const relays: TestRelay[] = [];
afterEach(async () => {
  for (const relay of relays.splice(0)) await relay.stop();
  await stopPairEngines();
});

const addressOf = (engine: Engine): string => engine.url.slice("http://".length);

async function start(placer?: Placer): Promise<TestRelay> {
  const relay = await startTestRelay(placer === undefined ? {} : { placer });
  relays.push(relay);
  return relay;
}

async function legsOf(p: Engine, d: Engine, kind: RelayEngine): Promise<PlacementLeg[]> {
  const prefill = legAt(addressOf(p), "prefill", kind);
  const decode = legAt(addressOf(d), "decode", kind);
  if (kind !== "sglang") return [prefill, decode];
  const info = (await (await fetch(`${p.url}/server_info`)).json()) as {
    disaggregation_bootstrap_port: number;
  };
  return [
    { ...prefill, bootstrap: `127.0.0.1:${String(info.disaggregation_bootstrap_port)}` },
    decode,
  ];
}

const bodyOf = (prompt: unknown, over: object = {}): string =>
  JSON.stringify({
    model: "tiny",
    prompt,
    temperature: 0,
    ignore_eos: true,
    max_tokens: 40,
    stream: true,
    stream_options: { include_usage: true },
    ...over,
  });

async function send(relay: TestRelay, body: string, over: Parameters<TestRelay["sign"]>[1]) {
  const token = relay.sign(body, over);
  return post(relay.relay.httpPort, "/v1/completions", body, { "x-kvmesh-placement": token });
}

async function wholeText(body: string): Promise<string> {
  const engine = await startPairEngine(model);
  const response = await engine.post("/v1/completions", body);
  return readStream(await response.text()).text;
}

const guard = { freezeItlMultiple: 100, freezeMsMin: 1_500, migrationsMax: 4 };

describe.each<RelayEngine>(["vllm", "sglang", "tensorrt-llm"])("a pair of %s", (kind) => {
  const start2 = async (): Promise<{
    relay: TestRelay;
    p: Engine;
    d: Engine;
    legs: PlacementLeg[];
  }> => {
    const p = await startPairEngine(model, { flavour: kind, role: "prefill" });
    const d = await startPairEngine(model, { flavour: kind, role: "decode" });
    return { relay: await start(), p, d, legs: await legsOf(p, d, kind) };
  };

  test("answers as one engine does, and moves the prompt's blocks", async () => {
    const { relay, p, d, legs } = await start2();
    const body = bodyOf(promptOf(200, 1));
    const answer = await send(relay, body, { legs });
    const stream = readStream(answer.text);
    expect(answer.status).toBe(200);
    expect(stream).toMatchObject({ text: await wholeText(body), done: true, finish: ["length"] });
    expect(await d.metric("kvmesh_engine_kv_pulled_blocks_total")).toBe(13);
    expect(await d.metric("vllm:prompt_tokens_by_source_total", "local_compute")).toBe(0);
    expect(await d.metric("kvmesh_engine_kv_bad_blocks_total", "foreign")).toBe(0);
    await until(async () => (await p.metric("vllm:kv_cache_usage_perc")) === 0, 2_000);
    expect(
      relay.notices.filter(({ ended }) => ended).map(({ leg, outcome }) => [leg, outcome]),
    ).toEqual([
      ["prefill", "done"],
      ["decode", "done"],
    ]);
  });

  test("usage is the prefill engine's count of cached tokens", async () => {
    const { relay, legs } = await start2();
    const body = bodyOf(promptOf(200, 2), { max_tokens: 4 });
    await send(relay, body, { legs });
    const answer = await send(relay, body, { legs });
    const usage = readStream(answer.text).chunks.find(
      ({ usage }) => usage !== undefined && usage !== null,
    );
    expect(usage?.["usage"]).toMatchObject({
      prompt_tokens: 200,
      completion_tokens: 4,
      prompt_tokens_details: { cached_tokens: 192 },
    });
  });

  test("a client that leaves frees the blocks of both engines", async () => {
    const { relay, p, d, legs } = await start2();
    const body = bodyOf(promptOf(400, 3), { max_tokens: 3_000 });
    const controller = new AbortController();
    const response = await fetch(
      `http://127.0.0.1:${String(relay.relay.httpPort)}/v1/completions`,
      {
        method: "POST",
        body,
        headers: { "x-kvmesh-placement": relay.sign(body, { legs }) },
        signal: controller.signal,
      },
    );
    await response.body?.getReader().read();
    controller.abort();
    for (const engine of [p, d]) {
      await until(async () => (await engine.metric("vllm:kv_cache_usage_perc")) === 0, 2_000);
    }
  });
});

describe("guarded streams of simulated engines", () => {
  test("an engine that crashes in the middle of 40 streams loses and doubles nothing", async () => {
    const one = await startPairEngine(model);
    const two = await startPairEngine(model);
    const relay = await start({
      place: (ask) =>
        Promise.resolve({
          kind: "placed",
          token: relay.sign(ask.body, { legs: [legAt(addressOf(two), "whole")] }),
        }),
    });
    const bodies = Array.from({ length: 40 }, (_, i) =>
      bodyOf(promptOf(60, 10 + i), { max_tokens: 150 }),
    );
    const answers = bodies.map((body) =>
      send(relay, body, { legs: [legAt(addressOf(one), "whole")], guard }),
    );
    await until(async () => (await one.metric("vllm:generation_tokens_total")) > 1_000, 10_000);
    await one.post("/sim/faults", { kind: "crash" });
    const oracle = await startPairEngine(model);
    const pairs = await Promise.all(
      answers.map(async (answer, index) => {
        const response = await oracle.post("/v1/completions", bodies[index]);
        return { whole: readStream(await response.text()), answer: await answer };
      }),
    );
    for (const { whole, answer } of pairs) {
      const stream = readStream(answer.text);
      expect(stream).toMatchObject({ text: whole.text, done: true, finish: whole.finish });
      const usage = stream.chunks.filter(({ usage }) => usage !== undefined && usage !== null);
      expect(usage.map((chunk) => chunk["usage"])).toMatchObject([
        { completion_tokens: 150, prompt_tokens: 60 },
      ]);
    }
    expect(await relay.metrics()).toMatch(
      /migrations_total\{cause="[a-z_]+",outcome="continued"\} [1-9]/,
    );
  }, 40_000);
});
