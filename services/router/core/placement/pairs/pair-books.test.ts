import { describe, expect, test } from "vitest";
import {
  at,
  memberFacts,
  placeInput,
  routerCore,
  servedRecord,
} from "../../../../../test/support/router-builders.ts";
import type { WorkerId } from "../../../../shared/core/ids.ts";
import type { Decision } from "../../decisions/decision.ts";
import type { MemberFacts } from "../../membership/member.ts";
import type { LegNotice } from "../../relays/leg-notice.ts";
import type { PeerReservation } from "../../peers/peer-reservations.ts";
import type { RouterCore } from "../../router-core.ts";
import { prefillKeyOf } from "./pair-legs.ts";
import { pairDefaults, type PairOptions } from "./pair-placer.ts";

const p0 = "w0" as WorkerId;
const d1 = "w1" as WorkerId;
const connector = { kvTransfer: "NixlConnector" };

/** A prefill and a decode worker, and a relay. */
function pairCore(
  over: Partial<PairOptions> = {},
  facts: Partial<MemberFacts> = connector,
): RouterCore {
  const core = routerCore({ pairs: { ...pairDefaults, mode: "always", ...over } });
  core.admit(memberFacts(0, { role: "prefill", ...facts }), 1, at(0));
  core.admit(memberFacts(1, { role: "decode", ...facts }), 2, at(0));
  core.relays.attach(
    {
      instance: "relay-0",
      epoch: 1,
      h2Address: "127.0.0.1:9100",
      httpAddress: "127.0.0.1:9101",
      engines: ["vllm", "sglang"],
      streamsMax: 100,
    },
    1,
  );
  return core;
}

const placePair = (core: RouterCore, now = 100, requestId = "req-1"): Decision =>
  core.place(placeInput({ requestId, isPairable: true, promptTokens: 8_000 }), at(now));

function legNotice(decision: Decision, over: Partial<LegNotice>): LegNotice {
  return {
    decisionId: decision.id,
    leg: "decode",
    workerId: d1,
    ended: true,
    outcome: "done",
    durationMs: 50,
    firstTokenMs: 0,
    transferMs: 0,
    promptTokens: 8_000,
    cachedTokens: -1,
    localPrefill: false,
    last: false,
    ...over,
  };
}

const prefillEnd = (decision: Decision, over: Partial<LegNotice> = {}): LegNotice =>
  legNotice(decision, { leg: "prefill", workerId: p0, ...over });

const open = (core: RouterCore): [prefill: number, decode: number] => [
  core.book.load(p0, at(100)).openRequests,
  core.book.load(d1, at(100)).openRequests,
];

