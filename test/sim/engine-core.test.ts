import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { hashBlocks, hashRoot } from "../../services/shared/core/block-hash.ts";
import { monoMs } from "../../services/shared/core/ids.ts";
import { decodeStepMs, prefillMs, type StepModel } from "../../services/shared/core/step-model.ts";
import { BlockPool } from "../../services/simulator/core/engine/block-pool.ts";
import { EngineCore } from "../../services/simulator/core/engine/engine.ts";
import type {
  BlockEvent,
  EngineOptions,
  EngineSequence,
  StepEnd,
  StepStart,
} from "../../services/simulator/core/engine/engine-types.ts";
import { HashIndex } from "../../services/simulator/core/engine/hash-index.ts";
import { MeshBlockHasher } from "../../services/simulator/core/engine/mesh-block-hasher.ts";
import { TokenOracle } from "../../services/simulator/core/engine/token-oracle.ts";

const model: StepModel = { c0: 4, c1: 0.01, c2: 1e-6, d0: 5, d1: 0.01, d2: 1e-5 };
const root = hashRoot(new Uint8Array(32), { model: "m" });
const oracle = new TokenOracle({
  words: Uint32Array.from({ length: 500 }, (_, i) => i + 100),
  endToken: 7,
  answerTokensMean: 20,
});

function engine(overrides: Partial<EngineOptions> = {}): EngineCore {
  const blockSizeTokens = overrides.blockSizeTokens ?? 4;
  return new EngineCore({
    model,
    blockSizeTokens,
    capacityBlocks: 65,
    contextTokensMax: 128,
    hasher: new MeshBlockHasher(blockSizeTokens, () => root),
    sampler: oracle,
    ...overrides,
  });
}

const prompt = (length: number, seed = 0): Uint32Array =>
  Uint32Array.from({ length }, (_, i) => (i * 7919 + seed * 104_729) % 50_000);

interface Transcript {
  readonly starts: StepStart[];
  readonly tokens: Map<string, number[]>;
  readonly finished: Map<string, string>;
  readonly events: BlockEvent[];
}

/** Collects everything an engine does; the lists are copied because the engine reuses them. */
function recorder(): Transcript & {
  listener: { stepStarted(s: StepStart): void; stepEnded(e: StepEnd): void };
} {
  const transcript: Transcript = {
    starts: [],
    tokens: new Map(),
    finished: new Map(),
    events: [],
  };
  return {
    ...transcript,
    listener: {
      stepStarted(start) {
        transcript.starts.push(start);
        transcript.events.push(...start.events);
      },
      stepEnded(end) {
        for (const sequence of end.advanced) {
          const list = transcript.tokens.get(sequence.request.id) ?? [];
          list.push(sequence.lastToken);
          transcript.tokens.set(sequence.request.id, list);
        }
        for (const sequence of end.finished) {
          transcript.finished.set(sequence.request.id, sequence.finishReason ?? "");
        }
      },
    },
  };
}

function runOut(core: EngineCore, from: number, record: ReturnType<typeof recorder>): number {
  let now = from;
  let end = core.advance(monoMs(now), record.listener);
  while (end !== undefined) {
    now = end;
    end = core.advance(end, record.listener);
  }
  return now;
}

const submit = (
  core: EngineCore,
  id: string,
  promptTokens: Uint32Array,
  outputTokensMax: number,
  at = 0,
): EngineSequence =>
  core.submit({ id, promptTokens, outputTokensMax, ignoreEnd: true }, monoMs(at));

