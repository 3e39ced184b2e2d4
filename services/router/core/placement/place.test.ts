import fc from "fast-check";
import { describe, expect, test } from "vitest";

import {
  candidateInput,
  policyRequest,
  promptHashes,
  stepModel,
  workerLoad,
} from "../../../../test/support/router-builders.ts";
import type { CandidateInput, ScoredCandidate } from "./candidate.ts";
import { prefillExtraMs } from "../../../shared/core/step-model.ts";
import { estimate, preferences } from "./estimate.ts";
import { rank, type Ranking } from "./place.ts";
import { createPolicy } from "./policies.ts";
import { isPolicyName, policyNames, type PolicyName } from "./policy.ts";

const request = policyRequest({ promptTokens: 4_000, hashes: promptHashes(1, 250) });

/** Ranks with a policy that has seen nothing yet. */
const ranked = (candidates: readonly CandidateInput[], policy: PolicyName, turn: number): Ranking =>
  rank(candidates, { ...request, turn }, createPolicy(policy, 7));

const place = (
  candidates: readonly CandidateInput[],
  policy: PolicyName = "kv",
  turn = 0,
): readonly ScoredCandidate[] => ranked(candidates, policy, turn).candidates;

const order = (candidates: readonly ScoredCandidate[]): string[] =>
  candidates.map((c) => c.workerId);

/** Holds the whole prompt but its last block. */
const warm = (id: string, over: Partial<CandidateInput> = {}): CandidateInput =>
  candidateInput(id, { matchedBlocks: 249, matchedTokens: 3_984, ...over });

const load = fc
  .record({
    openRequests: fc.nat(50),
    prefillBacklogMs: fc.double({ min: 0, max: 20_000, noNaN: true }),
    decoding: fc.nat(200),
    decodingTokensLeft: fc.nat(50_000),
  })
  .map((l) =>
    workerLoad({ ...l, decodingContextTokens: l.decoding * 700, queuedPrefillTokens: 10 }),
  );

const pool = fc
  .uniqueArray(
    fc.record({
      id: fc.integer({ min: 0, max: 99 }),
      load,
      matched: fc.nat(250),
      foreignRequests: fc.nat(10),
      heldTokens: fc.nat(120_000),
    }),
    { selector: (c) => c.id, minLength: 1, maxLength: 8 },
  )
  .map((list) =>
    list.map(({ id, matched, ...rest }) =>
      candidateInput(`w${id}`, {
        ...rest,
        matchedBlocks: matched,
        matchedTokens: Math.min(matched * 16, 3_984),
      }),
    ),
  );

