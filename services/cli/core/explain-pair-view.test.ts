import { expect, test } from "vitest";
import { candidate, decision } from "../../../test/support/decisions.ts";
import type { PairChoice } from "../../shared/gen/kvmesh/router/v1/router.ts";
import { explainView } from "./explain-view.ts";

const terms = [
  { name: "queue", ms: 10 },
  { name: "transfer_wait", ms: 2 },
  { name: "transfer", ms: 30 },
  { name: "decode", ms: 500 },
];
const pair: PairChoice = {
  form: "pair",
  why: "cheaper",
  marginMs: 58,
  relays: ["relay-1", "relay-0"],
  itlTargetMs: 0,
  pairItlMs: 0,
  wholeItlMs: 0,
  wholeItlCostMs: 0,
  candidates: [
    {
      prefillWorkerId: "p0",
      decodeWorkerId: "w1",
      costMs: 542,
      terms,
      predictedTtftMs: 42,
      prefillMatchedTokens: 480,
      decodeMatchedTokens: 96,
      transferBytes: 1_048_576n,
    },
  ],
};

function linesOf(choice: PairChoice): string[] {
  const shown = decision({
    pair: choice,
    candidates: [candidate({ workerId: "w1", costMs: 600 })],
  });
  return explainView({ decision: shown, whatIfWorkerId: "", whatIfCandidates: [] });
}

test("a pair is shown with its terms, what it moves, and by how much it beat running whole", () => {
  const lines = linesOf(pair);
  const text = lines.join("\n");
  expect(text).toMatch(
    /form +pair p0 → w1 through relay-1, relay-0: it costs less; 542 ms is 58\.0 ms less than whole, 600 ms/,
  );
  expect(text).toMatch(/pair +cost +queue +transfer wait +transfer +decode +predicted TTFT/);
  expect(text).toMatch(/→ +p0 → w1 +542 ms +10\.0 ms +2\.00 ms +30\.0 ms +500 ms +42\.0 ms/);
  expect(text).toMatch(/→ +p0 → w1 +480 tokens +96 tokens +1,048,576 bytes/);
  // The decode worker is also a candidate for running whole, which was not done.
  expect(lines.find((line) => /^ *w1 +600 ms/.test(line))).toBeDefined();
  expect(text).toMatch(/TTFT +42\.0 ms/);
});

test("a request that runs whole says why, and what the best pair would have cost", () => {
  const text = linesOf({ ...pair, form: "whole", relays: [], marginMs: 40 }).join("\n");
  expect(text).toMatch(
    /form +whole on w1: it costs less; 600 ms is 40\.0 ms less than the best pair, 542 ms/,
  );
  expect(text).not.toMatch(/→ +p0/);
  const none = { ...pair, form: "whole", why: "no_relay", relays: [], candidates: [], marginMs: 0 };
  expect(linesOf(none).join("\n")).toMatch(
    /form +whole on w1: no relay .* is attached and has room$/m,
  );
});

test("a time between tokens that was asked for stands beside what either form is expected to have", () => {
  expect(linesOf(pair).join("\n")).not.toContain("between tokens");
  const asked = {
    ...pair,
    itlTargetMs: 15,
    pairItlMs: 12.4,
    wholeItlMs: 16.9,
    wholeItlCostMs: 2_600,
  };
  expect(linesOf(asked).join("\n")).toMatch(
    /between tokens +15\.0 ms asked; pair 12\.4 ms, whole 16\.9 ms \(2600 ms for missing it\)/,
  );
  const alone = { ...asked, pairItlMs: 0, candidates: [] };
  expect(linesOf(alone).join("\n")).toMatch(/15\.0 ms asked; whole 16\.9 ms/);
});

test("a guarded stream names its relays, and one that is not says why", () => {
  const guarded = (guard: { off: string; relays: string[] }): string =>
    explainView({
      decision: decision({ guard }),
      whatIfWorkerId: "",
      whatIfCandidates: [],
    }).join("\n");
  expect(guarded({ off: "", relays: ["relay-0"] })).toMatch(/guard +on, by relay-0/);
  expect(guarded({ off: "tools", relays: [] })).toMatch(/guard +off: tools/);
});

test("a pair that a setting chose against its cost says so", () => {
  const text = linesOf({ ...pair, why: "always", marginMs: -12 }).join("\n");
  expect(text).toMatch(/always pair .*; 542 ms is 12\.0 ms more than whole/);
});
