import { describe, expect, test } from "vitest";
import { relaysWanted } from "./relay-count.ts";

const plain = { configured: "auto" as const, router: {}, worker: {}, members: [{}, {}] };

describe("relaysWanted", () => {
  test("wants none where every worker serves whole requests", () => {
    expect(relaysWanted(plain)).toBe(0);
    expect(relaysWanted({ ...plain, members: [{ engine: { role: "both" } }] })).toBe(0);
  });

  test("wants one as soon as a worker has one side of pairs, wherever its role is set", () => {
    expect(relaysWanted({ ...plain, members: [{}, { engine: { role: "prefill" } }] })).toBe(1);
    expect(relaysWanted({ ...plain, worker: { engine: { role: "decode" } } })).toBe(1);
    const overruled = { engine: { role: "both" } };
    expect(
      relaysWanted({
        ...plain,
        worker: { engine: { role: "decode" } },
        members: [overruled, overruled],
      }),
    ).toBe(0);
  });

  test("wants one when the router guards streams", () => {
    expect(relaysWanted({ ...plain, router: { stream: { guard: "relay" } } })).toBe(1);
    expect(relaysWanted({ ...plain, router: { stream: { pools: { big: "relay" } } } })).toBe(1);
    expect(relaysWanted({ ...plain, router: { stream: { guard: "off" } } })).toBe(0);
    expect(relaysWanted({ ...plain, router: { stream: { guard: "pairs" } } })).toBe(0);
  });

  test("takes the number that is set, also 0", () => {
    expect(relaysWanted({ ...plain, configured: 3 })).toBe(3);
    const paired = { ...plain, configured: 0, worker: { engine: { role: "decode" } } };
    expect(relaysWanted(paired)).toBe(0);
  });
});
