import { describe, expect, test } from "vitest";
import { mergeSettings, planMesh, type PlanInput } from "./mesh-plan.ts";
import {
  layoutFrom,
  layOutPorts,
  portCount,
  takePorts,
  type MeshCounts,
  type MeshPorts,
} from "./mesh-ports.ts";

const counts: MeshCounts = { routers: 2, relays: 2, engines: 2, workers: 2 };

function allPorts(ports: MeshPorts): number[] {
  const own = [ports.envoyPublic, ports.envoyTrusted, ports.envoyAdmin, ports.consoleWeb];
  const otlp = [ports.otlpGrpc, ports.otlpHttp];
  const routers = ports.routers.flatMap((one) => [one.hot, one.control, one.http]);
  const relays = ports.relays.flatMap((one) => [one.h2, one.http1, one.metrics]);
  const engines = ports.engines.flatMap((one) => [one.http, one.kvEvents, one.kvReplay]);
  return [...own, ...otlp, ...routers, ...relays, ...engines, ...ports.workers];
}

function input(over: Partial<PlanInput> = {}): PlanInput {
  return {
    host: "127.0.0.1",
    keysFile: "/state/mesh.keys",
    blockSizeTokens: 16,
    policy: "kv",
    defaultPool: "default",
    ports: layOutPorts(layoutFrom(20_000), counts),
    console: true,
    otlpEndpoint: "http://127.0.0.1:20004",
    consoleStore: "/state/console",
    cacheFolder: "/state/cache",
    members: [0, 1].map((index) => ({
      workerId: `w${index}`,
      engineUrl: `http://127.0.0.1:${20_100 + index}`,
      kvEvents: `tcp://127.0.0.1:${20_356 + index}`,
      kvReplay: undefined,
      settings: {},
    })),
    engines: [{ kvTokens: 1_000 }, { kvTokens: 2_000 }],
    sections: { router: {}, relay: {}, worker: {}, engine: {}, console: {} },
    ...over,
  };
}

describe("ports", () => {
  test("a layout has no overlaps up to its stated numbers", () => {
    const ports = allPorts(
      layOutPorts(layoutFrom(20_000), { routers: 8, relays: 8, engines: 236, workers: 236 }),
    );
    expect(new Set(ports).size).toBe(ports.length);
    expect(Math.max(...ports)).toBeLessThan(20_000 + 1_104);
  });

  test("taking free ports uses each once and exactly as many as announced", () => {
    const free = Array.from({ length: portCount(counts) }, (_, index) => 30_000 + index);
    expect(allPorts(takePorts(free, counts)).toSorted()).toEqual(free);
  });
});

describe("planMesh", () => {
  test("gives every router the others as peers and every worker all routers", () => {
    const plan = planMesh(input());
    expect(plan.routers.map((one) => one.settings["peers"])).toEqual([
      ["127.0.0.1:20023"],
      ["127.0.0.1:20013"],
    ]);
    expect(plan.workers.map((one) => one.name)).toEqual(["worker-0", "worker-1"]);
    expect(JSON.stringify(plan.workers[1]?.settings)).toContain("127.0.0.1:20013");
    expect(JSON.stringify(plan.workers[1]?.settings)).toContain("127.0.0.1:20023");
  });

  test("lays sections of the file under what the plan decides, and a member's own over them", () => {
    const plan = planMesh(
      input({
        members: [
          {
            workerId: "gpu",
            engineUrl: "http://10.0.0.5:8000",
            kvEvents: undefined,
            kvReplay: undefined,
            settings: { logLevel: "debug" },
          },
        ],
        engines: [],
        sections: {
          router: { logLevel: "warn", hotPort: 1, pools: { extra: true } },
          relay: { logLevel: "warn", h2Port: 1, engines: { legsMax: 7 } },
          worker: { logLevel: "warn" },
          engine: {},
          console: {},
        },
      }),
    );
    expect(plan.routers[0]?.settings).toMatchObject({
      logLevel: "warn",
      hotPort: 20_012,
      pools: { extra: true, default: "default" },
    });
    expect(plan.relays[0]?.settings).toMatchObject({
      logLevel: "warn",
      h2Port: 20_015,
      engines: { legsMax: 7 },
    });
    expect(plan.workers[0]?.settings["logLevel"]).toBe("debug");
    expect(plan.engines).toEqual([]);
  });

  test("gives every relay all routers, and none where none is wanted", () => {
    const plan = planMesh(input());
    expect(plan.relays.map((one) => one.name)).toEqual(["relay-0", "relay-1"]);
    expect(plan.relays[1]?.settings).toMatchObject({
      instance: "relay-1",
      h2Port: 20_025,
      httpPort: 20_026,
      metricsPort: 20_027,
      keysFile: "/state/mesh.keys",
      routers: { list: ["127.0.0.1:20013", "127.0.0.1:20023"] },
      otlpEndpoint: "http://127.0.0.1:20004",
    });
    const without = input({ ports: layOutPorts(layoutFrom(20_000), { ...counts, relays: 0 }) });
    expect(planMesh(without).relays).toEqual([]);
  });

  test("names the setting that moves each port", () => {
    const plan = planMesh(input());
    expect(plan.relays[1]?.ports[0]).toEqual({
      name: "h2",
      port: 20_025,
      setting: "mesh.ports.relayH2 (relay 1 is 10 higher)",
    });
    expect(plan.routers[1]?.ports[0]).toEqual({
      name: "hot",
      port: 20_022,
      setting: "mesh.ports.routerHot (router 1 is 10 higher)",
    });
    expect(plan.console?.ports.map((one) => one.port)).toEqual([20_003, 20_004, 20_005]);
  });
});

test("mergeSettings merges maps and replaces lists", () => {
  expect(mergeSettings({ a: { b: 1, c: [1, 2] }, d: 1 }, { a: { c: [3] }, d: { e: 2 } })).toEqual({
    a: { b: 1, c: [3] },
    d: { e: 2 },
  });
});
