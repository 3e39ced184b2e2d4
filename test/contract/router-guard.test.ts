import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test, vi } from "vitest";
import { eventually, PairMesh } from "../support/pair-mesh.ts";
import { readStream } from "../support/relay-requests.ts";
import { promptOf } from "./engine-pair.ts";

// Starts processes of its own.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 30_000 });

let mesh: PairMesh;

afterEach(async () => {
  await mesh.stop();
});

function bodyOf(seed: number, over: object = {}): string {
  return JSON.stringify({
    model: "tiny",
    prompt: promptOf(200, seed),
    temperature: 0,
    ignore_eos: true,
    max_tokens: 24,
    stream: true,
    ...over,
  });
}

test("a router told to guard every stream sends those that can be through a relay, which survive their engine", async () => {
  mesh = await PairMesh.create();
  const settings = { placement: { disaggregation: "never" }, stream: { guard: "relay" } };
  await mesh.addRouter(settings);
  // At real speed an answer of 300 tokens takes seconds.
  const engines = [
    await mesh.addEngine("both", { engine: { speedup: 1 } }),
    await mesh.addEngine("both", { engine: { speedup: 1 } }),
  ];
  const guarded = (state: string): Promise<number> =>
    mesh.metric("kvmesh_router_guard_decisions_total", `state="${state}"`);

  // Nobody is there to guard it.
  const alone = await mesh.serve(bodyOf(1), { requestId: "alone" });
  expect(alone.routed.headers["x-kvmesh-pool"]).toBe("pool-default");
  const early = await mesh.explain({ $case: "requestId", value: "alone" });
  expect(early.guard).toEqual({ off: "no_relay", relays: [] });

  await mesh.addRelay();
  const echoed = await mesh.serve(bodyOf(2, { echo: true }), { requestId: "echoed" });
  expect(echoed.routed.headers["x-kvmesh-pool"]).toBe("pool-default");
  const { guard } = await mesh.explain({ $case: "requestId", value: "echoed" });
  expect(guard?.off).toBe("echo");
  const whole = await mesh.serve(bodyOf(3, { stream: false }));
  expect(whole.routed.headers["x-kvmesh-pool"]).toBe("pool-default");
  // A trusted caller may say otherwise.
  const unguarded = await mesh.route(bodyOf(4), { headers: { "x-kvmesh-guard": "off" } });
  expect(unguarded.headers["x-kvmesh-pool"]).toBe("pool-default");
  expect([await guarded("on"), await guarded("off")]).toEqual([0, 2]);

  const long = bodyOf(5, { max_tokens: 300 });
  const serving = mesh.serve(long, { requestId: "survivor" });
  await eventually(async () => (await guarded("on")) === 1);
  const decision = await mesh.explain({ $case: "requestId", value: "survivor" });
  expect(decision.guard).toEqual({ off: "", relays: ["relay-0"] });
  await sleep(700);
  const lost = engines.find(({ workerId }) => workerId === decision.workerId);
  const other = engines.find(({ workerId }) => workerId !== decision.workerId);
  await lost?.engine.running.close();
  const served = await serving;
  expect(served.routed.headers["x-kvmesh-pool"]).toBe("relays");
  const stream = readStream(served.text);
  expect(stream.done).toBe(true);
  const asked = JSON.parse(bodyOf(5, { max_tokens: 300, stream: false })) as object;
  const told = await other?.engine.ask("/v1/completions", asked);
  expect(stream.text).toBe(told?.json.choices[0]?.text);
});
