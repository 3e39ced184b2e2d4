import { connect } from "node:net";
import { afterEach, beforeAll, describe, expect, test } from "vitest";
import { loadEngineModel, type EngineModel } from "../../services/simulator/edge/engine-process.ts";
import { encodeFrame, FrameReader } from "../../services/simulator/core/kv-transfer/frames.ts";
import {
  pdFixture,
  promptOf,
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
const tokensOf = (json: AnswerJson): number[] => json.choices[0]!.token_ids;
const base = (prompt: readonly number[], maxTokens = 12): Json => ({
  model: "tiny",
  prompt,
  temperature: 0,
  ignore_eos: true,
  return_token_ids: true,
  max_tokens: maxTokens,
});

async function pair(kv: Json = {}, settings: Json = {}): Promise<{ p: Engine; d: Engine }> {
  const flavour = "sglang";
  const p = await startPairEngine(model, { flavour, role: "prefill", kv, ...settings });
  const d = await startPairEngine(model, { flavour, role: "decode", kv, ...settings });
  return { p, d };
}

const rendezvous = (p: Engine, room: number): Json => ({
  bootstrap_host: "127.0.0.1",
  bootstrap_port: p.running.ports.bootstrap,
  bootstrap_room: room,
});

const isFree = async (engine: Engine): Promise<boolean> =>
  (await engine.metric("vllm:kv_cache_usage_perc")) === 0;

describe("both legs at once", () => {
  test.each(["prefill first", "decode first"])(
    "%s gives the tokens of a whole run",
    async (order) => {
      const { p, d } = await pair();
      const whole = await startPairEngine(model, { flavour: "sglang", role: "both" });
      const body = base(promptOf(200, 40));
      const legBody = { ...body, ...rendezvous(p, 77) };
      const legs = order === "prefill first" ? [p, d] : [d, p];
      const asked = [];
      for (const leg of legs) {
        asked.push(leg.ask(path, legBody));
        await new Promise((resolve) => setTimeout(resolve, 60));
      }
      const answers = await Promise.all(asked);
      const [prefill, decode] = order === "prefill first" ? answers : answers.toReversed();
      // The same body whole: bootstrap fields are ignored in mode null.
      const aggregated = await whole.ask(path, legBody);
      expect(decode!.status).toBe(200);
      expect(tokensOf(decode!.json)).toEqual(tokensOf(aggregated.json));
      expect(tokensOf(prefill!.json)).toEqual(tokensOf(aggregated.json).slice(0, 1));
      expect(prefill!.json.choices[0]!.finish_reason).toBe("length");
      expect(decode!.json.usage.completion_tokens).toBe(12);
      expect(await d.metric("kvmesh_engine_kv_pulled_blocks_total")).toBe(13);
      // The decode engine computed nothing of the prompt, not even its last position.
      expect(await d.metric("vllm:prompt_tokens_by_source_total", "local_compute")).toBe(0);
      await until(() => isFree(p), 1_000);
      await until(() => isFree(d), 1_000);
      expect(await p.metric("kvmesh_engine_kv_rooms")).toBe(0);
    },
  );

  test("usage of decode shows what the prefill found cached", async () => {
    const { p, d } = await pair();
    const body = base(promptOf(200, 41));
    for (const [room, cached] of [
      [1, 0],
      [2, 192],
    ] as const) {
      const leg = { ...body, ...rendezvous(p, room) };
      const [, decode] = await Promise.all([p.ask(path, leg), d.ask(path, leg)]);
      expect(decode.json.usage.prompt_tokens_details.cached_tokens).toBe(cached);
    }
  });

  test("streams on both sides, first token from the prefill", async () => {
    const { p, d } = await pair();
    const body = { ...base(promptOf(100, 42), 3), stream: true };
    const leg = { ...body, ...rendezvous(p, 3) };
    const texts = await Promise.all([p, d].map(async (e) => (await e.post(path, leg)).text()));
    const tokens = texts.map((text) =>
      text
        .split("\n\n")
        .filter((line) => line.startsWith("data: {"))
        .map((line) => JSON.parse(line.slice(6)) as AnswerJson)
        .flatMap((chunk) => chunk.choices[0]?.token_ids ?? []),
    );
    expect(tokens[0]).toEqual(tokens[1]!.slice(0, 1));
    expect(tokens[1]).toHaveLength(3);
  });

  test("rooms beyond 2^53 are told apart by their last digits", async () => {
    const { p, d } = await pair();
    const rooms = ["9223372036854775806", "9223372036854775807"];
    const answers = await Promise.all(
      rooms.flatMap((room, i) => {
        const body = base(promptOf(60 + i * 40, 43 + i), 4);
        const text = JSON.stringify({ ...body, ...rendezvous(p, 0) }).replace(
          '"bootstrap_room":0',
          `"bootstrap_room":${room}`,
        );
        return [p.ask(path, text), d.ask(path, text)];
      }),
    );
    expect(answers.map((answer) => answer.status)).toEqual([200, 200, 200, 200]);
    expect(await d.metric("kvmesh_engine_kv_bad_blocks_total", "foreign")).toBe(0);
  });
});

describe("legs that fail", () => {
  test.each(["prefill", "decode"])(
    "the %s leg's client leaving frees and fails both",
    async (who) => {
      const { p, d } = await pair({ bytesPerBlock: 16_384, link: { bytesPerS: 50_000 } });
      const body = { ...base(promptOf(300, 45)), ...rendezvous(p, 5) };
      const leave = new AbortController();
      const [leaver, other] = who === "prefill" ? [p, d] : [d, p];
      const gone = leaver.post(path, body, { signal: leave.signal }).catch(() => undefined);
      const stays = other.ask(path, body);
      await until(async () => (await p.metric("kvmesh_engine_kv_served_bytes_total")) > 0, 3_000);
      leave.abort();
      await gone;
      const from = performance.now();
      const answer = await stays;
      expect(performance.now() - from).toBeLessThan(200);
      expect(answer.status).toBe(500);
      expect(answer.json["object"]).toBe("error");
      await until(() => isFree(p), 200);
      await until(() => isFree(d), 200);
    },
  );

  test("a leg whose other side never comes fails after the bootstrap time", async () => {
    const { p, d } = await pair({ bootstrapTimeoutMs: 200, waitingTimeoutMs: 300 });
    const body = base(promptOf(100, 46));
    const alone = await p.ask(path, { ...body, ...rendezvous(p, 6) });
    expect(alone.status).toBe(500);
    const waiting = await d.ask(path, { ...body, ...rendezvous(p, 7) });
    expect(waiting.status).toBe(500);
    await until(() => isFree(d), 1_000);
    expect(await p.metric("kvmesh_engine_kv_rooms")).toBe(0);
  });

  test("POST /abort_request ends a leg by its rid", async () => {
    const { p, d } = await pair({ waitingTimeoutMs: 60_000 });
    const body = { ...base(promptOf(100, 47)), ...rendezvous(p, 8), rid: "r-1" };
    const waiting = d.ask(path, body);
    await until(async () => (await d.metric("kvmesh_engine_kv_loads")) === 1, 2_000);
    await d.post("/abort_request", { rid: "other" });
    await d.post("/abort_request", { rid: "r-1" });
    expect((await waiting).status).toBe(500);
    expect(await isFree(d)).toBe(true);
    // The prefill engine was told: the room is empty again.
    await until(async () => (await p.metric("kvmesh_engine_kv_rooms")) === 0, 1_000);
  });

  test("a decode engine lost between the last byte and its word frees the prefill engine", async () => {
    const { p } = await pair();
    const leg = p.ask(path, { ...base(promptOf(100, 50)), ...rendezvous(p, 11) });
    const socket = connect(p.running.ports.kv, "127.0.0.1");
    let ended = false;
    const reader = new FrameReader((frame) => {
      if (frame.kind === "hello") {
        socket.write(encodeFrame({ ...frame, instance: "raw" }));
        const blocks = new Uint32Array(0);
        const order = { mode: "room", key: "11", firstBlock: 0, blockCount: 7, blocks } as const;
        socket.write(encodeFrame({ kind: "pull", id: 1, ...order }));
      }
      if (frame.kind === "end") ended = true;
    });
    socket.on("data", (bytes: Buffer) => {
      reader.feed(bytes);
    });
    await until(() => Promise.resolve(ended), 3_000);
    expect(await isFree(p)).toBe(false);
    socket.destroy();
    expect((await leg).status).toBe(500);
    await until(() => isFree(p), 1_000);
    expect(await p.metric("kvmesh_engine_kv_rooms")).toBe(0);
  });

  test("damage fails the request, or is recomputed when the policy says so", async () => {
    for (const [loadFailurePolicy, status] of [
      ["fail", 500],
      ["recompute", 200],
    ] as const) {
      const { p, d } = await pair({ loadFailurePolicy });
      const whole = await startPairEngine(model);
      const body = base(promptOf(200, 48));
      await p.ask("/sim/faults", { kind: "kv_flip", count: 1 });
      const leg = { ...body, ...rendezvous(p, 9) };
      const [, decode] = await Promise.all([p.ask(path, leg), d.ask(path, leg)]);
      expect(decode.status).toBe(status);
      if (status === 200) {
        expect(tokensOf(decode.json)).toEqual(tokensOf((await whole.ask(path, body)).json));
      }
      await until(() => isFree(p), 1_000);
    }
  });

  test("a room in use and a body without a room are refused", async () => {
    const { p, d } = await pair({ bootstrapTimeoutMs: 1_000 });
    const body = base(promptOf(50, 49));
    const first = p.ask(path, { ...body, ...rendezvous(p, 10) });
    await until(async () => (await p.metric("kvmesh_engine_kv_rooms")) === 1, 1_000);
    expect((await p.ask(path, { ...body, ...rendezvous(p, 10) })).status).toBe(400);
    const roomless = await d.ask(path, body);
    expect(roomless.status).toBe(400);
    const error = pdFixture("sglang.json")["error"]!;
    expect(Object.keys(roomless.json)).toEqual(Object.keys(error));
    expect((await d.ask(path, { ...body, ...rendezvous(p, -1) })).status).toBe(400);
    expect((await d.ask(path, { ...body, bootstrap_room: 1 })).status).toBe(400);
    expect((await first).status).toBe(500);
  });
});

describe("what a router asks besides", () => {
  test("the bootstrap server tells the layout and the rank", async () => {
    const { p } = await pair();
    const url = `http://127.0.0.1:${p.running.ports.bootstrap}`;
    const route = (rank: number): string =>
      `${url}/route?prefill_dp_rank=${rank}&prefill_cp_rank=${rank}&target_tp_rank=${rank}&target_pp_rank=${rank}`;
    expect(await (await fetch(route(-1))).json()).toEqual(pdFixture("sglang.json")["route_all"]);
    expect(await (await fetch(route(0))).json()).toEqual({
      rank_ip: "127.0.0.1",
      rank_port: p.running.ports.kv,
    });
    expect((await fetch(`${url}/route`)).status).toBe(400);
    expect((await fetch(`${url}/health`)).status).toBe(200);
    expect((await fetch(`${url}/nothing`)).status).toBe(404);
  });

  test("server info and loads name mode, bootstrap port and load", async () => {
    const { p, d } = await pair();
    const info = (await (await fetch(`${p.url}/server_info`)).json()) as Json;
    expect(info["disaggregation_mode"]).toBe("prefill");
    expect(info["disaggregation_bootstrap_port"]).toBe(p.running.ports.bootstrap);
    const loads = (await (await fetch(`${d.url}/v1/loads`)).json()) as { loads: Json[] };
    expect(loads.loads[0]).toMatchObject({ num_running_reqs: 0, token_usage: 0 });
  });
});
