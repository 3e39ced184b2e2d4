import fc from "fast-check";
import { describe, expect, test } from "vitest";

import {
  at,
  candidateInput,
  policyRequest,
  promptHashes,
  workerLoad,
} from "../../../../../test/support/router-builders.ts";
import { workerId } from "../../../../shared/core/ids.ts";
import type { CandidateInput } from "../candidate.ts";
import { rank } from "../place.ts";
import { createPolicy } from "../policies.ts";
import { policyNames, type PlacementPolicy, type PolicyRequest } from "../policy.ts";
import { Dynamo, sample } from "./dynamo.ts";

const names = ["a", "b", "c", "d"];
/** Workers a, b, … with so many open requests each. */
const open = (...counts: readonly number[]): CandidateInput[] =>
  counts.map((openRequests, i) =>
    candidateInput(names[i] ?? `w${i}`, { load: workerLoad({ openRequests }) }),
  );

const first = (policy: PlacementPolicy, candidates: CandidateInput[], request: PolicyRequest) =>
  rank(candidates, request, policy).candidates[0]?.workerId;

/** Costs of candidates as the policy gives them, ties left out, by id. */
const costs = (policy: PlacementPolicy, candidates: CandidateInput[], request: PolicyRequest) =>
  policy
    .score(candidates, request)
    .map(({ terms }) => terms.reduce((sum, { name, ms }) => sum + (name === "draw" ? 0 : ms), 0));

/** `blocks` of prompt 1, then prompt `tail`. */
function branched(blocks: number, count: number, tail: number): Uint32Array {
  const hashes = promptHashes(tail, count);
  hashes.set(promptHashes(1, count).subarray(0, 2 * blocks));
  return hashes;
}

let decisions = 0;
const send = (policy: PlacementPolicy, id: string, over: Partial<PolicyRequest> = {}): string => {
  const decisionId = `d${++decisions}`;
  const placed = { decisionId, workerId: workerId(id), matchedBlocks: 0, predictedTtftMs: 100 };
  policy.placed?.(policyRequest(over), placed);
  return decisionId;
};

const manyTurns = Array.from({ length: 4_000 }, (_, turn) => policyRequest({ turn }));

describe("random", () => {
  test("takes each worker as often, independently for each seed", () => {
    const counts = new Map<string, number>();
    let same = 0;
    const [one, other] = [createPolicy("random", 1), createPolicy("random", 2)];
    for (const request of manyTurns) {
      const chosen = first(one, open(9, 0, 0, 3), request) as string;
      counts.set(chosen, (counts.get(chosen) ?? 0) + 1);
      if (chosen === first(other, open(9, 0, 0, 3), request)) same++;
    }
    for (const id of names) expect(Math.abs((counts.get(id) ?? 0) - 1_000)).toBeLessThan(120);
    expect(Math.abs(same - 1_000)).toBeLessThan(120);
  });
});

describe("power-of-two", () => {
  test("never takes the busiest, and the idlest whenever it is drawn", () => {
    const counts = { a: 0, b: 0, c: 0, d: 0 };
    const policy = createPolicy("power-of-two", 1);
    for (const request of manyTurns) {
      counts[first(policy, open(3, 2, 1, 0), request) as "a" | "b" | "c" | "d"]++;
    }
    // Of the six pairs d is in three, c in two without d, b in one without c and d.
    expect(counts.a).toBe(0);
    expect(Math.abs(counts.d - 2_000)).toBeLessThan(150);
    expect(Math.abs(counts.c - 1_333)).toBeLessThan(150);
  });

  test("takes the first drawn of equals, and the one worker there is", () => {
    const policy = createPolicy("power-of-two", 1);
    const chosen = manyTurns.slice(0, 2_000).map((r) => first(policy, open(5, 5), r));
    expect(Math.abs(chosen.filter((id) => id === "a").length - 1_000)).toBeLessThan(120);
    expect(first(policy, open(7), policyRequest())).toBe("a");
  });
});

describe("session-hash", () => {
  const policy = createPolicy("session-hash", 1);
  const at4 = open(0, 50, 0, 0);
  const homes = (candidates: CandidateInput[]) =>
    Array.from({ length: 2_000 }, (_, i) =>
      first(policy, candidates, policyRequest({ session: `s${i}`, turn: i })),
    );

  test("a session stays where it is whatever it sends, and sessions spread evenly", () => {
    const home = first(policy, at4, policyRequest({ session: "s" }));
    for (let turn = 0; turn < 20; turn++) {
      const request = policyRequest({ session: "s", turn, hashes: promptHashes(turn, 50) });
      expect(first(policy, at4, request)).toBe(home);
    }
    const all = homes(at4);
    for (const id of names) {
      expect(Math.abs(all.filter((home) => home === id).length - 500)).toBeLessThan(90);
    }
  });

  test("only the sessions of a worker that leaves move", () => {
    const before = homes(at4);
    const after = homes(at4.filter(({ workerId: id }) => id !== "c"));
    for (const [i, home] of before.entries()) if (home !== "c") expect(after[i]).toBe(home);
  });

  test("without a session the first 1,024 tokens decide", () => {
    const home = (blocks: number, tail: number) =>
      first(policy, at4, policyRequest({ hashes: branched(blocks, 200, tail) }));
    const tails = Array.from({ length: 40 }, (_, i) => i + 2);
    expect(new Set(tails.map((tail) => home(64, tail))).size).toBe(1);
    expect(new Set(tails.map((tail) => home(63, tail))).size).toBe(4);
  });
});

