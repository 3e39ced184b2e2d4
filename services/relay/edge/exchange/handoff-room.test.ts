import { describe, expect, test } from "vitest";
import { HandoffBook } from "../../core/request/handoff-book.ts";
import { HandoffRoom } from "./handoff-room.ts";

function begin(): { readonly book: HandoffBook; readonly room: HandoffRoom } {
  const book = new HandoffBook(1_000, 30_000);
  return { book, room: new HandoffRoom(book, "p0", 100) };
}

describe("the room of a hand-off", () => {
  test("is given back when decode has pulled", () => {
    const { book, room } = begin();
    room.made(0);
    room.prefillEnded("done");
    expect(book.tokens).toBe(100);
    room.pulled();
    expect(book.tokens).toBe(0);
  });

  test("is given back when prefill failed, or made the answer itself", () => {
    const failed = begin();
    failed.room.prefillEnded("lost");
    expect(failed.book.tokens).toBe(0);
    const final = begin();
    final.room.made(0);
    final.room.prefillEnded("done");
    final.room.answerEnded("not_started");
    expect(final.book.tokens).toBe(0);
  });

  test("stays until the lease ends when the engine that was to pull is lost", () => {
    const { book, room } = begin();
    room.made(0);
    room.prefillEnded("done");
    room.answerEnded("lost");
    book.expire(29_999);
    expect(book.tokens).toBe(100);
    book.expire(30_000);
    expect(book.tokens).toBe(0);
  });

  test("of legs that run at once goes with whichever ends last", () => {
    const early = begin();
    early.room.pulled();
    early.room.answerEnded("done");
    early.room.prefillEnded("done");
    expect(early.book.tokens).toBe(0);
    const lost = begin();
    lost.room.answerEnded("lost");
    lost.room.prefillEnded("cancelled");
    expect(lost.book.tokens).toBe(0);
  });
});
