/**
 * The placement table and its ranking beside the plain way: one object for each worker, made from members, book, index
 * and models at the moment of the decision, all of them sorted.
 */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { FilterReason } from "../../services/router/core/decisions/decision.ts";
import type { Member } from "../../services/router/core/membership/member.ts";
import type {
  CandidateInput,
  ScoredCandidate,
} from "../../services/router/core/placement/candidate.ts";
import { rank } from "../../services/router/core/placement/place.ts";
import { createPolicy } from "../../services/router/core/placement/policies.ts";
import type { PolicyName } from "../../services/router/core/placement/policy.ts";
import { plainCandidate } from "../../services/router/core/placement/row-candidate.ts";
import type { PlaceInput } from "../../services/router/core/placement/place-input.ts";
import type { RouterCore } from "../../services/router/core/router-core.ts";
import type { MonoMs, WorkerId } from "../../services/shared/core/ids.ts";
import type { StepModel } from "../../services/shared/core/step-model.ts";
import { defaultStepModel } from "../../services/router/core/load/worker-model.ts";
import {
  at,
  memberFacts,
  memberNotice,
  placeInput,
  policyRequest,
  promptHashes,
  routerCore,
  servedRecord,
  stepModel,
} from "../support/router-builders.ts";

const block = 16;
const outputTokensDefault = 100;
const keptOfLargePool = 16;
const affinityMs = 5;

/** By session: the worker that got its last request. */
type Homes = ReadonlyMap<string, WorkerId>;

interface Expected {
  readonly kept: readonly ScoredCandidate[];
  readonly leftOut: number;
  readonly filtered: readonly { readonly workerId: string; readonly reason: FilterReason }[];
  readonly marginMs: number;
  readonly tieBreak: string;
  readonly expectedOutputTokens: number;
}

function reasonOf(member: Member, input: PlaceInput): FilterReason | undefined {
  const { facts, endpoint } = member;
  if (!member.ready) return "not_ready";
  if (facts !== undefined && facts.role !== "both") return "wrong_role";
  const { subset } = input;
  const [host = ""] = endpoint.split(":");
  if (subset !== undefined && !subset.has(endpoint) && !subset.has(host)) return "outside_subset";
  const isTooLong = facts !== undefined && input.promptTokens >= facts.contextTokensMax;
  if (isTooLong && input.loadOnlyReason === "") return "context_too_long";
  return member.unheldSince === undefined ? undefined : "away";
}

function heldInFront(core: RouterCore, slot: number, hashes: Uint32Array): number {
  let depth = 0;
  while (depth < hashes.length / 2) {
    if (!core.index.contains(slot, hashes[2 * depth] ?? 0, hashes[2 * depth + 1] ?? 0)) break;
    depth++;
  }
  return depth;
}

function candidateOf(
  core: RouterCore,
  member: Member,
  input: PlaceInput,
  now: MonoMs,
): CandidateInput {
  const { facts, slot } = member;
  const load = core.book.load(member.key, now);
  const report = core.book.lastReport(member.key);
  const reported = (report?.running ?? 0) + (report?.waiting ?? 0);
  const matchedBlocks = slot === undefined ? 0 : heldInFront(core, slot, input.hashes);
  const reusable = Math.floor(Math.max(0, input.promptTokens - 1) / block) * block;
  return {
    workerId: member.key,
    endpoint: member.endpoint,
    matchedBlocks,
    matchedTokens: Math.min(matchedBlocks * block, reusable),
    load,
    foreignRequests: Math.max(0, reported - load.openRequests - 2),
    steps: core.modelOf(member.key)?.steps ?? defaultStepModel,
    heldTokens: slot === undefined ? 0 : core.index.blocksOf(slot) * block,
    capacityTokens: facts?.capacityTokens ?? 0,
    stepTokensMax: facts?.stepTokensMax ?? 0,
    suspect: member.suspect,
    reportedRunning: report?.running ?? 0,
    reportedWaiting: report?.waiting ?? 0,
    reportedKvUsageRatio: report?.kvUsageRatio ?? 0,
    reportedAgeMs: report === undefined ? -1 : now - report.at,
  };
}