describe("rank", () => {
  test("prefers a warm worker until its queue costs more than the saved prefill", () => {
    const cold = candidateInput("cold");
    const saved = estimate(cold, request).prefillMs - estimate(warm("warm"), request).prefillMs;
    expect(saved).toBeGreaterThan(40);
    const queued = (ms: number) =>
      warm("warm", { load: workerLoad({ openRequests: 1, prefillBacklogMs: ms }) });
    expect(order(place([queued(saved - 0.5), cold]))).toEqual(["warm", "cold"]);
    expect(order(place([queued(saved + 0.5), cold]))).toEqual(["cold", "warm"]);
  });

  test("leaves a worker where many decode for an idle one", () => {
    const busy = candidateInput("a", {
      load: workerLoad({
        openRequests: 80,
        decoding: 80,
        decodingContextTokens: 80_000,
        decodingTokensLeft: 8_000,
      }),
    });
    expect(order(place([busy, candidateInput("b")]))).toEqual(["b", "a"]);
  });

  test("leaves an engine that stands still beyond its longest steps, the more the longer", () => {
    const standing = (overdueMs: number) => warm("warm", { load: workerLoad({ overdueMs }) });
    const stall = (overdueMs: number, over: Partial<CandidateInput> = {}) =>
      estimate({ ...standing(overdueMs), ...over }, request).stallMs;
    // A step with 8,192 new tokens takes 130 ms here, and two of them are nothing unusual.
    expect([0, 150, 250].map((ms) => stall(ms))).toEqual([0, 0, 0]);
    expect(stall(1_000)).toBeGreaterThan(700);
    expect(stall(2_000) - stall(1_000)).toBeCloseTo(1_000, 6);
    // Whatever was learned of an engine, it is not waited for longer than a second.
    const slow = { ...stepModel, c0: 60_000 };
    expect([stall(1_000, { steps: slow }), stall(1_500, { steps: slow })]).toEqual([0, 500]);
    expect(stall(250, { stepTokensMax: 512 })).toBeGreaterThan(0);
    const cold = candidateInput("cold");
    expect(order(place([standing(250), cold]))).toEqual(["warm", "cold"]);
    const [first, second] = place([standing(1_000), cold]);
    expect([first?.workerId, second?.workerId]).toEqual(["cold", "warm"]);
    expect(second?.terms.find((t) => t.name === "stall")?.ms).toBeCloseTo(stall(1_000), 6);
    expect(second?.predictedTtftMs).toBeGreaterThan(stall(1_000));
  });

  test("waiting counts the more the longer it is, time after the first token as it is", () => {
    const waited = (ms: number): number =>
      place([candidateInput("a", { load: workerLoad({ prefillBacklogMs: ms }) })])[0]?.costMs ?? 0;
    expect(waited(1_000) - waited(0)).toBeGreaterThan(1_000);
    expect(waited(6_000) - waited(5_000)).toBeGreaterThan(waited(1_000) - waited(0) + 3_000);
    const [chosen] = place([candidateInput("a")]);
    const decode = chosen?.terms.find((t) => t.name === "decode")?.ms ?? 0;
    expect(decode).toBeCloseTo(chosen?.decodeMs ?? 0);
  });

  test("counts blocks that would push others out", () => {
    const full = candidateInput("a", { heldTokens: 112_500 });
    const [first, second] = place([full, candidateInput("b")]);
    expect(first?.workerId).toBe("b");
    expect(second?.terms.find((t) => t.name === "eviction")?.ms).toBeGreaterThan(0);
  });

  test("settles ties by the fewest open requests, then by the lowest id, and says so", () => {
    const tied = (id: string, openRequests: number) =>
      candidateInput(id, { load: workerLoad({ openRequests }) });
    const byOpen = ranked([tied("a", 2), tied("b", 1)], "kv", 0);
    expect([order(byOpen.candidates), byOpen.tieBreak, byOpen.marginMs]).toEqual([
      ["b", "a"],
      "fewest_open",
      0,
    ]);
    const byId = ranked([tied("b", 1), tied("a", 1)], "kv", 0);
    expect([order(byId.candidates), byId.tieBreak]).toEqual([["a", "b"], "lowest_id"]);
    expect(ranked([warm("a"), tied("b", 0)], "kv", 0).tieBreak).toBe("");
  });

  test("has nothing to say about no candidates, and no margin with one", () => {
    expect(ranked([], "kv", 0)).toEqual({
      candidates: [],
      marginMs: 0,
      tieBreak: "",
    });
    expect(ranked([candidateInput("a")], "kv", 0)).toMatchObject({
      marginMs: 0,
      tieBreak: "",
    });
  });

  test.each(policyNames)(
    "%s does not depend on the order in which workers are listed",
    (policy) => {
      fc.assert(
        fc.property(pool, fc.nat(1_000), fc.nat(), (candidates, turn, seed) => {
          const shuffled = candidates
            .map((candidate, i) => ({ candidate, key: Math.imul(i + 1, seed | 1) >>> 0 }))
            .sort((a, b) => a.key - b.key)
            .map(({ candidate }) => candidate);
          expect(ranked(shuffled, policy, turn)).toEqual(ranked(candidates, policy, turn));
        }),
      );
    },
  );

  test.each(policyNames)(
    "%s: terms sum to the cost, costs ascend, the margin is the step to the second",
    (policy) => {
      fc.assert(
        fc.property(pool, fc.nat(1_000), (candidates, turn) => {
          const ranking = ranked(candidates, policy, turn);
          expect(ranking.candidates).toHaveLength(candidates.length);
          ranking.candidates.forEach((c, i) => {
            expect(c.costMs).toBeCloseTo(
              c.terms.reduce((sum, t) => sum + t.ms, 0),
              6,
            );
            expect(c.costMs).toBeGreaterThanOrEqual(0);
            expect(c.predictedTtftMs).toBeGreaterThan(0);
            const before = ranking.candidates[i - 1];
            if (before !== undefined)
              expect(c.costMs - before.costMs).toBeGreaterThanOrEqual(-1e-5);
          });
          const [first, second] = ranking.candidates;
          if (first !== undefined && second !== undefined) {
            expect(ranking.marginMs).toBe(second.costMs - first.costMs);
          }
        }),
      );
    },
  );
});

