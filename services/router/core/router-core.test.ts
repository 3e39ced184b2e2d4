import { describe, expect, test, vi } from "vitest";

import {
  at,
  memberFacts,
  memberNotice,
  placeInput,
  promptHashes,
  routerCore,
  servedRecord,
  stepModel,
} from "../../../test/support/router-builders.ts";
import { workerId, type WorkerId } from "../../shared/core/ids.ts";
import { prefillMs, type StepModel } from "../../shared/core/step-model.ts";
import type { Decision } from "./decisions/decision.ts";
import type { PlaceInput } from "./placement/place-input.ts";
import type { RouterCore } from "./router-core.ts";
import { Admission } from "./admission/admission.ts";
import { roomDefaults } from "./admission/worker-rooms.ts";
import { readHints } from "./admission/request-hints.ts";

const w0 = workerId("w0");
const w1 = workerId("w1");
const none = new Uint32Array(0);
const newLife = { workerStartMs: 1_000, engineLife: 2 };

/** The snapshot of a worker that holds these blocks. */
function sync(core: RouterCore, key: WorkerId, hashes: Uint32Array, baseSeq = 0): void {
  let xorLo = 0;
  let xorHi = 0;
  for (let i = 0; i < hashes.length; i += 2) {
    xorLo ^= hashes[i] as number;
    xorHi ^= hashes[i + 1] as number;
  }
  const blockCount = hashes.length / 2;
  const digest = { xorLo: xorLo >>> 0, xorHi: xorHi >>> 0, blockCount };
  expect(core.snapshot(key, { baseSeq, hashes, last: true, ...digest }, at(1))).toEqual({
    kind: "applied",
  });
}

/** Two workers on streams 1 and 2 with empty caches. */
function twoWorkers(over: Parameters<typeof routerCore>[0] = {}): RouterCore {
  const core = routerCore(over);
  for (const i of [0, 1]) {
    core.admit(memberFacts(i), i + 1, at(0));
    sync(core, workerId(`w${i}`), none);
  }
  core.takeEffects();
  return core;
}

const kinds = (core: RouterCore): string[] => core.takeEffects().map((e) => e.kind);
const placedOn = (decision: Decision): string | undefined => decision.workerId;