function expectedOf(
  core: RouterCore,
  input: PlaceInput,
  policy: PolicyName,
  homes: Homes,
  now: MonoMs,
): Expected {
  const members = [...core.members.ofPool(input.pool)].sort((a, b) => (a.key < b.key ? -1 : 1));
  const judged = members.map((member) => ({ member, reason: reasonOf(member, input) }));
  const takes = judged.filter(({ reason }) => reason === undefined);
  const eligible = takes.length > 0 ? takes : judged.filter(({ reason }) => reason === "away");
  const out = judged.filter((one) => !eligible.includes(one));
  const inReasonOrder = [
    ...out.filter(({ reason }) => reason !== "away"),
    ...out.filter(({ reason }) => reason === "away"),
  ];
  const means = eligible.flatMap(({ member }) => core.modelOf(member.key)?.outputTokensMean ?? []);
  const mean = means.reduce((sum, one) => sum + one, 0) / means.length;
  const expectedOutputTokens = Math.max(
    1,
    means.length === 0 ? outputTokensDefault : Math.round(mean),
  );
  const { promptTokens, hashes, pool, session = "" } = input;
  const plain = { promptTokens, expectedOutputTokens, hashes, turn: 0, now };
  const home = homes.get(session);
  const isHome = home !== undefined && core.members.get(home)?.pool === pool;
  const request = policyRequest(isHome ? { ...plain, home, affinityMs } : plain);
  const candidates = eligible.map(({ member }) => candidateOf(core, member, input, now));
  const ranking = rank(candidates, request, createPolicy(policy, 0));
  const few = (count: number) => (count <= 64 ? count : keptOfLargePool);
  const kept = ranking.candidates.slice(0, few(eligible.length));
  const filtered = inReasonOrder.slice(0, few(out.length)).map(({ member, reason }) => ({
    workerId: member.key,
    reason: reason ?? "away",
  }));
  return {
    kept,
    leftOut: members.length - kept.length - filtered.length,
    filtered,
    marginMs: ranking.marginMs,
    tieBreak: ranking.tieBreak,
    expectedOutputTokens,
  };
}

function checkAgainstPlain(mesh: Mesh, input: PlaceInput, policy: PolicyName, now: MonoMs) {
  const { core } = mesh;
  core.setPolicy(input.pool, policy);
  // Before anything that the plain way asks of the book, which brings what the book keeps up to date.
  const decision = core.place({ ...input, dryRun: true }, now);
  const expected = expectedOf(core, input, policy, mesh.homes, now);
  expect(decision.candidates.map(plainCandidate)).toEqual(expected.kept);
  expect(decision.workerId).toBe(expected.kept[0]?.workerId);
  expect(decision.leftOut).toBe(expected.leftOut);
  expect(decision.filtered.map(({ workerId, reason }) => ({ workerId, reason }))).toEqual(
    expected.filtered,
  );
  if (expected.kept.length === 0) return;
  expect(decision.expectedOutputTokens).toBe(expected.expectedOutputTokens);
  expect(decision.marginMs).toBe(expected.marginMs);
  expect(decision.tieBreak).toBe(expected.tieBreak);
}

const workers = fc.nat(9);
const event = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      kind: fc.constant("place" as const),
      prompt: fc.nat(5),
      blocks: fc.nat(120),
      tokensMore: fc.nat(15),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ kind: fc.constant("served" as const), ttftMs: fc.nat(900) }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("release" as const) }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("report" as const),
      worker: workers,
      running: fc.nat(6),
      waiting: fc.nat(3),
      work: fc.nat(3),
      finished: fc.nat(4),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("blocks" as const),
      worker: workers,
      prompt: fc.nat(5),
      from: fc.nat(60),
      count: fc.nat(60),
      removes: fc.boolean(),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constantFrom("hello", "lost", "goodbye", "restart", "told", "untold", "unready"),
      worker: workers,
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant("peer" as const),
      worker: workers,
      ageMs: fc.nat(90),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("tick" as const) }) },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant("stuck" as const), worker: fc.nat(1) }),
  },
);

/** Some announce nothing, some are so fast that nothing takes any time there, which makes many ties. */
function announcedSteps(worker: number): StepModel | undefined {
  if (worker % 4 === 3) return undefined;
  const { c0, c1, c2, d0, d1, d2 } = stepModel;
  const pace = worker % 4 === 2 ? 0 : 1 + (worker % 2);
  return {
    c0: c0 * pace,
    c1: c1 * pace,
    c2: c2 * pace,
    d0: d0 * pace,
    d1: d1 * pace,
    d2: d2 * pace,
  };
}

