import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { KvIndex } from "../../services/router/core/kv-index/kv-index.ts";
import { NaiveKvIndex } from "../../services/router/core/kv-index/naive-kv-index.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";

interface Scenario {
  readonly seed: number;
  readonly workersMax: number;
  readonly setsMax: number;
  readonly steps: number;
  /** How prompts turn into keys. */
  readonly keys: "spread" | "low_bits_equal" | "dense" | "one_word";
  /** Share of steps that store whole prefixes rather than single blocks; the rest makes gaps. */
  readonly prefixRatio: number;
}

const promptCount = 12;
const promptBlocksMax = 80;

/** Prompts that share beginnings, as trees of chained hashes do; adversarial keys on demand. */
function makePrompts(keys: Scenario["keys"], random: SeededRandom): Uint32Array[] {
  const prompts: Uint32Array[] = [];
  let next = 0;
  for (let p = 0; p < promptCount; p++) {
    const parent = prompts[random.int(p + 1)];
    const shared = parent === undefined ? 0 : random.int(parent.length / 2 + 1);
    const blocks = Math.max(shared, 1 + random.int(promptBlocksMax));
    const hashes = new Uint32Array(2 * blocks);
    if (parent !== undefined) hashes.set(parent.subarray(0, 2 * shared));
    for (let i = shared; i < blocks; i++) {
      const n = next++;
      hashes[2 * i] = {
        spread: random.int(2 ** 32),
        low_bits_equal: n << 20,
        dense: n,
        one_word: 0,
      }[keys];
      hashes[2 * i + 1] = { spread: random.int(2 ** 32), low_bits_equal: 0, dense: 0, one_word: n }[
        keys
      ];
    }
    prompts.push(hashes);
  }
  return prompts;
}

/** Runs a random history against both indexes and compares every answer. */
function compare(scenario: Scenario): void {
  const { workersMax, setsMax } = scenario;
  const random = new SeededRandom(scenario.seed);
  const prompts = makePrompts(scenario.keys, random);
  const index = new KvIndex({ workersMax, blocksMax: 4_096, setsMax });
  const model = new NaiveKvIndex({ workersMax });
  const depths = new Uint32Array(workersMax);
  const depthsOfModel = new Uint32Array(workersMax);

  for (let step = 0; step < scenario.steps; step++) {
    const slot = random.int(workersMax);
    const hashes = prompts[random.int(promptCount)] as Uint32Array;
    const blocks = hashes.length / 2;
    const isPrefix = random.next() < scenario.prefixRatio;
    const offset = isPrefix ? 0 : random.int(blocks);
    const count = isPrefix ? 1 + random.int(blocks) : 1 + random.int(Math.min(3, blocks - offset));
    const action = random.next();
    if (action < 0.5) {
      const added = model.store(slot, hashes, offset, count);
      expect(index.store(slot, hashes, offset, count)).toBe(added);
    } else if (action < 0.9) {
      const from = isPrefix ? blocks - count : offset;
      const removed = model.remove(slot, hashes, from, count);
      expect(index.remove(slot, hashes, from, count)).toBe(removed);
    } else if (action < 0.97) {
      expect(index.clear(slot)).toBe(model.clear(slot));
    } else {
      index.sweep(random.int(200));
    }
    expect(index.pairCount).toBe(model.pairCount);
    expect(index.blockCount).toBe(model.blockCount);
    expect(index.blocksOf(slot)).toBe(model.blocksOf(slot));
    const probe = prompts[random.int(promptCount)] as Uint32Array;
    const probed = random.int(probe.length / 2 + 1);
    const deepest = model.matchPrefix(probe, probed, depthsOfModel);
    expect(index.matchPrefix(probe, probed, depths)).toBe(deepest);
    expect(depths).toEqual(depthsOfModel);
    const at = random.int(probe.length / 2);
    const [lo, hi] = [probe[2 * at] as number, probe[2 * at + 1] as number];
    expect(index.contains(slot, lo, hi)).toBe(model.contains(slot, lo, hi));
  }
  expect(index.droppedAtBlocksMax + index.droppedAtSetsMax).toBe(0);
}

const scenarios = fc.record({
  seed: fc.nat(),
  workersMax: fc.constantFrom(1, 2, 5, 32, 33, 65, 130),
  // At least as many as blocks that can exist at once, so that the model needs no limit.
  setsMax: fc.constantFrom(1_100, 4_000),
  steps: fc.constantFrom(30, 150, 400),
  keys: fc.constantFrom("spread", "low_bits_equal", "dense", "one_word"),
  prefixRatio: fc.constantFrom(0, 0.5, 0.9, 1),
});