describe("reservations of a pair", () => {
  test("load the prefill worker with the prompt and the decode worker with the answer alone", () => {
    const core = pairCore();
    const decision = placePair(core);
    expect(decision).toMatchObject({ workerId: d1, endpoints: ["127.0.0.1:9100"] });
    expect(decision.pair).toMatchObject({ form: "pair", why: "always", relays: ["relay-0"] });
    const prefill = core.book.load(p0, at(101));
    const decode = core.book.load(d1, at(101));
    expect(prefill.queuedPrefillTokens).toBeGreaterThan(7_000);
    expect(decode).toMatchObject({ openRequests: 1, queuedPrefillTokens: 0, prefillBacklogMs: 0 });
    expect(decode.decoding).toBe(0);
    expect(core.pairs.legs.size).toBe(1);
  });

  test("end one by one with the relay's notices, or both with the access log", () => {
    for (const end of ["notices", "record", "last"] as const) {
      const core = pairCore();
      const decision = placePair(core);
      expect(open(core)).toEqual([1, 1]);
      if (end === "notices") {
        core.legEnds.take(prefillEnd(decision), at(300));
        expect(open(core)).toEqual([0, 1]);
        core.legEnds.take(legNotice(decision, {}), at(900));
      } else if (end === "last") {
        core.legEnds.take(prefillEnd(decision, { outcome: "cancelled", last: true }), at(300));
      } else {
        core.served(decision.id, servedRecord(0, { servedEndpoint: "127.0.0.1:9100" }), at(900));
      }
      expect(open(core)).toEqual([0, 0]);
      const link = { from: 0, to: 1, isSameHost: true };
      expect([core.pairs.legs.size, core.pairs.links.inFlight(link)]).toEqual([0, 0]);
      const closed = core
        .takeEffects()
        .flatMap((e) => (e.kind === "closed" ? [e.closed.reservation.decisionId] : []));
      expect(closed.sort()).toEqual([decision.id, prefillKeyOf(decision.id)].sort());
      // Both may be told again.
      core.legEnds.take(legNotice(decision, { last: true }), at(901));
      expect(core.takeEffects()).toEqual([]);
    }
  });

  test("the decode leg waits for its prompt: reports that do not count it do not end it", () => {
    const core = pairCore();
    const decision = placePair(core);
    const report = (now: number) => {
      core.report(d1, { running: 0, waiting: 0, kvUsageRatio: 0, at: at(now) }, undefined);
    };
    for (let now = 200; now < 10_000; now += 100) report(now);
    expect(core.book.isOpen(decision.id)).toBe(true);
    expect(core.book.load(d1, at(10_000)).decoding).toBe(0);
    core.legEnds.take(prefillEnd(decision), at(10_000));
    expect(core.book.load(d1, at(11_000)).decoding).toBe(1);
    // From then on its engine must know of it.
    for (let now = 11_000; now < 14_000; now += 100) report(now);
    expect(core.book.isOpen(decision.id)).toBe(false);
  });

  test("bytes and prompts under way count for the next pair until the first token", () => {
    const core = pairCore({ kvBytesPerTokenDefault: 1_000_000 });
    const first = placePair(core, 100, "a");
    const second = placePair(core, 100, "b");
    const wait = (decision: Decision): number =>
      decision.pair?.candidates[0]?.term("transfer_wait") ?? Number.NaN;
    expect([wait(first) === 0, wait(second) > 1_000]).toEqual([true, true]);
    expect(core.pairs.legs.awaitedTokens(1)).toBe(16_000);
    core.legEnds.take(legNotice(first, { ended: false, firstTokenMs: 40 }), at(200));
    expect(core.pairs.legs.awaitedTokens(1)).toBe(8_000);
    expect(core.pairs.links.inFlight({ from: 0, to: 1, isSameHost: true })).toBe(8e9);
  });

  test("a link is learned from first tokens of streams, and not from prompts that were computed again", () => {
    const link = { from: 0, to: 1, isSameHost: true };
    const slow = (over: Partial<LegNotice>): number => {
      const core = pairCore();
      for (let n = 0; n < 10; n++) {
        const decision = placePair(core, 1_000 * n, `req-${String(n)}`);
        const first = { ended: false, firstTokenMs: 3_000, ...over };
        core.legEnds.take(legNotice(decision, first), at(1_000 * n + 500));
        core.legEnds.take(legNotice(decision, { last: true }), at(1_000 * n + 600));
      }
      const into = { waitMs: 0, moveMs: 0 };
      core.pairs.links.forecast(link, 1_048_576_000, 0, into);
      return into.moveMs;
    };
    expect(slow({})).toBeGreaterThan(1_500);
    // What its relay saw of the transfer goes before what is guessed from the first token.
    expect(slow({ transferMs: 20 })).toBeLessThan(400);
    expect(slow({ firstTokenMs: 20, transferMs: 3_000 })).toBeGreaterThan(1_500);
    expect(slow({ localPrefill: true })).toBeLessThan(400);
    expect(slow({ firstTokenMs: 0 })).toBeLessThan(400);
  });

  test("a worker that leaves takes its leg with it, and nothing stays", () => {
    const core = pairCore();
    const decision = placePair(core);
    core.goodbye(p0);
    core.legEnds.take(legNotice(decision, { last: true }), at(500));
    core.served(decision.id, servedRecord(1), at(600));
    expect([core.book.openCount, core.pairs.legs.size]).toEqual([0, 0]);
    expect(placePair(core, 700, "next").pair).toBeUndefined();
  });
});