describe("placing", () => {
  test("sends a prompt to the worker that holds it and names the other as fallback", () => {
    const core = twoWorkers();
    sync(core, w1, promptHashes(1, 90));
    const decision = core.place(placeInput(), at(10));
    expect(decision).toMatchObject({
      id: "r0.1.1",
      outcome: { kind: "placed" },
      workerId: "w1",
      endpoints: ["127.0.0.1:8101", "127.0.0.1:8100"],
      promptBlocks: 100,
    });
    expect(decision.candidates[0]).toMatchObject({ matchedBlocks: 90, matchedTokens: 1_440 });
    expect(decision.marginMs).toBeGreaterThan(0);
    expect(core.decisions.last).toBe(decision);
  });

  test("never counts the last token of a prompt as cached", () => {
    const core = twoWorkers();
    sync(core, w0, promptHashes(1, 100));
    expect(core.place(placeInput(), at(10)).candidates[0]).toMatchObject({
      matchedBlocks: 100,
      matchedTokens: 1_584,
    });
  });

  test("what it reserves weighs on the next decision until it is released", () => {
    const core = twoWorkers();
    const first = core.place(placeInput(), at(10));
    const second = core.place(placeInput({ hashes: promptHashes(2, 100) }), at(10));
    expect([placedOn(first), placedOn(second)]).toEqual(["w0", "w1"]);
    expect(kinds(core)).toEqual(["reserved", "reserved"]);
    expect(core.release(first.id, at(11))).toBe(true);
    expect(core.release(first.id, at(11))).toBe(false);
    expect(kinds(core)).toEqual(["closed"]);
    expect(core.book.openCount).toBe(1);
  });

  test("a dry run reserves nothing and takes nobody's turn", () => {
    const core = twoWorkers({ policy: "round-robin" });
    const dry = core.place(placeInput({ dryRun: true }), at(10));
    expect(core.takeEffects()).toEqual([]);
    expect(core.book.openCount).toBe(0);
    expect(placedOn(core.place(placeInput(), at(10)))).toBe(placedOn(dry));
  });

  test("the same calls at the same times give the same decisions", () => {
    const run = (): unknown => {
      const core = twoWorkers();
      sync(core, w1, promptHashes(3, 50));
      return [1, 2, 3, 2, 1, 3].map((p, i) =>
        core.place(placeInput({ hashes: promptHashes(p, 100) }), at(10 + i * 3)),
      );
    };
    expect(run()).toEqual(run());
  });

  test("a policy's state follows placements and ends, not dry runs, and begins anew when it is set", () => {
    const core = twoWorkers({ policy: "dynamo" });
    const ask = (over: Partial<PlaceInput> = {}) => core.place(placeInput(over), at(10));
    const costsOf = (decision: Decision) =>
      Object.fromEntries(decision.candidates.map((c) => [c.workerId, Math.round(c.costMs)]));
    const dry = costsOf(ask({ dryRun: true }));
    const placed = ask();
    expect(costsOf(placed)).toEqual(dry);
    // 100 blocks to compute and 100 live; with another prompt there, 100 more of each.
    const home = placedOn(placed) as string;
    const other = home === "w0" ? "w1" : "w0";
    const next = { hashes: promptHashes(2, 100), dryRun: true };
    expect(costsOf(ask(next))).toEqual({ [home]: 400, [other]: 200 });
    core.firstToken(placed.id);
    expect(costsOf(ask(next))).toEqual({ [home]: 300, [other]: 200 });
    core.served(placed.id, servedRecord(Number(home.slice(1))), at(900));
    expect(costsOf(ask(next))).toEqual({ [home]: 200, [other]: 200 });
    ask();
    core.setPolicy("default", "dynamo");
    expect(costsOf(ask(next))).toEqual({ [home]: 200, [other]: 200 });
  });

  test("a session keeps its worker under session-hash", () => {
    const core = twoWorkers({ policy: "session-hash" });
    const homes = (session: string) =>
      [1, 2, 3].map((p) =>
        placedOn(core.place(placeInput({ session, hashes: promptHashes(p, 100) }), at(p))),
      );
    const of = new Map(["s1", "s2", "s3", "s4", "s5", "s6"].map((s) => [s, homes(s)]));
    for (const workers of of.values()) expect(new Set(workers).size).toBe(1);
    expect(new Set([...of.values()].flat()).size).toBe(2);
  });

  test("a policy is changed pool by pool", () => {
    const core = twoWorkers();
    expect(core.setPolicy("default", "round-robin")).toBe("kv");
    expect([core.policyOf("default"), core.policyOf("other")]).toEqual(["round-robin", "kv"]);
    const turns = [1, 2, 3, 4].map((i) => placedOn(core.place(placeInput(), at(i))));
    expect(turns).toEqual(["w0", "w1", "w0", "w1"]);
  });

  test("on arrival asks nobody for room, and lets go who waits", () => {
    const rooms = { ...roomDefaults, openMax: 1 };
    const core = twoWorkers({ policy: "round-robin", rooms });
    const placed: (string | undefined)[] = [];
    const ask = (now: number) =>
      core.placeInTurn(
        {
          input: placeInput(),
          hints: readHints(() => undefined, undefined),
          bytes: 0,
          decided: (decision) => placed.push(placedOn(decision)),
        },
        at(now),
      );
    expect([ask(1), ask(2)]).toEqual([undefined, undefined]);
    expect(ask(3)).toBeDefined();
    expect(placed).toEqual(["w0", "w1"]);
    core.setPlaceOnArrival("default", true);
    core.pump(at(4));
    expect(ask(5)).toBeUndefined();
    expect(placed).toEqual(["w0", "w1", "w0", "w1"]);
    core.setPlaceOnArrival("default", false);
    expect(ask(6)).toBeDefined();
  });

  test("expects answers as long as the engines have given, and never longer than asked", () => {
    const core = twoWorkers();
    expect(core.place(placeInput(), at(1)).expectedOutputTokens).toBe(100);
    expect(core.place(placeInput({ tokensMax: 7 }), at(1)).expectedOutputTokens).toBe(7);
    core.report(
      w0,
      { running: 0, waiting: 0, kvUsageRatio: 0, at: at(1) },
      {
        interTokenMs: 10,
        interTokenCount: 100,
        running: 1,
        contextTokens: 100,
        computedTokens: 0,
        finished: 2,
        generatedTokens: 900,
      },
    );
    expect(core.place(placeInput(), at(1)).expectedOutputTokens).toBe(450);
  });

  test("traffic that does not pass this mesh counts when the engine reports it", () => {
    const core = twoWorkers();
    core.report(w0, { running: 30, waiting: 2, kvUsageRatio: 0.5, at: at(5) }, undefined);
    const decision = core.place(placeInput(), at(10));
    expect(placedOn(decision)).toBe("w1");
    expect(decision.candidates[1]).toMatchObject({
      foreignRequests: 30,
      reportedRunning: 30,
      reportedWaiting: 2,
      reportedAgeMs: 5,
    });
  });

  test("two models have two pools; each is served by its own workers", () => {
    const core = twoWorkers();
    core.admit(memberFacts(2, { pool: "other", models: ["n", "n-alias"] }), 3, at(0));
    expect([core.poolOf("m"), core.poolOf("n-alias"), core.poolOf("x")]).toEqual([
      "default",
      "other",
      undefined,
    ]);
    const decision = core.place(placeInput({ pool: "other", model: "n" }), at(1));
    expect(decision.candidates.map((c) => c.workerId)).toEqual(["w2"]);
    expect(core.poolMembers("other").map((m) => m.key)).toEqual(["w2"]);
  });
});