describe("step times", () => {
  test("a prompt alone takes prefillMs, then each token decodeStepMs", () => {
    const core = engine({ contextTokensMax: 200 });
    const record = recorder();
    submit(core, "a", prompt(100), 3);
    runOut(core, 0, record);
    const [prefill, first, second] = record.starts as [StepStart, StepStart, StepStart];
    expect(prefill.endsAt).toBeCloseTo(prefillMs(model, 100, 0), 9);
    expect(first.endsAt - first.startedAt).toBeCloseTo(decodeStepMs(model, 1, 101), 9);
    expect(second.endsAt - second.startedAt).toBeCloseTo(decodeStepMs(model, 1, 102), 9);
    expect(second.startedAt).toBe(first.endsAt);
  });

  test("speed-up divides durations, the slow factor multiplies those of later steps", () => {
    const core = engine({ speedup: 10 });
    submit(core, "a", prompt(50), 2);
    const step = core.startStep(monoMs(0));
    expect(step?.endsAt).toBeCloseTo(prefillMs(model, 50, 0) / 10, 9);
    core.setSlowFactor(3);
    core.finishStep();
    const next = core.startStep(step?.endsAt ?? monoMs(0));
    expect((next?.endsAt ?? 0) - (next?.startedAt ?? 0)).toBeCloseTo(
      (decodeStepMs(model, 1, 51) / 10) * 3,
      9,
    );
  });

  test("late calls change nothing: one call at the end equals a call per step", () => {
    const run = (times: readonly number[]): string => {
      const core = engine();
      const record = recorder();
      submit(core, "a", prompt(60), 10);
      submit(core, "b", prompt(30, 1), 15);
      for (const at of times) core.advance(monoMs(at), record.listener);
      return JSON.stringify([record.starts, [...record.tokens]]);
    };
    const steps = Array.from({ length: 2_000 }, (_, i) => i / 2);
    expect(run([0, 1_000])).toBe(run(steps));
  });

  test("a stall delays the step in progress, or the next one of an idle engine", () => {
    const core = engine();
    submit(core, "a", prompt(8), 2);
    const before = core.startStep(monoMs(0))?.endsAt ?? 0;
    core.stall(500, monoMs(1));
    expect(core.stepEndsAt).toBe(before + 500);
    const idle = engine();
    idle.stall(200, monoMs(10));
    submit(idle, "a", prompt(8), 1, 20);
    expect(idle.startStep(monoMs(20))?.startedAt).toBe(210);
  });
});

