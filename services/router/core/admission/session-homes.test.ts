import { describe, expect, test } from "vitest";
import {
  at,
  memberFacts,
  placeInput,
  routerCore,
} from "../../../../test/support/router-builders.ts";
import { workerId } from "../../../shared/core/ids.ts";
import { SessionHomes } from "./session-homes.ts";

describe("SessionHomes", () => {
  test("remembers the last worker of a conversation, for a while, of a bounded number", () => {
    const homes = new SessionHomes({ sessionsMax: 2, keptMs: 1_000 });
    homes.placed("a", workerId("w0"), at(0));
    homes.placed("b", workerId("w1"), at(10));
    homes.placed("a", workerId("w1"), at(20));
    homes.placed("c", workerId("w0"), at(30));
    expect([
      homes.homeOf("a", at(40)),
      homes.homeOf("b", at(40)),
      homes.homeOf("c", at(40)),
    ]).toEqual(["w1", undefined, "w0"]);
    expect(homes.homeOf("a", at(1_021))).toBeUndefined();
    homes.placed("", workerId("w0"), at(50));
    expect(homes.size).toBe(2);
  });
});

describe("a conversation's worker", () => {
  const setUp = (affinityMs: number) => {
    const core = routerCore({ affinityMs });
    for (const i of [0, 1, 2]) core.admit(memberFacts(i), i + 1, at(0));
    const place = (session: string, ms: number) =>
      core.place(placeInput({ session, hashes: new Uint32Array(0) }), at(ms));
    return { core, place };
  };

  test("is preferred by its price, as a term of the others' cost", () => {
    const { core, place } = setUp(5);
    const first = place("s", 0);
    core.release(first.id, at(10));
    // Another's request is on its way elsewhere: without the price nothing tells the workers apart but their id.
    const again = place("s", 1_000);
    expect(again.workerId).toBe(first.workerId);
    expect(again.marginMs).toBeCloseTo(5);
    for (const candidate of again.candidates) {
      const term = candidate.terms.find((t) => t.name === "affinity");
      expect(term?.ms).toBe(candidate.workerId === first.workerId ? 0 : 5);
    }
  });

  test("is left as soon as its queue costs more", () => {
    const { place } = setUp(5);
    const first = place("s", 0);
    expect(place("s", 1).workerId).not.toBe(first.workerId);
  });

  test("means nothing at a price of 0, or once it has left", () => {
    const free = setUp(0);
    free.place("s", 0);
    expect(free.place("s", 1_000).candidates.every((c) => c.terms.at(-1)?.ms === 0)).toBe(true);
    const { core, place } = setUp(5);
    const first = place("s", 0);
    core.goodbye(workerId(first.workerId ?? ""));
    const later = place("s", 1_000);
    expect(later.candidates.every((c) => c.terms.at(-1)?.ms === 0)).toBe(true);
  });
});