describe("who can be chosen", () => {
  const reasons = (decision: Decision): Record<string, string> =>
    Object.fromEntries(decision.filtered.map((f) => [f.workerId, f.reason]));

  test("not a worker that is not ready, until it is", () => {
    const core = twoWorkers();
    core.setReady(w0, false);
    const decision = core.place(placeInput(), at(1));
    expect([placedOn(decision), reasons(decision)]).toEqual(["w1", { w0: "not_ready" }]);
    core.setReady(w0, false);
    core.setReady(w0, true);
    expect(kinds(core).filter((k) => k === "member_changed")).toHaveLength(2);
    expect(core.place(placeInput(), at(1)).filtered).toEqual([]);
  });

  test("not a worker of another role", () => {
    const core = twoWorkers();
    core.admit(memberFacts(2, { role: "decode" }), 3, at(0));
    expect(reasons(core.place(placeInput(), at(1)))).toEqual({ w2: "wrong_role" });
  });

  test("only those that the proxy's subset names, by address and port or by address", () => {
    const core = twoWorkers();
    const by = (...subset: string[]) => core.place(placeInput({ subset: new Set(subset) }), at(1));
    const one = by("127.0.0.1:8101");
    expect([one.endpoints, reasons(one)]).toEqual([["127.0.0.1:8101"], { w0: "outside_subset" }]);
    expect(by("127.0.0.1").candidates).toHaveLength(2);
    const nobody = by("10.0.0.1:80");
    expect(nobody.outcome).toMatchObject({ kind: "no_worker", code: "no_ready_worker" });
    expect(by().outcome.kind).toBe("no_worker");
  });

  test("a worker whose stream is lost only when there is no other", () => {
    const core = twoWorkers();
    core.streamLost(1, at(100));
    const decision = core.place(placeInput(), at(200));
    expect([placedOn(decision), reasons(decision)]).toEqual(["w1", { w0: "away" }]);
    core.streamLost(2, at(300));
    expect(core.place(placeInput(), at(400)).candidates).toHaveLength(2);
    core.tick(at(5_200));
    expect(core.place(placeInput(), at(5_200)).candidates.map((c) => c.workerId)).toEqual(["w1"]);
    core.tick(at(5_300));
    expect(core.place(placeInput(), at(5_300)).outcome).toEqual({
      kind: "no_worker",
      code: "no_ready_worker",
      message: "no worker of pool default can take the request: it has no member",
    });
  });

  test("nobody for a prompt longer than the model takes, also while a worker is not ready", () => {
    const core = twoWorkers();
    const long = placeInput({ promptTokens: 100_000 });
    const refused = core.place(long, at(1));
    expect(refused.outcome).toMatchObject({ kind: "refused", code: "context_length_exceeded" });
    expect(refused.outcome).toHaveProperty(
      "message",
      expect.stringMatching(/100000 tokens.*100000/),
    );
    core.setReady(w0, false);
    expect(core.place(long, at(1)).outcome).toMatchObject({ code: "context_length_exceeded" });
    core.setReady(w1, false);
    expect(core.place(placeInput(), at(1)).outcome).toMatchObject({ code: "no_ready_worker" });
    expect(core.decisions.byId(refused.id)).toBe(refused);
  });

  test("a guessed length refuses nothing and counts for no more than the context", () => {
    const core = twoWorkers();
    const decision = core.place(
      placeInput({ promptTokens: 5_000_000, hashes: none, loadOnlyReason: "multimodal" }),
      at(1),
    );
    expect(decision).toMatchObject({ outcome: { kind: "placed" }, promptTokens: 99_999 });
  });

  test("nobody when the book is full; the refusal can be explained", () => {
    const core = twoWorkers({ reservationsMax: 1 });
    core.place(placeInput(), at(1));
    const refused = core.place(placeInput({ requestId: "req-2" }), at(1));
    expect(refused.outcome).toMatchObject({ kind: "refused", code: "overloaded" });
    expect(core.decisions.byRequest("req-2")).toBe(refused);
    expect(core.book.openCount).toBe(1);
    expect(kinds(core)).toEqual(["reserved"]);
  });
});

