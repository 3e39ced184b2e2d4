import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { hashRoot } from "../../../shared/core/block-hash.ts";
import { monoMs } from "../../../shared/core/ids.ts";
import { stepModels } from "../../../shared/core/step-model.ts";
import { BlockContents } from "../kv-transfer/block-contents.ts";
import { EngineCore } from "./engine.ts";
import type { BlockEvent, EngineSequence, KvLoad, StepEnd } from "./engine-types.ts";
import { MeshBlockHasher } from "./mesh-block-hasher.ts";
import { TokenOracle } from "./token-oracle.ts";

const oracle = new TokenOracle({
  words: Uint32Array.from({ length: 500 }, (_, i) => i + 10),
  endToken: 1,
  answerTokensMean: 30,
});
const root = hashRoot(new Uint8Array(32).fill(5), { model: "m" });
const blockSizeTokens = 4;

/** An engine with a KV connector, the loads that it began, and the tokens that it drew. */
class World {
  readonly contents: BlockContents;
  readonly core: EngineCore;
  readonly loads: KvLoad[] = [];
  readonly tokens = new Map<string, number[]>();
  readonly reasons = new Map<string, string>();
  readonly cached = new Set<string>();
  now = 0;

  constructor(capacityBlocks = 41, asyncScheduling = true) {
    this.contents = new BlockContents(capacityBlocks);
    this.core = new EngineCore({
      model: stepModels["h100_sxm/llama-3.1-8b/tp1"]!,
      blockSizeTokens,
      capacityBlocks,
      stepTokensMax: 24,
      contextTokensMax: Math.min(100, (capacityBlocks - 1) * blockSizeTokens),
      asyncScheduling,
      hasher: new MeshBlockHasher(blockSizeTokens, () => root),
      sampler: oracle,
      contents: this.contents,
    });
  }

  /** An idle engine begins at the present time, then `ms` go by. */
  run(ms: number): void {
    this.#advance();
    this.now += ms;
    this.#advance();
  }

  #advance(): void {
    this.core.advance(monoMs(this.now), {
      loadStarted: (load) => this.loads.push(load),
      stepStarted: (start) => {
        for (const event of start.events) this.#apply(event);
      },
      stepEnded: (end: StepEnd) => {
        for (const one of end.advanced) this.note(one, [one.lastToken]);
        for (const one of end.finished) this.reasons.set(one.request.id, one.finishReason ?? "?");
      },
    });
  }

  note(sequence: EngineSequence, tokens: readonly number[]): void {
    const { id } = sequence.request;
    this.tokens.set(id, [...(this.tokens.get(id) ?? []), ...tokens]);
    if (sequence.finishReason !== undefined) this.reasons.set(id, sequence.finishReason);
  }

  finish(load: KvLoad, goodBlocks: number, firstTokens?: readonly number[]): void {
    const { id } = load.sequence.request;
    const result = { goodBlocks, ...(firstTokens === undefined ? {} : { firstTokens }) };
    const done = this.core.finishLoad(id, result, monoMs(this.now));
    if (done !== undefined) this.note(done.sequence, done.taken);
  }

  #apply(event: BlockEvent): void {
    switch (event.kind) {
      case "stored":
        for (let i = 0; i < event.hashes.length; i += 2) {
          this.cached.add(`${event.hashes[i] as number}:${event.hashes[i + 1] as number}`);
        }
        return;
      case "removed":
        this.cached.delete(`${event.low}:${event.high}`);
        return;
      case "cleared":
        this.cached.clear();
        return;
    }
  }
}

const prompt = (length: number, seed: number): Uint32Array =>
  Uint32Array.from({ length }, (_, i) => 1_000 + seed * 131 + i);

