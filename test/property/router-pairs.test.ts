import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { RouterCore } from "../../services/router/core/router-core.ts";
import type { Decision } from "../../services/router/core/decisions/decision.ts";
import type { Member } from "../../services/router/core/membership/member.ts";
import type { CandidateInput } from "../../services/router/core/placement/candidate.ts";
import { estimate, preferences, tailOf } from "../../services/router/core/placement/estimate.ts";
import { pairDefaults } from "../../services/router/core/placement/pairs/pair-placer.ts";
import { reusableTokens } from "../../services/router/core/placement/row-ranking.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import {
  at,
  memberFacts,
  placeInput,
  promptHashes,
  routerCore,
  stepModel,
} from "../support/router-builders.ts";

const block = 16;
const now = at(500);
const bytesPerToken = 1_000;

/** A relay without which nothing pairs. */
const relay = {
  instance: "relay-0",
  epoch: 1,
  h2Address: "127.0.0.1:9100",
  httpAddress: "127.0.0.1:9101",
  engines: ["vllm"],
  streamsMax: 1_000,
};

interface Pool {
  readonly core: RouterCore;
  readonly promptTokens: number;
  readonly hashes: Uint32Array;
}

/** A pool in some state: roles, speeds, hosts, caches, open requests and links drawn from a seed. */
function poolOf(seed: number, prefills: number, decodes: number, boths: number): Pool {
  const random = new SeededRandom(seed);
  const core = routerCore({
    membersMax: 64,
    fallbacksMax: 0,
    pairs: { ...pairDefaults, kvBytesPerTokenDefault: bytesPerToken },
  });
  core.relays.attach(relay, 1);
  const roles = [
    ...Array.from({ length: prefills }, () => "prefill" as const),
    ...Array.from({ length: decodes }, () => "decode" as const),
    ...Array.from({ length: boths }, () => "both" as const),
  ];
  const promptTokens = 200 + Math.floor(random.next() * 12_000);
  const blocks = Math.floor(promptTokens / block);
  const hashes = promptHashes(seed, blocks);
  roles.forEach((role, i) => {
    const speed = 0.5 + 2 * random.next();
    const steps = Object.fromEntries(
      Object.entries(stepModel).map(([name, ms]) => [name, ms * speed]),
    ) as unknown as typeof stepModel;
    const host = Math.floor(random.next() * 3);
    const facts = memberFacts(i, {
      role,
      endpoint: `127.0.${String(host)}.1:${String(8_100 + i)}`,
      stepModel: steps,
      kvTransfer: "NixlConnector",
    });
    core.admit(facts, 10 + i, at(0));
    const held = Math.floor(random.next() * random.next() * blocks);
    const slot = core.members.get(facts.workerId as Member["key"])?.slot ?? 0;
    if (held > 0) core.index.store(slot, hashes.subarray(0, 2 * held));
  });
  for (let n = 0; n < 30; n++) {
    const request = placeInput({
      requestId: `load-${String(n)}`,
      promptTokens: 100 + Math.floor(random.next() * 6_000),
      hashes: promptHashes(10_000 + n, 4),
      isPairable: random.next() < 0.5,
    });
    core.place(request, at(10 * n));
  }
  for (let n = 0; n < 20; n++) {
    const ends = {
      from: Math.floor(random.next() * roles.length),
      to: Math.floor(random.next() * roles.length),
      isSameHost: false,
    };
    core.pairs.links.observed(
      ends,
      1e6 * (1 + 20 * random.next()),
      5 + 500 * random.next(),
      at(400),
    );
  }
  return { core, promptTokens, hashes };
}

function candidateOf({ core, promptTokens, hashes }: Pool, member: Member): CandidateInput {
  const slot = member.slot ?? 0;
  let depth = 0;
  while (
    depth < hashes.length / 2 &&
    core.index.contains(slot, hashes[2 * depth] ?? 0, hashes[2 * depth + 1] ?? 0)
  ) {
    depth++;
  }
  return {
    workerId: member.key,
    endpoint: member.endpoint,
    matchedBlocks: depth,
    matchedTokens: Math.min(depth * block, reusableTokens(promptTokens, block)),
    load: core.book.load(member.key, now),
    foreignRequests: 0,
    steps: core.modelOf(member.key)?.steps ?? stepModel,
    heldTokens: (core.index.blockCounts[slot] ?? 0) * block,
    capacityTokens: member.facts?.capacityTokens ?? 0,
    stepTokensMax: member.facts?.stepTokensMax ?? 0,
    suspect: false,
    reportedRunning: 0,
    reportedWaiting: 0,
    reportedKvUsageRatio: 0,
    reportedAgeMs: -1,
  };
}

interface NaivePair {
  readonly prefill: string;
  readonly decode: string;
  readonly costMs: number;
}