describe("the blocks of workers", () => {
  test("follow their events", () => {
    const core = twoWorkers();
    core.delta(w0, { seq: 1, cleared: false, removed: none, stored: promptHashes(1, 60) }, at(5));
    expect(core.place(placeInput({ dryRun: true }), at(6)).candidates[0]).toMatchObject({
      workerId: "w0",
      matchedBlocks: 60,
    });
    core.delta(w0, { seq: 2, cleared: true, removed: none, stored: none }, at(7));
    expect(core.place(placeInput({ dryRun: true }), at(8)).candidates[0]?.matchedBlocks).toBe(0);
  });

  test("count on, marked suspect, after a gap until the snapshot comes", () => {
    const core = twoWorkers();
    core.delta(w0, { seq: 1, cleared: false, removed: none, stored: promptHashes(1, 60) }, at(5));
    const gap = core.delta(
      w0,
      { seq: 5, cleared: false, removed: none, stored: promptHashes(2, 5) },
      at(6),
    );
    expect(gap).toEqual({ kind: "resync", reason: "gap" });
    expect(core.place(placeInput({ dryRun: true }), at(8)).candidates[0]).toMatchObject({
      suspect: true,
      matchedBlocks: 60,
    });
    expect(core.members.get(w0)).toMatchObject({ suspect: true, resyncs: 1 });
    sync(core, w0, promptHashes(1, 10), 9);
    expect(core.members.get(w0)).toMatchObject({ suspect: false, appliedSeq: 9 });
    expect(core.place(placeInput({ dryRun: true }), at(8)).candidates[0]?.matchedBlocks).toBe(10);
  });

  test("stay through a lost stream within the grace period", () => {
    const core = twoWorkers();
    sync(core, w0, promptHashes(1, 60));
    core.streamLost(1, at(100));
    expect(core.admit(memberFacts(0), 7, at(2_000))).toEqual({ replacedStream: undefined });
    expect(core.place(placeInput(), at(2_001)).candidates[0]).toMatchObject({
      workerId: "w0",
      matchedBlocks: 60,
    });
    core.tick(at(99_000));
    expect(core.members.get(w0)).toBeDefined();
  });

  test("a newer stream of the same worker replaces the older", () => {
    const core = twoWorkers();
    expect(core.admit(memberFacts(0), 9, at(50))).toEqual({ replacedStream: 1 });
    core.streamLost(1, at(51));
    expect(core.members.get(w0)?.unheldSince).toBeUndefined();
  });

  test("go with the engine that restarts, and so do its requests, here and with peers", () => {
    const core = twoWorkers();
    sync(core, w0, promptHashes(1, 60));
    const own = core.place(placeInput(), at(100));
    core.peerReserved(
      {
        decisionId: "r1.7.1",
        workerId: w0,
        promptTokens: 100,
        uncachedTokens: 100,
        expectedOutputTokens: 10,
        ageMs: 5,
      },
      at(110),
    );
    core.takeEffects();
    core.admit(memberFacts(0, { epoch: newLife }), 1, at(200));
    expect(core.book.openCount).toBe(0);
    expect(core.takeEffects().map((e) => (e.kind === "closed" ? e.closed.reason : e.kind))).toEqual(
      ["worker_gone", "member_changed"],
    );
    expect(own.observed).toMatchObject({ closedBy: "worker_gone", cachedTokens: -1 });
    expect(
      core.place(placeInput({ dryRun: true }), at(201)).candidates.map((c) => c.matchedBlocks),
    ).toEqual([0, 0]);
  });

  test("go with the worker that says goodbye; its name is free for another engine", () => {
    const core = twoWorkers();
    sync(core, w0, promptHashes(1, 60));
    core.goodbye(w0);
    expect(core.takeEffects().at(-1)).toMatchObject({ kind: "member_left", goodbye: true });
    expect(core.index.blockCount).toBe(0);
    core.goodbye(w0);
    expect(core.takeEffects()).toEqual([]);
    core.admit(memberFacts(0, { endpoint: "127.0.0.1:9000" }), 5, at(5));
    expect(core.members.get(w0)?.endpoint).toBe("127.0.0.1:9000");
  });

  test("are as old as the last message that shows them current, also when they do not change", () => {
    const core = twoWorkers();
    const age = (now: number) => core.place(placeInput({ dryRun: true }), at(now)).indexAgeMs;
    const report = (when: number) => {
      core.report(w0, { running: 0, waiting: 0, kvUsageRatio: 0, at: at(when) }, undefined);
    };
    core.delta(w0, { seq: 1, cleared: false, removed: none, stored: promptHashes(1, 60) }, at(5));
    expect(age(15)).toBe(10);
    report(60_000);
    expect(age(60_040)).toBe(40);
    // After a gap a report shows nothing until the snapshot has come.
    core.delta(w0, { seq: 9, cleared: false, removed: none, stored: none }, at(60_050));
    report(61_000);
    expect(age(61_000)).toBe(950);
    sync(core, w0, promptHashes(1, 60), 9);
    report(61_100);
    expect(age(61_101)).toBe(1);
  });

  test("of a worker that is unknown are ignored", () => {
    const core = twoWorkers();
    const ghost = workerId("ghost");
    expect(
      core.delta(
        ghost,
        { seq: 1, cleared: false, removed: none, stored: promptHashes(1, 3) },
        at(1),
      ),
    ).toEqual({
      kind: "applied",
    });
    core.setReady(ghost, true);
    core.streamLost(77, at(1));
    core.report(ghost, { running: 1, waiting: 0, kvUsageRatio: 0, at: at(1) }, undefined);
    expect([core.index.blockCount, core.members.size]).toEqual([0, 2]);
  });
});

