import { describe, expect, test } from "vitest";

import { at, memberFacts, memberNotice } from "../../../../test/support/router-builders.ts";
import { MeshError, type MeshErrorCode } from "../../../shared/core/errors.ts";
import { workerId } from "../../../shared/core/ids.ts";
import type { MemberFacts } from "./member.ts";
import { Members } from "./members.ts";

const create = (over: Partial<ConstructorParameters<typeof Members>[0]> = {}): Members =>
  new Members({ blockSizeTokens: 32, graceMs: 5_000, membersMax: 4, ...over });

const w0 = workerId("w0");
const newer = { workerStartMs: 1_000, engineLife: 2 };
const older = { workerStartMs: 999, engineLife: 9 };

function refusal(
  run: () => unknown,
): { code: MeshErrorCode; field: string | undefined } | undefined {
  try {
    run();
    return undefined;
  } catch (error) {
    if (!(error instanceof MeshError)) throw error;
    return { code: error.code, field: error.field };
  }
}

/** The columns of the transition table: how the worker w0 is known. */
const states = {
  unknown: () => create(),
  "held here": () => {
    const members = create();
    members.admit(memberFacts(0), 1, at(0));
    return members;
  },
  "held by peers only": () => {
    const members = create();
    members.notice("r1", memberNotice(0), at(0));
    return members;
  },
  "held by nobody": () => {
    const members = create();
    members.admit(memberFacts(0), 1, at(0));
    members.streamLost(1, at(100));
    return members;
  },
};

describe("the transition table of members", () => {
  describe("hello from the same address with an epoch not older", () => {
    test.each([
      ["unknown", undefined, false],
      ["held here", 1, false],
      ["held by peers only", undefined, false],
      ["held by nobody", undefined, false],
    ] as const)("%s: held here from now on", (state, replacedStream, engineRestarted) => {
      const members = states[state]();
      const admission = members.admit(memberFacts(0), 2, at(200));
      expect(admission).toMatchObject({ replacedStream, engineRestarted });
      expect(admission.member).toMatchObject({
        streamId: 2,
        unheldSince: undefined,
        suspect: true,
      });
      expect(admission.member.slot).toBe(0);
      expect(members.size).toBe(1);
    });
  });

  describe("hello from the same address with an older epoch", () => {
    test.each([
      ["unknown", undefined],
      ["held here", "stale_epoch"],
      ["held by peers only", "stale_epoch"],
      ["held by nobody", "stale_epoch"],
    ] as const)("%s: %s", (state, code) => {
      const members = states[state]();
      expect(refusal(() => members.admit(memberFacts(0, { epoch: older }), 2, at(200)))?.code).toBe(
        code,
      );
      expect(members.get(w0)?.streamId).toBe(
        code === undefined ? 2 : state === "held here" ? 1 : undefined,
      );
    });
  });

  describe("hello from another address", () => {
    test.each([
      ["unknown", undefined],
      ["held here", "already_exists"],
      ["held by peers only", "already_exists"],
      ["held by nobody", undefined],
    ] as const)("%s: %s", (state, code) => {
      const members = states[state]();
      const moved = memberFacts(0, { endpoint: "127.0.0.1:9999", epoch: newer });
      expect(refusal(() => members.admit(moved, 2, at(200)))).toEqual(
        code === undefined ? undefined : { code, field: "worker_id" },
      );
      expect(members.get(w0)?.endpoint).toBe(
        code === undefined ? "127.0.0.1:9999" : "127.0.0.1:8100",
      );
    });

    test("one that moves has another engine: its blocks and requests are gone", () => {
      const members = states["held by nobody"]();
      const moved = memberFacts(0, { endpoint: "127.0.0.1:9999" });
      expect(members.admit(moved, 2, at(200)).engineRestarted).toBe(true);
    });
  });

  describe("stream lost", () => {
    test("held here alone: held by nobody since then", () => {
      const members = states["held here"]();
      expect(members.streamLost(1, at(70))).toMatchObject({ streamId: undefined, unheldSince: 70 });
    });

    test("held here and by a peer: held by the peer", () => {
      const members = states["held here"]();
      members.notice("r1", memberNotice(0), at(10));
      expect(members.streamLost(1, at(70))?.unheldSince).toBeUndefined();
    });

    test.each(["unknown", "held by peers only", "held by nobody"] as const)(
      "%s: nothing",
      (state) => {
        expect(states[state]().streamLost(1, at(70))).toBeUndefined();
      },
    );

    test("the end of a stream that a newer one replaced changes nothing", () => {
      const members = states["held here"]();
      members.admit(memberFacts(0), 2, at(50));
      expect(members.streamLost(1, at(70))).toBeUndefined();
      expect(members.get(w0)).toMatchObject({ streamId: 2, unheldSince: undefined });
    });
  });

  describe("goodbye", () => {
    test.each(["held here", "held by peers only", "held by nobody"] as const)(
      "%s: leaves",
      (state) => {
        const members = states[state]();
        expect(members.remove(w0)?.key).toBe("w0");
        expect(members.size).toBe(0);
      },
    );

    test("unknown: nothing", () => {
      expect(create().remove(w0)).toBeUndefined();
    });
  });

  describe("grace over", () => {
    test("held by nobody: leaves, not a moment earlier", () => {
      const members = states["held by nobody"]();
      expect(members.expired(at(5_099))).toEqual([]);
      expect(members.expired(at(5_100)).map((m) => m.key)).toEqual(["w0"]);
    });

    test.each(["held here", "held by peers only"] as const)("%s: stays", (state) => {
      expect(states[state]().expired(at(1e9))).toEqual([]);
    });
  });
});

