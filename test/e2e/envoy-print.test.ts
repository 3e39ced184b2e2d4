import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parse, parseDocument } from "yaml";
import { defaultOptions, type EnvoyOptions } from "../../envoy/options.ts";
import { printFilter, printFull } from "../../envoy/print.ts";
import { startEchoEngine, type EchoEngine } from "../support/echo-engine.ts";
import { startEnvoy, validateEnvoyConfig } from "../support/envoy.ts";
import { startScriptedRouter, type ScriptedRouter } from "../support/scripted-router.ts";

let dir: string;
let router: ScriptedRouter;
let engine: EchoEngine;
let options: EnvoyOptions;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "kvmesh-print-"));
  router = await startScriptedRouter({ pools: ["default"] });
  engine = await startEchoEngine("printed");
  router.ads.setMembers([
    { workerId: "w", pool: "default", endpoint: engine.endpoint, state: "ready" },
  ]);
  router.ads.setKnowledge("complete");
  router.script = () => ({
    kind: "pick",
    endpoints: engine.endpoint,
    pool: "pool-default",
    decision: "r.1.1",
  });
  const loopback = { host: "127.0.0.1", port: 0 };
  const address = { host: "127.0.0.1", port: router.port };
  options = {
    ...defaultOptions,
    public: loopback,
    trusted: loopback,
    admin: loopback,
    routers: [address],
    controls: [address],
    otlp: undefined,
    defaultPool: { id: "default", models: ["m/1"], failOpen: true },
  };
});
afterAll(async () => {
  await router.stop();
  await engine.stop();
  await rm(dir, { recursive: true, force: true });
});

/** Somebody's Envoy as it was before kvmesh: one listener, one route, one cluster. */
const stock = (port: number) => ({
  node: { id: "theirs", cluster: "theirs" },
  admin: { address: { socket_address: { address: "127.0.0.1", port_value: 0 } } },
  static_resources: {
    listeners: [
      {
        name: "theirs",
        address: { socket_address: { address: "127.0.0.1", port_value: port } },
        filter_chains: [
          {
            filters: [
              {
                name: "envoy.filters.network.http_connection_manager",
                typed_config: {
                  "@type":
                    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                  stat_prefix: "theirs",
                  route_config: {
                    virtual_hosts: [{ name: "theirs", domains: ["*"], routes: [] as unknown[] }],
                  },
                  http_filters: [
                    {
                      name: "envoy.filters.http.router",
                      typed_config: {
                        "@type":
                          "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                      },
                    },
                  ] as unknown[],
                },
              },
            ],
          },
        ],
      },
    ],
    clusters: [] as unknown[],
  },
});

interface Parts {
  readonly http_connection_manager: { readonly http_filters: readonly unknown[] };
  readonly routes: readonly unknown[];
  readonly clusters: readonly unknown[];
}

/** Pastes what `envoy print --filter` says into a stock Envoy, where it says. */
function pasted(text: string): unknown {
  const parts = parse(text) as Parts;
  const theirs = stock(0);
  const manager = theirs.static_resources.listeners[0]?.filter_chains[0]?.filters[0]?.typed_config;
  const host = manager?.route_config.virtual_hosts[0];
  if (manager === undefined || host === undefined) throw new Error("not there");
  const { http_filters: filters, ...rest } = parts.http_connection_manager;
  Object.assign(manager, rest);
  manager.http_filters.unshift(...filters);
  host.routes.push(...parts.routes);
  theirs.static_resources.clusters.push(...parts.clusters);
  return theirs;
}

describe.each(["buffered", "duplex"] as const)("a stock Envoy, body mode %s", (bodyMode) => {
  test.each([
    ["the full configuration alone", "public", () => printFull({ ...options, bodyMode })],
    [
      "the parts pasted into another",
      "theirs",
      () => pasted(printFilter({ ...options, bodyMode })),
    ],
  ] as const)("serves with %s", async (_name, listener, bootstrap) => {
    const envoy = await startEnvoy({
      dir: join(dir, `${listener}-${bodyMode}`),
      bootstrap: bootstrap(),
      waitForClusters: ["pool-default"],
    });
    try {
      const before = router.seen.length;
      const port = (envoy.ports[listener] ?? 0).toString();
      const response = await fetch(`http://127.0.0.1:${port}/v1/completions`, {
        method: "POST",
        body: '{"model":"m/1"}',
        headers: { "x-kvmesh-tenant": "forged" },
      });
      expect([response.status, await response.text()]).toEqual([200, '{"engine":"printed"}']);
      expect(router.seen.slice(before)).toHaveLength(1);
      expect(router.seen.at(-1)?.bodyMode).toBe(bodyMode === "duplex" ? 4 : 2);
      expect(router.seen.at(-1)?.headers.has("x-kvmesh-tenant")).toBe(false);
      await expect
        .poll(() => router.records.at(-1)?.commonProperties?.metadata?.filterMetadata["kvmesh"])
        .toEqual({ decision: "r.1.1" });
    } finally {
      await envoy.stop();
    }
  });
});

test("what is printed for the demo's ports is valid as it is", async () => {
  for (const bodyMode of ["buffered", "buffered_partial", "duplex"] as const) {
    const text = printFull({ ...defaultOptions, bodyMode });
    expect(parseDocument(text).errors).toEqual([]);
    await expect(validateEnvoyConfig(text, dir)).resolves.toContain("OK");
  }
});

test("a configuration with a fault is refused by the check that these tests rely on", async () => {
  const text = printFull(options).replace("codec_type: AUTO", "codec_type: NONSENSE");
  await expect(validateEnvoyConfig(text, dir)).rejects.toThrow("NONSENSE");
});