describe("an engine that hangs", () => {
  test.each([
    ["whose gauges count what waits", true],
    ["whose gauges stand still as well", false],
  ])("%s, is left within a second and found again when it gets on", (_name, gaugesLive) => {
    const core = twoWorkers();
    sync(core, w0, promptHashes(1, 100));
    let waiting = 0;
    const chosen: (string | undefined)[] = [];
    for (let now = 0; now < 4_000; now += 100) {
      const hangs = now >= 1_000 && now < 3_000;
      const ended = hangs ? [] : core.book.reservationsOf(w0);
      if (!hangs) waiting = 0;
      for (const r of [...ended, ...core.book.reservationsOf(w1)]) {
        core.served(r.decisionId, servedRecord(r.workerId === w0 ? 0 : 1), at(now));
      }
      const gauges = {
        running: 0,
        waiting: gaugesLive ? waiting : 0,
        kvUsageRatio: 0,
        at: at(now),
      };
      core.report(w0, { ...gauges, workDone: hangs ? 1_000 : now }, undefined);
      core.report(w1, { ...gauges, waiting: 0, workDone: now }, undefined);
      const decision = core.place(placeInput({ requestId: `req-${now}` }), at(now + 10));
      if (decision.workerId === w0) waiting++;
      chosen.push(decision.workerId);
    }
    // It holds the whole prompt, so it is the choice as long as it works.
    expect(new Set(chosen.slice(0, 10))).toEqual(new Set(["w0"]));
    expect(new Set(chosen.slice(20, 30))).toEqual(new Set(["w1"]));
    expect(new Set(chosen.slice(31))).toEqual(new Set(["w0"]));
  });
});

