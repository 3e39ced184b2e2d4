import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { startGateway, type Gateway } from "../support/gateway.ts";

let gateway: Gateway | undefined;
afterEach(async () => {
  await gateway?.stop();
  gateway = undefined;
});

const hosts = async (of: Gateway, cluster: string): Promise<string[]> => {
  const text = await of.envoy.admin("/clusters");
  const found = text.matchAll(new RegExp(`^${cluster}::([^:]+:\\d+)::health_flags::`, "gm"));
  return [...found].map(([, address]) => address ?? "").sort();
};
const member = (pool: string, endpoint: string, state: "ready" | "draining" = "ready") => ({
  workerId: endpoint,
  pool,
  endpoint,
  state,
});

test("changes reach Envoy: a new pool, a drained and a removed endpoint, a relay", async () => {
  gateway = await startGateway();
  const { router, own, envoy } = gateway;
  router.ads.setMembers([
    member("default", own.endpoint),
    member("default", "127.0.0.1:9", "draining"),
    member("third", "127.0.0.1:10"),
  ]);
  router.ads.setRelays(["127.0.0.1:11"]);
  const of = gateway;
  await expect.poll(() => hosts(of, "pool-third")).toEqual(["127.0.0.1:10"]);
  await expect.poll(() => hosts(of, "relays")).toEqual(["127.0.0.1:11"]);
  expect(await hosts(of, "pool-default")).toEqual(["127.0.0.1:9", own.endpoint].sort());
  expect(await envoy.admin("/clusters")).toContain(
    "pool-default::127.0.0.1:9::health_flags::/eds_status_draining",
  );
  router.ads.setMembers([member("default", own.endpoint)]);
  await expect.poll(() => hosts(of, "pool-default")).toEqual([own.endpoint]);
  await expect.poll(() => hosts(of, "pool-third")).toEqual([]);
  // The pool stays, empty: its cluster would take requests in flight with it.
  expect(await envoy.stat("cluster_manager.cluster_removed")).toBe(0);
  expect(await envoy.stat("cluster_manager.cds.update_rejected")).toBe(0);
  expect([...router.ads.takenVersions("endpoints").keys()]).toEqual(["gateway-1"]);
});

test("200 changes in a burst end in the newest state", async () => {
  gateway = await startGateway();
  const { router, own } = gateway;
  for (let port = 1_000; port < 1_200; port += 1) {
    router.ads.setMembers([
      member("default", own.endpoint),
      member("default", `127.0.0.1:${port.toString()}`),
    ]);
  }
  const of = gateway;
  await expect
    .poll(() => hosts(of, "pool-default"))
    .toEqual(["127.0.0.1:1199", own.endpoint].sort());
});

test("a refused answer keeps the last good endpoints, and the next good one is taken", async () => {
  gateway = await startGateway();
  const { router, own } = gateway;
  const of = gateway;
  router.ads.setMembers([member("default", "not-an-address:1")]);
  await expect.poll(() => of.envoy.stat("cluster.pool-default.update_rejected")).toBe(1);
  expect(await hosts(of, "pool-default")).toEqual([own.endpoint]);
  router.ads.setMembers([member("default", own.endpoint), member("default", "127.0.0.1:12")]);
  await expect.poll(() => hosts(of, "pool-default")).toEqual(["127.0.0.1:12", own.endpoint].sort());
});

test("when a router stops, Envoy takes discovery from the other one within 3 s and loses nothing", async () => {
  gateway = await startGateway({}, 2);
  const of = gateway;
  const { routers, own, other } = gateway;
  const serving = routers.findIndex(({ ads }) => ads.takenVersions("endpoints").size > 0);
  const [stopped, left] = serving === 0 ? [routers[0], routers[1]] : [routers[1], routers[0]];
  if (stopped === undefined || left === undefined) throw new Error("two routers are needed");
  await stopped.stop();
  const since = performance.now();
  await expect.poll(() => left.ads.takenVersions("endpoints").size, { timeout: 3_000 }).toBe(1);
  expect(performance.now() - since).toBeLessThan(3_000);
  left.ads.setMembers([
    member("default", own.endpoint),
    member("other", other.endpoint),
    member("default", "127.0.0.1:13"),
  ]);
  await expect.poll(() => hosts(of, "pool-default")).toEqual(["127.0.0.1:13", own.endpoint].sort());
});

test("when one of two routers stops under load no request fails and only the ones it held go unplaced", async () => {
  gateway = await startGateway({}, 2);
  const { routers, other, own } = gateway;
  for (const router of routers) {
    router.script = () => ({
      kind: "pick",
      endpoints: other.endpoint,
      pool: "pool-other",
      decision: "r.1.1",
    });
  }
  await sleep(1_500); // two health checks
  const statuses: number[] = [];
  const load = async (): Promise<void> => {
    for (let index = 0; index < 60; index += 1) {
      const answer = await gateway?.send("public", { body: { model: "m/1" } });
      statuses.push(answer?.status ?? 0);
      await sleep(10);
    }
  };
  const loads = [load(), load(), load(), load()];
  await sleep(300);
  await routers[0]?.stop();
  await Promise.all(loads);
  expect(statuses).toHaveLength(240);
  expect(statuses.filter((status) => status !== 200)).toEqual([]);
  expect(own.seen.length).toBeLessThanOrEqual(4);
});

test("a router that reports NOT_SERVING gets no more requests while the other serves", async () => {
  gateway = await startGateway({}, 2);
  const { routers, other, envoy } = gateway;
  for (const router of routers) {
    router.script = () => ({
      kind: "pick",
      endpoints: other.endpoint,
      pool: "pool-other",
      decision: "r.1.1",
    });
  }
  routers[0]?.setHealth(false);
  await expect
    .poll(() => envoy.stat("cluster.router.membership_healthy"), { timeout: 5_000 })
    .toBe(1);
  const before = routers[0]?.seen.length;
  for (let index = 0; index < 20; index += 1) {
    expect((await gateway.send("public", { body: { model: "m/1" } })).status).toBe(200);
  }
  expect(routers[0]?.seen.length).toBe(before);
});

test("with every router gone the default pool serves its own model and nothing else", async () => {
  gateway = await startGateway({}, 2);
  for (const router of gateway.routers) await router.stop();
  const own = await gateway.send("public", { body: { model: "m/1" } });
  expect(own).toMatchObject({ status: 200, text: '{"engine":"own"}' });
  const second = await gateway.send("public", { body: { model: "m/2" } });
  expect(second.status).toBe(503);
  expect(second.headers.get("retry-after")).toBe("1");
  expect(gateway.other.seen).toHaveLength(0);
});
