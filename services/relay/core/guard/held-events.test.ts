import { expect, test } from "vitest";
import { HeldEvents } from "./held-events.ts";

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();
const events = 'id: abc\ndata: {"text":"id: x"}\n\nid: def\ndata: 2\n\n: comment\n\n';

test("events that waited keep their names only where the stream is kept", () => {
  const held = new HeldEvents(1_000);
  for (const named of [true, false]) {
    expect(held.isEmpty).toBe(true);
    for (const part of events.split(/(?<=\n\n)/)) expect(held.add(Buffer.from(part))).toBe(true);
    expect(held.isEmpty).toBe(false);
    const plain = 'data: {"text":"id: x"}\n\ndata: 2\n\n: comment\n\n';
    expect(text(held.take(named))).toBe(named ? events : plain);
  }
});

test("says when more waits than should", () => {
  const held = new HeldEvents(10);
  expect(held.add(Buffer.alloc(10))).toBe(true);
  expect(held.add(Buffer.alloc(1))).toBe(false);
});