describe("an engine that was slow while it had a fault", () => {
  /** Two workers, of which w0 has answered ten times as slowly as w1, 300 times each. */
  function afterFault(announced: StepModel | undefined): { core: RouterCore; now: number } {
    const core = routerCore();
    for (const i of [0, 1]) {
      core.admit(memberFacts(i, { stepModel: announced }), i + 1, at(0));
      sync(core, workerId(`w${i}`), none);
    }
    let now = 10;
    for (let i = 0; i < 300; i++) {
      now = serve(core, now, [{ prompt: i, subset: new Set(["127.0.0.1:8100"]) }], 10).now;
      now = serve(core, now, [{ prompt: i, subset: new Set(["127.0.0.1:8101"]) }]).now;
    }
    core.takeEffects();
    return { core, now };
  }

  interface Asked {
    readonly prompt: number;
    readonly subset?: ReadonlySet<string>;
  }

  /** Places requests at one moment, lets their engines answer them and gives where they went. */
  function serve(
    core: RouterCore,
    now: number,
    asked: readonly Asked[],
    w0Factor = 1,
  ): { readonly chosen: readonly WorkerId[]; readonly now: number } {
    const end = now + 400;
    const placed = asked.map(({ prompt, subset }) => {
      const promptTokens = 200 + (prompt % 7) * 300;
      return core.place(placeInput({ promptTokens, hashes: none, subset }), at(now));
    });
    for (const { id, workerId: key, promptTokens } of placed) {
      const factor = key === w0 ? w0Factor : 1;
      const ttftMs = (prefillMs(stepModel, promptTokens, 0) + 4) * factor;
      core.served(id, servedRecord(key === w0 ? 0 : 1, { ttftMs }), at(end));
      const steps = { interTokenMs: 5 * factor, interTokenCount: 100, running: 1 };
      const work = { contextTokens: 1_000, computedTokens: 0, finished: 1, generatedTokens: 100 };
      const gauges = { running: 0, waiting: 0, kvUsageRatio: 0, at: at(end) };
      core.report(key as WorkerId, gauges, { ...steps, ...work });
    }
    return { chosen: placed.map((one) => one.workerId as WorkerId), now: end + 50 };
  }

  /** Requests of 60 times two at a time that w0 gets. */
  function countOnW0(core: RouterCore, from: number, w0Factor = 1): number {
    let now = from;
    let count = 0;
    for (let i = 0; i < 60; i++) {
      const both = serve(core, now, [{ prompt: i }, { prompt: i + 3 }], w0Factor);
      count += both.chosen.filter((key) => key === w0).length;
      now = both.now;
    }
    return count;
  }

  test.each([
    ["a calibrated model", stepModel],
    ["no model", undefined],
  ])("gets its share again after a restart, with %s announced", (_name, announced) => {
    const { core, now } = afterFault(announced);
    expect(countOnW0(core, now)).toBe(0);
    core.admit(memberFacts(0, { stepModel: announced, epoch: newLife }), 1, at(now + 30_000));
    expect(countOnW0(core, now + 30_000)).toBeGreaterThan(50);
  });

  test("gets its share again without one when it was given nothing for a minute", () => {
    const { core, now } = afterFault(stepModel);
    core.tick(at(now + 59_000));
    expect(countOnW0(core, now + 59_000)).toBe(0);
    core.tick(at(now + 90_000));
    expect(countOnW0(core, now + 90_000)).toBeGreaterThan(50);
  });

  test("is left again after a few requests when it is still slow", () => {
    const { core, now } = afterFault(stepModel);
    core.tick(at(now + 61_000));
    const tried = countOnW0(core, now + 61_000, 10);
    expect(tried).toBeGreaterThan(0);
    expect(tried).toBeLessThan(20);
  });

  test("stays what it was measured to be while it is alone, as does the fastest of its kind", () => {
    const { core, now } = afterFault(stepModel);
    const before = core.modelOf(w1)?.steps;
    core.tick(at(now + 61_000));
    expect(core.modelOf(w1)?.steps).toEqual(before);
    core.goodbye(w1);
    const alone = serve(core, now + 61_000, [{ prompt: 1 }], 10);
    const measured = core.modelOf(w0)?.steps;
    core.tick(at(alone.now + 61_000));
    expect(core.modelOf(w0)?.steps).toEqual(measured);
  });
});