describe("scheduling", () => {
  test("a long prompt is split by the token budget while decodes go first", () => {
    const core = engine({ stepTokensMax: 16, asyncScheduling: false });
    const record = recorder();
    submit(core, "a", prompt(8), 20);
    core.advance(monoMs(0), record.listener);
    submit(core, "b", prompt(40, 1), 2);
    runOut(core, 0, record);
    const mixed = record.starts.filter((s) => s.prefillTokens > 0).map((s) => s.prefillTokens);
    expect(mixed).toEqual([8, 15, 15, 10]);
    for (const start of record.starts.slice(1, 4)) expect(start.decodeSequences).toBe(1);
  });

  test("with planning ahead, an arrival during step k is in step k+2; without, in step k+1", () => {
    for (const asyncScheduling of [true, false]) {
      const core = engine({ asyncScheduling });
      const record = recorder();
      submit(core, "a", prompt(8), 30);
      core.advance(monoMs(0), record.listener);
      submit(core, "b", prompt(8, 1), 2, 1);
      runOut(core, 1, record);
      const index = record.starts.findIndex((s, i) => i > 0 && s.prefillTokens > 0);
      expect(index).toBe(asyncScheduling ? 2 : 1);
    }
  });

  test("runs at most runningMax sequences, others in order of arrival", () => {
    const core = engine({ runningMax: 2, asyncScheduling: false });
    const order: string[] = [];
    const sequences = ["a", "b", "c", "d"].map((id, i) => submit(core, id, prompt(8, i), 5));
    runOut(core, 0, recorder());
    for (const s of [...sequences].sort((x, y) => (x.firstTokenAt ?? 0) - (y.firstTokenAt ?? 0))) {
      order.push(s.request.id);
    }
    expect(order).toEqual(["a", "b", "c", "d"]);
    expect(sequences[2]?.scheduledAt).toBe(sequences[0]?.lastTokenAt);
  });

  test("preempts the last running sequence, which then computes its answer so far again", () => {
    const core = engine({ capacityBlocks: 33, prefixCaching: false, asyncScheduling: false });
    const record = recorder();
    const a = submit(core, "a", prompt(48), 60);
    const b = submit(core, "b", prompt(48, 1), 60);
    runOut(core, 0, record);
    expect(a.preemptions).toBe(0);
    expect(b.preemptions).toBeGreaterThan(0);
    expect(core.stats().preemptions).toBe(b.preemptions);
    // Re-prefill: prompt and what had been generated, in one chunk.
    const again = record.starts.filter((s) => s.prefillTokens > 48 && s.prefillTokens < 108);
    expect(again.length).toBeGreaterThan(0);
    // No token is lost or doubled by it.
    expect(record.tokens.get("b")).toEqual(oracle.answer(prompt(48, 1), 0, 60, true));
    expect(record.tokens.get("a")).toEqual(oracle.answer(prompt(48), 0, 60, true));
  });

  test("a cached prefix is reused, but never the block with the last prompt token", () => {
    const core = engine();
    submit(core, "a", prompt(32), 1);
    const t = runOut(core, 0, recorder());
    const same = submit(core, "b", prompt(32), 1, t);
    const longer = submit(core, "c", Uint32Array.from([...prompt(32), 1, 2, 3]), 1, t);
    runOut(core, t, recorder());
    expect(same.cachedTokens).toBe(28);
    expect(longer.cachedTokens).toBe(32);
    expect(core.stats().prefixHitTokens).toBe(60);
    expect(core.stats().prefixQueryTokens).toBe(32 + 32 + 35);
  });

  test("blocks filled by the answer serve the next turn", () => {
    const core = engine();
    const first = submit(core, "a", prompt(10), 20);
    const t = runOut(core, 0, recorder());
    const turn = Uint32Array.from([...prompt(10), ...oracle.answer(prompt(10), 0, 20, true), 1, 2]);
    const second = submit(core, "b", turn, 1, t);
    runOut(core, t, recorder());
    expect(first.generatedTokens).toBe(20);
    // The last answer token is never computed, so 29 tokens fill seven blocks.
    expect(second.cachedTokens).toBe(28);
  });

  test("prompt hashes given by the caller change nothing", () => {
    const transcripts = [undefined, hashBlocks(root, prompt(30), 4)].map((promptHashes) => {
      const core = engine();
      const record = recorder();
      const request = { id: "a", promptTokens: prompt(30), outputTokensMax: 20, ignoreEnd: true };
      core.submit(promptHashes === undefined ? request : { ...request, promptHashes }, monoMs(0));
      runOut(core, 0, record);
      return JSON.stringify([record.starts.map((s) => s.endsAt), core.cachedBlocks()]);
    });
    expect(transcripts[0]).toBe(transcripts[1]);
  });

  test("refuses what can never run, by code", () => {
    const core = engine();
    expect(() => submit(core, "a", prompt(128), 1)).toThrow(
      expect.objectContaining({ code: "context_length_exceeded" }),
    );
    expect(() => submit(core, "a", prompt(0), 1)).toThrow(
      expect.objectContaining({ code: "invalid_request" }),
    );
    submit(core, "a", prompt(4), 1);
    expect(() => submit(core, "a", prompt(4), 1)).toThrow(
      expect.objectContaining({ code: "already_exists" }),
    );
    expect(() => engine({ contextTokensMax: 257 })).toThrow(
      expect.objectContaining({ field: "contextTokensMax" }),
    );
  });

  test("an answer is clipped to the context and ends by length", () => {
    const core = engine();
    const record = recorder();
    const a = submit(core, "a", prompt(120), 1_000);
    runOut(core, 0, record);
    expect(a.generatedTokens).toBe(8);
    expect(record.finished.get("a")).toBe("length");
  });
});

describe("cache reset", () => {
  test("is refused while blocks are in use, and announced with the next step only", () => {
    const core = engine();
    const record = recorder();
    submit(core, "a", prompt(16), 3);
    core.advance(monoMs(0), record.listener);
    expect(core.resetPrefixCache()).toBe(false);
    const t = runOut(core, 0, record);
    expect(core.resetPrefixCache()).toBe(true);
    expect(core.cachedBlocks()).toHaveLength(0);
    expect(record.events.some((event) => event.kind === "cleared")).toBe(false);
    submit(core, "b", prompt(16), 1, t);
    runOut(core, t, record);
    const cleared = record.events.findIndex((event) => event.kind === "cleared");
    expect(record.events[cleared + 1]).toMatchObject({ kind: "stored", firstBlock: 0 });
  });
});

