import { describe, expect, test } from "vitest";
import { buildBootstrap } from "./bootstrap.ts";
import { defaultOptions, defaultTimeouts } from "./options.ts";

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
});