describe("what the access log says", () => {
  test("closes the books and is kept beside what was predicted", () => {
    const core = twoWorkers();
    sync(core, w0, promptHashes(1, 60));
    const decision = core.place(placeInput(), at(10));
    core.delta(
      w0,
      { seq: 1, cleared: false, removed: none, stored: promptHashes(1, 100).subarray(120) },
      at(30),
    );
    core.takeEffects();
    const observed = core.served(decision.id, servedRecord(0), at(900));
    expect(observed).toMatchObject({
      servedAsPicked: true,
      cachedTokens: 960,
      cachedDifference: "none",
      closedBy: "access_log",
      ttftMs: 40,
    });
    expect(core.takeEffects()).toMatchObject([
      { kind: "closed", closed: { reason: "access_log" }, observed },
    ]);
    expect([core.book.openCount, decision.observed]).toEqual([0, observed]);
    expect(core.modelOf(w0)?.errorRatioP50()).toBeGreaterThan(0);
  });

  test.each(["whole", ""] as const)(
    "teaches nothing of first tokens when the answer was asked for as '%s'",
    (answer) => {
      const core = twoWorkers();
      const before = core.modelOf(w0)?.steps;
      const decision = core.place(placeInput({ hashes: none, answer }), at(10));
      const index = decision.workerId === w0 ? 0 : 1;
      const record = servedRecord(index, { ttftMs: 900, durationMs: 900 });
      expect(core.served(decision.id, record, at(900))).toMatchObject({
        ttftMs: 0,
        durationMs: 900,
        servedAsPicked: true,
      });
      const model = core.modelOf(decision.workerId as WorkerId);
      expect(model?.errorRatioP50()).toBeUndefined();
      expect(model?.steps).toEqual(before);
      expect(core.book.openCount).toBe(0);
    },
  );

  test("charges the decode of an answer that came whole as if its first token had come as predicted", () => {
    const correct = vi.spyOn(Admission.prototype, "correct");
    const chargeOf = (answer: "stream" | "whole"): number => {
      const core = twoWorkers();
      let placed: Decision | undefined;
      const decided = (decision: Decision): void => {
        placed = decision;
      };
      const input = placeInput({ hashes: none, answer });
      core.placeInTurn(
        { input, hints: readHints(() => undefined, undefined), bytes: 0, decided },
        at(10),
      );
      const { id = "", workerId, candidates = [] } = placed ?? {};
      const ttftMs = answer === "whole" ? 900 : (candidates[0]?.predictedTtftMs ?? 0);
      const record = servedRecord(workerId === w0 ? 0 : 1, { ttftMs, durationMs: 900 });
      core.served(id, record, at(910));
      return correct.mock.lastCall?.[2] ?? Number.NaN;
    };
    const [streamed, whole] = [chargeOf("stream"), chargeOf("whole")];
    expect(correct).toHaveBeenCalledTimes(2);
    expect(whole).not.toBe(0);
    expect(whole).toBeCloseTo(streamed, 6);
    correct.mockRestore();
  });

  test("knows that a prompt without a full block had nothing cached", () => {
    const core = twoWorkers();
    const short = core.place(placeInput({ promptTokens: 9, hashes: none }), at(10));
    const index = short.workerId === w0 ? 0 : 1;
    expect(core.served(short.id, servedRecord(index), at(20))).toMatchObject({
      cachedTokens: 0,
      cachedDifference: "none",
    });
    const unread = placeInput({ promptTokens: 9, hashes: none, loadOnlyReason: "multimodal" });
    const other = core.place(unread, at(30));
    expect(
      core.served(other.id, servedRecord(other.workerId === w0 ? 0 : 1), at(40)),
    ).toMatchObject({ cachedTokens: -1, cachedDifference: "unknown" });
  });

  test("names why the engine had less cached than predicted, or more", () => {
    const core = twoWorkers();
    sync(core, w0, promptHashes(1, 60));
    const evicted = core.place(placeInput(), at(10));
    core.delta(
      w0,
      { seq: 1, cleared: false, removed: none, stored: promptHashes(1, 100).subarray(40) },
      at(30),
    );
    expect(core.served(evicted.id, servedRecord(0), at(900))).toMatchObject({
      cachedTokens: 320,
      cachedDifference: "evicted",
    });
    const onW0 = placeInput({ hashes: promptHashes(2, 100), subset: new Set(["127.0.0.1:8100"]) });
    const first = core.place(onW0, at(1_000));
    const second = core.place(onW0, at(1_000));
    core.delta(
      w0,
      { seq: 2, cleared: false, removed: none, stored: promptHashes(2, 100) },
      at(1_050),
    );
    core.served(first.id, servedRecord(0), at(1_100));
    expect(core.served(second.id, servedRecord(0), at(1_200))).toMatchObject({
      cachedDifference: "concurrent",
    });
  });

  test("says nothing of the cache when another engine served or no token came", () => {
    const core = twoWorkers();
    const elsewhere = core.place(placeInput(), at(10));
    expect(core.served(elsewhere.id, servedRecord(1), at(20))).toMatchObject({
      servedAsPicked: false,
      cachedTokens: -1,
      cachedDifference: "unknown",
    });
    const failed = core.place(placeInput(), at(30));
    expect(
      core.served(failed.id, servedRecord(0, { ttftMs: 0, status: 503 }), at(40)),
    ).toMatchObject({
      cachedDifference: "unknown",
    });
    expect(core.modelOf(w0)?.errorRatioP50()).toBeUndefined();
  });

  test("is taken once, and of unknown decisions not at all", () => {
    const core = twoWorkers();
    const decision = core.place(placeInput(), at(10));
    const first = core.served(decision.id, servedRecord(0), at(20));
    core.takeEffects();
    expect(core.served(decision.id, servedRecord(0, { ttftMs: 99 }), at(30))).toBe(first);
    expect(core.served("r0.1.999", servedRecord(0), at(30))).toBeUndefined();
    expect(core.takeEffects()).toEqual([]);
  });

  test("arrives late for what reconciliation has closed and is still kept", () => {
    const core = twoWorkers();
    const decision = core.place(placeInput(), at(10));
    for (const when of [500, 1_500]) {
      core.report(
        placedOn(decision) as WorkerId,
        { running: 0, waiting: 0, kvUsageRatio: 0, at: at(when) },
        undefined,
      );
    }
    expect(decision.observed).toMatchObject({ closedBy: "reconciled" });
    expect(core.served(decision.id, servedRecord(0), at(1_600))).toMatchObject({
      closedBy: "access_log",
    });
  });

  test("closes the book and tells peers also when the decision is forgotten", () => {
    const core = twoWorkers({ decisionsMax: 1 });
    const forgotten = core.place(placeInput(), at(10));
    core.place(placeInput({ hashes: promptHashes(2, 100) }), at(10));
    core.takeEffects();
    expect(core.served(forgotten.id, servedRecord(0), at(20))).toBeUndefined();
    expect(core.takeEffects()).toMatchObject([
      { kind: "closed", closed: { reservation: { decisionId: forgotten.id } } },
    ]);
    expect(core.book.openCount).toBe(1);
  });

  test("what no record ever closes ends at its hard end", () => {
    const core = twoWorkers();
    const decision = core.place(placeInput(), at(10));
    core.tick(at(30_000));
    expect(core.book.openCount).toBe(1);
    core.tick(at(200_000));
    expect([core.book.openCount, decision.observed?.closedBy]).toEqual([0, "expired"]);
  });
});

