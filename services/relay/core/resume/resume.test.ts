import { createHmac } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { TokenKey } from "../../../shared/core/placement-token/placement-token.ts";
import { chooseBuddy } from "./buddy.ts";
import { packIds, restoreStream, unpackIds, writeHead } from "./mirror-state.ts";
import { MirrorStore } from "./mirror-store.ts";
import { looseIdsMax, readResume, signResume, type ResumePoint } from "./resume-token.ts";

const key: TokenKey = {
  id: "r1",
  mac: (message) => createHmac("sha256", "secret").update(message).digest(),
};
const ids = fc
  .array(fc.nat({ max: 0xffffffff }), { maxLength: looseIdsMax })
  .map((list) => Uint32Array.from(list));

const resumePoint = fc
  .record({
    buddy: fc.string({ maxLength: 20 }),
    key: fc.uint8Array({ minLength: 16, maxLength: 16 }),
    bodySha256: fc.uint8Array({ minLength: 32, maxLength: 32 }),
    looseFrom: fc.nat({ max: 1_000_000 }),
    looseIds: ids,
    cleanBack: fc.nat({ max: 8 }),
    looseText: fc.string({ unit: "grapheme", maxLength: 20 }),
    finish: fc.option(fc.constantFrom('"stop"', '"length"'), { nil: undefined }),
    stop: fc.option(fc.record({ tail: fc.string(), sent: fc.nat(), skip: fc.nat() }), {
      nil: undefined,
    }),
    issuedUnixMs: fc.integer({ min: 0, max: 4e12 }),
  })
  .map(({ cleanBack, looseText, finish, stop, ...rest }): ResumePoint => {
    const index = rest.looseFrom + rest.looseIds.length;
    return {
      ...rest,
      point: {
        index,
        cleanIndex: Math.max(0, index - cleanBack),
        looseText,
        ...(stop === undefined ? {} : { stop }),
        ...(finish === undefined ? {} : { finish }),
      },
    };
  });

describe("resume token", () => {
  test("gives back what was signed, until it is too old", () => {
    fc.assert(
      fc.property(resumePoint, (resume) => {
        const token = signResume(resume, key) ?? "";
        expect(readResume(token, [key], resume.issuedUnixMs + 60_000)).toEqual(resume);
        expect(readResume(token, [key], resume.issuedUnixMs + 60_001)).toBe("expired");
        expect(readResume(token, [], resume.issuedUnixMs)).toBe("unknown_key");
      }),
    );
  });

  test("is refused with any bit flipped, and for any other text", () => {
    fc.assert(
      fc.property(resumePoint, fc.nat(), fc.nat({ max: 6 }), (resume, at, bit) => {
        const token = signResume(resume, key) ?? "";
        const place = at % token.length;
        const code = token.charCodeAt(place) ^ (1 << bit);
        const forged = token.slice(0, place) + String.fromCharCode(code) + token.slice(place + 1);
        expect(readResume(forged, [key], resume.issuedUnixMs)).toBeTypeOf("string");
      }),
      { numRuns: 1_000 },
    );
    fc.assert(
      fc.property(fc.string(), (text) => {
        expect(readResume(text, [key], 0)).toBeTypeOf("string");
      }),
    );
  });
});