describe("estimate", () => {
  test("adds up what an idle engine needs", () => {
    const { c0, c1, c2, d0, d1, d2 } = stepModel;
    const expected = estimate(candidateInput("a"), request);
    expect(expected.queueMs).toBe(0);
    expect(expected.prefillMs).toBeCloseTo(c0 + c1 * 4_000 + c2 * 4_000 * 2_000);
    expect(expected.decodeMs).toBeCloseTo(99 * (d0 + d1 + d2 * 4_050));
    expect([expected.slowdownMs, expected.evictionMs]).toEqual([0, 0]);
  });

  test("a long prompt pays one step for each chunk that fits the engine's budget", () => {
    const long = { promptTokens: 20_000, expectedOutputTokens: 1 };
    const whole = estimate(candidateInput("a", { stepTokensMax: 20_000 }), long).prefillMs;
    const chunked = estimate(candidateInput("a", { stepTokensMax: 2_000 }), long).prefillMs;
    expect(chunked - whole).toBeCloseTo(9 * stepModel.c0);
    expect(estimate(candidateInput("a", { stepTokensMax: 0 }), long).prefillMs - whole).toBeCloseTo(
      2 * stepModel.c0,
    );
  });

  test("memory costs nothing while all fits, then the share of contexts that has to end first", () => {
    const running = (kvUsage: number, over: Partial<CandidateInput> = {}) =>
      candidateInput("a", {
        load: workerLoad({
          decoding: 10,
          decodingContextTokens: 90_000,
          decodingTokensLeft: 1_000,
        }),
        reportedKvUsageRatio: kvUsage,
        ...over,
      });
    const memoryMs = (candidate: CandidateInput) => estimate(candidate, request).memoryMs;
    const { d0, d1, d2 } = stepModel;
    // 4,100 tokens more: they fit beside 108,400 of 112,500, and beside 112,500 have to wait for as many.
    expect(memoryMs(running(108_400 / 112_500))).toBeCloseTo(0);
    const endsInMs = 2 * (d0 + 10 * d1 + 90_000 * d2) * 100;
    expect(memoryMs(running(1))).toBeCloseTo((4_100 / 90_000) * endsInMs);
    const weights = preferences["first-token"];
    const eager = estimate(running(1), request, weights).memoryMs;
    expect(eager).toBeCloseTo(weights.memory * (4_100 / 90_000) * endsInMs);
    expect(eager).toBeGreaterThan(memoryMs(running(1)));
    // Prompts that wait behind it need room before it, unless they are cached.
    const queued = { ...running(0.9).load, queuedPrefillTokens: 10_000 };
    expect(memoryMs(running(0.9))).toBe(0);
    expect(memoryMs(running(0.9, { load: queued }))).toBeGreaterThan(0);
    expect(memoryMs(running(1, { matchedTokens: 3_984 }))).toBeLessThan(memoryMs(running(1)) / 10);
    // Where requests wait, contexts count that the engine has no blocks for yet.
    const waiting = { ...running(0.9).load, decodingContextTokens: 130_000 };
    expect(memoryMs(running(0.9, { load: waiting }))).toBe(0);
    expect(memoryMs(running(0.9, { load: waiting, reportedWaiting: 1 }))).toBeGreaterThan(0);
    expect(memoryMs(running(1, { capacityTokens: 0 }))).toBe(0);
    expect(memoryMs(candidateInput("a", { reportedKvUsageRatio: 1 }))).toBe(0);
  });

  test("a prefill counts again in part for each answer that stands still for it", () => {
    const beside = (decoding: number) =>
      estimate(candidateInput("a", { load: workerLoad({ decoding }) }), request).slowdownMs;
    const extraMs = prefillExtraMs(stepModel, 4_000, 0);
    expect(beside(0)).toBe(0);
    expect(beside(2)).toBeCloseTo(0.8 * extraMs);
    expect(beside(20)).toBeCloseTo(8 * extraMs);
  });

  test("foreign requests count as decoding ones of the usual context", () => {
    const own = candidateInput("a", {
      load: workerLoad({ decoding: 4, decodingContextTokens: 8_000, decodingTokensLeft: 400 }),
    });
    const half = candidateInput("a", {
      load: workerLoad({ decoding: 2, decodingContextTokens: 4_000, decodingTokensLeft: 400 }),
      foreignRequests: 2,
    });
    expect(estimate(half, request).decodeMs).toBeCloseTo(estimate(own, request).decodeMs);
  });

  test("costs rise with the queue, with uncached tokens, with decodes and with a fuller cache", () => {
    const costOf = (candidate: CandidateInput): number => {
      const e = estimate(candidate, request);
      return e.queueMs + e.prefillMs + e.decodeMs + e.slowdownMs + e.evictionMs;
    };
    fc.assert(
      fc.property(
        pool,
        fc.double({ min: 0, max: 5_000, noNaN: true }),
        fc.nat(3_984),
        fc.nat(20),
        fc.nat(50_000),
        ([candidate], queueMs, tokens, decodes, held) => {
          if (candidate === undefined) return;
          const cost = costOf(candidate) - 1e-6;
          const { load: l } = candidate;
          const more = (over: Partial<CandidateInput>) => costOf({ ...candidate, ...over });
          expect(
            more({ load: { ...l, prefillBacklogMs: l.prefillBacklogMs + queueMs } }),
          ).toBeGreaterThanOrEqual(cost);
          expect(
            more({ matchedTokens: Math.max(0, candidate.matchedTokens - tokens) }),
          ).toBeGreaterThanOrEqual(cost);
          // The context of foreign requests is guessed from the decodes here, so the two are compared without them.
          const own = { ...candidate, foreignRequests: 0 };
          const busier = {
            ...l,
            decoding: l.decoding + decodes,
            decodingContextTokens: l.decodingContextTokens + decodes * 700,
          };
          expect(costOf({ ...own, load: busier })).toBeGreaterThanOrEqual(costOf(own) - 1e-6);
          expect(more({ heldTokens: candidate.heldTokens + held })).toBeGreaterThanOrEqual(cost);
        },
      ),
      { numRuns: 2_000 },
    );
  });
});