describe("prefix-trie", () => {
  test("follows the longest prefix sent, whatever the load, and draws among equals", () => {
    const policy = createPolicy("prefix-trie", 1);
    send(policy, "b", { hashes: branched(10, 20, 2) });
    send(policy, "c", { hashes: branched(15, 20, 3) });
    const request = policyRequest({ hashes: branched(18, 20, 4) });
    expect(costs(policy, open(0, 9, 99, 0), request)).toEqual([20, 10, 5, 20]);
    expect(first(policy, open(0, 9, 99, 0), request)).toBe("c");
    const unknown = manyTurns
      .slice(0, 400)
      .map(({ turn }) =>
        first(policy, open(0, 9, 99, 0), policyRequest({ turn, hashes: promptHashes(9, 20) })),
      );
    for (const id of names) {
      expect(Math.abs(unknown.filter((chosen) => chosen === id).length - 100)).toBeLessThan(45);
    }
  });

  test("forgets after 120 s and with the worker", () => {
    const policy = createPolicy("prefix-trie", 1);
    send(policy, "a", { hashes: promptHashes(1, 20), now: at(1_000) });
    const missing = (now: number) =>
      costs(policy, open(0), policyRequest({ hashes: promptHashes(1, 20), now: at(now) }));
    expect([missing(121_000), missing(121_001)]).toEqual([[0], [20]]);
    policy.workerLeft?.(workerId("a"));
    expect(missing(2_000)).toEqual([20]);
  });
});

