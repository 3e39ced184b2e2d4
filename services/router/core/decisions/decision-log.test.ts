import { describe, expect, test } from "vitest";
import { workerId } from "../../../shared/core/ids.ts";
import type { ScoredCandidate } from "../placement/candidate.ts";
import { numberCount, plainCandidate, RowCandidate } from "../placement/row-candidate.ts";
import { DecisionLog } from "./decision-log.ts";
import { DecisionRecord } from "./decision-record.ts";

const candidate = (n: number): ScoredCandidate => ({
  workerId: workerId(`w${n}`),
  endpoint: `127.0.0.1:${n}`,
  matchedBlocks: 0,
  matchedTokens: 0,
  load: {
    openRequests: 0,
    prefillBacklogMs: 0,
    decoding: 0,
    decodingContextTokens: 0,
    decodingTokensLeft: 0,
  } as ScoredCandidate["load"],
  foreignRequests: 0,
  steps: { c0: 1, c1: 1, c2: 1, d0: 1, d1: 1, d2: 1 },
  heldTokens: 0,
  capacityTokens: 0,
  stepTokensMax: 0,
  suspect: false,
  reportedRunning: 0,
  reportedWaiting: 0,
  reportedKvUsageRatio: 0,
  reportedAgeMs: 0,
  terms: [],
  costMs: n,
  predictedTtftMs: 0,
  prefillMs: 0,
  decodeMs: 0,
});

function decision(n: number, candidates: readonly ScoredCandidate[]): DecisionRecord {
  const made = new DecisionRecord(
    {
      id: `r.1.${n}`,
      requestId: `request-${n}`,
      decidedUnixUs: n,
      pool: "p",
      model: "m",
      answer: "stream",
      policy: "kv",
      promptTokens: 1,
      promptBlocks: 0,
      loadOnlyReason: "",
    },
    { kind: "placed" },
  );
  made.workerId = candidates[0]?.workerId;
  made.candidates = candidates;
  return made;
}

const list = (length: number): ScoredCandidate[] => Array.from({ length }, (_, n) => candidate(n));

describe("DecisionLog", () => {
  test("keeps the newest decisions, by id and by request", () => {
    const log = new DecisionLog({ decisionsMax: 2 });
    for (let n = 1; n <= 3; n++) log.add(decision(n, list(3)));
    expect(log.size).toBe(2);
    expect(log.byId("r.1.1")).toBeUndefined();
    expect(log.byRequest("request-1")).toBeUndefined();
    expect(log.byRequest("request-2")?.id).toBe("r.1.2");
    expect(log.last?.id).toBe("r.1.3");
  });

  test("keeps every worker of all decisions of a small fleet", () => {
    const log = new DecisionLog({ decisionsMax: 10_000 });
    for (let n = 1; n <= 10_000; n++) log.add(decision(n, list(8)));
    expect(log.byId("r.1.1")).toMatchObject({ leftOut: 0 });
    expect(log.byId("r.1.1")?.candidates).toHaveLength(8);
  });

  test("shortens older decisions of a large fleet to the cheapest workers and says how many it left out", () => {
    const log = new DecisionLog({ decisionsMax: 10_000 });
    const thousand = list(1_000);
    for (let n = 1; n <= 3_000; n++) log.add(decision(n, thousand));
    expect(log.size).toBe(3_000);
    const [oldest, newest] = [log.byId("r.1.1"), log.byId("r.1.3000")];
    expect(oldest?.candidates.map((one) => one.workerId)).toEqual(
      thousand.slice(0, 8).map((one) => one.workerId),
    );
    expect(oldest?.leftOut).toBe(992);
    expect(newest?.candidates).toHaveLength(1_000);
    let whole = 0;
    for (let n = 1; n <= 3_000; n++) whole += Number(log.byId(`r.1.${n}`)?.leftOut === 0);
    expect(whole).toBe(65);
  });

  test("keeps the newest decision whole, however many workers it lists", () => {
    const log = new DecisionLog({ decisionsMax: 10 });
    log.add(decision(1, list(70_000)));
    expect(log.last?.candidates).toHaveLength(70_000);
    log.add(decision(2, list(20)));
    expect(log.byId("r.1.1")?.candidates).toHaveLength(8);
    expect(log.byId("r.1.2")?.leftOut).toBe(0);
  });

  test("goes on shortening after decisions were dropped whole", () => {
    const log = new DecisionLog({ decisionsMax: 50 });
    const [long, short] = [list(2_000), list(20)];
    for (let n = 1; n <= 5_000; n++) log.add(decision(n, n % 2 === 0 ? long : short));
    let listed = 0;
    for (let n = 4_951; n <= 5_000; n++) listed += log.byId(`r.1.${n}`)?.candidates.length ?? 0;
    expect(listed).toBeGreaterThan(60_000 / 2);
    expect(listed).toBeLessThanOrEqual(65_536);
  });

  test("keeps of candidates of our own cost what they were, when their numbers have moved to rows", () => {
    const decisionsMax = 5;
    const log = new DecisionLog({ decisionsMax });
    const random = (n: number, i: number) => ((n * 7_919 + i * 104_729) % 100_003) / 7;
    const rowCandidate = (n: number): RowCandidate => {
      const numbers = Array.from({ length: numberCount }, (_, i) => random(n, i));
      const { workerId: id, endpoint, steps } = candidate(n);
      return new RowCandidate({ workerId: id, endpoint, steps }, numbers);
    };
    const made: { record: DecisionRecord; candidates: ScoredCandidate[] }[] = [];
    for (let n = 1; n <= 23; n++) {
      const candidates = Array.from({ length: n % 12 }, (_, i) => rowCandidate(100 * n + i));
      const record = decision(n, candidates);
      made.push({ record, candidates: candidates.map(plainCandidate) });
      log.add(record);
      for (const { record: kept, candidates: were } of made.slice(-decisionsMax)) {
        expect(log.byId(kept.id)?.candidates.map(plainCandidate)).toEqual(were);
        expect(kept.chosen?.workerId).toBe(were[0]?.workerId);
        expect([kept.listed, kept.leftOut]).toEqual([were.length, 0]);
      }
    }
  });

  test("shortens a decision whose first candidates are rows to those", () => {
    const log = new DecisionLog({ decisionsMax: 10 });
    const { workerId: id, endpoint, steps } = candidate(1);
    const numbers = Array.from({ length: numberCount }, (_, i) => i + 0.5);
    const one = new RowCandidate({ workerId: id, endpoint, steps }, numbers);
    log.add(
      decision(
        1,
        Array.from({ length: 40_000 }, () => one),
      ),
    );
    log.add(
      decision(
        2,
        Array.from({ length: 40_000 }, () => one),
      ),
    );
    log.add(decision(3, []));
    expect(log.byId("r.1.1")?.candidates).toHaveLength(8);
    expect(log.byId("r.1.1")?.leftOut).toBe(39_992);
    expect(log.byId("r.1.2")?.candidates).toHaveLength(40_000);
  });
});
