import { afterEach, describe, expect, test } from "vitest";
import { eventually, PairMesh } from "../support/pair-mesh.ts";
import { readStream } from "../support/relay-requests.ts";
import { promptOf } from "./engine-pair.ts";

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
