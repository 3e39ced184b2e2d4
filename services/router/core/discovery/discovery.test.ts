import * as fc from "fast-check";
import { describe, expect, test } from "vitest";
import { monoMs } from "../../../shared/core/ids.ts";
import { Discovery } from "./discovery.ts";
import type { DiscoveryMember } from "./discovery-view.ts";

const graceMs = 5_000;
const create = (options: { pools?: readonly string[]; poolsMax?: number } = {}): Discovery =>
  new Discovery({
    epoch: "7",
    startedAt: monoMs(0),
    graceMs,
    pools: options.pools ?? ["default"],
    poolsMax: options.poolsMax ?? 8,
  });
const member = (port: number, overrides: Partial<DiscoveryMember> = {}): DiscoveryMember => ({
  workerId: `w${port.toString()}`,
  pool: "default",
  endpoint: `10.0.0.1:${port.toString()}`,
  state: "ready",
  ...overrides,
});
const addresses = (discovery: Discovery, cluster = "pool-default"): readonly string[] | undefined =>
  discovery.snapshot.endpoints.get(cluster)?.endpoints.map(({ address }) => address);
const ten = Array.from({ length: 10 }, (_, index) => member(10 + index));
const after = monoMs(graceMs);
const early = monoMs(1);

describe("answering", () => {
  test("says nothing before the view is worth telling", () => {
    const discovery = create();
    expect(discovery.mayAnswer(false, after)).toBe(false);
    expect(discovery.mayAnswer(true, after)).toBe(false);
  });

  test("tells a partial view to a fresh Envoy at once, to one with endpoints after the grace period", () => {
    const discovery = create();
    discovery.setKnowledge("partial");
    expect(discovery.mayAnswer(false, early)).toBe(true);
    expect(discovery.mayAnswer(true, early)).toBe(false);
    expect(discovery.mayAnswer(true, after)).toBe(true);
  });

  test("tells a complete view to everybody, and never knows less again", () => {
    const discovery = create();
    expect(discovery.setKnowledge("complete")).toBe(true);
    expect(discovery.setKnowledge("partial")).toBe(false);
    expect(discovery.mayAnswer(true, early)).toBe(true);
  });
});

describe("the grace period", () => {
  test("keeps half of a pool when the view loses more", () => {
    const discovery = create();
    discovery.setMembers(ten, early);
    discovery.setMembers(ten.slice(0, 2), early);
    expect(addresses(discovery)).toHaveLength(5);
    expect(discovery.heldCount).toBe(3);
    expect(addresses(discovery)?.slice(0, 2)).toEqual(["10.0.0.1:10", "10.0.0.1:11"]);
  });

  test("passes on the loss of half a pool", () => {
    const discovery = create();
    discovery.setMembers(ten, early);
    discovery.setMembers(ten.slice(0, 5), early);
    expect(addresses(discovery)).toHaveLength(5);
    expect(discovery.heldCount).toBe(0);
  });

  test("keeps ready endpoints rather than draining ones", () => {
    const discovery = create();
    const drained = ten.map((each, index) =>
      index < 5 ? { ...each, state: "draining" as const } : each,
    );
    discovery.setMembers(drained, early);
    discovery.setMembers([], early);
    expect(addresses(discovery)).toEqual(drained.slice(5).map(({ endpoint }) => endpoint));
  });

  test("lets go at its end, without another event", () => {
    const discovery = create();
    discovery.setMembers(ten, early);
    discovery.setMembers([], early);
    expect(addresses(discovery)).toHaveLength(5);
    expect(discovery.tick(after)).toBe(true);
    expect(addresses(discovery)).toEqual([]);
    expect(discovery.heldCount).toBe(0);
  });

  test("says nothing of a pool that it has heard nothing of, and calls it empty afterwards", () => {
    const discovery = create();
    discovery.setMembers([], early);
    expect(addresses(discovery)).toBeUndefined();
    expect(discovery.snapshot.clusters).toEqual(["pool-default", "relays"]);
    discovery.tick(after);
    expect(addresses(discovery)).toEqual([]);
  });

  test("never takes more than half of a pool in one step, whatever happens", () => {
    const views = fc.array(fc.subarray(ten), { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(views, (steps) => {
        const discovery = create();
        let told: readonly string[] = [];
        for (const view of steps) {
          discovery.setMembers(view, early);
          const now = addresses(discovery) ?? [];
          const lost = told.filter((address) => !now.includes(address)).length;
          expect(lost).toBeLessThanOrEqual(Math.floor(told.length / 2));
          for (const { endpoint } of view) expect(now).toContain(endpoint);
          told = now;
        }
      }),
    );
  });
});

describe("the view", () => {
  test("does not depend on the order of members, and unchanged views change no version", () => {
    const state = fc.constantFrom("ready" as const, "draining" as const);
    const members = fc.array(
      fc.record({
        workerId: fc.constantFrom("a", "b", "c"),
        pool: fc.constantFrom("default", "x", "y"),
        endpoint: fc.constantFrom("10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1"),
        state,
      }),
      { maxLength: 12 },
    );
    fc.assert(
      fc.property(members, (view) => {
        const discovery = create();
        discovery.setMembers(view, after);
        const before = discovery.snapshot;
        expect(discovery.setMembers(view.toReversed(), after)).toBe(false);
        expect(discovery.snapshot).toBe(before);
      }),
    );
  });

  test("merges ranks of one engine; it drains when all of them do", () => {
    const discovery = create();
    const ranks = [member(1, { workerId: "b", state: "draining" }), member(1, { workerId: "a" })];
    discovery.setMembers(ranks, after);
    const endpoint = () => discovery.snapshot.endpoints.get("pool-default")?.endpoints[0];
    expect(endpoint()).toEqual({
      address: "10.0.0.1:1",
      isDraining: false,
      workerIds: ["a", "b"],
    });
    discovery.setMembers(
      ranks.map((rank) => ({ ...rank, state: "draining" })),
      after,
    );
    expect(endpoint()?.isDraining).toBe(true);
  });

  test("keeps a pool's cluster when its last member leaves", () => {
    const discovery = create();
    discovery.setMembers([member(1, { pool: "x" })], after);
    discovery.setMembers([], after);
    expect(discovery.snapshot.clusters).toEqual(["pool-default", "pool-x", "relays"]);
    expect(addresses(discovery, "pool-x")).toEqual([]);
  });

  test("leaves out pools past the limit and counts their members", () => {
    const discovery = create({ poolsMax: 2 });
    discovery.setMembers(
      [member(1, { pool: "b" }), member(2, { pool: "a" }), member(3, { pool: "b" })],
      after,
    );
    expect(discovery.snapshot.clusters).toEqual(["pool-a", "pool-default", "relays"]);
    expect(discovery.refusedPoolsCount).toBe(2);
  });

  test("numbers changes with its epoch and names only what changed", () => {
    const discovery = create();
    discovery.setMembers([member(1)], after);
    const first = discovery.snapshot;
    discovery.setMembers([member(1), member(2)], after);
    expect(discovery.snapshot.clustersVersion).toBe(first.clustersVersion);
    expect(discovery.snapshot.endpointsVersion).not.toBe(first.endpointsVersion);
    discovery.setRelays(["10.0.0.9:1", "10.0.0.9:1"], after);
    expect(addresses(discovery, "relays")).toEqual(["10.0.0.9:1"]);
    expect(discovery.snapshot.endpointsVersion).toMatch(/^7\.\d+$/);
  });
});
