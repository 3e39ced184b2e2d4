import { describe, expect, test } from "vitest";
import { monoMs as at } from "../../../../shared/core/ids.ts";
import { LinkBook, type LinkEnds } from "./link-book.ts";

const mib = 1 << 20;

function linkBook(linksMax = 16): LinkBook {
  return new LinkBook({
    sameHost: { latencyMs: 2, bytesPerMs: 4 * mib },
    acrossHosts: { latencyMs: 10, bytesPerMs: mib },
    linksMax,
  });
}

const ends = (from: number, to: number, isSameHost = false): LinkEnds => ({ from, to, isSameHost });

function forecast(book: LinkBook, link: LinkEnds, bytes: number, prefillMs = 0): [number, number] {
  const into = { waitMs: 0, moveMs: 0 };
  book.forecast(link, bytes, prefillMs, into);
  return [into.waitMs, into.moveMs];
}

describe("LinkBook", () => {
  test("takes an unknown link for the prior of its domain", () => {
    const book = linkBook();
    expect(forecast(book, ends(0, 1), 100 * mib)[1]).toBeCloseTo(110);
    expect(forecast(book, ends(0, 1, true), 100 * mib)[1]).toBeCloseTo(27);
    expect(forecast(book, ends(0, 1), 0)).toEqual([0, 0]);
  });

  test("learns latency and speed of a link, and of its domain for links not yet used", () => {
    const book = linkBook();
    // In truth 40 ms and a quarter of the speed.
    for (let n = 0; n < 60; n++) {
      const mibs = 20 + ((n * 37) % 300);
      book.observed(ends(0, 1), mibs * mib, 40 + 4 * mibs, at(0));
    }
    const known = book.known(ends(0, 1));
    expect(known.latencyMs).toBeGreaterThan(25);
    expect(known.latencyMs).toBeLessThan(55);
    expect(known.bytesPerMs / mib).toBeCloseTo(0.25, 1);
    // Another link of the domain is believed to be alike, one within a host is not.
    expect(forecast(book, ends(5, 6), 100 * mib)[1]).toBeGreaterThan(350);
    expect(forecast(book, ends(5, 6, true), 100 * mib)[1]).toBeCloseTo(27);
  });

  test("keeps links apart: one that is slow says less of another than of itself", () => {
    const book = linkBook();
    for (let n = 0; n < 40; n++) {
      book.observed(ends(0, 1), 100 * mib, 2_000, at(0));
      book.observed(ends(0, 2), 100 * mib, 110, at(0));
    }
    expect(forecast(book, ends(0, 1), 100 * mib)[1]).toBeGreaterThan(1_900);
    expect(forecast(book, ends(0, 2), 100 * mib)[1]).toBeLessThan(150);
  });

  test("bytes under way are waited for, less what drains during the prefill; closed ones are not", () => {
    const book = linkBook();
    const link = book.opened(ends(0, 1), 200 * mib, at(0));
    expect(forecast(book, ends(0, 1), mib)[0]).toBeCloseTo(200);
    expect(forecast(book, ends(0, 1), mib, 150)[0]).toBeCloseTo(50);
    expect(forecast(book, ends(0, 1), mib, 500)[0]).toBe(0);
    expect(forecast(book, ends(1, 0), mib)[0]).toBe(0);
    book.closed(link, 200 * mib);
    expect([book.inFlight(ends(0, 1)), forecast(book, ends(0, 1), mib)[0]]).toEqual([0, 0]);
  });

  test("a transfer of an engine that has left takes nothing off the link of one that got its row", () => {
    const book = linkBook();
    const old = book.opened(ends(0, 1), 200 * mib, at(0));
    book.forget(1);
    const link = book.opened(ends(0, 1), 50 * mib, at(1));
    book.closed(old, 200 * mib);
    expect(book.inFlight(ends(0, 1))).toBe(50 * mib);
    book.closed(link, 50 * mib);
    expect(book.inFlight(ends(0, 1))).toBe(0);
  });

  test("ignores what cannot have been measured", () => {
    const book = linkBook();
    for (const [bytes, ms] of [
      [0, 5],
      [mib, 0],
      [mib, -1],
      [mib, Number.NaN],
      [mib, Infinity],
    ] as const) {
      book.observed(ends(0, 1), bytes, ms, at(0));
    }
    expect(forecast(book, ends(0, 1), 100 * mib)[1]).toBeCloseTo(110);
  });

  test("holds so many links; an idle one makes room before one in use", () => {
    const book = linkBook(4);
    book.opened(ends(0, 1), mib, at(0));
    for (let to = 2; to < 40; to++) book.observed(ends(0, to), mib, 12, at(0));
    expect(book.linkCount).toBe(4);
    expect(book.inFlight(ends(0, 1))).toBe(mib);
    book.forget(0);
    expect(book.linkCount).toBe(0);
  });

  test("a link that was given nothing for a minute is taken for its domain again, unless bytes are under way", () => {
    const book = linkBook();
    for (let n = 0; n < 40; n++) book.observed(ends(0, 1), 100 * mib, 5_000, at(n));
    for (let n = 0; n < 100; n++) book.observed(ends(0, 2), 100 * mib, 110, at(100 + n));
    book.opened(ends(0, 3), mib, at(10));
    book.tick(at(60_038));
    expect([forecast(book, ends(0, 1), 100 * mib)[1] > 3_000, book.linkCount]).toEqual([true, 3]);
    book.tick(at(60_050));
    expect([forecast(book, ends(0, 1), 100 * mib)[1] < 500, book.linkCount]).toEqual([true, 2]);
    expect(book.inFlight(ends(0, 3))).toBe(mib);
  });
});