describe("Members", () => {
  test("tells an engine's restart from a worker's restart", () => {
    const members = states["held here"]();
    const life = memberFacts(0, { epoch: newer });
    expect(members.admit(life, 1, at(1)).engineRestarted).toBe(true);
    const restarted = memberFacts(0, { epoch: { workerStartMs: 2_000, engineLife: 1 } });
    expect(members.admit(restarted, 3, at(2)).engineRestarted).toBe(false);
  });

  test("knows an engine's restart although a peer told of the new life first", () => {
    const members = states["held here"]();
    members.notice("r1", memberNotice(0, { epoch: newer }), at(1));
    expect(members.admit(memberFacts(0, { epoch: newer }), 1, at(2)).engineRestarted).toBe(true);
  });

  test("believes a peer that knows a newer life, not one that lags behind", () => {
    const members = states["held here"]();
    members.notice("r1", memberNotice(0, { epoch: newer, ready: false }), at(1));
    expect(members.get(w0)).toMatchObject({ epoch: newer, ready: false });
    members.notice("r2", memberNotice(0, { epoch: older, ready: true }), at(2));
    expect(members.get(w0)).toMatchObject({ epoch: newer, ready: false });
    expect(members.get(w0)?.heldBy).toEqual(new Set(["r1", "r2"]));
  });

  test("its own stream outranks a peer of the same epoch", () => {
    const members = states["held here"]();
    members.notice("r1", memberNotice(0, { ready: false }), at(1));
    expect(members.get(w0)?.ready).toBe(true);
  });

  test("is the union of what live routers hold", () => {
    const members = create();
    members.notice("r1", memberNotice(0), at(0));
    members.notice("r2", memberNotice(0), at(0));
    expect(members.routerLost("r1", at(10)).map((m) => m.unheldSince)).toEqual([undefined]);
    expect(members.heldOnly("r2", new Set(["w9/0"]), at(20)).map((m) => m.unheldSince)).toEqual([
      20,
    ]);
    expect(members.heldOnly("r2", new Set(), at(30))).toEqual([]);
    members.notice("r2", memberNotice(0), at(40));
    expect(members.get(w0)?.unheldSince).toBeUndefined();
    members.notice("r2", memberNotice(0, { held: false }), at(50));
    expect(members.get(w0)?.unheldSince).toBe(50);
  });

  test("a peer cannot make a member that it does not hold", () => {
    const members = create();
    expect(members.notice("r1", memberNotice(0, { held: false }), at(0))).toBeUndefined();
    expect(members.notice("r1", memberNotice(0, { goodbye: true }), at(0))).toBeUndefined();
    expect(members.size).toBe(0);
  });

  test("ranks of one engine are members of their own at one address", () => {
    const members = create();
    members.admit(memberFacts(0), 1, at(0));
    expect(members.admit(memberFacts(0, { dpRank: 1 }), 2, at(0)).member).toMatchObject({
      key: "w0/1",
      slot: 1,
    });
    expect(members.heldOnly("r1", new Set(["w0/0"]), at(1))).toEqual([]);
  });

  test("slots are reused, so that none is above the maximum of members", () => {
    const members = create({ membersMax: 2 });
    for (let i = 0; i < 10; i++) {
      const { member } = members.admit(memberFacts(i), i, at(i));
      expect(member.slot).toBeLessThan(2);
      if (i > 0) members.remove(workerId(`w${i - 1}`));
    }
  });

  test("a member that only peers know has no slot until its own stream comes", () => {
    const members = states["held by peers only"]();
    expect(members.get(w0)?.slot).toBeUndefined();
    expect(members.admit(memberFacts(0), 1, at(1)).member.slot).toBe(0);
  });

  const refusals: readonly [string, MemberFacts, MeshErrorCode, string | undefined][] = [
    [
      "a block size that does not divide",
      memberFacts(1, { engineBlockSizeTokens: 24 }),
      "invalid_request",
      "engine_block_size_tokens",
    ],
    [
      "a block size larger than the mesh's",
      memberFacts(1, { engineBlockSizeTokens: 64 }),
      "invalid_request",
      "engine_block_size_tokens",
    ],
    [
      "a block size of 0",
      memberFacts(1, { engineBlockSizeTokens: 0 }),
      "invalid_request",
      "engine_block_size_tokens",
    ],
    ["no model", memberFacts(1, { models: [] }), "invalid_request", "model.names"],
    [
      "another model in the same pool",
      memberFacts(1, { models: ["other"] }),
      "invalid_request",
      "pool",
    ],
    [
      "a second worker beside one engine",
      memberFacts(1, { endpoint: "127.0.0.1:8100" }),
      "already_exists",
      "engine_address",
    ],
  ];
  test.each(refusals)("refuses %s and keeps who is there", (_name, facts, code, field) => {
    const members = states["held here"]();
    expect(refusal(() => members.admit(facts, 2, at(1)))).toEqual({ code, field });
    expect([...members.all()].map((m) => m.key)).toEqual(["w0"]);
    expect(members.byStream(2)).toBeUndefined();
  });

  test("names both block sizes when they do not fit", () => {
    expect(() => create().admit(memberFacts(0, { engineBlockSizeTokens: 24 }), 1, at(0))).toThrow(
      /24 tokens.*32/s,
    );
  });

  test("refuses more members than its maximum, also from peers", () => {
    const members = create({ membersMax: 1 });
    members.admit(memberFacts(0), 1, at(0));
    expect(refusal(() => members.admit(memberFacts(1), 2, at(0)))?.code).toBe("overloaded");
    expect(members.notice("r1", memberNotice(2), at(0))).toBeUndefined();
  });
});

