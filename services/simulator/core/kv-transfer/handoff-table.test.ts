import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { monoMs } from "../../../shared/core/ids.ts";
import { HandoffTable } from "./handoff-table.ts";

const open = (table: HandoffTable, id: string, now: number, blocks = 3): void => {
  table.open(
    { id, blocks: Array.from({ length: blocks }, (_, i) => i), promptTokens: 40, cachedTokens: 16 },
    monoMs(now),
  );
};

describe("leases of hand-offs", () => {
  test("end after their time, and a heartbeat gives two thirds of it from then", () => {
    const table = new HandoffTable(30_000);
    open(table, "a", 0);
    open(table, "b", 0);
    expect(table.heartbeat("b", monoMs(25_000))).toBe(true);
    expect(table.nextExpiry()).toBe(30_000);
    expect(table.expire(monoMs(30_000)).map((handoff) => handoff.id)).toEqual(["a"]);
    expect(table.nextExpiry()).toBe(45_000);
    expect(table.expire(monoMs(44_999))).toEqual([]);
    expect(table.expire(monoMs(45_000))).toHaveLength(1);
    expect(table.ended).toEqual({ pulled: 0, aborted: 0, expired: 2 });
  });

  test("are not shortened by an early heartbeat", () => {
    const table = new HandoffTable(30_000);
    open(table, "a", 0);
    table.heartbeat("a", monoMs(1_000));
    expect(table.nextExpiry()).toBe(30_000);
  });

  test("a hand-off is single-use: what comes after its end is ignored", () => {
    const table = new HandoffTable(1_000);
    open(table, "a", 0);
    expect(table.end("a", "pulled")?.blocks).toHaveLength(3);
    expect(table.end("a", "pulled")).toBeUndefined();
    expect(table.heartbeat("a", monoMs(1))).toBe(false);
    expect(table.get("a")).toBeUndefined();
    expect(table.ended.pulled).toBe(1);
  });

  test("blocks held are those of live hand-offs, whatever happens in whatever order", () => {
    const action = fc.record({
      kind: fc.constantFrom("open" as const, "beat" as const, "end" as const, "expire" as const),
      id: fc.constantFrom("a", "b", "c", "d"),
      ms: fc.integer({ min: 0, max: 700 }),
    });
    fc.assert(
      fc.property(fc.array(action, { maxLength: 60 }), (actions) => {
        const table = new HandoffTable(1_000);
        const until = new Map<string, number>();
        let now = 0;
        for (const { kind, id, ms } of actions) {
          now += ms;
          if (kind === "open" && !until.has(id)) {
            open(table, id, now, 2);
            until.set(id, now + 1_000);
          } else if (kind === "beat") {
            const had = until.get(id);
            expect(table.heartbeat(id, monoMs(now))).toBe(had !== undefined);
            if (had !== undefined) until.set(id, Math.max(had, now + 2_000 / 3));
          } else if (kind === "end") {
            expect(table.end(id, "aborted") !== undefined).toBe(until.delete(id));
          } else if (kind === "expire") {
            const over = [...until].filter(([, end]) => end <= now).map(([key]) => key);
            expect(
              table
                .expire(monoMs(now))
                .map((handoff) => handoff.id)
                .sort(),
            ).toEqual(over.sort());
            for (const key of over) until.delete(key);
          }
          expect(table.held).toBe(until.size);
          expect(table.heldBlocks).toBe(2 * until.size);
        }
      }),
    );
  });
});
