import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { loadEngineModel, type EngineModel } from "../../services/simulator/edge/engine-process.ts";
import {
  prefillParams,
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
afterAll(stopPairEngines);

const path = "/v1/completions";
const requests = 120;
const atOnce = 8;

/** Carries out one request over a pair, in the protocol of its flavour; undefined when its client left. */
type Dance = (
  p: Engine,
  d: Engine,
  body: Json,
  id: number,
  signal: AbortSignal,
) => Promise<{ status: number; json: AnswerJson }>;

const dances: Readonly<Record<string, Dance>> = {
  vllm: async (p, d, body, _id, signal) => {
    const first = await p.ask(
      path,
      { ...body, max_tokens: 1, kv_transfer_params: prefillParams },
      { signal },
    );
    const params = first.json.kv_transfer_params;
    return d.ask(path, { ...body, kv_transfer_params: params }, { signal });
  },
  sglang: async (p, d, body, id, signal) => {
    const leg = {
      ...body,
      bootstrap_host: "127.0.0.1",
      bootstrap_port: p.running.ports.bootstrap,
      bootstrap_room: id,
    };
    const prefill = p.post(path, leg, { signal }).then((response) => response.text());
    prefill.catch(() => undefined);
    return d.ask(path, leg, { signal });
  },
  "tensorrt-llm": async (p, d, body, id, signal) => {
    const context = { request_type: "context_only", disagg_request_id: id, schedule_style: 0 };
    const first = await p.ask(path, { ...body, disaggregated_params: context }, { signal });
    const params = {
      ...first.json.choices[0]!.disaggregated_params,
      request_type: "generation_only",
      ctx_usage: first.json.usage,
    };
    return d.ask(path, { ...body, disaggregated_params: params }, { signal });
  },
};

async function expected(engine: Engine, body: Json): Promise<number[]> {
  const response = await engine.post("/sim/oracle", {
    tokens: body["prompt"],
    max_tokens: body["max_tokens"],
    ignore_eos: true,
    seed: body["seed"],
  });
  return ((await response.json()) as { tokens: number[] }).tokens;
}

describe("pairs under faults and departures", () => {
  test.each(["vllm", "sglang", "tensorrt-llm"])(
    "of %s give every token as it must be and end with every block free",
    async (flavour) => {
      const random = new SeededRandom(11).fork(flavour);
      const kv = {
        loadFailurePolicy: "recompute",
        bytesPerBlock: 4_096,
        stallTimeoutMs: 300,
        // What was promised and never fetched is given back before the end.
        leaseMs: 1_500,
        bootstrapTimeoutMs: 1_500,
      };
      const shared = { flavour, kv, kvTokens: 16 * 160, contextTokensMax: 1_000, speedup: 4 };
      const start = (role: string): Promise<Engine> => startPairEngine(model, { ...shared, role });
      const ps = [await start("prefill"), await start("prefill")];
      const ds = [await start("decode"), await start("decode")];
      const all = [...ps, ...ds];
      const dance = dances[flavour]!;
      let left = 0;
      let served = 0;
      let next = 0;
      const one = async (): Promise<void> => {
        while (next < requests) {
          const id = ++next;
          const p = ps[random.int(2)]!;
          const d = ds[random.int(2)]!;
          const family = random.int(4);
          const length = 1 + random.int(500);
          const body: Json = {
            model: "tiny",
            // Prompts of a family share a prefix.
            prompt: Array.from({ length }, (_, i) => 1_000 + family * 10_000 + ((i * 7) % 9_000)),
            temperature: 0,
            seed: random.int(3),
            ignore_eos: true,
            return_token_ids: true,
            max_tokens: 1 + random.int(20),
          };
          const fault = random.int(12);
          if (fault === 0) await p.ask("/sim/faults", { kind: "kv_flip", count: 1 });
          if (fault === 1) await p.ask("/sim/faults", { kind: "kv_cut", count: 1 });
          if (fault === 2) await p.ask("/sim/faults", { kind: "kv_stall", ms: 50 });
          const leave = new AbortController();
          const leaves = random.int(5) === 0;
          const timer = leaves ? setTimeout(() => leave.abort(), random.int(60)) : undefined;
          try {
            const answer = await dance(p, d, body, id, leave.signal);
            expect([id, answer.status]).toEqual([id, 200]);
            expect([id, answer.json.choices[0]!.token_ids]).toEqual([id, await expected(d, body)]);
            served++;
          } catch (error) {
            if (!leave.signal.aborted) throw error;
            left++;
          } finally {
            clearTimeout(timer);
          }
        }
      };
      await Promise.all(Array.from({ length: atOnce }, one));
      expect(served + left).toBe(requests);
      expect(left).toBeGreaterThan(0);
      for (const engine of all) {
        const zero = async (name: string): Promise<boolean> => (await engine.metric(name)) === 0;
        for (const name of [
          "vllm:kv_cache_usage_perc",
          "vllm:num_requests_running",
          "vllm:num_requests_waiting",
          "kvmesh_engine_kv_handoffs",
          "kvmesh_engine_kv_handoff_blocks",
          "kvmesh_engine_kv_loads",
          "kvmesh_engine_kv_rooms",
        ]) {
          await until(() => zero(name), 5_000).catch((error: unknown) => {
            throw new Error(`${name} is not 0`, { cause: error });
          });
        }
        // Recomputing is exact: no block ever held the KV of other tokens.
        expect(await engine.metric("kvmesh_engine_kv_bad_blocks_total", "foreign")).toBe(0);
      }
      const damaged = await Promise.all(
        ds.map((d) => d.metric("kvmesh_engine_kv_bad_blocks_total", "damaged")),
      );
      expect(damaged[0]! + damaged[1]!).toBeGreaterThan(0);
    },
    60_000,
  );
});
