import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { judgeTokens } from "./token-judge.ts";

const none = { lost: 0, doubled: 0, reordered: 0, foreign: 0 };

describe("a judge of streams", () => {
  const answer = [7, 3, 9, 4, 8];

  test.each([
    ["the whole answer", [7, 3, 9, 4, 8], true, none],
    ["a beginning that goes on", [7, 3], false, none],
    ["nothing yet", [], false, none],
    ["a hole", [7, 9, 4, 8], true, { ...none, lost: 1 }],
    ["an end that is missing", [7, 3, 9], true, { ...none, lost: 2 }],
    ["a token twice", [7, 3, 3, 9, 4, 8], true, { ...none, doubled: 1 }],
    ["a stream begun anew", [7, 3, 9, 7, 3, 9, 4, 8], true, { ...none, doubled: 3 }],
    ["two exchanged", [7, 9, 3, 4, 8], true, { ...none, reordered: 1 }],
    ["one of another answer", [7, 3, 1, 9, 4, 8], true, { ...none, foreign: 1 }],
    ["one in the place of another", [7, 3, 1, 4, 8], true, { ...none, lost: 1, foreign: 1 }],
  ] as const)("sees %s", (_name, received, complete, verdict) => {
    expect(judgeTokens(answer, received, complete)).toEqual(verdict);
  });

  test("is content with an answer that holds an id several times", () => {
    expect(judgeTokens([5, 5, 6, 5], [5, 5, 6, 5], true)).toEqual(none);
  });

  test("finds a difference exactly where there is one", () => {
    const ids = fc.array(fc.integer({ min: 0, max: 6 }), { maxLength: 12 });
    fc.assert(
      fc.property(ids, ids, fc.boolean(), (expected, received, complete) => {
        const { lost, doubled, reordered, foreign } = judgeTokens(expected, received, complete);
        const isSame = complete
          ? expected.length === received.length
          : received.length <= expected.length;
        const isRight = isSame && received.every((id, index) => id === expected[index]);
        expect(lost + doubled + reordered + foreign === 0).toBe(isRight);
      }),
    );
  });
});
