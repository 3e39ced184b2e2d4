import { describe, expect, test } from "vitest";
import { buildBootstrap } from "./bootstrap.ts";
import { defaultOptions, defaultTimeouts } from "./options.ts";

interface RouteConfig {
  readonly name: string;
}

/** The part of a configuration that tests look into. */
interface Bootstrap {
  readonly static_resources: {
    readonly listeners: readonly {
      readonly name: string;
      readonly filter_chains: readonly {
        readonly filters: readonly {
          readonly typed_config: {
            readonly route_config: {
              readonly virtual_hosts: readonly { readonly routes: readonly RouteConfig[] }[];
            };
          };
        }[];
      }[];
    }[];
  };
}

describe("buildBootstrap", () => {
  test("gives the same configuration for the same options", () => {
    expect(buildBootstrap(defaultOptions)).toEqual(buildBootstrap(structuredClone(defaultOptions)));
  });

  test("names every problem of its options at once", () => {
    const build = (): unknown =>
      buildBootstrap({
        ...defaultOptions,
        routers: [],
        controls: [],
        retriesMax: 9,
        defaultPool: { id: "no spaces", models: [], failOpen: true },
        timeouts: { ...defaultTimeouts, routerMessageMsMax: 700_000 },
      });
    for (const part of [
      "routers",
      "controls",
      "retriesMax",
      "defaultPool.id",
      "routerMessageMsMax",
    ]) {
      expect(build).toThrow(part);
    }
  });

  test("resolves router names and takes addresses as they are", () => {
    const typeOf = (host: string): unknown => {
      const { static_resources: resources } = buildBootstrap({
        ...defaultOptions,
        routers: [{ host, port: 9002 }],
      }) as { static_resources: { clusters: { name: string; type: string }[] } };
      return resources.clusters.find(({ name }) => name === "router")?.type;
    };
    expect(typeOf("10.0.0.1")).toBe("STATIC");
    expect(typeOf("::1")).toBe("STATIC");
    expect(typeOf("router.mesh.svc")).toBe("STRICT_DNS");
  });

  test("traces only where there is a receiver", () => {
    expect(JSON.stringify(buildBootstrap(defaultOptions))).toContain("OpenTelemetryConfig");
    expect(JSON.stringify(buildBootstrap({ ...defaultOptions, otlp: undefined }))).not.toContain(
      "OpenTelemetryConfig",
    );
  });

  test("serves nothing unplaced when the default pool has no models", () => {
    expect(JSON.stringify(buildBootstrap(defaultOptions))).toContain('"open":false');
  });

  test.each([
    ["/v1/messages", true],
    ["/v1/files/*", true],
    ["/v1/files*", false],
    ["/*", false],
    ["/", false],
    ["", false],
    ["v1/files", false],
    ["/v1/../metrics", false],
    ["/v1/./x", false],
    ["/v1//x", false],
    ["/v1/x?y=1", false],
    ["/v1/%2e", false],
  ])("takes %j as a public path: %s", (path, isGood) => {
    const build = () => buildBootstrap({ ...defaultOptions, publicPaths: [path] });
    if (isGood) expect(JSON.stringify(build())).toContain(path.replace("*", ""));
    else expect(build).toThrow("publicPaths");
  });

  test("gives the relays' gRPC services to trusted callers, and to public ones where the options say so", () => {
    const routesOf = (name: string, publicPaths: readonly string[]): RouteConfig[] => {
      const options = { ...defaultOptions, publicPaths };
      const { static_resources: resources } = buildBootstrap(options) as unknown as Bootstrap;
      const listener = resources.listeners.find((one) => one.name === name);
      const manager = listener?.filter_chains[0]?.filters[0]?.typed_config;
      return (manager?.route_config.virtual_hosts[0]?.routes ?? []).filter(
        (route) => route.name === "relay-services",
      );
    };
    const [first, ...others] = routesOf("trusted", []);
    expect(others).toHaveLength(3);
    expect(first).toMatchObject({
      match: { prefix: "/kvmesh.inference.v1.Inference/", grpc: {} },
      typed_per_filter_config: { "envoy.filters.http.ext_proc": { disabled: true } },
      route: {
        cluster: "relays",
        timeout: "0s",
      },
    });
    expect(routesOf("public", [])).toEqual([]);
    expect(routesOf("public", ["/kvmesh.inference.v1.Inference/*"])).toEqual([first]);
  });

  test("gives public callers no route to a pool for other paths than those of the list", () => {
    const { static_resources: resources } = buildBootstrap(defaultOptions) as {
      static_resources: { listeners: { name: string }[] };
    };
    const text = (name: string): string =>
      JSON.stringify(resources.listeners.find((listener) => listener.name === name));
    expect(text("public").match(/"prefix":"\/"/g)).toHaveLength(1);
    expect(text("public").indexOf("direct_response")).toBeGreaterThan(
      text("public").indexOf('"prefix":"/"'),
    );
    expect(text("trusted")).not.toContain("direct_response");
  });
});
