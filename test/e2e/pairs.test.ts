import { afterAll, beforeAll, expect, test } from "vitest";
import { startMesh, type TestMesh } from "../support/mesh.ts";
import { startTestRelay, type TestRelay } from "../support/relay-requests.ts";
import { eventually } from "../support/pair-mesh.ts";

let mesh: TestMesh;
let relay: TestRelay;

/** Sum of a router metric's values with these labels. */
async function metric(name: string, labels = ""): Promise<number> {
  const text = await (await fetch(`${mesh.routerHttp[0] ?? ""}/metrics`)).text();
  return text
    .split("\n")
    .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
    .filter((line) => line.includes(labels))
    .reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" ") + 1)), 0);
}

beforeAll(async () => {
  mesh = await startMesh({
    engines: 2,
    settings: {
      engine: { kv: { enabled: true } },
      worker: { engine: { kvTransfer: "NixlConnector", kvBytesPerToken: 64 } },
      router: { placement: { disaggregation: "always" } },
    },
  });
  await mesh.untilServing();
  relay = await startTestRelay({
    keysFile: mesh.state.file("mesh.keys"),
    settings: { instance: "relay-0", routers: { list: [...mesh.controls] } },
  });
  await eventually(async () => (await metric("kvmesh_router_relays", 'state="attached"')) === 1);
}, 120_000);

afterAll(async () => {
  await relay.stop();
  await mesh.stop();
}, 60_000);

test("Envoy sends a pair to the relay, the answer comes back, and its record closes both legs", async () => {
  const content = "Say what a relay does between two engines. ".repeat(40);
  let answer = await mesh.chat({ content, stream: true, maxTokens: 40 });
  // Envoy may not have heard of the relay's endpoint yet.
  await eventually(async () => {
    if (answer.status === 200) return true;
    answer = await mesh.chat({ content, stream: true, maxTokens: 40 });
    return false;
  });
  expect(answer.content.length).toBeGreaterThan(20);
  const { decision } = await mesh.routers.explain({ kind: "last" });
  expect(decision?.pair).toMatchObject({ form: "pair", why: "always", relays: ["relay-0"] });
  const [endpoint] = decision?.endpoints ?? [];
  expect(endpoint).toBe(`127.0.0.1:${String(relay.relay.h2Port)}`);
  await eventually(async () => (await metric("kvmesh_router_reservations_open")) === 0);
  await eventually(async () => {
    const again = await mesh.routers.explain({ kind: "decision", id: decision?.id ?? "" });
    const { observed } = again.decision ?? {};
    return observed?.closedBy === "access_log" && observed.servedEndpoint === endpoint;
  });
  const ends = await metric("kvmesh_router_leg_ends_total", 'outcome="done"');
  expect(ends).toBeGreaterThanOrEqual(2);
  // Without the relay the same requests run whole.
  await relay.relay.stop("test");
  await eventually(async () => (await metric("kvmesh_router_relays")) === 0);
  const whole = await mesh.chat({ content, maxTokens: 10 });
  expect(whole.status).toBe(200);
});
