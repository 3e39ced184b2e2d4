import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { CacheObserver } from "../../services/router/core/load/cache-observer.ts";
import { at } from "../support/router-builders.ts";

/** Blocks of a prompt as names; `hash` gives their keys. */
const hash = (blocks: readonly number[]): Uint32Array => {
  const hashes = new Uint32Array(2 * blocks.length);
  blocks.forEach((block, i) => {
    hashes[2 * i] = Math.imul(block + 1, 0x9e3779b1);
    hashes[2 * i + 1] = block;
  });
  return hashes;
};

interface Prompt {
  readonly id: string;
  /** Block names; a name stands for a whole prefix, so that equal names have equal predecessors. */
  readonly blocks: readonly number[];
}

/** Prompts of three conversations with branches: a block's name is the path that leads to it. */
function makePrompts(shapes: readonly { parent: number; share: number; own: number }[]): Prompt[] {
  const prompts: Prompt[] = [];
  let next = 1;
  for (const [i, { parent, share, own }] of shapes.entries()) {
    const from = prompts[parent % Math.max(1, prompts.length)]?.blocks ?? [];
    const shared = from.slice(0, Math.floor(share * from.length));
    const added = Array.from({ length: own }, () => next++);
    const blocks = [...shared, ...added];
    if (blocks.length > 0) prompts.push({ id: `d${i}`, blocks });
  }
  return prompts;
}

/**
 * An engine that computes prompts first come, first served, `budget` blocks a step. A prompt's cached prefix is
 * looked up when it is scheduled for the first time; each block is announced in the step that computes it.
 */
class NaiveEngine {
  readonly #cached = new Set<number>();
  readonly #queue: { prompt: Prompt; done: number; started: boolean }[] = [];
  readonly cachedBlocks = new Map<string, number>();
  readonly #budget: number;

  constructor(budget: number) {
    this.#budget = budget;
  }

  add(prompt: Prompt): void {
    this.#queue.push({ prompt, done: 0, started: false });
  }

  /** One step; the blocks newly stored and the prompts whose last block is there. */
  step(): { stored: number[]; finished: Prompt[] } {
    let budget = this.#budget;
    const stored: number[] = [];
    const finished: Prompt[] = [];
    while (this.#queue[0] !== undefined && budget > 0) {
      const head = this.#queue[0];
      const { blocks } = head.prompt;
      if (!head.started) {
        head.started = true;
        while (head.done < blocks.length && this.#cached.has(blocks[head.done] as number))
          head.done++;
        this.cachedBlocks.set(head.prompt.id, head.done);
      }
      while (budget > 0 && head.done < blocks.length) {
        const block = blocks[head.done] as number;
        if (!this.#cached.has(block)) stored.push(block);
        this.#cached.add(block);
        head.done++;
        budget--;
      }
      if (head.done < blocks.length) break;
      this.#queue.shift();
      finished.push(head.prompt);
    }
    return { stored, finished };
  }
}

const shapes = fc.array(
  fc.record({
    parent: fc.nat(20),
    share: fc.double({ min: 0, max: 1, noNaN: true }),
    own: fc.nat(12),
  }),
  { minLength: 1, maxLength: 20 },
);

describe("CacheObserver beside an engine with chunked prefill and shared prefixes", () => {
  test("knows exactly what each prompt found cached, whatever arrives in between", () => {
    fc.assert(
      fc.property(
        shapes,
        fc.integer({ min: 1, max: 10 }),
        fc.array(fc.nat(3), { minLength: 1, maxLength: 40 }),
        fc.integer({ min: 0, max: 3 }),
        (promptShapes, budget, arrivals, lateSteps) => {
          const prompts = makePrompts(promptShapes);
          const engine = new NaiveEngine(budget);
          const observer = new CacheObserver({ watchedMax: 64 });
          const closing: { prompt: Prompt; steps: number }[] = [];
          let next = 0;
          let closed = 0;
          for (let step = 0; closed < prompts.length; step++) {
            expect(step).toBeLessThan(1_000);
            for (let n = arrivals[step % arrivals.length] ?? 1; n > 0 || next === 0; n--) {
              const prompt = prompts[next];
              if (prompt === undefined) break;
              next++;
              observer.watch(prompt.id, hash(prompt.blocks), at(step));
              engine.add(prompt);
            }
            if (step > 100) {
              for (; next < prompts.length; next++) {
                const prompt = prompts[next] as Prompt;
                observer.watch(prompt.id, hash(prompt.blocks), at(step));
                engine.add(prompt);
              }
            }
            const { stored, finished } = engine.step();
            observer.stored(hash(stored));
            closing.push(...finished.map((prompt) => ({ prompt, steps: lateSteps })));
            while (closing[0] !== undefined && closing[0].steps-- <= 0) {
              const { prompt } = closing.shift() as (typeof closing)[number];
              closed++;
              expect([prompt.id, observer.finish(prompt.id)]).toEqual([
                prompt.id,
                engine.cachedBlocks.get(prompt.id),
              ]);
            }
          }
          expect(observer.size).toBe(0);
        },
      ),
      { numRuns: 400 },
    );
  });
});
