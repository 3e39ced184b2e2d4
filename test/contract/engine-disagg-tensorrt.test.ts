import { afterEach, beforeAll, describe, expect, test } from "vitest";
import { loadEngineModel, type EngineModel } from "../../services/simulator/edge/engine-process.ts";
import {
  pdFixture,
  promptOf,
  shapeOf,
  startPairEngine,
  stopPairEngines,
  until,
  type AnswerJson,
  type Engine,
  type Json,
} from "./engine-pair.ts";

let model: EngineModel;
beforeAll(async () => {
  model = await loadEngineModel("");
});
afterEach(stopPairEngines);

const path = "/v1/completions";
const flavour = "tensorrt-llm";
const tokensOf = (json: AnswerJson): number[] => json.choices[0]!.token_ids;
const base = (prompt: readonly number[], maxTokens = 12): Json => ({
  model: "tiny",
  prompt,
  temperature: 0,
  ignore_eos: true,
  return_token_ids: true,
  max_tokens: maxTokens,
});
const start = async (settings: Json = {}): Promise<Engine> =>
  startPairEngine(model, { flavour, ...settings });

const contextOnly = (id?: number): Json => ({
  disaggregated_params: { request_type: "context_only", disagg_request_id: id, schedule_style: 0 },
});

/** The generation leg's body from the context leg's answer. */
function generationOf(body: Json, context: AnswerJson): Json {
  return {
    ...body,
    prompt: context.prompt_token_ids,
    disaggregated_params: {
      ...context.choices[0]!.disaggregated_params,
      request_type: "generation_only",
      ctx_usage: context.usage,
    },
  };
}

const isFree = async (engine: Engine): Promise<boolean> =>
  (await engine.metric("vllm:kv_cache_usage_perc")) === 0;

describe("context first", () => {
  test("gives the tokens of a whole run, the first of them from the context leg", async () => {
    const [p, d, whole] = [await start(), await start(), await start()];
    const body = base(promptOf(200, 60));
    const context = await p.ask(path, { ...body, ...contextOnly(42) });
    expect(context.status).toBe(200);
    const choice = context.json.choices[0]!;
    expect(choice.finish_reason).toBe("not_finished");
    const written = pdFixture("tensorrt-llm.json");
    expect(shapeOf(choice.disaggregated_params)).toEqual(shapeOf(written["context_choice_params"]));
    expect(choice.disaggregated_params).toMatchObject({
      request_type: "context_only",
      ctx_request_id: 42,
      disagg_request_id: 42,
    });
    const generation = await d.ask(path, generationOf(body, context.json));
    const aggregated = await whole.ask(path, body);
    expect(tokensOf(generation.json)).toEqual(tokensOf(aggregated.json));
    expect(choice.disaggregated_params.first_gen_tokens).toEqual(
      tokensOf(aggregated.json).slice(0, 1),
    );
    expect(await d.metric("kvmesh_engine_kv_pulled_blocks_total")).toBe(13);
    expect(await d.metric("vllm:prompt_tokens_by_source_total", "local_compute")).toBe(0);
    await until(() => isFree(p), 1_000);
    await until(() => isFree(d), 1_000);
  });

  test("usage of the generation leg is the context leg's", async () => {
    const [p, d] = [await start(), await start()];
    const body = base(promptOf(200, 61));
    for (const cached of [0, 192]) {
      const context = await p.ask(path, { ...body, ...contextOnly() });
      const generation = await d.ask(path, generationOf(body, context.json));
      expect(generation.json.usage.prompt_tokens_details.cached_tokens).toBe(cached);
      expect(generation.json.usage.completion_tokens).toBe(12);
    }
  });

  test("chat takes the prompt's ids from the context leg and streams from its first token", async () => {
    const [p, d, whole] = [await start(), await start(), await start()];
    const chat = { model: "tiny", messages: [{ role: "user", content: "hi" }], max_tokens: 6 };
    const context = await p.ask("/v1/chat/completions", { ...chat, ...contextOnly(1) });
    const response = await d.post("/v1/chat/completions", {
      ...chat,
      stream: true,
      messages: [{ role: "user", content: "not what was prefilled" }],
      prompt_token_ids: context.json.prompt_token_ids,
      disaggregated_params: {
        ...context.json.choices[0]!.disaggregated_params,
        request_type: "generation_only",
      },
    });
    const text = (await response.text())
      .split("\n\n")
      .filter((line) => line.startsWith("data: {"))
      .map((line) => JSON.parse(line.slice(6)) as { choices: { delta: { content: string } }[] })
      .map((chunk) => chunk.choices[0]?.delta.content ?? "")
      .join("");
    const aggregated = await whole.ask("/v1/chat/completions", chat);
    expect(text).toBe(aggregated.json.choices[0]!.message.content);
  });

  test("max_tokens 1 is answered by a generation leg with the first token alone", async () => {
    const [p, d] = [await start(), await start()];
    const body = base(promptOf(50, 68), 1);
    const context = await p.ask(path, { ...body, ...contextOnly(5) });
    const generation = await d.ask(path, generationOf(body, context.json));
    expect(tokensOf(generation.json)).toEqual(tokensOf(context.json));
    expect(generation.json.choices[0]!.finish_reason).toBe("length");
    await until(() => isFree(p), 1_000);
    await until(() => isFree(d), 1_000);
  });

  test("max_tokens 1 is finished by the context leg, and its context expires unfetched", async () => {
    const p = await start({ kv: { leaseMs: 300 } });
    const context = await p.ask(path, { ...base(promptOf(50, 62), 1), ...contextOnly(2) });
    expect(context.json.choices[0]!.finish_reason).toBe("length");
    expect(await isFree(p)).toBe(false);
    await until(() => isFree(p), 2_000);
    expect(await p.metric("kvmesh_engine_kv_handoffs_total", "expired")).toBe(1);
  });

  test("64-bit ids come back digit by digit", async () => {
    const [p, d] = [await start(), await start()];
    const body = base(promptOf(50, 63), 3);
    const id = "18446744073709551615";
    const asked = JSON.stringify({ ...body, ...contextOnly(7) }).replace(
      '"disagg_request_id":7',
      `"disagg_request_id":${id}`,
    );
    const text = await (await p.post(path, asked)).text();
    expect(text).toContain(`"ctx_request_id":${id},`);
    const generation = JSON.stringify(generationOf(body, JSON.parse(text) as AnswerJson)).replace(
      /"(ctx|disagg)_request_id":\d+/g,
      `"$1_request_id":${id}`,
    );
    expect((await d.ask(path, generation)).status).toBe(200);
  });
});

