import { describe, expect, test } from "vitest";
import { workerId } from "../../../shared/core/ids.ts";
import type { ScoredCandidate } from "../placement/candidate.ts";
import { DecisionLog } from "./decision-log.ts";
import type { Decision } from "./decision.ts";

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

function decision(n: number, candidates: readonly ScoredCandidate[]): Decision {
  return {
    id: `r.1.${n}`,
    requestId: `request-${n}`,
    traceId: "",
    traceparent: "",
    decidedUnixUs: n,
    decideUs: 0,
    pool: "p",
    model: "m",
    answer: "stream",
    policy: "kv",
    outcome: { kind: "placed" },
    promptTokens: 1,
    promptBlocks: 0,
    expectedOutputTokens: 1,
    workerId: candidates[0]?.workerId,
    endpoints: [],
    candidates,
    filtered: [],
    leftOut: 0,
    marginMs: 0,
    tieBreak: "",
    indexAgeMs: 0,
    loadOnlyReason: "",
    admission: undefined,
    observed: undefined,
  };
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
});