describe("dynamo", () => {
  const cost = (policy: PlacementPolicy, request: PolicyRequest, matched = [0, 0]) =>
    costs(
      policy,
      [
        candidateInput("a", { matchedBlocks: matched[0] ?? 0 }),
        candidateInput("b", { matchedBlocks: matched[1] ?? 0 }),
      ],
      request,
    );
  const prompt = (tail: number, over: Partial<PolicyRequest> = {}) =>
    policyRequest({ promptTokens: 328, hashes: branched(10, 20, tail), ...over });

  test("adds blocks to compute and live blocks, shared ones once", () => {
    const policy = new Dynamo(1);
    // 328 tokens are 20.5 blocks to compute and 21 live ones; 12 blocks cached save computing only.
    expect(cost(policy, prompt(2), [0, 12])).toEqual([41.5, 29.5]);
    const id = send(policy, "a", prompt(2));
    // On a: 41 to compute; live are its 21, 10 of ours new, and our last partial block.
    expect(cost(policy, prompt(3))).toEqual([41 + 32, 41.5]);
    policy.firstToken(id);
    expect(cost(policy, prompt(3))).toEqual([20.5 + 32, 41.5]);
    policy.closed(id);
    expect(cost(policy, prompt(3))).toEqual([41.5, 41.5]);
  });

  test("charges only uncached tokens while a prompt is computed", () => {
    const policy = new Dynamo(1);
    policy.placed(prompt(2), {
      decisionId: "d",
      workerId: workerId("a"),
      matchedBlocks: 15,
      predictedTtftMs: 100,
    });
    expect(cost(policy, prompt(2))[0]).toBe((328 - 240 + 328) / 16 + 22);
  });

  test("where nobody sees first tokens a prompt is computed when that was expected", () => {
    const policy = new Dynamo(1);
    send(policy, "a", prompt(2));
    const at99 = cost(policy, prompt(3, { now: at(99) }));
    const at100 = cost(policy, prompt(3, { now: at(100) }));
    expect((at99[0] as number) - (at100[0] as number)).toBe(20.5);
  });

  test("drops what is older than 300 s", () => {
    const policy = new Dynamo(1);
    send(policy, "a", prompt(2));
    send(policy, "b", prompt(2, { now: at(300_001) }));
    expect(cost(policy, prompt(3, { now: at(300_001) }))[0]).toBe(41.5);
  });

  test("weighs and forgets as told", () => {
    const policy = new Dynamo(1, { overlapCredit: 0.5, prefillLoadScale: 2, temperature: 0 });
    expect(cost(policy, prompt(2), [0, 12])).toEqual([62, 50]);
    send(policy, "a", prompt(2));
    policy.workerLeft(workerId("a"));
    expect(cost(policy, prompt(3))).toEqual([62, 62]);
  });

  test("draws by softmax when it has a temperature", () => {
    // Weights 1 and 1/e.
    expect(sample([3, 5], 1, 0.73)).toBe(0);
    expect(sample([3, 5], 1, 0.7311)).toBe(1);
    expect(sample([4, 4, 4], 1, 0.5)).toBe(1);
    const policy = new Dynamo(1, { overlapCredit: 1, prefillLoadScale: 1, temperature: 1 });
    const pair = [candidateInput("a", { matchedBlocks: 5 }), candidateInput("b")];
    const chosen = manyTurns.map((request) => first(policy, pair, request));
    const share = chosen.filter((id) => id === "a").length / chosen.length;
    expect(Math.abs(share - 1 / (1 + Math.exp(-1)))).toBeLessThan(0.03);
  });

  test("counts as a naive model does, whatever runs where", () => {
    const step = fc.record({
      worker: fc.constantFrom("a", "b"),
      kind: fc.constantFrom("place", "place", "first", "close"),
      shared: fc.integer({ min: 0, max: 20 }),
      tail: fc.integer({ min: 2, max: 5 }),
      pick: fc.nat(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        const policy = new Dynamo(1);
        policy.firstToken("none");
        const live: { id: string; worker: string; keys: string[]; computing: boolean }[] = [];
        const keysOf = (hashes: Uint32Array) =>
          Array.from({ length: hashes.length / 2 }, (_, i) =>
            hashes.slice(2 * i, 2 * i + 2).join(),
          );
        for (const { worker, kind, shared, tail, pick } of steps) {
          const hashes = branched(shared, 20, tail);
          const chosen = live[pick % Math.max(1, live.length)];
          if (kind === "place") {
            const id = send(policy, worker, prompt(tail, { hashes }));
            live.push({ id, worker, keys: keysOf(hashes), computing: true });
          } else if (chosen !== undefined) {
            if (kind === "first") policy.firstToken(chosen.id);
            else policy.closed(chosen.id);
            if (kind === "first") chosen.computing = false;
            else live.splice(live.indexOf(chosen), 1);
          }
          const probe = branched(7, 20, 3);
          const expected = ["a", "b"].map((id) => {
            const there = live.filter((r) => r.worker === id);
            const blocks = new Set([...there.flatMap((r) => r.keys), ...keysOf(probe)]);
            const computing = there.filter((r) => r.computing).length;
            return (computing + 1) * 20.5 + blocks.size + there.length + 1;
          });
          expect(cost(policy, prompt(3, { hashes: probe }))).toEqual(expected);
        }
      }),
    );
  });
});

describe("llm-d", () => {
  const reported = (id: string, waiting: number, kvUsage: number) =>
    candidateInput(id, { reportedWaiting: waiting, reportedKvUsageRatio: kvUsage });

  test("adds 2 × queue, 2 × free cache and 3 × prefix, all between 0 and 1", () => {
    const policy = createPolicy("llm-d", 1);
    const pool = [reported("a", 0, 0.5), reported("b", 4, 0.25), reported("c", 1, 1)];
    const request = policyRequest({ hashes: promptHashes(1, 40) });
    // Cost is 7 − score: a 2 + 1, b 0 + 1.5, c 1.5 + 0.
    expect(costs(policy, pool, request)).toEqual([4, 5.5, 5.5]);
    send(policy, "c", { hashes: branched(30, 40, 2) });
    expect(costs(policy, pool, request)).toEqual([4, 5.5, 3.25]);
    expect(first(policy, pool, request)).toBe("c");
  });

  test("queues that are equal all score full, and equal scores are drawn", () => {
    const policy = createPolicy("llm-d", 1);
    const pool = [reported("a", 3, 0), reported("b", 3, 0)];
    expect(costs(policy, pool, policyRequest())).toEqual([3, 3]);
    const chosen = manyTurns.map((request) => first(policy, pool, request));
    expect(Math.abs(chosen.filter((id) => id === "a").length - 2_000)).toBeLessThan(200);
  });

  test("sees what engines reported and not what was sent since", () => {
    const policy = createPolicy("llm-d", 1);
    const busy = candidateInput("a", { load: workerLoad({ openRequests: 90 }) });
    expect(costs(policy, [busy, candidateInput("b")], policyRequest())).toEqual([3, 3]);
  });

  test("compares the first 4,096 tokens and remembers as much as an engine holds", () => {
    const policy = createPolicy("llm-d", 1);
    const pool = [candidateInput("a", { capacityTokens: 300 * 16 })];
    const cost = (hashes: Uint32Array) => costs(policy, pool, policyRequest({ hashes }))[0];
    expect(cost(branched(256, 400, 2))).toBe(3);
    send(policy, "a", { hashes: branched(256, 400, 3) });
    expect(cost(branched(256, 400, 2))).toBe(0);
    send(policy, "a", { hashes: promptHashes(7, 100) });
    // 300 blocks are kept: the new 100 and the first 200 of the older prompt.
    expect(cost(branched(256, 400, 2))).toBeCloseTo(3 * (1 - 200 / 256));
  });
});