describe("what a peer tells of a pair", () => {
  const told = (over: Partial<PeerReservation>): PeerReservation => ({
    decisionId: "r9.1.1",
    workerId: d1,
    promptTokens: 8_000,
    uncachedTokens: 0,
    expectedOutputTokens: 100,
    ageMs: 0,
    ...over,
  });
  const prefill = told({
    decisionId: "r9.1.1#p",
    workerId: p0,
    uncachedTokens: 8_000,
    expectedOutputTokens: 1,
  });
  const awaits = { prefillWorker: p0, transferBytes: 1e9, beginsInMs: 400 };

  test("is reserved on both workers, arrives with the end of the prefill, and goes with its end", () => {
    const core = pairCore();
    core.peerReserved(prefill, at(100));
    core.peerReserved(told({ awaits }), at(100));
    expect(core.book.load(p0, at(101)).queuedPrefillTokens).toBeGreaterThan(7_000);
    expect(core.book.load(d1, at(101)).queuedPrefillTokens).toBe(0);
    expect(core.pairs.links.inFlight({ from: 0, to: 1, isSameHost: true })).toBe(1e9);
    core.peerClosed("r9.1.1#p", at(300));
    expect(open(core)).toEqual([0, 1]);
    core.peerClosed("r9.1.1", at(900));
    expect([core.book.openCount, core.pairs.legs.size]).toEqual([0, 0]);
  });

  test("ends with the decode leg alone, or with what its snapshot leaves out", () => {
    for (const end of ["closed", "snapshot"] as const) {
      const core = pairCore();
      core.peerReserved(prefill, at(100));
      core.peerReserved(told({ awaits }), at(100));
      if (end === "closed") core.peerClosed("r9.1.1", at(200));
      else core.peerOpenOnly("r9", 1n, new Set(), at(200));
      expect([core.book.openCount, core.pairs.legs.size]).toEqual([0, 0]);
    }
  });

  test("a decode leg whose prefill is not told any more is there already", () => {
    const core = pairCore();
    core.peerReserved(told({ awaits }), at(100));
    expect(core.book.load(d1, at(101)).decoding).toBe(1);
    core.peerClosed("r9.1.1", at(200));
    expect([core.book.openCount, core.pairs.legs.size]).toEqual([0, 0]);
  });
});

describe("who is paired", () => {
  const formOf = (core: RouterCore, over = {}): unknown => {
    const { pair, workerId } = core.place(placeInput({ isPairable: true, ...over }), at(1));
    return pair === undefined ? `whole on ${String(workerId)}` : `${pair.form}: ${pair.why}`;
  };

  test("nobody without a connector, a relay, or when the setting says never", () => {
    expect(formOf(pairCore({}, {}))).toBe("whole on undefined");
    const never = pairCore({ mode: "never" });
    expect(formOf(never)).toBe("whole on w1");
    const alone = pairCore();
    alone.relays.goodbye("relay-0");
    expect(formOf(alone)).toBe("whole: no_relay");
    expect(formOf(pairCore(), { isPairable: false })).toBe("whole: request_form");
    const other = pairCore();
    other.admit(memberFacts(0, { role: "prefill", kvTransfer: "Other" }), 1, at(0));
    expect(formOf(other)).toBe("whole on w1");
  });

  test("not an engine that is not ready, excluded, or outside the proxy's subset", () => {
    expect(formOf(pairCore(), { excluded: new Set(["w0"]) })).toBe("whole: no_pair");
    expect(formOf(pairCore(), { subset: new Set(["127.0.0.1:8101"]) })).toBe("whole: no_pair");
    const core = pairCore();
    core.setReady(p0, false);
    expect(formOf(core)).toBe("whole on w1");
    core.setReady(p0, true);
    expect(formOf(core)).toBe("pair: always");
  });

  test("SGLang's engines pair by role, with a bootstrap server, and decode ones take nothing whole", () => {
    const sglang = { engineName: "sglang", kvTransfer: "mooncake" };
    expect(formOf(pairCore({}, { ...sglang, kvBootstrap: "127.0.0.1:8998" }))).toBe(
      "pair: only_form",
    );
    expect(formOf(pairCore({}, sglang))).toBe("whole on undefined");
  });

  test("a bias decides where costs alone would not", () => {
    const biased = (biasMs: number): unknown => formOf(pairCore({ mode: "auto", biasMs }));
    expect([biased(-60_000), biased(60_000)]).toEqual(["pair: cheaper", "whole: cheaper"]);
  });
});