test("members are found by pool and model, wherever they move", () => {
  const members = new Members({ graceMs: 5_000, membersMax: 8, blockSizeTokens: 16 });
  const keys = (pool: string) => [...members.ofPool(pool)].map((m) => m.key);
  members.admit(memberFacts(0), 1, at(0));
  members.admit(memberFacts(1, { pool: "other", models: ["n"] }), 2, at(0));
  expect([keys("default"), keys("other"), keys("none")]).toEqual([["w0"], ["w1"], []]);
  expect(["m", "n", "x"].map((model) => members.poolOf(model))).toEqual([
    "default",
    "other",
    undefined,
  ]);
  members.admit(memberFacts(0, { pool: "other", models: ["n"] }), 3, at(1));
  expect([keys("default"), keys("other").sort()]).toEqual([[], ["w0", "w1"]]);
  expect(members.poolOf("m")).toBeUndefined();
  for (const key of keys("other")) members.remove(workerId(key));
  expect([keys("other"), members.poolOf("n")]).toEqual([[], undefined]);
});

test("of several pools that serve a model the first by id is chosen, whoever joined first", () => {
  for (const order of [
    ["a", "b", "c"],
    ["c", "b", "a"],
    ["b", "c", "a"],
  ]) {
    const members = new Members({ graceMs: 5_000, membersMax: 8, blockSizeTokens: 16 });
    order.forEach((pool, index) => members.admit(memberFacts(index, { pool }), index, at(0)));
    expect(members.poolOf("m")).toBe("a");
  }
});