describe("token oracle", () => {
  test("a token is a pure function of prompt, seed and position; continuing elsewhere changes nothing", () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat(150_000), { minLength: 1, maxLength: 200 }),
        fc.nat(),
        fc.integer({ min: 0, max: 60 }),
        (tokens, seed, cut) => {
          const whole = oracle.answer(Uint32Array.from(tokens), seed, 60, true);
          expect(oracle.answer(Uint32Array.from(tokens), seed, 60, true)).toEqual(whole);
          const rest = oracle.answer(
            Uint32Array.from([...tokens, ...whole.slice(0, cut)]),
            seed,
            60 - cut,
            true,
          );
          expect([...whole.slice(0, cut), ...rest]).toEqual(whole);
        },
      ),
    );
  });

  test("differs by seed and by any one prompt token, and spreads over the vocabulary", () => {
    const base = oracle.answer(prompt(100), 0, 30, true);
    expect(oracle.answer(prompt(100), 1, 30, true)).not.toEqual(base);
    for (let i = 0; i < 100; i++) {
      const changed = prompt(100);
      changed[i] = (changed[i] as number) ^ 1;
      expect(oracle.answer(changed, 0, 30, true)).not.toEqual(base);
    }
    const seen = new Set<number>();
    for (let i = 0; i < 200; i++)
      for (const t of oracle.answer(prompt(5, i), i, 50, true)) seen.add(t);
    expect(seen.size).toBe(500);
  });

  test("answers end by themselves after the configured mean", () => {
    let total = 0;
    for (let i = 0; i < 2_000; i++) total += oracle.answer(prompt(5, i), 0, 10_000).length;
    expect(total / 2_000).toBeGreaterThan(18);
    expect(total / 2_000).toBeLessThan(22);
  });
});

describe("hash index", () => {
  test("equals a Map under any sequence of operations", () => {
    const step = fc.tuple(fc.constantFrom("set", "delete"), fc.nat(40), fc.nat(3));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
        const index = new HashIndex(164);
        const naive = new Map<string, number>();
        steps.forEach(([kind, low, high], i) => {
          // Equal low bits put many keys into one probe run.
          const word = (low * 64) >>> 0;
          const key = `${String(word)}.${String(high)}`;
          if (kind === "set") {
            index.set(word, high, i);
            naive.set(key, i);
          } else {
            expect(index.delete(word, high)).toBe(naive.delete(key));
          }
        });
        expect(index.size).toBe(naive.size);
        for (let low = 0; low <= 40; low++) {
          for (let high = 0; high <= 3; high++) {
            const key = `${String(low * 64)}.${String(high)}`;
            expect(index.get(low * 64, high)).toBe(naive.get(key) ?? -1);
          }
        }
      }),
    );
  });
});

describe("block pool", () => {
  test("hands out the oldest free block, forgets its content then, and tells the last copy's removal", () => {
    const removed: number[] = [];
    const pool = new BlockPool(4, (low) => removed.push(low));
    const [a, b, c] = [pool.allocate(), pool.allocate(), pool.allocate()];
    pool.cache(a, 1, 0);
    pool.cache(b, 1, 0);
    pool.cache(c, 2, 0);
    pool.release(Int32Array.of(a, b, c), 3);
    // Released last block first, so c is the oldest.
    expect(pool.allocate()).toBe(c);
    expect(removed).toEqual([2]);
    expect(pool.allocate()).toBe(b);
    expect(removed).toEqual([2]);
    expect(pool.find(1, 0)).toBe(a);
    expect(pool.allocate()).toBe(a);
    expect(removed).toEqual([2, 1]);
    expect(pool.freeBlocks).toBe(0);
  });

  test("blocks without content are reused before cached ones", () => {
    const pool = new BlockPool(5);
    const [a, b, c] = [pool.allocate(), pool.allocate(), pool.allocate()];
    pool.cache(a, 1, 0);
    pool.release(Int32Array.of(a, b, c), 3);
    expect([pool.allocate(), pool.allocate()]).toEqual([c, b]);
    expect(pool.find(1, 0)).toBe(a);
  });

  test("a double release is a bug", () => {
    const pool = new BlockPool(3);
    const block = pool.allocate();
    pool.release(Int32Array.of(block), 1);
    expect(() => {
      pool.release(Int32Array.of(block), 1);
    }).toThrow(expect.objectContaining({ code: "invariant_violated" }));
  });
});

