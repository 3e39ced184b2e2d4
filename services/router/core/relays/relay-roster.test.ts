import { describe, expect, test } from "vitest";
import { MeshError } from "../../../shared/core/errors.ts";
import { monoMs } from "../../../shared/core/ids.ts";
import { RelayRoster, type RelayFacts, type RelayNotice } from "./relay-roster.ts";

const at = monoMs;

function facts(index: number, over: Partial<RelayFacts> = {}): RelayFacts {
  return {
    instance: `relay-${String(index)}`,
    epoch: 1,
    h2Address: `127.0.0.1:${String(9_100 + 10 * index)}`,
    httpAddress: `127.0.0.1:${String(9_101 + 10 * index)}`,
    engines: ["vllm"],
    streamsMax: 100,
    ...over,
  };
}

function notice(index: number, over: Partial<RelayNotice> = {}): RelayNotice {
  return { ...facts(index), held: true, goodbye: false, draining: false, ...over };
}

function roster(count = 0): RelayRoster {
  const relays = new RelayRoster({ graceMs: 5_000, relaysMax: 8 });
  for (let i = 0; i < count; i++) relays.attach(facts(i), i);
  return relays;
}

const picked = (relays: RelayRoster, id: string): string[] =>
  relays.pick(id, "vllm", 8).map((relay) => relay.facts.instance);

function codeOf(run: () => void): string {
  try {
    run();
  } catch (error) {
    return error instanceof MeshError ? error.code : String(error);
  }
  return "";
}

describe("the lease", () => {
  test("a lost stream ends use at once, and the endpoint after the grace period", () => {
    const relays = roster(1);
    relays.streamLost(0, at(100));
    expect([picked(relays, "a"), relays.endpoints()]).toEqual([[], ["127.0.0.1:9100"]]);
    relays.tick(at(5_099));
    expect(relays.size).toBe(1);
    relays.tick(at(5_100));
    expect([relays.size, relays.endpoints()]).toEqual([0, []]);
  });

  test("a relay that another router holds is used", () => {
    const relays = roster(1);
    relays.notice("r1", notice(0), at(0));
    relays.streamLost(0, at(1));
    relays.tick(at(60_000));
    expect(picked(relays, "a")).toEqual(["relay-0"]);
    relays.routerLost("r1", at(60_001));
    expect(picked(relays, "a")).toEqual([]);
  });

  test("a goodbye takes it out at once, also from a peer, unless its stream is here", () => {
    const relays = roster(2);
    relays.goodbye("relay-0");
    expect(relays.endpoints()).toEqual(["127.0.0.1:9110"]);
    relays.notice("r1", notice(1, { goodbye: true, held: false }), at(0));
    expect(relays.size).toBe(1);
    relays.notice("r1", notice(2), at(0));
    relays.notice("r1", notice(2, { goodbye: true, held: false }), at(1));
    expect(relays.get("relay-2")).toBeUndefined();
  });

  test("older lives are refused, newer ones take over and start counting anew", () => {
    const relays = roster();
    relays.attach(facts(0, { epoch: 5 }), 1);
    expect(codeOf(() => relays.attach(facts(0, { epoch: 4 }), 2))).toBe("stale_epoch");
    expect(codeOf(() => relays.attach(facts(0, { epoch: 5, h2Address: "127.0.0.1:1" }), 2))).toBe(
      "already_exists",
    );
    const relay = relays.get("relay-0");
    if (relay !== undefined) relay.appliedSeq = 7;
    relays.given("relay-0");
    const moved = facts(0, { epoch: 6, h2Address: "127.0.0.1:1" });
    expect(relays.attach(moved, 3).replacedStream).toBe(1);
    expect(relays.get("relay-0")).toMatchObject({ appliedSeq: 0, sinceReport: 0 });
    expect(relays.endpoints()).toEqual(["127.0.0.1:1"]);
    // The end of the stream that was replaced changes nothing.
    relays.streamLost(1, at(1));
    expect(picked(relays, "a")).toEqual(["relay-0"]);
  });

  test("is bounded", () => {
    expect(codeOf(() => roster(9))).toBe("overloaded");
    const relays = roster(8);
    relays.notice("r1", notice(9), at(0));
    expect(relays.size).toBe(8);
  });
});

describe("the choice for a request", () => {
  test("is the one with the fewest open requests, those given since its report counted", () => {
    const relays = roster(3);
    relays.load("relay-0", { openRequests: 5, draining: false });
    relays.load("relay-1", { openRequests: 3, draining: false });
    relays.load("relay-2", { openRequests: 4, draining: false });
    expect(picked(relays, "a")).toEqual(["relay-1", "relay-2", "relay-0"]);
    relays.given("relay-1");
    relays.given("relay-1");
    expect(picked(relays, "a")[0]).toBe("relay-2");
  });

  test("spreads requests over equal ones, each always in its own order, and keeps it when another goes", () => {
    const relays = roster(4);
    const counts = new Map<string, number>();
    let kept = 0;
    for (let n = 0; n < 2_000; n++) {
      const order = picked(relays, `req-${String(n)}`);
      expect(picked(relays, `req-${String(n)}`)).toEqual(order);
      counts.set(order[0] ?? "", (counts.get(order[0] ?? "") ?? 0) + 1);
      if (n >= 100) continue;
      const fewer = roster(4);
      fewer.goodbye(order[3] ?? "");
      if (picked(fewer, `req-${String(n)}`)[0] === order[0]) kept++;
    }
    for (const count of counts.values()) expect(Math.abs(count - 500)).toBeLessThan(100);
    expect([counts.size, kept]).toEqual([4, 100]);
  });

  test("leaves out those that drain, are full, or speak another protocol", () => {
    const relays = roster();
    relays.attach(facts(0), 0);
    relays.attach(facts(1, { engines: ["sglang"] }), 1);
    relays.attach(facts(2), 2);
    relays.attach(facts(3), 3);
    relays.load("relay-2", { openRequests: 0, draining: true });
    relays.load("relay-3", { openRequests: 100, draining: false });
    expect(picked(relays, "a")).toEqual(["relay-0"]);
    expect(relays.endpoints()).not.toContain(facts(2).h2Address);
    expect([relays.has("sglang"), relays.has("tensorrt-llm")]).toEqual([true, false]);
  });
});

describe("notices of an older life", () => {
  test("neither hold the relay nor let it drain", () => {
    const relays = roster();
    relays.notice("r1", notice(0, { epoch: 2 }), at(0));
    relays.notice("r2", notice(0, { epoch: 1, draining: true }), at(1));
    expect(relays.get("relay-0")).toMatchObject({ draining: false });
    relays.routerLost("r1", at(2));
    expect(picked(relays, "a")).toEqual([]);
    // The same router tells of the newer life later.
    relays.notice("r2", notice(0, { epoch: 2 }), at(3));
    expect(picked(relays, "a")).toEqual(["relay-0"]);
    relays.notice("r2", notice(0, { epoch: 1 }), at(4));
    expect(picked(relays, "a")).toEqual([]);
  });
});