describe("what is refused or fails", () => {
  test("a context is single-use: a second fetch is a 500", async () => {
    const [p, d] = [await start(), await start()];
    const body = base(promptOf(100, 64));
    const context = await p.ask(path, { ...body, ...contextOnly(3) });
    const generation = generationOf(body, context.json);
    expect((await d.ask(path, generation)).status).toBe(200);
    await until(() => isFree(p), 1_000);
    const again = await d.ask(path, generation);
    expect(again.status).toBe(500);
    expect(again.json["object"]).toBe("error");
    await until(() => isFree(d), 1_000);
  });

  test("a client that leaves while blocks move frees both engines", async () => {
    const kv = { bytesPerBlock: 16_384, link: { bytesPerS: 50_000 } };
    const [p, d] = [await start({ kv }), await start({ kv })];
    const body = base(promptOf(300, 65));
    const context = await p.ask(path, { ...body, ...contextOnly(4) });
    const leave = new AbortController();
    const leg = d
      .post(path, generationOf(body, context.json), { signal: leave.signal })
      .catch(() => undefined);
    await until(async () => (await p.metric("kvmesh_engine_kv_served_bytes_total")) > 0, 3_000);
    leave.abort();
    await leg;
    await until(() => isFree(d), 200);
    await until(() => isFree(p), 200);
  });

  test.each([
    [{ request_type: "generation_first" }],
    [{ request_type: "context_only", schedule_style: 1 }],
    [{ request_type: "context_only", disagg_request_id: -1 }],
    [{ request_type: "context_only", disagg_request_id: "7" }],
    [{ request_type: "generation_only" }],
    [{ request_type: "generation_only", ctx_request_id: 1, first_gen_tokens: [] }],
    [{ request_type: "generation_only", ctx_request_id: 1, first_gen_tokens: [5] }],
    [
      {
        request_type: "generation_only",
        ctx_request_id: 1,
        first_gen_tokens: [5],
        encoded_opaque_state: "bm8=",
      },
    ],
  ])("%j is a 400", async (disaggregated_params) => {
    const d = await start();
    const answer = await d.ask(path, { ...base([5_000], 2), disaggregated_params });
    expect(answer.status).toBe(400);
  });

  test("an id in use is refused", async () => {
    const p = await start();
    const body = { ...base(promptOf(50, 66), 4), ...contextOnly(9) };
    expect((await p.ask(path, body)).status).toBe(200);
    expect((await p.ask(path, body)).status).toBe(400);
  });

  test("a first token that ends the answer hands nothing over", async () => {
    const [p, whole] = [await start(), await start()];
    const body = base(promptOf(50, 67), 4);
    const [first] = tokensOf((await whole.ask(path, body)).json);
    const context = await p.ask(path, { ...body, ...contextOnly(10), stop_token_ids: [first] });
    expect(context.json.choices[0]!.finish_reason).toBe("stop");
    expect(context.json.choices[0]!.disaggregated_params).toBeUndefined();
    await until(() => isFree(p), 1_000);
  });
});