describe("peers", () => {
  test("their members can be chosen before their streams come, without their blocks", () => {
    const core = routerCore();
    core.notice("r1", memberNotice(0), at(0));
    const decision = core.place(placeInput(), at(1));
    expect(decision.candidates).toMatchObject([
      { workerId: "w0", matchedBlocks: 0, suspect: true, capacityTokens: 0 },
    ]);
    core.routerLost("r1", at(100));
    core.tick(at(5_099));
    expect(core.members.size).toBe(1);
    core.tick(at(5_100));
    expect(core.members.size).toBe(0);
  });

  test("are not told what they said themselves", () => {
    const core = routerCore();
    core.notice("r1", memberNotice(0), at(0));
    core.peerHoldsOnly("r1", new Set(), at(5));
    core.admit(memberFacts(1), 1, at(6));
    expect(
      core
        .takeEffects()
        .map((e) => (e.kind === "member_changed" ? [e.member.key, e.tellPeers] : e.kind)),
    ).toEqual([
      ["w0", false],
      ["w0", false],
      ["w1", true],
    ]);
  });

  test("their goodbye of a member removes it unless its stream still comes here", () => {
    const core = twoWorkers();
    const farewell = { held: false, goodbye: true };
    core.notice("r1", memberNotice(3), at(0));
    core.notice("r1", memberNotice(3, farewell), at(1));
    core.notice("r1", memberNotice(0, farewell), at(1));
    expect([...core.members.all()].map((m) => m.key)).toEqual(["w0", "w1"]);
  });

  test("their reservations weigh here, so that two routers do not fill one worker", () => {
    const core = twoWorkers();
    const theirs = {
      decisionId: "r1.5.1",
      workerId: w0,
      promptTokens: 9_000,
      uncachedTokens: 9_000,
      expectedOutputTokens: 100,
      ageMs: 20,
    };
    core.peerReserved(theirs, at(100));
    core.peerReserved(theirs, at(100));
    expect(core.book.openCount).toBe(1);
    expect(core.takeEffects()).toEqual([]);
    expect(placedOn(core.place(placeInput({ dryRun: true }), at(101)))).toBe("w1");
    core.peerClosed("r1.5.1", at(102));
    expect(placedOn(core.place(placeInput({ dryRun: true }), at(103)))).toBe("w0");
  });

  test("their snapshot closes what this life of them has no longer open, and nothing of others", () => {
    const core = twoWorkers();
    const own = core.place(placeInput(), at(1));
    for (const id of ["r1.5.1", "r1.5.2", "r1.4.9", "r10.5.1"]) {
      core.peerReserved(
        {
          decisionId: id,
          workerId: w0,
          promptTokens: 10,
          uncachedTokens: 10,
          expectedOutputTokens: 1,
          ageMs: 0,
        },
        at(2),
      );
    }
    core.peerOpenOnly("r1", 5n, new Set(["r1.5.2"]), at(3));
    const ids = ["r1.5.1", "r1.5.2", "r1.4.9", "r10.5.1", own.id];
    expect(ids.map((id) => core.book.isOpen(id))).toEqual([false, true, true, true, true]);
  });
});