describe("aibrix-prefix", () => {
  const request = policyRequest({ hashes: branched(90, 100, 9) });
  const withMatches = () => {
    const policy = createPolicy("aibrix-prefix", 1);
    send(policy, "b", { hashes: branched(50, 100, 2) });
    send(policy, "c", { hashes: branched(80, 100, 3) });
    return policy;
  };

  test("takes the longest match that is not much busier than the mean", () => {
    expect(first(withMatches(), open(0, 1, 2, 3), request)).toBe("c");
    // Mean 3, deviation 3: c with 8 is above, b at 4 is not.
    expect(first(withMatches(), open(0, 4, 8, 0), request)).toBe("b");
  });

  test("takes the fewest requests when load is uneven or nothing matches", () => {
    expect(first(withMatches(), open(0, 5, 9, 5), request)).toBe("a");
    expect(first(withMatches(), open(1, 5, 9, 5), request)).toBe("b");
    const other = policyRequest({ hashes: promptHashes(8, 100) });
    expect(first(withMatches(), open(3, 4, 2, 5), other)).toBe("c");
  });

  test("matches of the same whole percent go to the fewer requests", () => {
    const policy = createPolicy("aibrix-prefix", 1);
    send(policy, "a", { hashes: branched(500, 1_000, 2) });
    send(policy, "b", { hashes: branched(509, 1_000, 3) });
    const long = policyRequest({ hashes: branched(900, 1_000, 4) });
    expect(first(policy, open(1, 2, 2), long)).toBe("a");
  });
});

describe("smg", () => {
  const request = policyRequest({ hashes: branched(90, 100, 9) });

  test("takes the longest match above 0.3 of the prompt, of equals the least loaded", () => {
    const policy = createPolicy("smg", 1);
    send(policy, "a", { hashes: branched(31, 100, 2) });
    send(policy, "b", { hashes: branched(31, 100, 3) });
    expect(first(policy, open(5, 2, 0), request)).toBe("b");
    send(policy, "a", { hashes: branched(32, 100, 4) });
    expect(first(policy, open(64, 2, 0), request)).toBe("a");
  });

  test("takes the smallest tree at 0.3 and below", () => {
    const policy = createPolicy("smg", 1);
    send(policy, "a", { hashes: branched(30, 100, 2) });
    send(policy, "b", { hashes: promptHashes(5, 60) });
    expect(costs(policy, open(0, 0, 9), request)).toEqual([100, 60, 0]);
    expect(first(policy, open(0, 0, 9), request)).toBe("c");
  });

  test("takes the fewest requests when both thresholds say that load is uneven", () => {
    const policy = createPolicy("smg", 1);
    send(policy, "a", { hashes: branched(90, 100, 2) });
    expect(first(policy, open(65, 1, 0), request)).toBe("c");
    // 65 more, but not 1.5 times as many.
    expect(first(policy, open(265, 201, 200), request)).toBe("a");
  });
});

describe("every policy", () => {
  const history = fc.array(
    fc.record({
      shared: fc.nat(20),
      tail: fc.integer({ min: 1, max: 4 }),
      dry: fc.boolean(),
      loads: fc.array(fc.nat(12), { minLength: 3, maxLength: 3 }),
    }),
    { maxLength: 30 },
  );

  test.each(policyNames)(
    "%s: the same calls give the same choices, and asking changes none",
    (name) => {
      fc.assert(
        fc.property(history, fc.nat(), (steps, seed) => {
          const run = (asksTwice: boolean) => {
            const policy = createPolicy(name, seed);
            return steps.map(({ shared, tail, loads }, turn) => {
              const request = policyRequest({
                turn,
                hashes: branched(shared, 20, tail),
                now: at(turn),
              });
              if (asksTwice) rank(open(...loads.toReversed()), request, policy);
              const id = first(policy, open(...loads), request) as string;
              send(policy, id, request);
              return id;
            });
          };
          expect(run(true)).toEqual(run(false));
        }),
      );
    },
  );

  test.each(policyNames)("%s places prompts that were not read", (name) => {
    const request = policyRequest({ hashes: new Uint32Array(), promptTokens: 0 });
    expect(rank(open(1, 2, 3), request, createPolicy(name, 1)).candidates).toHaveLength(3);
  });
});
