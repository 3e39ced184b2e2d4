import { expect, test } from "vitest";
import { monoMs } from "../../shared/core/ids.ts";
import { Readiness, type ReadinessFacts } from "./readiness.ts";

const all: ReadinessFacts = {
  peersSynced: 1,
  isToldByElder: true,
  members: 2,
  runtimesSettled: true,
};

function judge(steps: readonly (readonly [number, Partial<ReadinessFacts>])[], peersExpected = 1) {
  const said: string[] = [];
  const readiness = new Readiness({
    peersExpected,
    peerWaitMs: 3_000,
    startedAt: monoMs(0),
    onKnowledge: (knowledge) => said.push(knowledge),
    onServing: (serving) => said.push(serving ? "serving" : "not_serving"),
  });
  for (const [now, facts] of steps) readiness.tick(monoMs(now), { ...all, ...facts });
  return said;
}

test("serves with complete knowledge once a peer that has run for a while told it", () => {
  expect(judge([[100, {}]])).toEqual(["complete", "serving"]);
});

test("says nothing before a worker is known and every peer is heard or waited for", () => {
  expect(judge([[100, { members: 0 }]])).toEqual([]);
  expect(judge([[2_900, { peersSynced: 0, isToldByElder: false }]])).toEqual([]);
  expect(judge([[3_000, { peersSynced: 0, isToldByElder: false }]])).toEqual([
    "partial",
    "serving",
  ]);
});

test("routers that start together, and one alone, know only a part: workers return one by one", () => {
  const fresh = { isToldByElder: false, members: 1 };
  expect(judge([[100, fresh]])).toEqual(["partial", "serving"]);
  expect(judge([[100, { ...fresh, peersSynced: 0 }]], 0)).toEqual(["partial", "serving"]);
});

test("knowledge grows when an older peer is heard later, and never shrinks", () => {
  const alone = { peersSynced: 0, isToldByElder: false };
  expect(
    judge([
      [3_000, alone],
      [3_100, {}],
      [3_200, alone],
    ]),
  ).toEqual(["partial", "serving", "complete"]);
});