describe("mirror store", () => {
  const store = (): MirrorStore =>
    new MirrorStore({ streamBytesMax: 4_096, bytesMax: 20_000, keepMs: 60_000 });
  const none = new Uint8Array(0);
  const grow = (one: MirrorStore, name: string, from: number, count: number, now = 0): number =>
    one.grow(
      name,
      { fromIndex: from, ids: packIds(new Uint32Array(count).fill(from)), head: none },
      now,
    );

  test("keeps growth without gaps, hands over once, and forgets in time", () => {
    const one = store();
    expect(grow(one, "a", 0, 3)).toBe(3);
    expect(grow(one, "a", 2, 3)).toBe(5);
    expect(unpackIds(one.take("a")?.ids ?? none)).toEqual(Uint32Array.from([0, 0, 2, 2, 2]));
    expect(one.take("a")).toBeUndefined();
    grow(one, "b", 0, 1, 1_000);
    one.expire(60_999);
    expect(one.size).toBe(1);
    one.expire(61_000);
    expect([one.size, one.bytes]).toEqual([0, 0]);
  });

  test("gives a stream up that has a gap or is too large, and others when there is no room", () => {
    const one = store();
    grow(one, "a", 0, 2);
    expect(grow(one, "a", 3, 1)).toBe(-1);
    expect(grow(one, "b", 0, 1_025)).toBe(-1);
    const kept = Array.from({ length: 30 }, (_, i) => grow(one, `s${String(i)}`, 0, 200));
    expect(kept.filter((count) => count === -1).length).toBeGreaterThan(10);
    expect(one.bytes).toBeLessThanOrEqual(20_000);
  });

  test("counts what streams take, those without ids and the room for growth included", () => {
    const one = store();
    const empty = Array.from({ length: 1_000 }, (_, i) => grow(one, `e${String(i)}`, 0, 0));
    expect(empty).toContain(-1);
    expect(one.size).toBeLessThan(400);
    expect(one.bytes).toBeLessThanOrEqual(20_000);
    for (let i = 0; i < 1_000; i++) one.remove(`e${String(i)}`);
    expect(one.bytes).toBe(0);
    for (let count = 0; count < 40; count++) {
      for (let i = 0; i < 30; i++) grow(one, `s${String(i)}`, 5 * count, 5);
      expect(one.bytes).toBeLessThanOrEqual(20_000);
    }
  });

  test("what is kept and what the token carries make the stream again", () => {
    fc.assert(
      fc.property(
        resumePoint,
        fc.nat({ max: 80 }),
        fc.nat({ max: 80 }),
        (resume, have, looseFrom) => {
          const from = looseFrom;
          const index = from + resume.looseIds.length;
          const all = Uint32Array.from({ length: Math.max(have, index) }, (_, i) => i + 7);
          const point = { ...resume.point, index, cleanIndex: 0 };
          const looseIds = all.slice(from, index);
          const head = writeHead({
            frame: { id: '"x"', created: "1", model: '"m"' },
            promptIds: Uint32Array.of(1, 2),
            traceparent: "",
          });
          const kept = { head, ids: packIds(all.slice(0, have)) };
          const restored = restoreStream(kept, { ...resume, point, looseFrom: from, looseIds });
          if (have < from) expect(restored).toBeUndefined();
          else {
            expect(restored?.generated).toEqual(all.slice(0, index));
            expect(restored?.promptIds).toEqual(Uint32Array.of(1, 2));
          }
        },
      ),
    );
  });
});

test("buddies are spread evenly, never oneself, and move only when theirs goes", () => {
  const relays = ["a", "b", "c", "d"].map((instance) => ({ instance, h2Address: "", epoch: 1 }));
  const counts = new Map<string, number>();
  for (let i = 0; i < 3_000; i++) {
    const name = Uint8Array.of(i & 255, i >> 8);
    const buddy = chooseBuddy(relays, "a", name)?.instance ?? "";
    counts.set(buddy, (counts.get(buddy) ?? 0) + 1);
    const without = chooseBuddy(
      relays.filter(({ instance }) => instance !== "d"),
      "a",
      name,
    );
    if (buddy !== "d") expect(without?.instance).toBe(buddy);
  }
  expect([...counts.keys()].sort()).toEqual(["b", "c", "d"]);
  for (const count of counts.values()) expect(Math.abs(count - 1_000)).toBeLessThan(120);
  expect(
    chooseBuddy([{ instance: "a", h2Address: "", epoch: 1 }], "a", new Uint8Array(4)),
  ).toBeUndefined();
});
