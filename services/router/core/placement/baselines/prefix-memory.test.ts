import fc from "fast-check";
import { expect, test } from "vitest";

import { at } from "../../../../../test/support/router-builders.ts";
import { workerId, type WorkerId } from "../../../../shared/core/ids.ts";
import { PrefixMemory } from "./prefix-memory.ts";

/** Chained hashes of a prompt given as a text, one block for each letter: equal prefixes, equal hashes. */
function hashesOf(text: string): Uint32Array {
  const hashes = new Uint32Array(2 * text.length);
  let chain = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) {
    chain = Math.imul(chain ^ text.charCodeAt(i), 0x01000193) >>> 0;
    hashes[2 * i] = chain;
    hashes[2 * i + 1] = i;
  }
  return hashes;
}

/** The same as a list of prefixes in order of use. */
class NaivePrefixes {
  readonly #of = new Map<WorkerId, { prefix: string; at: number }[]>();

  match(worker: WorkerId, text: string, now: number, ttlMs: number): number {
    const known = this.#of.get(worker) ?? [];
    for (let length = 1; length <= text.length; length++) {
      const found = known.find(({ prefix }) => prefix === text.slice(0, length));
      if (found === undefined || now - found.at > ttlMs) return length - 1;
    }
    return text.length;
  }

  sent(worker: WorkerId, text: string, now: number, max: number): void {
    const prefixes = Array.from({ length: text.length }, (_, i) => text.slice(0, i + 1)).reverse();
    const kept = (this.#of.get(worker) ?? []).filter(({ prefix }) => !prefixes.includes(prefix));
    const all = [...kept, ...prefixes.map((prefix) => ({ prefix, at: now }))];
    this.#of.set(worker, all.slice(-max));
  }
}

test("matches as a list of the prefixes sent does, within its size and time", () => {
  const text = fc.string({ unit: fc.constantFrom("x", "y"), maxLength: 8 });
  const steps = fc.array(
    fc.record({ worker: fc.constantFrom("a", "b"), text, waitMs: fc.nat(40), probe: text }),
    { maxLength: 60 },
  );
  fc.assert(
    fc.property(steps, fc.integer({ min: 8, max: 20 }), (list, blocksMax) => {
      const ttlMs = 100;
      const memory = new PrefixMemory({ blocksMax, ttlMs });
      const naive = new NaivePrefixes();
      let now = 0;
      for (const step of list) {
        now += step.waitMs;
        const worker = workerId(step.worker);
        memory.sent(worker, { hashes: hashesOf(step.text), now: at(now) });
        naive.sent(worker, step.text, now, blocksMax);
        expect(memory.sizeOf(worker)).toBeLessThanOrEqual(blocksMax);
        for (const id of ["a", "b"].map(workerId)) {
          expect(memory.match(id, { hashes: hashesOf(step.probe), now: at(now) })).toBe(
            naive.match(id, step.probe, now, ttlMs),
          );
        }
      }
    }),
  );
});

test("workers share what may be remembered in all", () => {
  const memory = new PrefixMemory({ blocksMax: 200, ttlMs: Infinity, blocksMaxOfAll: 2_000 });
  const workers = Array.from({ length: 40 }, (_, i) => workerId(`w${i}`));
  for (let round = 0; round < 2; round++) {
    for (const [i, worker] of workers.entries()) {
      const hashes = Uint32Array.from({ length: 240 }, (_, n) => n + i + round * 1e6);
      memory.sent(worker, { hashes, now: at(round) });
    }
  }
  expect(memory.sizeOf(workers[39] as WorkerId)).toBe(50);
});