/** Plays one event into the core. Anything may come at any time; what the core refuses has not happened. */
class Mesh {
  readonly core: RouterCore;
  readonly homes = new Map<string, WorkerId>();
  readonly #streams = new Map<number, number>();
  readonly #lives = new Map<number, number>();
  readonly #seqs = new Map<WorkerId, number>();
  readonly #open: string[] = [];
  #streamId = 0;
  #ids = 0;

  constructor(core: RouterCore) {
    this.core = core;
  }

  hello(worker: number, now: MonoMs): void {
    const key = `w${worker}` as WorkerId;
    const facts = memberFacts(worker, {
      epoch: { workerStartMs: 1_000, engineLife: this.#lives.get(worker) ?? 1 },
      role: worker === 8 ? "prefill" : "both",
      contextTokensMax: worker === 7 ? 1_000 : 100_000,
      capacityTokens: worker === 6 ? 0 : 2_000 + 500 * worker,
      stepTokensMax: worker === 5 ? 0 : 512 * (1 + (worker % 3)),
      stepModel: announcedSteps(worker),
    });
    this.#streamId++;
    this.#streams.set(worker, this.#streamId);
    this.core.admit(facts, this.#streamId, now);
    this.core.snapshot(
      key,
      { baseSeq: 0, hashes: new Uint32Array(0), last: true, xorLo: 0, xorHi: 0, blockCount: 0 },
      now,
    );
    this.#seqs.set(key, 0);
  }

  play(e: typeof event extends fc.Arbitrary<infer T> ? T : never, now: MonoMs): void {
    const { core } = this;
    switch (e.kind) {
      case "place": {
        const input = this.ask(e);
        const decision = core.place(input, now);
        if (decision.workerId === undefined) break;
        this.#open.push(decision.id);
        if (input.session !== "") this.homes.set(input.session ?? "", decision.workerId);
        break;
      }
      case "served": {
        const id = this.#open.shift();
        if (id === undefined) break;
        const endpoint = core.decisions.byId(id)?.endpoints[0] ?? "";
        const times = { ttftMs: e.ttftMs, durationMs: e.ttftMs + 300 };
        core.served(id, { ...servedRecord(0, times), servedEndpoint: endpoint }, now);
        break;
      }
      case "release":
        core.release(this.#open.pop() ?? "", now);
        break;
      case "report": {
        const { running, waiting, finished } = e;
        const load = { running, waiting, kvUsageRatio: 0.25, workDone: e.work, at: at(now - 2) };
        const delta = {
          interTokenMs: 7 + running,
          interTokenCount: 40,
          running,
          contextTokens: 900 * running,
          computedTokens: 100,
          finished,
          generatedTokens: 30 * finished,
        };
        core.report(`w${e.worker}` as WorkerId, load, finished > 0 ? delta : undefined);
        break;
      }
      case "stuck": {
        const load = { running: 3, waiting: 1, kvUsageRatio: 0.5, workDone: 77, at: at(now - 2) };
        core.report(`w${e.worker}` as WorkerId, load, undefined);
        break;
      }
      case "blocks": {
        const key = `w${e.worker}` as WorkerId;
        const hashes = promptHashes(e.prompt, 120).slice(2 * e.from, 2 * (e.from + e.count));
        const none = new Uint32Array(0);
        const seq = (this.#seqs.get(key) ?? 0) + 1;
        this.#seqs.set(key, seq);
        const [stored, removed] = e.removes ? [none, hashes] : [hashes, none];
        core.delta(key, { seq, cleared: false, stored, removed }, now);
        break;
      }
      case "peer":
        core.peerReserved(
          {
            decisionId: `peer.1.${this.#ids++}`,
            workerId: `w${e.worker}` as WorkerId,
            promptTokens: 800,
            uncachedTokens: 300,
            expectedOutputTokens: 50,
            ageMs: e.ageMs,
          },
          now,
        );
        break;
      case "tick":
        core.tick(now);
        break;
      default:
        this.#member(e.kind, e.worker, now);
    }
  }

  ask(e: { prompt: number; blocks: number; tokensMore: number }): PlaceInput {
    const promptTokens = Math.max(1, e.blocks * block + e.tokensMore);
    const hashes = promptHashes(e.prompt, e.blocks);
    // One prompt in three belongs to no conversation.
    const session = e.prompt % 3 === 0 ? "" : `s${e.prompt}`;
    return placeInput({ requestId: `q${this.#ids++}`, promptTokens, hashes, session });
  }

  #member(kind: string, worker: number, now: MonoMs): void {
    const { core } = this;
    const key = `w${worker}` as WorkerId;
    if (kind === "restart") this.#lives.set(worker, (this.#lives.get(worker) ?? 1) + 1);
    if (kind === "hello" || kind === "restart") this.hello(worker, now);
    else if (kind === "lost") core.streamLost(this.#streams.get(worker) ?? -1, now);
    else if (kind === "goodbye") core.goodbye(key);
    else if (kind === "unready") core.setReady(key, core.members.get(key)?.ready !== true);
    else {
      const notice = memberNotice(worker, { held: kind === "told" });
      core.notice("peer", notice, now);
    }
  }
}

/** Mostly shorter than what is placed takes, now and then long enough for an engine to count as standing still. */
const pause = fc.oneof(
  { weight: 9, arbitrary: fc.double({ min: 0, max: 80, noNaN: true }) },
  { weight: 1, arbitrary: fc.double({ min: 0, max: 2_500, noNaN: true }) },
);

const question = fc.record({
  prompt: fc.nat(5),
  blocks: fc.nat(120),
  tokensMore: fc.nat(15),
  subset: fc.constantFrom(undefined, "127.0.0.1", "127.0.0.1:8102", "10.0.0.9"),
  isUnread: fc.boolean(),
  policy: fc.constantFrom<PolicyName>("kv", "kv-blind", "least-requests"),
  afterMs: fc.double({ min: 0, max: 60, noNaN: true }),
});

describe("placement from the table beside placement from objects", () => {
  test("gives the same candidates in the same order, with the same terms and times", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(event, pause), { maxLength: 60, size: "max" }),
        fc.array(question, { minLength: 1, maxLength: 3 }),
        (events, questions) => {
          const mesh = new Mesh(routerCore({ outputTokensDefault, affinityMs }));
          const { core } = mesh;
          let now = at(1_000);
          for (let worker = 0; worker < 5; worker++) mesh.hello(worker, now);
          for (const [i, [e, afterMs]] of events.entries()) {
            now = at(now + afterMs);
            mesh.play(e, now);
            if (i % 8 === 7)
              checkAgainstPlain(
                mesh,
                mesh.ask({ prompt: 1, blocks: 40, tokensMore: 3 }),
                "kv",
                now,
              );
          }
          for (const { subset, isUnread, policy, afterMs, ...ask } of questions) {
            now = at(now + afterMs);
            // Whoever asks about a worker, of the mesh or gone, changes nothing.
            for (let w = 0; w < 10; w++) core.book.load(`w${w}` as WorkerId, now);
            now = at(now + afterMs);
            const input = {
              ...mesh.ask(ask),
              subset: subset === undefined ? undefined : new Set([subset]),
              loadOnlyReason: isUnread ? "no_tokenizer" : "",
            };
            checkAgainstPlain(mesh, input, policy, now);
          }
        },
      ),
      { numRuns: 200 },
    );
  });

  test("tells the best sixteen of a large pool, and how many it leaves out", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 63, max: 90 }),
        fc.array(fc.record({ worker: fc.nat(89), requests: fc.nat(3), blocks: fc.nat(80) }), {
          maxLength: 60,
        }),
        fc.nat(40),
        (count, busy, unready) => {
          const core = routerCore({ membersMax: 128, outputTokensDefault, affinityMs });
          const mesh = new Mesh(core);
          const now = at(1_000);
          for (let worker = 0; worker < count; worker++) mesh.hello(worker, now);
          for (const { worker, requests, blocks } of busy) {
            mesh.play(
              { kind: "blocks", worker, prompt: 2, from: 0, count: blocks, removes: false },
              now,
            );
            for (let i = 0; i < requests; i++) mesh.play({ kind: "peer", worker, ageMs: i }, now);
          }
          for (let worker = 0; worker < unready; worker++)
            mesh.play({ kind: "unready", worker }, now);
          const input = mesh.ask({ prompt: 2, blocks: 80, tokensMore: 5 });
          for (const policy of ["kv", "kv-blind", "least-requests"] as const) {
            checkAgainstPlain(mesh, input, policy, at(now + 20));
          }
          const decision = core.place({ ...input, dryRun: true }, now);
          const listed = decision.candidates.length + decision.filtered.length;
          expect(listed + decision.leftOut).toBe(count);
        },
      ),
      { numRuns: 30 },
    );
  });
});
