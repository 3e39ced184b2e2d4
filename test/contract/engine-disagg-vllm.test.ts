import { connect } from "node:net";
import { afterEach, beforeAll, describe, expect, test } from "vitest";
import { loadEngineModel, type EngineModel } from "../../services/simulator/edge/engine-process.ts";
import {
  pdFixture,
  prefillParams,
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
const base = (prompt: readonly number[], maxTokens = 24): Json => ({
  model: "tiny",
  prompt,
  temperature: 0,
  ignore_eos: true,
  return_token_ids: true,
  max_tokens: maxTokens,
});

async function prefill(engine: Engine, body: Json): Promise<{ status: number; json: AnswerJson }> {
  return engine.ask(path, {
    ...body,
    max_tokens: 1,
    stream: false,
    kv_transfer_params: prefillParams,
  });
}

const tokensOf = (json: AnswerJson): number[] => json.choices[0]!.token_ids;

/** Runs both legs and returns the decode leg's answer with the object handed over. */
async function handOver(p: Engine, d: Engine, body: Json) {
  const first = await prefill(p, body);
  expect(first.status).toBe(200);
  const params = first.json.kv_transfer_params;
  const second = await d.ask(path, { ...body, kv_transfer_params: params });
  return { first: first.json, params, second };
}

describe("a prefill here and a decode there", () => {
  test("gives the tokens of a whole run, moves the prompt's bytes and computes one token", async () => {
    const [p, d, whole] = [
      await startPairEngine(model, { role: "prefill" }),
      await startPairEngine(model, { role: "decode" }),
      await startPairEngine(model),
    ];
    const body = base(promptOf(200, 1));
    const { first, params, second } = await handOver(p, d, body);
    const aggregated = await whole.ask(path, body);
    expect(second.status).toBe(200);
    expect(tokensOf(second.json)).toEqual(tokensOf(aggregated.json));
    expect(tokensOf(first)).toEqual(tokensOf(aggregated.json).slice(0, 1));
    // 200 tokens are 13 blocks of 16, the last one not full.
    expect(params.remote_block_ids[0]).toHaveLength(13);
    expect(await d.metric("kvmesh_engine_kv_pulled_blocks_total")).toBe(13);
    expect(await d.metric("kvmesh_engine_kv_pulled_bytes_total")).toBe(13 * 1_024);
    expect(await p.metric("kvmesh_engine_kv_served_bytes_total")).toBe(13 * 1_024);
    expect(await d.metric("vllm:prompt_tokens_by_source_total", "external_kv")).toBe(200);
    expect(await d.metric("vllm:prompt_tokens_by_source_total", "local_compute")).toBe(0);
    expect(await d.metric("kvmesh_engine_kv_bad_blocks_total", "foreign")).toBe(0);
    await until(async () => (await p.metric("vllm:kv_cache_usage_perc")) === 0, 1_000);
    expect(await p.metric("kvmesh_engine_kv_handoffs_total", "pulled")).toBe(1);
  });

  test("answers in the recorded shapes", async () => {
    const recorded = pdFixture("vllm-0.32.0-pd-dance.json");
    const [p, d] = [await startPairEngine(model), await startPairEngine(model)];
    const body = { ...base(promptOf(200, 2)), return_token_ids: false };
    const { first, second } = await handOver(p, d, body);
    for (const [answer, name] of [
      [first, "prefill_response"],
      [second.json, "decode_response"],
    ] as const) {
      const real = recorded["nixl_cold"]![name] as Json;
      for (const field of ["choices", "usage", "kv_transfer_params"]) {
        expect([field, shapeOf(answer[field])]).toEqual([field, shapeOf(real[field])]);
      }
    }
  });

  test("usage shows the prefill's cached tokens, and own cached blocks are not pulled", async () => {
    const [p, d] = [await startPairEngine(model), await startPairEngine(model)];
    const body = base(promptOf(200, 3));
    await handOver(p, d, body);
    const again = await handOver(p, d, body);
    // Cached on both sides: 12 whole blocks; only the last, partial one moves.
    expect(again.params["remote_prefill_cached_tokens"]).toBe(192);
    expect(again.second.json.usage.prompt_tokens_details.cached_tokens).toBe(192);
    expect(await d.metric("kvmesh_engine_kv_pulled_blocks_total")).toBe(14);
    // Cached at the prefill alone: usage still shows its number.
    const cold = await startPairEngine(model);
    const other = await handOver(p, cold, body);
    expect(other.second.json.usage.prompt_tokens_details.cached_tokens).toBe(192);
    expect(await cold.metric("kvmesh_engine_kv_pulled_blocks_total")).toBe(13);
  });

  test("streams, chats and prompts shorter than a block work as well", async () => {
    const [p, d, whole] = [
      await startPairEngine(model),
      await startPairEngine(model),
      await startPairEngine(model),
    ];
    const chat = { model: "tiny", messages: [{ role: "user", content: "hi" }], max_tokens: 8 };
    const first = await p.ask("/v1/chat/completions", {
      ...chat,
      max_tokens: 1,
      max_completion_tokens: 1,
      kv_transfer_params: prefillParams,
    });
    const params = first.json.kv_transfer_params;
    const streamed = await d.post("/v1/chat/completions", {
      ...chat,
      stream: true,
      kv_transfer_params: params,
    });
    const text = (await streamed.text())
      .split("\n\n")
      .filter((line) => line.startsWith("data: {"))
      .map((line) => JSON.parse(line.slice(6)) as { choices: { delta: { content: string } }[] })
      .map((chunk) => chunk.choices[0]?.delta.content ?? "")
      .join("");
    const aggregated = await whole.ask("/v1/chat/completions", chat);
    expect(text).toBe(aggregated.json.choices[0]!.message.content);
    const short = base([5_000, 5_001, 5_002], 5);
    const shortRun = await handOver(p, d, short);
    expect(tokensOf(shortRun.second.json)).toEqual(tokensOf((await whole.ask(path, short)).json));
  });

  test("large blocks move in pieces", async () => {
    const kv = { bytesPerBlock: 1_000_000 - (1_000_000 % 16) };
    const [p, d] = [await startPairEngine(model, { kv }), await startPairEngine(model, { kv })];
    const { second } = await handOver(p, d, base(promptOf(100, 4)));
    expect(second.status).toBe(200);
    expect(await d.metric("kvmesh_engine_kv_pulled_bytes_total")).toBe(7 * kv.bytesPerBlock);
    expect(await d.metric("kvmesh_engine_kv_bad_blocks_total", "damaged")).toBe(0);
    expect(await d.metric("kvmesh_engine_kv_bad_blocks_total", "foreign")).toBe(0);
  });

  test("a shaped link takes the time that its speed and delay say", async () => {
    const kv = { bytesPerBlock: 16_384, link: { bytesPerS: 2_000_000, latencyMs: 20 } };
    const [p, d] = [
      await startPairEngine(model, { kv }),
      await startPairEngine(model, { kv: { bytesPerBlock: 16_384 } }),
    ];
    const body = base(promptOf(640, 5), 1);
    const first = await prefill(p, body);
    const from = performance.now();
    const second = await d.ask(path, {
      ...body,
      kv_transfer_params: first.json.kv_transfer_params,
    });
    const ms = performance.now() - from;
    expect(second.status).toBe(200);
    // 655,360 bytes at 2 MB/s are 328 ms less a burst of 33 ms, and there and back are 40 ms.
    expect(ms).toBeGreaterThan(320);
    expect(ms).toBeLessThan(1_500);
  });
});

describe("hand-offs", () => {
  test("one that nobody pulls holds its blocks, delays further prefills and expires", async () => {
    const p = await startPairEngine(model, {
      kvTokens: 16 * 20,
      contextTokensMax: 300,
      kv: { leaseMs: 1_000 },
    });
    const from = performance.now();
    const first = await prefill(p, base(promptOf(200, 6)));
    expect(first.status).toBe(200);
    expect(await p.metric("vllm:kv_cache_usage_perc")).toBeCloseTo(13 / 20);
    expect(await p.metric("vllm:num_requests_running")).toBe(0);
    expect(await p.metric("kvmesh_engine_kv_handoff_blocks")).toBe(13);
    const blocked = await prefill(p, base(promptOf(200, 7)));
    expect(blocked.status).toBe(200);
    expect(performance.now() - from).toBeGreaterThan(1_000);
    expect(await p.metric("vllm:nixl_num_kv_expired_reqs_total")).toBe(1);
    await until(async () => (await p.metric("vllm:kv_cache_usage_perc")) === 0, 2_000);
  });

  test("heartbeats of a decode engine that cannot start yet keep the lease", async () => {
    const kv = { leaseMs: 300 };
    const p = await startPairEngine(model, { kv });
    const d = await startPairEngine(model, { kv, kvTokens: 16 * 16, contextTokensMax: 250 });
    // Fills the decode engine for about a second: its pool holds one of these at a time.
    const busy = d.ask(path, base(promptOf(100, 8), 140));
    const { second } = await handOver(p, d, base(promptOf(200, 9), 4));
    expect((await busy).status).toBe(200);
    expect(second.status).toBe(200);
    expect(await p.metric("vllm:nixl_num_kv_expired_reqs_total")).toBe(0);
    expect(await d.metric("kvmesh_engine_kv_bad_blocks_total", "foreign")).toBe(0);
  });

  test("a replay after the blocks were reused gives other text with status 200", async () => {
    const small = { kvTokens: 16 * 20, contextTokensMax: 300 };
    const [p, d, fresh, whole] = [
      await startPairEngine(model, small),
      await startPairEngine(model),
      await startPairEngine(model),
      await startPairEngine(model),
    ];
    const body = base(promptOf(200, 10));
    const { params, second } = await handOver(p, d, body);
    const right = tokensOf((await whole.ask(path, body)).json);
    expect(tokensOf(second.json)).toEqual(right);
    // Freed and not yet reused: the bytes are still right, as they are in the real engine.
    const early = await fresh.ask(path, { ...body, kv_transfer_params: params });
    expect(tokensOf(early.json)).toEqual(right);
    for (let i = 0; i < 3; i++) await p.ask(path, base(promptOf(250, 11 + i), 2));
    const late = await startPairEngine(model);
    const replayed = await late.ask(path, { ...body, kv_transfer_params: params });
    expect(replayed.status).toBe(200);
    expect(tokensOf(replayed.json)).not.toEqual(right);
    expect(await late.metric("vllm:nixl_num_failed_transfers_total")).toBe(0);
    expect(await late.metric("kvmesh_engine_kv_bad_blocks_total", "foreign")).toBeGreaterThan(0);
    // The wrong KV is now cached under the right hashes, and so is what follows from it.
    expect(tokensOf((await late.ask(path, body)).json)).not.toEqual(right);
  });

  test("is freed on the prefill side within 200 ms when the decode leg's client leaves", async () => {
    const p = await startPairEngine(model, {
      kv: { bytesPerBlock: 16_384, link: { bytesPerS: 50_000 } },
    });
    const d = await startPairEngine(model, { kv: { bytesPerBlock: 16_384 } });
    const body = base(promptOf(400, 14));
    const first = await prefill(p, body);
    const leave = new AbortController();
    const leg = d
      .post(
        path,
        { ...body, kv_transfer_params: first.json.kv_transfer_params },
        { signal: leave.signal },
      )
      .catch(() => undefined);
    await until(async () => (await d.metric("kvmesh_engine_kv_loads")) === 1, 2_000);
    await until(async () => (await p.metric("kvmesh_engine_kv_served_bytes_total")) > 0, 2_000);
    leave.abort();
    await leg;
    const freed = async (engine: Engine): Promise<boolean> =>
      (await engine.metric("vllm:kv_cache_usage_perc")) === 0;
    expect(await until(() => freed(d), 1_000)).toBeLessThan(200);
    expect(await until(() => freed(p), 1_000)).toBeLessThan(200);
    expect(await p.metric("kvmesh_engine_kv_handoffs_total", "aborted")).toBe(1);
    expect(await d.metric("kvmesh_engine_kv_loads")).toBe(0);
  });

  test("is freed when the decode leg's client leaves while decode has no room to begin", async () => {
    const p = await startPairEngine(model);
    const small = { kvTokens: 16 * 16, contextTokensMax: 250, speedup: 0.1 };
    const d = await startPairEngine(model, small);
    const busy = new AbortController();
    const long = d.post(path, base(promptOf(200, 33), 40), { signal: busy.signal });
    long.catch(() => undefined);
    await until(async () => (await d.metric("vllm:num_requests_running")) === 1, 2_000);
    const body = base(promptOf(200, 34));
    const first = await prefill(p, body);
    const leave = new AbortController();
    const leg = { ...body, kv_transfer_params: first.json.kv_transfer_params };
    const waiting = d.post(path, leg, { signal: leave.signal }).catch(() => undefined);
    await until(async () => (await d.metric("kvmesh_engine_kv_loads")) === 1, 2_000);
    leave.abort();
    await waiting;
    await until(async () => (await p.metric("vllm:kv_cache_usage_perc")) === 0, 500);
    expect(await p.metric("kvmesh_engine_kv_handoffs_total", "aborted")).toBe(1);
    expect(await d.metric("kvmesh_engine_kv_pulled_bytes_total")).toBe(0);
    busy.abort();
  });

  test("a prefill leg whose client leaves frees its blocks", async () => {
    const p = await startPairEngine(model, { speedup: 0.05 });
    const leave = new AbortController();
    const leg = p
      .post(
        path,
        { ...base(promptOf(2_000, 15), 1), kv_transfer_params: prefillParams },
        { signal: leave.signal },
      )
      .catch(() => undefined);
    await until(async () => (await p.metric("vllm:num_requests_running")) === 1, 2_000);
    leave.abort();
    await leg;
    // The step in progress ends first, as on a GPU.
    await until(async () => (await p.metric("vllm:kv_cache_usage_perc")) === 0, 3_000);
    expect(await p.metric("kvmesh_engine_kv_handoffs")).toBe(0);
  });
});

describe("transfers that fail", () => {
  test("a flipped bit is found and computing goes on from its block", async () => {
    const kv = { loadFailurePolicy: "recompute" };
    const [p, d, whole] = [
      await startPairEngine(model),
      await startPairEngine(model, { kv }),
      await startPairEngine(model),
    ];
    await p.ask("/sim/faults", { kind: "kv_flip", count: 1 });
    const body = base(promptOf(200, 20));
    const { second } = await handOver(p, d, body);
    expect(second.status).toBe(200);
    expect(tokensOf(second.json)).toEqual(tokensOf((await whole.ask(path, body)).json));
    expect(await d.metric("kvmesh_engine_kv_bad_blocks_total", "damaged")).toBe(1);
    // The bit is in the middle of 13 blocks.
    expect(await d.metric("kvmesh_engine_kv_recomputed_blocks_total")).toBe(7);
    await until(async () => (await p.metric("vllm:kv_cache_usage_perc")) === 0, 1_000);
  });

  test("under policy fail the same is a 500, in a stream an error event", async () => {
    const [p, d] = [await startPairEngine(model), await startPairEngine(model)];
    for (const stream of [false, true]) {
      await p.ask("/sim/faults", { kind: "kv_flip", count: 1 });
      const body = base(promptOf(200, stream ? 21 : 22));
      const first = await prefill(p, body);
      const response = await d.post(path, {
        ...body,
        stream,
        kv_transfer_params: first.json.kv_transfer_params,
      });
      const text = await response.text();
      expect(response.status).toBe(stream ? 200 : 500);
      expect(text).toContain('"message":"Internal server error"');
      if (stream) expect(text.trimEnd()).toMatch(/data: \[DONE\]$/);
    }
    await until(async () => (await d.metric("vllm:kv_cache_usage_perc")) === 0, 1_000);
    expect(await d.metric("vllm:nixl_num_failed_transfers_total")).toBe(2);
    expect((await d.ask(path, base(promptOf(40, 23)))).status).toBe(200);
  });

  test.each(["kv_cut", "kv_stall"])("%s in a transfer is recomputed", async (kind) => {
    const kv = { loadFailurePolicy: "recompute", bytesPerBlock: 65_536, stallTimeoutMs: 150 };
    const [p, d, whole] = [
      await startPairEngine(model, { kv }),
      await startPairEngine(model, { kv }),
      await startPairEngine(model),
    ];
    const body = base(promptOf(200, 24));
    const first = await prefill(p, body);
    await p.ask("/sim/faults", { kind, count: 1, ms: 60_000 });
    const second = await d.ask(path, {
      ...body,
      kv_transfer_params: first.json.kv_transfer_params,
    });
    expect(second.status).toBe(200);
    expect(tokensOf(second.json)).toEqual(tokensOf((await whole.ask(path, body)).json));
    const got = await d.metric("kvmesh_engine_kv_pulled_blocks_total");
    expect(got).toBe(kind === "kv_cut" ? 4 : 0);
    expect(await d.metric("kvmesh_engine_kv_recomputed_blocks_total")).toBe(13 - got);
    expect(await d.metric("vllm:nixl_num_failed_transfers_total")).toBe(1);
  });

  test("a peer that was never there costs the handshake time, then is recomputed", async () => {
    const kv = { loadFailurePolicy: "recompute", handshakeTimeoutMs: 300 };
    const [p, d] = [await startPairEngine(model), await startPairEngine(model, { kv })];
    const body = base(promptOf(100, 25));
    const first = await prefill(p, body);
    await p.running.close();
    const from = performance.now();
    const second = await d.ask(path, {
      ...body,
      kv_transfer_params: first.json.kv_transfer_params,
    });
    expect(second.status).toBe(200);
    expect(performance.now() - from).toBeGreaterThan(180);
    expect(performance.now() - from).toBeLessThan(1_500);
  });

  test("a peer that was reached before and is gone fails at once", async () => {
    const kv = { loadFailurePolicy: "recompute" };
    const [p, d] = [await startPairEngine(model), await startPairEngine(model, { kv })];
    await handOver(p, d, base(promptOf(100, 26)));
    const body = base(promptOf(100, 27));
    const first = await prefill(p, body);
    await p.running.close();
    const from = performance.now();
    const params = first.json.kv_transfer_params;
    expect((await d.ask(path, { ...body, kv_transfer_params: params })).status).toBe(200);
    expect(performance.now() - from).toBeLessThan(1_000);
  });

  test("engines whose layouts differ refuse each other", async () => {
    const kv = { loadFailurePolicy: "recompute", bytesPerBlock: 2_048 };
    const [p, d, whole] = [
      await startPairEngine(model),
      await startPairEngine(model, { kv }),
      await startPairEngine(model),
    ];
    const body = base(promptOf(100, 28));
    const { second } = await handOver(p, d, body);
    expect(tokensOf(second.json)).toEqual(tokensOf((await whole.ask(path, body)).json));
    expect(await d.metric("kvmesh_engine_kv_pulled_bytes_total")).toBe(0);
  });

  test("bytes that are no protocol end their connection alone", async () => {
    const [p, d] = [await startPairEngine(model), await startPairEngine(model)];
    for (const garbage of [Buffer.alloc(64, 0xff), Buffer.from("GET / HTTP/1.1\r\n\r\n")]) {
      await new Promise<void>((resolve) => {
        const socket = connect(p.running.ports.kv, "127.0.0.1");
        socket.on("error", () => undefined);
        socket.once("close", () => {
          resolve();
        });
        socket.resume();
        socket.end(garbage);
      });
    }
    const { second } = await handOver(p, d, base(promptOf(100, 29)));
    expect(second.status).toBe(200);
  });
});

describe("bodies", () => {
  test("do_remote_prefill without the rest kills the engine core", async () => {
    const d = await startPairEngine(model);
    const running = d.ask(path, { ...base(promptOf(100, 30), 2_000) });
    await until(async () => (await d.metric("vllm:num_requests_running")) === 1, 2_000);
    const answer = await d.ask(path, {
      ...base([5_000]),
      kv_transfer_params: { do_remote_prefill: true },
    });
    expect(answer.status).toBe(500);
    expect((await running).status).toBe(500);
    await until(() => Promise.resolve(d.exits.length > 0), 2_000);
    expect(d.exits).toEqual([1]);
  });

  test.each([null, {}, { foo: 1 }, { do_remote_prefill: false }, "text", []])(
    "%j asks for nothing",
    async (params) => {
      const engine = await startPairEngine(model);
      const answer = await engine.ask(path, { ...base([5_000], 2), kv_transfer_params: params });
      expect(answer.status).toBe(200);
      expect(answer.json.kv_transfer_params).toBeNull();
    },
  );

  test("an engine without a connector ignores what would kill one that has it", async () => {
    const engine = await startPairEngine(model, { kv: { enabled: false } });
    const params = { do_remote_prefill: true };
    const answer = await engine.ask(path, { ...base([5_000], 2), kv_transfer_params: params });
    expect(answer.status).toBe(200);
  });

  test("more than one choice is refused for both legs", async () => {
    const engine = await startPairEngine(model);
    const body = { ...base([5_000], 1), temperature: 1, n: 2, kv_transfer_params: prefillParams };
    expect((await engine.ask(path, body)).status).toBe(400);
  });
});

describe("spans", () => {
  test("the pull is a hop in the trace of the decode leg", async () => {
    const [p, d] = [await startPairEngine(model), await startPairEngine(model)];
    const body = base(promptOf(200, 32), 2);
    const first = await prefill(p, body);
    const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
    const leg = { ...body, kv_transfer_params: first.json.kv_transfer_params };
    await d.ask(path, leg, { headers: { traceparent: `00-${traceId}-00f067aa0ba902b7-01` } });
    const hop = d.spans.find((span) => span.name === "kvmesh.kv.hop");
    expect(hop?.options.parent?.traceId).toBe(traceId);
    expect(hop?.options.attributes).toMatchObject({
      "kvmesh.kv.bytes": 13 * 1_024,
      "kvmesh.kv.blocks": 13,
      "kvmesh.kv.source": `127.0.0.1:${p.running.ports.kv}`,
      "kvmesh.kv.outcome": "complete",
    });
  });

  test("both legs write llm_request with the counts of each", async () => {
    const [p, d] = [await startPairEngine(model), await startPairEngine(model)];
    await handOver(p, d, base(promptOf(200, 31), 5));
    const tokens = (engine: Engine): unknown =>
      engine.spans
        .filter((span) => span.name === "llm_request")
        .map((span) => [
          span.name,
          span.options.attributes?.["gen_ai.usage.prompt_tokens"],
          span.options.attributes?.["gen_ai.usage.completion_tokens"],
        ]);
    expect(tokens(p)).toEqual([["llm_request", 200, 1]]);
    expect(tokens(d)).toEqual([["llm_request", 200, 5]]);
  });
});