describe("an engine that loads KV", () => {
  test("holds the prompt's blocks while it waits, and computes the last token alone", () => {
    const world = new World();
    const tokens = prompt(18, 1);
    world.core.submit(
      { id: "a", promptTokens: tokens, outputTokensMax: 5, remoteKv: { localHits: true } },
      monoMs(0),
    );
    world.run(100);
    expect(world.loads).toHaveLength(1);
    expect(world.loads[0]).toMatchObject({ firstBlock: 0 });
    expect(world.loads[0]!.keys).toHaveLength(10);
    expect(world.core.stats()).toMatchObject({
      loadingSequences: 1,
      referencedBlocks: 5,
      steps: 0,
    });
    let prefillTokens = 0;
    world.finish(world.loads[0]!, 5);
    world.core.advance(monoMs(world.now), {
      stepStarted: (start) => (prefillTokens += start.prefillTokens),
    });
    expect(prefillTokens).toBe(1);
    world.run(1_000);
    expect(world.tokens.get("a")).toEqual(oracle.answer(tokens, 0, 5));
    expect(world.core.stats().referencedBlocks).toBe(0);
  });

  test("computes from the first block that did not come", () => {
    for (const good of [0, 1, 4]) {
      const world = new World();
      const tokens = prompt(18, 2);
      world.core.submit(
        { id: "a", promptTokens: tokens, outputTokensMax: 5, remoteKv: { localHits: true } },
        monoMs(0),
      );
      world.run(1);
      world.finish(world.loads[0]!, good);
      let prefillTokens = 0;
      world.core.advance(monoMs(world.now), {
        stepStarted: (start) => (prefillTokens += start.prefillTokens),
      });
      expect(prefillTokens).toBe(18 - good * blockSizeTokens);
      world.run(1_000);
      expect(world.tokens.get("a")).toEqual(oracle.answer(tokens, 0, 5));
    }
  });

  test("takes the other engine's first tokens and computes nothing of the prompt", () => {
    const world = new World();
    const tokens = prompt(18, 3);
    const expected = oracle.answer(tokens, 9, 6, true);
    world.core.submit(
      {
        id: "a",
        promptTokens: tokens,
        outputTokensMax: 6,
        ignoreEnd: true,
        seed: 9,
        remoteKv: { localHits: false },
      },
      monoMs(0),
    );
    world.run(1);
    world.finish(world.loads[0]!, 5, expected.slice(0, 1));
    expect(world.tokens.get("a")).toEqual(expected.slice(0, 1));
    let prefillTokens = 0;
    world.core.advance(monoMs(world.now), {
      stepStarted: (start) => (prefillTokens += start.prefillTokens),
    });
    expect(prefillTokens).toBe(0);
    world.run(1_000);
    expect(world.tokens.get("a")).toEqual(expected);
  });

  test("what others hold keeps an admission waiting, and its release lets it in", () => {
    const world = new World(12);
    world.core.submit(
      { id: "p", promptTokens: prompt(30, 4), outputTokensMax: 1, keepBlocks: true },
      monoMs(0),
    );
    world.run(500);
    expect(world.core.keptBlocks("p")).toHaveLength(8);
    world.core.submit(
      { id: "q", promptTokens: prompt(30, 5), outputTokensMax: 1 },
      monoMs(world.now),
    );
    world.run(500);
    expect(world.reasons.has("q")).toBe(false);
    expect(world.core.resetPrefixCache()).toBe(false);
    expect(world.core.releaseKept("p")).toBe(true);
    expect(world.core.releaseKept("p")).toBe(false);
    world.run(500);
    expect(world.reasons.get("q")).toBe("length");
  });

  test("wrong KV gives other tokens, and poisons what is cached after it", () => {
    const world = new World();
    const tokens = prompt(18, 6);
    const right = oracle.answer(tokens, 0, 5);
    const request = { promptTokens: tokens, outputTokensMax: 5, remoteKv: { localHits: false } };
    world.core.submit({ id: "a", ...request }, monoMs(0));
    world.run(1);
    const foreign = new Map([[2, { low: 1, high: 2 }]]);
    world.core.finishLoad("a", { goodBlocks: 5, foreign }, monoMs(world.now));
    world.run(1_000);
    expect(world.tokens.get("a")).not.toEqual(right);
    // A prefix before the wrong block is good, one that reaches it is not.
    const before = prompt(9, 6);
    world.core.submit({ id: "b", promptTokens: before, outputTokensMax: 3 }, monoMs(world.now));
    world.core.submit({ id: "c", promptTokens: tokens, outputTokensMax: 5 }, monoMs(world.now));
    world.run(1_000);
    expect(world.tokens.get("b")).toEqual(oracle.answer(before, 0, 3));
    expect(world.tokens.get("c")).not.toEqual(right);
  });

  test("no interleaving of loads, prefills, aborts and releases loses a block or changes a token", () => {
    const action = fc.record({
      kind: fc.constantFrom("whole", "prefill", "decode", "abort", "load", "release", "run"),
      seed: fc.nat(5),
      length: fc.integer({ min: 1, max: 40 }),
      out: fc.integer({ min: 1, max: 12 }),
      good: fc.nat(10),
      pick: fc.nat(30),
    });
    fc.assert(
      fc.property(fc.array(action, { maxLength: 50 }), fc.boolean(), (actions, isAsync) => {
        const world = new World(31, isAsync);
        const asked = new Map<string, { tokens: Uint32Array; out: number }>();
        const aborted = new Set<string>();
        const answer = (id: string): readonly number[] => {
          const { tokens, out } = asked.get(id)!;
          return oracle.answer(tokens, 0, out);
        };
        const finishOne = (pick: number, good: number): void => {
          const load = world.loads.splice(pick % world.loads.length, 1)[0]!;
          const asBlocks = load.keys.length / 2;
          const first = good % 3 === 0 ? answer(load.sequence.request.id).slice(0, 1) : undefined;
          world.finish(load, Math.min(good, asBlocks), first);
        };
        for (const [i, { kind, seed, length, out, good, pick }] of actions.entries()) {
          const ids = [...asked.keys()];
          const id = `${kind}-${i}`;
          if (kind === "whole" || kind === "prefill" || kind === "decode") {
            const tokens = prompt(length, seed);
            asked.set(id, { tokens, out: kind === "prefill" ? 1 : out });
            world.core.submit(
              {
                id,
                promptTokens: tokens,
                outputTokensMax: kind === "prefill" ? 1 : out,
                ...(kind === "prefill" ? { keepBlocks: true } : {}),
                ...(kind === "decode" ? { remoteKv: { localHits: pick % 2 === 0 } } : {}),
              },
              monoMs(world.now),
            );
          } else if (kind === "abort" && ids.length > 0) {
            const one = ids[pick % ids.length]!;
            if (world.core.abort(one)) aborted.add(one);
          } else if (kind === "load" && world.loads.length > 0) {
            finishOne(pick, good);
          } else if (kind === "release" && ids.length > 0) {
            world.core.releaseKept(ids[pick % ids.length]!);
          } else if (kind === "run") {
            world.run(pick);
          }
        }
        // Healing: everything comes to its end.
        for (let round = 0; round < 200; round++) {
          world.run(1_000);
          while (world.loads.length > 0) finishOne(0, round);
          for (const id of asked.keys()) world.core.releaseKept(id);
        }
        const stats = world.core.stats();
        expect(stats.referencedBlocks).toBe(0);
        expect([stats.loadingSequences, stats.keptSequences, stats.waitingSequences]).toEqual([
          0, 0, 0,
        ]);
        for (const id of asked.keys()) {
          if (!aborted.has(id)) expect([id, world.tokens.get(id)]).toEqual([id, answer(id)]);
        }
        // What was loaded and dropped in an idle engine is told with the next step.
        const last = { id: "last", promptTokens: prompt(3, 9), outputTokensMax: 1 };
        world.core.submit(last, monoMs(world.now));
        world.run(1_000);
        const hashes = world.core.cachedBlocks();
        const held = new Set<string>();
        for (let at = 0; at < hashes.length; at += 2) {
          held.add(`${hashes[at] as number}:${hashes[at + 1] as number}`);
        }
        expect(world.cached).toEqual(held);
      }),
      { numRuns: 150 },
    );
  });
});

describe("the token oracle", () => {
  test("goes on with the same tokens from prompt + tokens so far, at every cut", () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(2_000), { minLength: 1, maxLength: 40 }),
        fc.nat(2 ** 52),
        fc.integer({ min: 2, max: 40 }),
        fc.nat(),
        (start, seed, count, at) => {
          const whole = oracle.answer(Uint32Array.from(start), seed, count, true);
          const cut = at % count;
          const rest = oracle.answer(
            Uint32Array.from([...start, ...whole.slice(0, cut)]),
            seed,
            count - cut,
            true,
          );
          expect(rest).toEqual(whole.slice(cut));
        },
      ),
    );
  });
});