describe("KvIndex against the naive model", () => {
  test("gives the same answers after any history of stores, removals and clears", () => {
    fc.assert(fc.property(scenarios, compare), { numRuns: 150 });
  });

  test("gives the same answers through long churn that collects sets many times", () => {
    const index = new KvIndex({ workersMax: 96, blocksMax: 4_096, setsMax: 160 });
    const model = new NaiveKvIndex({ workersMax: 96 });
    const random = new SeededRandom(11);
    const prompts = makePrompts("spread", random).map((hashes) => hashes.subarray(0, 20));
    const depths = new Uint32Array(96);
    const depthsOfModel = new Uint32Array(96);
    for (let step = 0; step < 20_000; step++) {
      const slot = random.int(96);
      const hashes = prompts[random.int(promptCount)] as Uint32Array;
      const action = random.next();
      if (action < 0.55) expect(index.store(slot, hashes)).toBe(model.store(slot, hashes));
      else if (action < 0.95) expect(index.remove(slot, hashes)).toBe(model.remove(slot, hashes));
      else expect(index.clear(slot)).toBe(model.clear(slot));
      if (step % 20 !== 0) continue;
      model.matchPrefix(hashes, hashes.length / 2, depthsOfModel);
      index.matchPrefix(hashes, hashes.length / 2, depths);
      expect(depths).toEqual(depthsOfModel);
      expect(index.pairCount).toBe(model.pairCount);
    }
    expect(index.setCollections).toBeGreaterThan(20);
    expect(index.droppedAtSetsMax).toBe(0);
  });

  test("forgets what lookups have seen of a segment with any change inside it", () => {
    const change = fc.record({
      kind: fc.constantFrom("store", "remove", "replace", "clear"),
      slot: fc.nat(2),
      block: fc.nat(199),
    });
    fc.assert(
      fc.property(fc.nat(), fc.array(change, { minLength: 1, maxLength: 12 }), (seed, changes) => {
        const random = new SeededRandom(seed);
        const index = new KvIndex({ workersMax: 3, blocksMax: 4_096, setsMax: 64 });
        const model = new NaiveKvIndex({ workersMax: 3 });
        const prompt = Uint32Array.from({ length: 400 }, () => random.int(2 ** 32));
        // Another one that parts from it inside a segment.
        const branch = Uint32Array.from(prompt, (word, i) => (i < 2 * 45 ? word : ~word));
        const stranger = Uint32Array.from({ length: 2 }, () => random.int(2 ** 32));
        const [depths, expected] = [new Uint32Array(3), new Uint32Array(3)];
        for (const one of [index, model]) {
          one.store(0, prompt);
          one.store(1, prompt, 0, 90);
          one.store(1, branch);
        }
        for (const { kind, slot, block } of changes) {
          // Twice, so that the second lookup reads what the first has noted.
          for (const hashes of [prompt, branch, prompt, branch]) {
            model.matchPrefix(hashes, 200, expected);
            index.matchPrefix(hashes, 200, depths);
            expect([...depths]).toEqual([...expected]);
          }
          for (const one of [index, model]) {
            if (kind === "store") one.store(slot, prompt, block, 1);
            else if (kind === "clear") one.clear(slot);
            else one.remove(slot, prompt, block, 1);
            // Takes the record that has become free, if one has.
            if (kind === "replace") one.store(2, stranger);
          }
        }
      }),
      { numRuns: 200 },
    );
  });

  test("grows under a mix of stores and removals and finds every block at every size", () => {
    fc.assert(
      fc.property(fc.nat(), fc.constantFrom(0, 20), (seed, shift) => {
        const random = new SeededRandom(seed);
        const index = new KvIndex({ workersMax: 3, blocksMax: 20_000, setsMax: 8 });
        const held = [new Set<number>(), new Set<number>(), new Set<number>()];
        const key = new Uint32Array(2);
        for (let step = 0; step < 12_000; step++) {
          const slot = random.int(3);
          const n = random.int(step + 1);
          key[0] = n << shift;
          key[1] = n >>> (32 - shift);
          const blocks = held[slot] as Set<number>;
          if (random.next() < 0.75) {
            expect(index.store(slot, key)).toBe(blocks.has(n) ? 0 : 1);
            blocks.add(n);
          } else {
            expect(index.remove(slot, key)).toBe(blocks.delete(n) ? 1 : 0);
          }
        }
        for (let n = 0; n < 12_000; n++) {
          const [lo, hi] = [(n << shift) >>> 0, n >>> (32 - shift)];
          const holders = held.map((blocks) => blocks.has(n));
          expect([0, 1, 2].map((slot) => index.contains(slot, lo, hi))).toEqual(holders);
        }
        expect(index.blockCount).toBe(new Set(held.flatMap((blocks) => [...blocks])).size);
      }),
      { numRuns: 6 },
    );
  });

  test("follows long prompts however their blocks are laid out in memory", () => {
    fc.assert(
      fc.property(fc.nat(), fc.constantFrom(1, 3, 40, 700), (seed, runBlocksMax) => {
        const random = new SeededRandom(seed);
        const index = new KvIndex({ workersMax: 6, blocksMax: 20_000, setsMax: 100 });
        const model = new NaiveKvIndex({ workersMax: 6 });
        const prompts = Array.from({ length: 4 }, () => {
          const hashes = new Uint32Array(2 * (1 + random.int(2_000)));
          for (let i = 0; i < hashes.length; i++) hashes[i] = random.int(2 ** 32);
          return hashes;
        });
        const depths = new Uint32Array(6);
        const depthsOfModel = new Uint32Array(6);
        const check = (): void => {
          for (const hashes of prompts) {
            const count = random.int(hashes.length / 2 + 1);
            const deepest = model.matchPrefix(hashes, count, depthsOfModel);
            expect(index.matchPrefix(hashes, count, depths)).toBe(deepest);
            expect(depths).toEqual(depthsOfModel);
          }
        };
        // Prompts are stored in turn, so that their runs interleave.
        const done = [0, 0, 0, 0];
        while (prompts.some((hashes, p) => (done[p] as number) < hashes.length / 2)) {
          const p = random.int(4);
          const hashes = prompts[p] as Uint32Array;
          const from = done[p] as number;
          const count = Math.min(1 + random.int(runBlocksMax), hashes.length / 2 - from);
          for (let slot = 0; slot < 6; slot++) {
            if (slot > p && random.next() < 0.002) continue;
            index.store(slot, hashes, from, count);
            model.store(slot, hashes, from, count);
          }
          done[p] = from + count;
        }
        check();
        for (let gap = 0; gap < 12; gap++) {
          const hashes = prompts[random.int(4)] as Uint32Array;
          const at = random.int(hashes.length / 2);
          const slot = random.int(6);
          index.remove(slot, hashes, at, 1);
          model.remove(slot, hashes, at, 1);
          check();
        }
      }),
      { numRuns: 20 },
    );
  });

  test("at its limits never credits a worker with a block that it does not hold", () => {
    fc.assert(
      fc.property(
        fc.nat(),
        fc.constantFrom(1, 3, 20),
        fc.constantFrom(40, 200),
        (seed, setsMax, blocksMax) => {
          const workersMax = 40;
          const random = new SeededRandom(seed);
          const prompts = makePrompts("spread", random);
          const index = new KvIndex({ workersMax, blocksMax, setsMax });
          const model = new NaiveKvIndex({ workersMax });
          const lost = new Uint32Array(workersMax);
          const depths = new Uint32Array(workersMax);
          const depthsOfModel = new Uint32Array(workersMax);
          for (let step = 0; step < 300; step++) {
            const slot = random.int(workersMax);
            const hashes = prompts[random.int(promptCount)] as Uint32Array;
            const offset = random.int(hashes.length / 2);
            const action = random.next();
            if (action < 0.6) {
              model.store(slot, hashes, offset);
              index.store(slot, hashes, offset);
            } else if (action < 0.9) {
              model.remove(slot, hashes, offset);
              index.remove(slot, hashes, offset);
            } else {
              model.clear(slot);
              index.clear(slot);
            }
            model.matchPrefix(hashes, hashes.length / 2, depthsOfModel);
            index.matchPrefix(hashes, hashes.length / 2, depths);
            let pairs = 0;
            for (let w = 0; w < workersMax; w++) {
              lost[w] = index.lostPairsOf(w);
              pairs += index.blocksOf(w);
              // Short only of a worker that is marked, never beyond.
              if (lost[w] === 0) expect(depths[w]).toBe(depthsOfModel[w]);
              else expect(depths[w]).toBeLessThanOrEqual(depthsOfModel[w] as number);
              if (lost[w] === 0) expect(index.blocksOf(w)).toBe(model.blocksOf(w));
              for (let i = 0; i < hashes.length / 2; i += 7) {
                const [lo, hi] = [hashes[2 * i] as number, hashes[2 * i + 1] as number];
                if (index.contains(w, lo, hi)) expect(model.contains(w, lo, hi)).toBe(true);
              }
            }
            expect(index.pairCount).toBe(pairs);
            expect(index.blockCount).toBeLessThanOrEqual(blocksMax);
          }
          // Clearing everybody ends every deviation.
          for (let w = 0; w < workersMax; w++) index.clear(w);
          expect([index.blockCount, index.pairCount]).toEqual([0, 0]);
          expect(index.store(0, prompts[0] as Uint32Array, 0, 1)).toBe(1);
        },
      ),
      { numRuns: 25 },
    );
  });
});