describe("what was cached", () => {
  const answered = servedRecord(0, { servedEndpoint: "127.0.0.1:9100" });
  const observedOf = (decision: Decision): number | undefined => decision.observed?.cachedTokens;

  test("stays known when a relay's word closes the books before the record comes", () => {
    const core = pairCore();
    const decision = placePair(core);
    core.legEnds.take(prefillEnd(decision), at(300));
    core.legEnds.take(legNotice(decision, { last: true }), at(900));
    // The prefill engine has stored none of the prompt's blocks anew.
    expect(decision.observed).toMatchObject({ closedBy: "relay", cachedTokens: 1_600 });
    core.served(decision.id, answered, at(910));
    expect(decision.observed).toMatchObject({ closedBy: "access_log", cachedTokens: 1_600 });
  });

  test("is what the engine says where its events show nothing", () => {
    for (const order of ["told first", "record first"] as const) {
      const core = pairCore();
      const prompt = placeInput({
        isPairable: true,
        promptTokens: 8_000,
        hashes: new Uint32Array(0),
      });
      const decision = core.place(prompt, at(100));
      const told = prefillEnd(decision, { cachedTokens: 48 });
      if (order === "told first") {
        core.legEnds.take(told, at(300));
        expect(observedOf(decision)).toBeUndefined();
        core.served(decision.id, answered, at(900));
      } else {
        core.served(decision.id, answered, at(900));
        expect(observedOf(decision)).toBe(-1);
        core.legEnds.take(told, at(910));
      }
      expect([order, observedOf(decision)]).toEqual([order, 48]);
    }
  });

  test("is not known of a request that another engine served", () => {
    const core = pairCore();
    const decision = placePair(core);
    core.served(decision.id, servedRecord(7), at(900));
    expect(decision.observed).toMatchObject({ servedAsPicked: false, cachedTokens: -1 });
  });
});

describe("the length of answers", () => {
  /** What an engine did: so many requests, of so many tokens each in the mean. */
  const delta = (finished: number, tokensEach: number) => ({
    interTokenMs: 0,
    interTokenCount: 0,
    running: 0,
    contextTokens: 0,
    computedTokens: 0,
    finished,
    generatedTokens: finished * tokensEach,
  });
  const report = (now: number) => ({ running: 0, waiting: 0, kvUsageRatio: 0, at: at(now) });

  test("is not learned from prefill legs, which have one token", () => {
    const core = pairCore();
    for (let i = 0; i < 3; i++) {
      const decision = placePair(core, 100 + i, `req-${String(i)}`);
      core.legEnds.take(prefillEnd(decision), at(300 + i));
    }
    core.report(p0, report(500), delta(3, 1));
    expect(core.modelOf(p0)?.outputTokensMean).toBeUndefined();
    // Whole requests of the same engine count, and each leg is left out once.
    core.report(p0, report(1_000), delta(2, 300));
    expect(core.modelOf(p0)?.outputTokensMean).toBe(300);
  });

  test("counts whole requests beside legs of the same interval as they are", () => {
    const core = pairCore();
    const decision = placePair(core);
    core.legEnds.take(prefillEnd(decision), at(300));
    // One leg of one token, and two answers of 200.
    core.report(p0, report(500), { ...delta(3, 0), generatedTokens: 401 });
    expect(core.modelOf(p0)?.outputTokensMean).toBe(200);
  });
});
