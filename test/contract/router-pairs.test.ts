import { createServer, type AddressInfo } from "node:net";
import { afterEach, describe, expect, test, vi } from "vitest";
import type { PlaceResponse } from "../../services/shared/gen/kvmesh/router/v1/router.ts";
import { eventually, PairMesh } from "../support/pair-mesh.ts";
import { post, readStream, startTestRelay } from "../support/relay-requests.ts";
import { promptOf } from "./engine-pair.ts";

// Each starts processes of its own, and two routers know each other after seconds.
vi.setConfig({ testTimeout: 90_000, hookTimeout: 30_000 });

let mesh: PairMesh;

afterEach(async () => {
  await mesh.stop();
});

function bodyOf(promptTokens: number, seed: number, over: object = {}): string {
  return JSON.stringify({
    model: "tiny",
    prompt: promptOf(promptTokens, seed),
    temperature: 0,
    ignore_eos: true,
    max_tokens: 24,
    stream: true,
    ...over,
  });
}

/** All books of a router are empty. */
async function booksAreEmpty(router = 0): Promise<boolean> {
  return (await mesh.metric("kvmesh_router_reservations_open", "", router)) === 0;
}

describe("a router that always pairs", () => {
  test("sends a request to a relay, which prefills here and decodes there; both books end empty", async () => {
    mesh = await PairMesh.create();
    await mesh.addRouter({ placement: { disaggregation: "always" } });
    const prefill = await mesh.addEngine("prefill");
    const decode = await mesh.addEngine("decode");
    const wholes = (): Promise<number> =>
      mesh.metric("kvmesh_router_pair_decisions_total", 'form="whole",why="no_relay"');
    const asked = await wholes();
    // Without a relay nobody could carry out a pair.
    const before = await mesh.serve(bodyOf(600, 1));
    expect(before.routed.headers["x-kvmesh-pool"]).toBe("pool-default");
    expect(before.routed.headers["x-kvmesh-placement"]).toBeUndefined();
    expect(before.status).toBe(200);
    expect(await wholes()).toBe(asked + 1);

    await mesh.addRelay();
    const body = bodyOf(600, 2);
    const served = await mesh.serve(body, { requestId: "paired" });
    expect(served.routed.headers["x-kvmesh-pool"]).toBe("relays");
    expect(served.status).toBe(200);
    const stream = readStream(served.text);
    expect(stream.done).toBe(true);
    const whole = await decode.engine.ask(
      "/v1/completions",
      JSON.parse(bodyOf(600, 2, { stream: false })),
    );
    expect(stream.text).toBe(whole.json.choices[0]?.text);
    expect(await prefill.engine.metric("kvmesh_engine_kv_handoffs_total", "pulled")).toBe(1);
    expect(await decode.engine.metric("kvmesh_engine_kv_pulled_bytes_total")).toBe(38 * 1_024);

    await eventually(booksAreEmpty);
    const decision = await mesh.explain({ $case: "requestId", value: "paired" });
    expect(decision.workerId).toBe(decode.workerId);
    expect(decision.pair).toMatchObject({ form: "pair", why: "always", relays: ["relay-0"] });
    const [pair] = decision.pair?.candidates ?? [];
    expect(pair).toMatchObject({
      prefillWorkerId: prefill.workerId,
      decodeWorkerId: decode.workerId,
      // 19 mesh blocks of 32 tokens, 64 bytes each.
      transferBytes: BigInt(19 * 32 * 64),
    });
    expect(decision.observed).toMatchObject({
      closedBy: "access_log",
      servedAsPicked: true,
      status: 200,
    });
    expect(decision.observed?.cachedTokens).toBe(0);
    expect(await mesh.metric("kvmesh_router_leg_ends_total", 'outcome="done"')).toBe(2);
  });
});