describe("engine under random use", () => {
  const action = fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        kind: fc.constant("submit" as const),
        family: fc.nat(3),
        length: fc.integer({ min: 1, max: 100 }),
        output: fc.integer({ min: 1, max: 80 }),
      }),
    },
    {
      weight: 2,
      arbitrary: fc.record({ kind: fc.constant("abort" as const), pick: fc.nat(1_000) }),
    },
    {
      weight: 6,
      arbitrary: fc.record({
        kind: fc.constant("advance" as const),
        ms: fc.integer({ min: 0, max: 120 }),
      }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("reset" as const) }) },
  );

  test("never leaks a block, and the events give exactly the cached set", () => {
    fc.assert(
      fc.property(
        fc.array(action, { maxLength: 60 }),
        fc.boolean(),
        fc.constantFrom(7, 40, 512),
        (actions, asyncScheduling, stepTokensMax) => {
          const core = engine({
            capacityBlocks: 40,
            contextTokensMax: 150,
            runningMax: 5,
            asyncScheduling,
            stepTokensMax,
          });
          const held = new Set<string>();
          const live = new Set<string>();
          const expected = new Map<
            string,
            { tokens: number[]; prompt: Uint32Array; max: number }
          >();
          const listener = {
            stepStarted(start: StepStart) {
              expect(start.stepTokens).toBeLessThanOrEqual(stepTokensMax);
              expect(start.endsAt).toBeGreaterThan(start.startedAt);
              for (const event of start.events) applyEvent(held, event);
              expect(held).toEqual(asSet(core.cachedBlocks()));
              const stats = core.stats();
              expect(stats.referencedBlocks).toBeLessThanOrEqual(stats.usableBlocks);
              expect(stats.runningSequences).toBeLessThanOrEqual(5);
            },
            stepEnded(end: StepEnd) {
              for (const s of end.advanced) expected.get(s.request.id)?.tokens.push(s.lastToken);
              for (const s of end.finished) live.delete(s.request.id);
            },
          };
          let now = 0;
          let counter = 0;
          for (const step of actions) {
            core.advance(monoMs(now), listener);
            switch (step.kind) {
              case "submit": {
                const id = String(counter++);
                const tokens = prompt(step.length, step.family);
                submit(core, id, tokens, step.output, now);
                live.add(id);
                expected.set(id, {
                  tokens: [],
                  prompt: tokens,
                  max: Math.min(step.output, 150 - step.length),
                });
                break;
              }
              case "abort": {
                const id = [...live][step.pick % Math.max(1, live.size)];
                if (id !== undefined && core.abort(id)) {
                  live.delete(id);
                  expected.delete(id);
                }
                break;
              }
              case "advance":
                now += step.ms;
                break;
              case "reset":
                if (core.resetPrefixCache()) held.clear();
                break;
            }
          }
          let end = core.advance(monoMs(now), listener);
          for (let i = 0; end !== undefined; i++) {
            expect(i).toBeLessThan(20_000);
            end = core.advance(end, listener);
          }
          const stats = core.stats();
          expect(stats).toMatchObject({
            referencedBlocks: 0,
            runningSequences: 0,
            waitingSequences: 0,
            prefillBacklogTokens: 0,
          });
          expect(live.size).toBe(0);
          for (const { tokens, prompt: asked, max } of expected.values()) {
            expect(tokens).toEqual(oracle.answer(asked, 0, max, true));
          }
        },
      ),
      { numRuns: 200 },
    );
  });
});

const key = (low: number, high: number): string => `${String(low)}:${String(high)}`;

function asSet(pairs: Uint32Array): Set<string> {
  const out = new Set<string>();
  for (let i = 0; i < pairs.length; i += 2)
    out.add(key(pairs[i] as number, pairs[i + 1] as number));
  return out;
}

/** What a consumer with set semantics makes of an event. */
function applyEvent(held: Set<string>, event: BlockEvent): void {
  switch (event.kind) {
    case "stored":
      expect(event.tokens).toHaveLength((event.hashes.length / 2) * 4);
      for (const hash of asSet(event.hashes)) held.add(hash);
      return;
    case "removed":
      expect(held.delete(key(event.low, event.high))).toBe(true);
      return;
    case "cleared":
      held.clear();
      return;
  }
}
