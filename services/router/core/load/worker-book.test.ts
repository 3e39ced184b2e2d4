import { describe, expect, test } from "vitest";

import { at, reservation } from "../../../../test/support/router-builders.ts";
import type { MonoMs } from "../../../shared/core/ids.ts";
import { WorkerBook } from "./worker-book.ts";
import { column, rowLength, WorkerColumns } from "./worker-columns.ts";

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
      overdueMs: 0,
    });
    // d0 is computed, d1 half computed; d0 has decoded 5 of its 100 ms.
    expect(book.load(at(15))).toEqual({
      openRequests: 3,
      prefillBacklogMs: 15,
      queuedPrefillTokens: 750,
      decoding: 1,
      decodingContextTokens: 1_005,
      decodingTokensLeft: 95,
      overdueMs: 0,
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

  describe("ends that nobody has told of", () => {
    const open = (book: WorkerBook, when: number) => book.load(at(when)).openRequests;

    test("are taken off the count at the first report that shows them, whoever they are", () => {
      const book = bookOf([0, 0, 0]);
      expect(book.reconcile(report(500, 1))).toEqual([]);
      expect([open(book, 500), book.heldCount]).toEqual([1, 3]);
      book.close("d2", at(600));
      expect([open(book, 600), book.heldCount]).toEqual([0, 2]);
    });

    test("are not decoding any more", () => {
      const book = bookOf([0, 0, 0]);
      book.reconcile(report(500, 1));
      expect(book.load(at(500))).toMatchObject({ decoding: 1, decodingContextTokens: 1_100 });
    });

    test("are closed oldest first when a second of reports shows them", () => {
      const book = bookOf([0, 0, 0]);
      for (const when of [500, 700, 1_300]) expect(book.reconcile(report(when, 1))).toEqual([]);
      expect(book.reconcile(report(1_500, 1))).toEqual(["d0", "d1"]);
      for (const id of ["d0", "d1"]) book.close(id, at(1_500), false);
      expect([open(book, 1_500), book.heldCount]).toEqual([1, 1]);
    });

    test("count only so far as every report of that second shows them", () => {
      const book = bookOf([0, 0, 0]);
      book.reconcile(report(500, 2));
      book.reconcile(report(1_000, 0));
      expect(book.reconcile(report(1_500, 0))).toEqual(["d0"]);
      book.close("d0", at(1_500), false);
      expect(open(book, 1_500)).toBe(0);
      expect(book.reconcile(report(2_500, 0))).toEqual(["d1", "d2"]);
    });

    test("are none once a report shows all that is held", () => {
      const book = bookOf([0]);
      book.reconcile(report(500, 0));
      book.reconcile(report(1_000, 1));
      expect(open(book, 1_000)).toBe(1);
      expect(book.reconcile(report(1_500, 0))).toEqual([]);
      expect(book.reconcile(report(2_500, 0))).toEqual(["d0"]);
    });

    test("waiting requests count as well as running ones", () => {
      const book = bookOf([0, 0]);
      book.reconcile(report(500, 0, 2));
      book.reconcile(report(1_000, 1, 1));
      expect(open(book, 1_000)).toBe(2);
    });

    test("a request that may still be on its way is not one of them, nor one placed since", () => {
      const book = bookOf([0]);
      book.reconcile(report(50, 0));
      expect(open(book, 50)).toBe(1);
      book.open(reservation("later", at(55)), 100);
      book.reconcile(report(51, 0));
      expect(open(book, 55)).toBe(1);
    });

    test("one on its way hides a lost one from the count, not one known before", () => {
      const hidden = bookOf([0, 480]);
      hidden.reconcile(report(500, 1));
      expect(open(hidden, 500)).toBe(2);
      const known = bookOf([0]);
      known.reconcile(report(400, 0));
      known.open(reservation("d1", at(480)), 100);
      known.reconcile(report(500, 1));
      expect(open(known, 500)).toBe(1);
    });

    test("an end heard just after the report that showed it is not counted twice", () => {
      const book = bookOf([0, 0]);
      book.reconcile(report(500, 1));
      book.close("d1", at(530));
      expect(open(book, 530)).toBe(1);
    });

    test("an end heard later, or after another report, is one more", () => {
      const late = bookOf([0, 0]);
      late.reconcile(report(500, 1));
      late.close("d1", at(551));
      expect(open(late, 551)).toBe(0);
      const confirmed = bookOf([0, 0]);
      confirmed.reconcile(report(500, 1));
      confirmed.reconcile(report(600, 1));
      confirmed.close("d1", at(610));
      expect(open(confirmed, 610)).toBe(0);
    });

    test("a closing between a report's moment and its arrival does not clear a lost one", () => {
      const book = bookOf([0, 0, 0]);
      book.reconcile(report(500, 2));
      book.close("d2", at(605));
      book.reconcile(report(600, 2));
      expect(open(book, 610)).toBe(1);
    });

    test("never make the count negative, and mean nothing once reports do", () => {
      const book = bookOf([0, 0]);
      book.reconcile(report(500, 0));
      book.close("d0", at(900));
      book.close("d1", at(900));
      expect(open(book, 900)).toBe(0);
      book.open(reservation("d2", at(901)), 100);
      expect(open(book, 901)).toBe(1);
      book.reconcile(report(1_500, 0));
      book.forgetReports();
      expect(open(book, 1_500)).toBe(1);
    });
  });

  describe("an engine whose counters stand still", () => {
    const standing = (when: number, running: number) => ({ ...report(when, running), workDone: 7 });

    test("owes progress from the first token on that was expected", () => {
      const book = bookOf([0]);
      book.reconcile(standing(-100, 0));
      book.reconcile(standing(0, 0));
      expect(
        [5, 100, 700].map((when) => {
          book.reconcile(standing(when, 1));
          return book.load(at(when)).overdueMs;
        }),
      ).toEqual([0, 90, 690]);
      book.reconcile({ ...standing(800, 1), workDone: 8 });
      expect(book.load(at(800)).overdueMs).toBe(0);
    });

    test("has ended nothing that came since, also when its gauges do not count it", () => {
      const book = bookOf([100]);
      for (let when = 0; when <= 3_000; when += 100) {
        expect(book.reconcile(standing(when, 0))).toEqual([]);
      }
      expect(book.load(at(3_000))).toMatchObject({ openRequests: 1, overdueMs: 2_890 });
      book.reconcile({ ...standing(3_100, 0), workDone: 8 });
      expect(book.load(at(3_100))).toMatchObject({ openRequests: 0, overdueMs: 0 });
    });

    test("owes nothing for what has ended unheard", () => {
      const book = bookOf([0]);
      book.reconcile(standing(-50, 0));
      book.reconcile({ ...report(200, 0), workDone: 9 });
      book.reconcile({ ...report(900, 0), workDone: 9 });
      expect(book.load(at(900))).toMatchObject({ openRequests: 0, overdueMs: 0 });
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

  describe("in a row of columns", () => {
    const attached = () => {
      const columns = new WorkerColumns();
      columns.take();
      const row = columns.take();
      const book = bookOf([0, 0]);
      book.attach(columns, row);
      const read = (name: keyof typeof column) => columns.values[row * rowLength + column[name]];
      return { book, columns, row, read };
    };

    test("writes its lines when they are asked for, and says until when they hold", () => {
      const { book, read } = attached();
      expect(read("linesUntil")).toBe(-Infinity);
      book.renew(at(2));
      expect([read("linesFrom"), read("linesUntil"), read("openRequests")]).toEqual([2, 10, 2]);
      book.renew(at(15));
      // The first answer grows by one of its 100 tokens a ms until 110; the second prompt is computed at 20.
      expect([read("linesUntil"), read("decoding"), read("answerRate")]).toEqual([20, 1, 1]);
      expect([read("contextBase"), read("tokensLeftBase")]).toEqual([1_005, 95]);
    });

    test("marks them as no longer right at each change", () => {
      const { book, read } = attached();
      const changes: (() => unknown)[] = [
        () => {
          book.open(reservation("d9", at(3)), 100);
        },
        () => book.close("d0", at(3)),
        () => book.reconcile(report(4, 2)),
        () => {
          book.forgetReports();
        },
        () => {
          book.reset();
        },
      ];
      for (const change of changes) {
        book.renew(at(3));
        expect(read("linesUntil")).not.toBe(-Infinity);
        change();
        expect(read("linesUntil")).toBe(-Infinity);
      }
      expect(book.load(at(5))).toMatchObject({ openRequests: 0, prefillBacklogMs: 0 });
    });

    test("leaves the row alone once detached", () => {
      const { book, columns, read } = attached();
      book.renew(at(2));
      book.detach();
      columns.values.fill(7);
      book.close("d0", at(3));
      book.load(at(50));
      expect([read("linesUntil"), read("openRequests")]).toEqual([7, 7]);
    });
  });
});