describe("two routers", () => {
  async function twoRouters(): Promise<void> {
    mesh = await PairMesh.create();
    const first = await freePort();
    const second = await freePort();
    const placement = { disaggregation: "always" };
    const peersOf = (port: number): string[] => [`127.0.0.1:${String(port)}`];
    await Promise.all([
      mesh.addRouter({ controlPort: first, peers: peersOf(second), placement }, "router-0"),
      mesh.addRouter({ controlPort: second, peers: peersOf(first), placement }, "router-1"),
    ]);
    mesh.routers.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  test("both know the legs of a pair while they run, and both forget them, whoever hears of the end", async () => {
    await twoRouters();
    // Both legs are open only while the prompt is computed, here for more than a second.
    await mesh.addEngine("prefill", { engine: { speedup: 0.05 } });
    await mesh.addEngine("decode", { engine: { speedup: 1 } });
    await mesh.addRelay();
    const open = (router: number): Promise<number> =>
      mesh.metric("kvmesh_router_reservations_open", "", router);
    // The access log of the second router hears of what the first decided.
    const running = mesh.serve(bodyOf(4_000, 5, { max_tokens: 80 }), { requestId: "a", logTo: 1 });
    await eventually(async () => (await open(0)) === 2 && (await open(1)) === 2);
    const served = await running;
    expect(served.routed.headers["x-kvmesh-pool"]).toBe("relays");
    expect(readStream(served.text).done).toBe(true);
    await eventually(async () => (await booksAreEmpty(0)) && (await booksAreEmpty(1)));
    await eventually(async () => {
      const { observed } = await mesh.explain({ $case: "requestId", value: "a" }, 1);
      return observed?.closedBy === "access_log";
    });
  });

  test("what no access log tells, the relay's notices close at both", async () => {
    await twoRouters();
    await mesh.addEngine("prefill");
    await mesh.addEngine("decode");
    await mesh.addRelay();
    const served = await mesh.serve(bodyOf(500, 6), { requestId: "b", logTo: -1 });
    expect(readStream(served.text).done).toBe(true);
    await eventually(async () => (await booksAreEmpty(0)) && (await booksAreEmpty(1)));
    const { observed } = await mesh.explain({ $case: "requestId", value: "b" });
    expect(observed?.closedBy).toBe("relay");
  });
});

describe("a client that leaves", () => {
  test("frees both books within moments, in the middle of its answer", async () => {
    mesh = await PairMesh.create();
    await mesh.addRouter({ placement: { disaggregation: "always" } });
    await mesh.addEngine("prefill", { engine: { speedup: 1 } });
    const decode = await mesh.addEngine("decode", { engine: { speedup: 1 } });
    await mesh.addRelay();
    const body = bodyOf(300, 7, { max_tokens: 2_000 });
    await mesh.serve(body, { requestId: "c", logTo: -1, leaveAt: 400 });
    await eventually(booksAreEmpty, 2_000);
    await eventually(async () => (await decode.engine.metric("vllm:num_requests_running")) === 0);
    const ends = await mesh.metric(
      "kvmesh_router_leg_ends_total",
      'leg="decode",outcome="cancelled"',
    );
    expect(ends).toBe(1);
  });
});

describe("Place, as relays ask it", () => {
  const ask = (body: string, excluded: string[], dryRun = false): Promise<PlaceResponse> =>
    mesh.call<PlaceResponse>(0, (client, done) => {
      const json = Buffer.from(body);
      const prompt = { $case: "body", value: { path: "/v1/completions", json } } as const;
      const request = { requestId: "again", prompt, subset: [], dryRun };
      client.place({ ...request, excludedWorkerIds: excluded }, done);
    });

  test("leaves out what is excluded, signs what it placed, and Release ends it", async () => {
    mesh = await PairMesh.create();
    await mesh.addRouter({ placement: { disaggregation: "always" } });
    await mesh.addEngine("prefill");
    const d1 = await mesh.addEngine("decode");
    const d2 = await mesh.addEngine("decode");
    await mesh.addRelay();
    const body = bodyOf(400, 8, { stream: false });
    for (const [gone, left] of [
      [d1, d2],
      [d2, d1],
    ] as const) {
      const { decision, placement } = await ask(body, [gone.workerId]);
      expect(decision?.workerId).toBe(left.workerId);
      expect(decision?.pair?.form).toBe("pair");
      const relay = mesh.relays[0]?.relay.httpPort ?? 0;
      const answer = await post(relay, "/v1/completions", body, {
        "x-kvmesh-placement": placement,
      });
      expect(answer.status).toBe(200);
    }
    await eventually(booksAreEmpty);
    // With nobody to decode elsewhere it runs whole, where it may.
    const alone = await ask(body, [d1.workerId, "p0"]);
    expect(alone.decision).toMatchObject({
      workerId: d2.workerId,
      pair: { form: "whole", why: "no_pair" },
    });
    expect(alone.placement).not.toBe("");
    await mesh.call(0, (client, done) => {
      client.release({ decisionId: alone.decision?.id ?? "" }, done);
    });
    await eventually(booksAreEmpty);
    const dry = await ask(body, [], true);
    expect([dry.placement, dry.decision?.pair?.form]).toEqual(["", "pair"]);
    expect(await booksAreEmpty()).toBe(true);
    await expect(
      ask(
        body,
        Array.from({ length: 65 }, (_, i) => `w${String(i)}`),
      ),
    ).rejects.toThrow(/at most 64/);
  });
});

describe("a relay that goes", () => {
  test("is taken out at once by its goodbye, and requests run whole", async () => {
    mesh = await PairMesh.create();
    await mesh.addRouter({ placement: { disaggregation: "always" } });
    await mesh.addEngine("prefill");
    await mesh.addEngine("decode");
    const relay = await mesh.addRelay();
    await relay.relay.stop("test");
    await eventually(async () => (await mesh.metric("kvmesh_router_relays")) === 0, 3_000);
    const served = await mesh.serve(bodyOf(300, 9));
    expect(served.routed.headers["x-kvmesh-pool"]).toBe("pool-default");
    expect(served.status).toBe(200);
  });

  test("without the mesh's key is refused, by name", async () => {
    mesh = await PairMesh.create();
    const router = await mesh.addRouter();
    const stranger = await startTestRelay({
      settings: { routers: { list: [`127.0.0.1:${String(router.ports["control"])}`] } },
    });
    const labels = 'code="unauthenticated"';
    await eventually(
      async () => (await mesh.metric("kvmesh_router_relay_refused_total", labels)) > 0,
    );
    expect(await mesh.metric("kvmesh_router_relays", 'state="attached"')).toBe(0);
    await stranger.stop();
  });
});

/** A port that was free a moment ago. */
async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => {
    server.listen(0, "127.0.0.1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}
