import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { SequenceCheck } from "./peer-link.ts";

describe("SequenceCheck", () => {
  test("a snapshot may start anywhere; what follows it has no gaps", () => {
    const check = new SequenceCheck();
    expect(check.receive(7, true)).toBe("apply");
    expect([check.receive(8, false), check.receive(9, false), check.expected]).toEqual([
      "apply",
      "apply",
      10,
    ]);
  });

  test("anything before the first snapshot asks for one, once", () => {
    const check = new SequenceCheck();
    expect([check.receive(1, false), check.receive(2, false)]).toEqual(["resync", "ignore"]);
    expect(check.receive(3, true)).toBe("apply");
  });

  test("a gap asks for a snapshot, and nothing is applied until it comes", () => {
    const check = new SequenceCheck();
    check.receive(1, true);
    expect([check.receive(3, false), check.receive(2, false), check.receive(4, false)]).toEqual([
      "resync",
      "ignore",
      "ignore",
    ]);
    expect([check.receive(5, true), check.receive(6, false)]).toEqual(["apply", "apply"]);
  });

  test("what was applied before is ignored", () => {
    const check = new SequenceCheck();
    check.receive(1, true);
    check.receive(2, false);
    expect([check.receive(2, false), check.receive(1, false), check.receive(3, false)]).toEqual([
      "ignore",
      "ignore",
      "apply",
    ]);
  });

  test("applies each number once and only in order, whatever is lost, doubled or late", () => {
    fc.assert(
      fc.property(
        fc.array(fc.record({ seq: fc.nat(12), isSnapshot: fc.boolean() })),
        (messages) => {
          const check = new SequenceCheck();
          let last: number | undefined;
          let isAsked = false;
          for (const { seq, isSnapshot } of messages) {
            const outcome = check.receive(seq, isSnapshot);
            if (isSnapshot) {
              expect(outcome).toBe("apply");
              last = seq;
              isAsked = false;
            } else if (outcome === "apply") {
              expect([isAsked, seq]).toEqual([false, (last ?? NaN) + 1]);
              last = seq;
            } else if (outcome === "resync") {
              expect(isAsked).toBe(false);
              isAsked = true;
            } else if (!isAsked) expect(seq).toBeLessThanOrEqual(last ?? -1);
          }
        },
      ),
    );
  });
});