describe("policies", () => {
  test("kv-blind ranks as if nothing were cached and still predicts with what is", () => {
    const [first, second] = place([candidateInput("a"), warm("b")], "kv-blind");
    expect(order([first, second] as ScoredCandidate[])).toEqual(["a", "b"]);
    expect(first?.costMs).toBe(second?.costMs);
    expect(second?.predictedTtftMs).toBeLessThan(first?.predictedTtftMs ?? 0);
    fc.assert(
      fc.property(pool, (candidates) => {
        const cold = candidates.map((c) => ({ ...c, matchedBlocks: 0, matchedTokens: 0 }));
        expect(order(place(candidates, "kv-blind"))).toEqual(order(place(cold, "kv")));
      }),
    );
  });

  test("round robin gives each worker every turn in order, whatever their load", () => {
    fc.assert(
      fc.property(pool, fc.nat(1_000), (candidates, from) => {
        const ids = candidates.map((c) => c.workerId as string).sort();
        const firsts = ids.map((_, i) => order(place(candidates, "round-robin", from + i))[0]);
        expect([...firsts].sort()).toEqual(ids);
        const start = ids.indexOf(firsts[0] ?? "");
        const around = [...ids.slice(start), ...ids.slice(0, start)];
        expect(firsts).toEqual(around);
        expect(order(place(candidates, "round-robin", from))).toEqual(around);
      }),
    );
  });

  test("least requests counts the mesh's requests and foreign ones", () => {
    const candidates = [
      candidateInput("a", { load: workerLoad({ openRequests: 3 }) }),
      candidateInput("b", { load: workerLoad({ openRequests: 1 }), foreignRequests: 4 }),
      warm("c", { load: workerLoad({ openRequests: 4 }) }),
    ];
    expect(order(place(candidates, "least-requests"))).toEqual(["a", "c", "b"]);
  });

  test("are found by name", () => {
    for (const name of policyNames) {
      expect(isPolicyName(name)).toBe(true);
      expect(createPolicy(name, 1).name).toBe(name);
    }
    expect(isPolicyName("roundrobin")).toBe(false);
    expect(isPolicyName("toString")).toBe(false);
  });
});
