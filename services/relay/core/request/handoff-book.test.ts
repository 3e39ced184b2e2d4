import { expect, test } from "vitest";
import { HandoffBook } from "./handoff-book.ts";

test("counts what waits, has room for a first one whatever its size, forgets when leases end", () => {
  const book = new HandoffBook(100, 30_000);
  expect(book.hasRoom("p", 1_000)).toBe(true);
  const one = book.add("p", 60);
  const two = book.add("p", 30);
  expect([book.hasRoom("p", 10), book.hasRoom("p", 11), book.hasRoom("q", 500)]).toEqual([
    true,
    false,
    true,
  ]);
  // A prefill that is not over holds its room for as long as it takes.
  book.expire(1e12);
  expect(book.tokens).toBe(90);
  book.made("p", one, 1_000);
  book.expire(30_999);
  expect(book.tokens).toBe(90);
  book.expire(31_000);
  expect(book.tokens).toBe(30);
  book.remove("p", two);
  book.remove("p", two);
  expect(book.tokens).toBe(0);
});