/** Every pair by itself, from objects; `rowOf` only names the links. */
function allPairs(pool: Pool, expectedOutputTokens: number): NaivePair[] {
  const { core, promptTokens } = pool;
  const members = [...core.members.all()];
  const weights = preferences.balanced;
  const first = members
    .filter(({ role }) => role !== "decode")
    .map((member) => {
      const candidate = candidateOf(pool, member);
      const p = estimate(candidate, { promptTokens, expectedOutputTokens: 1 }, weights);
      const firstMs = p.queueMs + p.memoryMs + p.stallMs + p.prefillMs;
      const own = firstMs + tailOf(firstMs, weights.tailMs) + p.slowdownMs + p.evictionMs;
      return { member, p, firstMs, own };
    })
    .sort((a, b) => a.own - b.own || (a.member.key < b.member.key ? -1 : 1));
  const arrivesInMs = first[0]?.firstMs ?? 0;
  const pairs: NaivePair[] = [];
  for (const { member: from, p, firstMs } of first) {
    for (const to of members.filter(({ role }) => role !== "prefill")) {
      if (to.endpoint === from.endpoint) continue;
      const there = candidateOf(pool, to);
      const moved = promptTokens - there.matchedTokens;
      const { load } = there;
      const d = estimate(
        {
          ...there,
          matchedTokens: promptTokens - 1,
          heldTokens: there.heldTokens + moved,
          load: {
            ...load,
            prefillBacklogMs: Math.max(0, load.prefillBacklogMs - arrivesInMs),
            queuedPrefillTokens: load.queuedPrefillTokens + moved + awaited(core, to),
          },
        },
        { promptTokens, expectedOutputTokens },
        weights,
      );
      const bytes = Math.ceil(moved / block) * block * bytesPerToken;
      const ends = {
        from: rowOf(core, from),
        to: rowOf(core, to),
        isSameHost: hostOf(from) === hostOf(to),
      };
      const transfer = { waitMs: 0, moveMs: 0 };
      core.pairs.links.forecast(ends, bytes, p.prefillMs, transfer);
      const transferMs = transfer.waitMs + transfer.moveMs;
      const allMs = firstMs + transferMs + d.queueMs + d.memoryMs + d.stallMs + d.prefillMs;
      const others = p.slowdownMs + p.evictionMs + d.slowdownMs + d.evictionMs;
      const costMs = allMs + tailOf(allMs, weights.tailMs) + d.decodeMs + others;
      pairs.push({ prefill: from.key, decode: to.key, costMs });
    }
  }
  return pairs.sort((a, b) => a.costMs - b.costMs);
}

const hostOf = ({ endpoint }: Member): string => endpoint.slice(0, endpoint.lastIndexOf(":"));
/** Members were admitted in the order of their numbers, one row each. */
const rowOf = (_core: RouterCore, member: Member): number => Number(member.key.slice(1));
const awaited = (core: RouterCore, member: Member): number =>
  core.pairs.legs.awaitedTokens(rowOf(core, member));

function decide({ core, promptTokens, hashes }: Pool): Decision {
  const request = { promptTokens, hashes, dryRun: true, isPairable: true };
  return core.place(placeInput({ requestId: "asked", ...request }), now);
}

const seeds = fc.integer({ min: 1, max: 1_000_000 });
const few = fc.integer({ min: 0, max: 4 });

describe("the search for pairs beside a look at every pair", () => {
  test("finds the cheapest where each side has at most eight workers", () => {
    fc.assert(
      fc.property(seeds, few, few, few, (seed, prefills, decodes, boths) => {
        const pool = poolOf(seed, prefills, decodes, boths);
        const decision = decide(pool);
        const all = allPairs(pool, decision.expectedOutputTokens);
        const found = decision.pair?.candidates ?? [];
        expect(found).toHaveLength(Math.min(3, all.length));
        found.forEach((pair, i) => {
          expect(pair.costMs).toBeCloseTo(all[i]?.costMs ?? Number.NaN, 6);
          const sum = pair.terms.reduce((total, { ms }) => total + ms, 0);
          expect(pair.costMs).toBeCloseTo(sum, 6);
        });
      }),
      { numRuns: 150 },
    );
  });

  test("is at most a twentieth dearer in larger pools, and hardly ever dearer at all", () => {
    let exact = 0;
    let runs = 0;
    fc.assert(
      fc.property(seeds, (seed) => {
        const pool = poolOf(seed, 14, 14, 12);
        const decision = decide(pool);
        const [best] = allPairs(pool, decision.expectedOutputTokens);
        const [found] = decision.pair?.candidates ?? [];
        if (best === undefined || found === undefined) throw new Error("no pair");
        expect(found.costMs).toBeGreaterThan(best.costMs - 1e-6);
        expect(found.costMs).toBeLessThan(1.05 * best.costMs);
        runs++;
        if (found.costMs < best.costMs + 1e-6) exact++;
      }),
      { numRuns: 60 },
    );
    expect(exact / runs).toBeGreaterThan(0.85);
  });
});

describe("the choice between a pair and one worker", () => {
  test("is the cheaper of both, per request, and tells by how much", () => {
    const forms = { pair: 0, whole: 0 };
    fc.assert(
      fc.property(
        seeds,
        few,
        few,
        fc.integer({ min: 1, max: 4 }),
        (seed, prefills, decodes, boths) => {
          const pool = poolOf(seed, prefills, decodes, boths);
          const decision = decide(pool);
          const [pair] = allPairs(pool, decision.expectedOutputTokens);
          const [whole] = decision.candidates;
          if (pair === undefined || whole === undefined) return;
          const savedMs = whole.costMs - pair.costMs;
          if (Math.abs(savedMs) < 1e-5) return;
          expect(decision.pair).toMatchObject({
            form: savedMs > 0 ? "pair" : "whole",
            why: "cheaper",
          });
          expect(decision.pair?.marginMs).toBeCloseTo(Math.abs(savedMs), 5);
          forms[savedMs > 0 ? "pair" : "whole"]++;
        },
      ),
      { numRuns: 150 },
    );
    // Both forms occur, so that neither is right by itself.
    expect(Math.min(forms.pair, forms.whole)).toBeGreaterThan(10);
  });
});
