import { describe, expect, test } from "vitest";

import {
  at,
  memberFacts,
  promptHashes,
  routerCore,
} from "../../../../test/support/router-builders.ts";
import { workerId } from "../../../shared/core/ids.ts";
import type { RouterCore } from "../router-core.ts";
import { IndexRepair } from "./index-repair.ts";

const room = { lostPairs: 10, blockCount: 100, blocksMax: 1_000 };
const [w0, w1] = [workerId("w0"), workerId("w1")];

describe("IndexRepair", () => {
  test("waits until there is room for what was lost", () => {
    const repair = new IndexRepair();
    expect(repair.isDue(w0, { ...room, lostPairs: 0 }, at(0))).toBe(false);
    expect(repair.isDue(w0, { ...room, blockCount: 945 }, at(0))).toBe(false);
    expect(repair.isDue(w0, { ...room, blockCount: 940 }, at(0))).toBe(true);
  });

  test("asks one worker a second, and each at most once a minute", () => {
    const repair = new IndexRepair();
    expect(repair.isDue(w0, room, at(0))).toBe(true);
    expect(repair.isDue(w1, room, at(999))).toBe(false);
    expect(repair.isDue(w1, room, at(1_000))).toBe(true);
    expect(repair.isDue(w0, room, at(59_999))).toBe(false);
    expect(repair.isDue(w0, room, at(60_000))).toBe(true);
    repair.forget(w0);
    expect(repair.isDue(w0, room, at(61_000))).toBe(true);
  });
});

/** Sends a worker's whole cache, as its stream would. */
function sendAll(core: RouterCore, key: ReturnType<typeof workerId>, hashes: Uint32Array): void {
  let xorLo = 0;
  let xorHi = 0;
  for (let i = 0; i < hashes.length; i += 2) {
    xorLo ^= hashes[i] as number;
    xorHi ^= hashes[i + 1] as number;
  }
  const blockCount = hashes.length / 2;
  const part = { baseSeq: 0, hashes, last: true, xorLo, xorHi, blockCount };
  expect(core.snapshot(key, part, at(0)).kind).toBe("applied");
}

test("a router that was full asks for what it dropped once others leave, and then knows it", () => {
  const core = routerCore({ blocksMax: 1_000 });
  core.admit(memberFacts(0), 1, at(0));
  core.admit(memberFacts(1), 2, at(0));
  sendAll(core, w0, promptHashes(1, 700));
  const second = promptHashes(2, 700);
  sendAll(core, w1, second);
  expect(core.index.droppedAtBlocksMax).toBe(400);
  expect([core.repairDue(w0, at(5_000)), core.repairDue(w1, at(5_000))]).toEqual([false, false]);

  core.goodbye(w0);
  expect(core.repairDue(w1, at(6_000))).toBe(true);
  sendAll(core, w1, second);
  expect(core.index.blockCount).toBe(700);
  expect(core.repairDue(w1, at(120_000))).toBe(false);
});
