import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { candidateInput } from "../../../../test/support/router-builders.ts";
import type { ScoredCandidate } from "../placement/candidate.ts";
import { DecisionLog } from "./decision-log.ts";
import { DecisionRecord } from "./decision-record.ts";
import { reweigh } from "./what-if.ts";

/** A decision under these ids. */
function decision(id: string, requestId: string): DecisionRecord {
  return new DecisionRecord(
    {
      id,
      requestId,
      decidedUnixUs: 1,
      pool: "p",
      model: "m",
      answer: "",
      policy: "kv",
      promptTokens: 1,
      promptBlocks: 0,
      loadOnlyReason: "",
    },
    { kind: "refused", code: "overloaded", message: "full" },
  );
}

describe("DecisionLog", () => {
  test("is empty before the first decision", () => {
    const log = new DecisionLog({ decisionsMax: 2 });
    expect([log.size, log.last, log.byId("x"), log.byRequest("x")]).toEqual([
      0,
      undefined,
      undefined,
      undefined,
    ]);
  });

  test("keeps the newest ones, under their id and the request's newest, within its limit", () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(5), { maxLength: 40 }),
        fc.integer({ min: 1, max: 6 }),
        (requests, max) => {
          const log = new DecisionLog({ decisionsMax: max });
          const all = requests.map((request, i) => decision(`d${i}`, `r${request}`));
          for (const [i, added] of all.entries()) {
            log.add(added);
            const kept = all.slice(Math.max(0, i + 1 - max), i + 1);
            expect([log.size, log.last]).toEqual([kept.length, added]);
            for (const d of all.slice(0, i + 1)) {
              expect(log.byId(d.id)).toBe(kept.includes(d) ? d : undefined);
              expect(log.byRequest(d.requestId)).toBe(
                kept.findLast((k) => k.requestId === d.requestId),
              );
            }
          }
        },
      ),
    );
  });
});

describe("reweigh", () => {
  const scored = (id: string, queue: number, prefill: number): ScoredCandidate => ({
    ...candidateInput(id),
    terms: [
      { name: "queue", ms: queue },
      { name: "prefill", ms: prefill },
    ],
    costMs: queue + prefill,
    predictedTtftMs: queue + prefill,
    prefillMs: prefill,
    decodeMs: 0,
  });
  const candidates = [scored("a", 10, 5), scored("b", 2, 15), scored("c", 0, 40)];
  const weighed = (weights: Record<string, number>) =>
    reweigh(candidates, new Map(Object.entries(weights))).map((c) => [c.workerId, c.costMs]);

  test("multiplies each named term and ranks anew", () => {
    expect(weighed({})).toEqual([
      ["a", 15],
      ["b", 17],
      ["c", 40],
    ]);
    expect(weighed({ queue: 2 })).toEqual([
      ["b", 19],
      ["a", 25],
      ["c", 40],
    ]);
    expect(weighed({ prefill: 0 })).toEqual([
      ["c", 0],
      ["b", 2],
      ["a", 10],
    ]);
    expect(candidates[0]?.costMs).toBe(15);
  });

  test("ties keep the decision's own order", () => {
    expect(weighed({ queue: 0, prefill: 0 }).map(([id]) => id)).toEqual(["a", "b", "c"]);
  });
});
