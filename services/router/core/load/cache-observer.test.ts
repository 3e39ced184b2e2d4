import { describe, expect, test } from "vitest";

import { at, promptHashes } from "../../../../test/support/router-builders.ts";
import { CacheObserver } from "./cache-observer.ts";

const blocks = (hashes: Uint32Array, from: number, to: number): Uint32Array =>
  hashes.subarray(2 * from, 2 * to);

function observer(watchedMax = 16): CacheObserver {
  return new CacheObserver({ watchedMax });
}

describe("CacheObserver", () => {
  const prompt = promptHashes(1, 20);

  test("what the engine stores of a prompt begins where its cache ended", () => {
    const observed = observer();
    observed.watch("d", prompt, at(0));
    observed.stored(blocks(prompt, 12, 20));
    expect(observed.finish("d")).toBe(12);
    expect(observed.size).toBe(0);
  });

  test("a prompt computed in chunks is one run", () => {
    const observed = observer();
    observed.watch("d", prompt, at(0));
    for (const [from, to] of [
      [4, 9],
      [9, 17],
      [17, 20],
    ] as const)
      observed.stored(blocks(prompt, from, to));
    expect(observed.finish("d")).toBe(4);
  });

  test("the oldest of too many prompts gives way", () => {
    const observed = observer(2);
    for (const id of ["a", "b", "c"]) observed.watch(id, prompt, at(0));
    expect(observed.size).toBe(2);
    expect(observed.finish("a")).toBeUndefined();
    expect(observed.finish("c")).toBe(20);
  });

  test("all blocks were cached when none was stored, and nothing is known of what was not watched", () => {
    const observed = observer();
    observed.watch("d", prompt, at(0));
    observed.stored(promptHashes(2, 8));
    expect(observed.finish("d")).toBe(20);
    expect(observed.finish("d")).toBeUndefined();
  });

  test("a prefix computed for an earlier prompt is not held against a later one", () => {
    const observed = observer();
    const shared = new Uint32Array(40);
    shared.set(blocks(prompt, 0, 10));
    shared.set(blocks(promptHashes(7, 20), 10, 20), 20);
    observed.watch("first", prompt, at(0));
    observed.watch("second", shared, at(1));
    observed.stored(prompt);
    observed.stored(blocks(shared, 10, 20));
    expect(observed.finish("first")).toBe(0);
    expect(observed.finish("second")).toBe(10);
  });

  test("blocks that the engine evicted and computed again count as computed", () => {
    const observed = observer();
    observed.watch("d", prompt, at(0));
    observed.stored(prompt);
    observed.watch("again", prompt, at(1));
    observed.stored(blocks(prompt, 6, 20));
    expect(observed.finish("again")).toBe(6);
  });

  test("forgets everything when the engine restarts", () => {
    const observed = observer();
    observed.watch("a", prompt, at(0));
    observed.clear();
    expect(observed.finish("a")).toBeUndefined();
  });
});
