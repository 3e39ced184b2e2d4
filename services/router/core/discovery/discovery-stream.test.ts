import { describe, expect, test } from "vitest";
import {
  DiscoveryStream,
  resourceNamesMax,
  resourceTypes,
  type StreamRequest,
} from "./discovery-stream.ts";
import type { DiscoverySnapshot } from "./discovery-view.ts";

const snapshot = (clustersVersion: string, endpointsVersion: string): DiscoverySnapshot => ({
  clustersVersion,
  endpointsVersion,
  clusters: ["pool-a", "relays"],
  endpoints: new Map(["pool-a", "relays"].map((cluster) => [cluster, { cluster, endpoints: [] }])),
});
const ask = (
  type: keyof typeof resourceTypes,
  overrides: Partial<StreamRequest> = {},
): StreamRequest => ({
  typeUrl: resourceTypes[type],
  version: "",
  resourceNames: type === "endpoints" ? ["pool-a"] : [],
  nonce: "",
  error: undefined,
  ...overrides,
});

describe("a discovery stream", () => {
  test("answers clusters before endpoints, and only the names asked for", () => {
    const stream = new DiscoveryStream("7");
    stream.receive(ask("endpoints"));
    stream.receive(ask("clusters"));
    expect(stream.nextResponses(snapshot("7.1", "7.2"))).toEqual([
      { type: "clusters", version: "7.1", nonce: "1", names: ["pool-a", "relays"] },
      { type: "endpoints", version: "7.2", nonce: "2", names: ["pool-a"] },
    ]);
  });

  test("sends nothing new until the last answer is acknowledged, then the newest state once", () => {
    const stream = new DiscoveryStream("7");
    stream.receive(ask("endpoints"));
    stream.nextResponses(snapshot("7.1", "7.1"));
    expect(stream.nextResponses(snapshot("7.1", "7.2"))).toEqual([]);
    expect(stream.nextResponses(snapshot("7.1", "7.3"))).toEqual([]);
    expect(stream.receive(ask("endpoints", { version: "7.1", nonce: "1" }))).toBe("acked");
    expect(stream.takenVersion("endpoints")).toBe("7.1");
    expect(stream.nextResponses(snapshot("7.1", "7.3"))).toMatchObject([{ version: "7.3" }]);
    expect(stream.receive(ask("endpoints", { version: "7.3", nonce: "2" }))).toBe("acked");
    expect(stream.nextResponses(snapshot("7.1", "7.3"))).toEqual([]);
  });

  test("does not repeat a refused version, and sends the next", () => {
    const stream = new DiscoveryStream("7");
    stream.receive(ask("endpoints"));
    stream.nextResponses(snapshot("7.1", "7.1"));
    expect(stream.receive(ask("endpoints", { nonce: "1", error: "malformed IP address" }))).toBe(
      "nacked",
    );
    expect(stream.takenVersion("endpoints")).toBe("");
    expect(stream.nextResponses(snapshot("7.1", "7.1"))).toEqual([]);
    expect(stream.nextResponses(snapshot("7.1", "7.2"))).toMatchObject([{ version: "7.2" }]);
  });

  test("ignores a request about an answer that was followed by another", () => {
    const stream = new DiscoveryStream("7");
    stream.receive(ask("endpoints"));
    stream.nextResponses(snapshot("7.1", "7.1"));
    stream.receive(ask("endpoints", { version: "7.1", nonce: "1" }));
    stream.nextResponses(snapshot("7.1", "7.2"));
    expect(stream.receive(ask("endpoints", { version: "7.1", nonce: "1" }))).toBe("stale");
    expect(stream.nextResponses(snapshot("7.1", "7.3"))).toEqual([]);
  });

  test("answers the same version again when names are added, not when they are dropped", () => {
    const stream = new DiscoveryStream("7");
    stream.receive(ask("endpoints", { resourceNames: ["pool-a"] }));
    stream.nextResponses(snapshot("7.1", "7.1"));
    const more = { version: "7.1", nonce: "1", resourceNames: ["pool-a", "relays"] };
    stream.receive(ask("endpoints", more));
    expect(stream.nextResponses(snapshot("7.1", "7.1"))).toMatchObject([
      { nonce: "2", names: ["pool-a", "relays"] },
    ]);
    stream.receive(ask("endpoints", { version: "7.1", nonce: "2", resourceNames: ["relays"] }));
    expect(stream.nextResponses(snapshot("7.1", "7.1"))).toEqual([]);
  });

  test("sends endpoints again after clusters were taken, since changed clusters wait for them", () => {
    const stream = new DiscoveryStream("7");
    stream.receive(ask("clusters"));
    stream.receive(ask("endpoints"));
    stream.nextResponses(snapshot("7.1", "7.1"));
    stream.receive(ask("endpoints", { version: "7.1", nonce: "2" }));
    stream.receive(ask("clusters", { version: "7.1", nonce: "1" }));
    expect(stream.nextResponses(snapshot("7.1", "7.1"))).toMatchObject([
      { type: "endpoints", version: "7.1", nonce: "3" },
    ]);
  });

  test("leaves out clusters it knows nothing of, so that Envoy keeps what it has", () => {
    const stream = new DiscoveryStream("7");
    stream.receive(ask("endpoints", { resourceNames: ["pool-unknown"] }));
    expect(stream.nextResponses(snapshot("7.1", "7.1"))).toEqual([]);
  });

  test("knows an Envoy that comes with another router's resources", () => {
    const fresh = new DiscoveryStream("7");
    fresh.receive(ask("endpoints"));
    expect(fresh.hasForeignState).toBe(false);
    fresh.nextResponses(snapshot("7.1", "7.1"));
    fresh.receive(ask("endpoints", { version: "7.1", nonce: "1" }));
    expect(fresh.hasForeignState).toBe(false);
    const returning = new DiscoveryStream("7");
    returning.receive(ask("endpoints", { version: "7.40" }));
    expect(returning.hasForeignState).toBe(false);
    const foreign = new DiscoveryStream("7");
    foreign.receive(ask("endpoints", { version: "70.1" }));
    expect(foreign.hasForeignState).toBe(true);
  });

  test("refuses types it does not serve and too many names", () => {
    const stream = new DiscoveryStream("7");
    const typeUrl = "type.googleapis.com/envoy.config.listener.v3.Listener";
    expect(stream.receive({ ...ask("clusters"), typeUrl })).toBe("unknown_type");
    const resourceNames = Array.from({ length: resourceNamesMax + 1 }, () => "a");
    expect(stream.receive(ask("endpoints", { resourceNames }))).toBe("too_many_names");
    expect(stream.nextResponses(snapshot("7.1", "7.1"))).toEqual([]);
  });
});
