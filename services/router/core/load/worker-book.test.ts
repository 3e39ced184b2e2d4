import { describe, expect, test } from "vitest";

import { at, reservation } from "../../../../test/support/router-builders.ts";
import type { MonoMs } from "../../../shared/core/ids.ts";
import { WorkerBook } from "./worker-book.ts";

const report = (when: number, running: number, waiting = 0) => ({
  running,
  waiting,
  kvUsageRatio: 0,
  at: at(when),
});

/** A book with one reservation of 10 ms prefill and 100 ms decode opened at each time. */
function bookOf(times: readonly number[]): WorkerBook {
  const book = new WorkerBook();
  times.forEach((time, i) => {
    book.open(reservation(`d${i}`, at(time)), 100);
  });
  return book;
}

describe("WorkerBook", () => {
  test("computes prompts one after the other and decodes them together", () => {
    const book = bookOf([0, 0, 0]);
    expect(book.prefillFreeAt).toBe(30);
    expect(book.load(at(0))).toEqual({
      openRequests: 3,
      prefillBacklogMs: 30,
      queuedPrefillTokens: 1_500,
      decoding: 0,
      decodingContextTokens: 0,
      decodingTokensLeft: 0,
    });
    // d0 is computed, d1 half computed; d0 has decoded 5 of its 100 ms.
    expect(book.load(at(15))).toEqual({
      openRequests: 3,
      prefillBacklogMs: 15,
      queuedPrefillTokens: 750,
      decoding: 1,
      decodingContextTokens: 1_005,
      decodingTokensLeft: 95,
    });
  });

  test("a request that overstays keeps its full context and has no tokens left", () => {
    expect(bookOf([0]).load(at(5_000))).toMatchObject({
      decoding: 1,
      decodingContextTokens: 1_100,
      decodingTokensLeft: 0,
    });
  });

  test("closing one that waits moves those behind it forward, not those before it", () => {
    const book = bookOf([0, 0, 0]);
    const ends = (): Record<string, MonoMs> =>
      Object.fromEntries([...book.reservations()].map((r) => [r.decisionId, r.prefillEndsAt]));
    book.close("d1", at(5));
    expect(ends()).toEqual({ d0: 10, d2: 20 });
    expect(book.prefillFreeAt).toBe(20);
  });

  test("closing one in the middle of its prefill gives back only what is left of it", () => {
    const book = bookOf([0, 0]);
    book.close("d0", at(4));
    expect(book.prefillFreeAt).toBe(14);
  });

  test("closing one whose prefill is over changes nobody's times", () => {
    const book = bookOf([0, 0]);
    book.close("d0", at(12));
    expect(book.prefillFreeAt).toBe(20);
    expect(book.close("d0", at(12))).toBeUndefined();
  });

  test("moves those behind it even when their own prefill takes no time", () => {
    const book = new WorkerBook();
    book.open(reservation("a", at(0)), 100);
    book.open(reservation("b", at(0), { prefillMs: 0, uncachedTokens: 0 }), 100);
    book.close("a", at(5));
    expect(book.load(at(5))).toMatchObject({ decoding: 1, prefillBacklogMs: 0 });
  });

  describe("reconciliation", () => {
    test("closes the oldest surplus when two reports in a row show it", () => {
      const book = bookOf([0, 0, 0]);
      expect(book.reconcile(report(500, 1))).toEqual([]);
      expect(book.reconcile(report(1_000, 1))).toEqual(["d0", "d1"]);
    });

    test("counts only the surplus that both reports show", () => {
      const book = bookOf([0, 0, 0]);
      expect(book.reconcile(report(500, 2))).toEqual([]);
      expect(book.reconcile(report(1_000, 0))).toEqual(["d0"]);
    });

    test("waiting requests count as well as running ones", () => {
      const book = bookOf([0, 0]);
      book.reconcile(report(500, 0, 2));
      expect(book.reconcile(report(1_000, 1, 1))).toEqual([]);
    });

    test("a request that may still be on its way when the report was made is no surplus", () => {
      const book = bookOf([0]);
      expect(book.reconcile(report(40, 0))).toEqual([]);
      expect(book.reconcile(report(50, 0))).toEqual([]);
      expect(book.reconcile(report(51, 0))).toEqual([]);
      // The first report that could have counted it was the one before.
      expect(book.reconcile(report(120, 0))).toEqual(["d0"]);
    });

    test("surplus that one report does not show starts anew", () => {
      const book = bookOf([0]);
      book.reconcile(report(500, 0));
      book.reconcile(report(1_000, 1));
      expect(book.reconcile(report(1_500, 0))).toEqual([]);
      expect(book.reconcile(report(2_000, 0))).toEqual(["d0"]);
    });
  });

  describe("hard ends", () => {
    test("come after four times the prediction and half a minute", () => {
      const book = bookOf([0]);
      expect(book.expired(at(30_439))).toEqual([]);
      expect(book.expired(at(30_440))).toEqual(["d0"]);
    });

    test("are put off while the engine's count says that the request must still run", () => {
      const book = bookOf([0]);
      book.reconcile(report(30_000, 1));
      expect(book.expired(at(59_999))).toEqual([]);
      expect(book.expired(at(60_000))).toEqual(["d0"]);
    });

    test("are not put off when the engine runs fewer than are open", () => {
      const book = bookOf([0, 30_000]);
      book.reconcile(report(30_020, 1));
      expect(book.expired(at(30_440))).toEqual(["d0"]);
    });
  });
});
