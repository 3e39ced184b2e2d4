import { describe, expect, test } from "vitest";
import { at } from "../../../../test/support/router-builders.ts";
import { workerId } from "../../../shared/core/ids.ts";
import { roomDefaults, WorkerRooms, type RoomOptions, type RoomQuestion } from "./worker-rooms.ts";

const w = workerId("w0");
const options: RoomOptions = { ...roomDefaults, queueMsTarget: 100, busyRatioMax: 1 };
const rooms = (over: Partial<RoomOptions> = {}): WorkerRooms =>
  new WorkerRooms({ ...options, ...over });
const question = (over: Partial<RoomQuestion> = {}): RoomQuestion => ({
  worker: w,
  openRequests: 3,
  bookBacklogMs: 10_000,
  report: undefined,
  runningMax: 0,
  capacityTokens: 10_000,
  newTokens: 1_000,
  stepMs: 10,
  itlMs: 0,
  ...over,
});
const report = (ms: number, over: { waiting?: number; kvUsageRatio?: number } = {}) => ({
  running: 3,
  waiting: 0,
  kvUsageRatio: 0.5,
  at: at(ms),
  ...over,
});
const prompt = { workMs: 80, tokens: 500 };

describe("WorkerRooms", () => {
  test("a worker has room until the work before a request exceeds the target, and again when it has run down", () => {
    const r = rooms();
    expect(r.roomFor(question(), at(0)).at).toBe(9_900);
    r.opened(w, prompt, 0);
    expect(r.roomFor(question(), at(0))).toEqual({ at: 0, isFull: false });
    r.opened(w, prompt, 0);
    expect(r.roomFor(question(), at(0))).toEqual({ at: 60, isFull: false });
    expect(r.roomFor(question(), at(60)).at).toBe(60);
    // What the book no longer believes in does not count.
    expect(r.roomFor(question({ bookBacklogMs: 50 }), at(0)).at).toBe(0);
  });

  test("an idle worker takes anything", () => {
    const idle = question({ openRequests: 0, newTokens: 1e9, itlMs: 1 });
    expect(rooms().roomFor(idle, at(5))).toEqual({ at: 5, isFull: false });
  });

  test("a worker with as many requests as it may have, or whose steps are too slow, is full", () => {
    const r = rooms({ openMax: 3 });
    expect(r.roomFor(question(), at(0)).isFull).toBe(true);
    expect(rooms().roomFor(question({ runningMax: 3 }), at(0)).isFull).toBe(true);
    expect(rooms().roomFor(question({ runningMax: 4 }), at(0)).isFull).toBe(false);
    expect(r.roomFor(question({ runningMax: 4 }), at(0)).isFull).toBe(true);
    expect(rooms().roomFor(question({ itlMs: 9 }), at(0)).isFull).toBe(true);
    expect(rooms().roomFor(question({ itlMs: 11 }), at(0)).isFull).toBe(false);
  });

  test("memory counts what the engine said and what it cannot have counted yet", () => {
    const r = rooms({ queueMsTarget: 1_000 });
    const told = question({ report: report(0), newTokens: 4_000, bookBacklogMs: 0 });
    expect(r.roomFor(told, at(0)).isFull).toBe(false);
    r.opened(w, prompt, 0);
    r.opened(w, prompt, 0);
    expect(r.roomFor(told, at(0)).isFull).toBe(true);
    // A later report has counted them.
    r.reported(w, report(500), 10);
    expect(r.roomFor(told, at(500)).isFull).toBe(false);
    // Those that wait in the engine hold no memory yet.
    r.reported(w, report(600, { waiting: 2 }), 10);
    expect(r.roomFor(told, at(600)).isFull).toBe(true);
  });

  test("a report that nobody waits ends a backlog, one that many wait brings it back", () => {
    const r = rooms();
    for (let i = 0; i < 5; i++) r.opened(w, prompt, 0);
    expect(r.backlogMs(w, 1e9, at(100))).toBe(300);
    r.reported(w, report(100), 20);
    expect(r.backlogMs(w, 1e9, at(100))).toBe(20);
    r.reported(w, report(110, { waiting: 3 }), 20);
    expect(r.backlogMs(w, 1e9, at(110))).toBeCloseTo(3 * 80 * 0.97);
  });

  test("learns how long work takes from reports, and not from a worker short of memory", () => {
    const r = rooms();
    for (let i = 0; i < 400; i++) {
      for (let k = 0; k < 4; k++) r.opened(w, prompt, i * 100);
      r.reported(w, report(i * 100 + 90), 20);
    }
    // Four times 80 ms are done within 100 ms each time.
    expect(r.paceOf(w)).toBeGreaterThan(0.25);
    expect(r.paceOf(w)).toBeLessThan(0.4);
    const full = rooms();
    for (let i = 0; i < 50; i++) {
      for (let k = 0; k < 4; k++) full.opened(w, prompt, i * 100);
      full.reported(w, report(i * 100 + 90, { kvUsageRatio: 0.95 }), 20);
    }
    expect(full.paceOf(w)).toBe(1);
  });

  test("forgets a worker that has gone", () => {
    const r = rooms();
    r.opened(w, prompt, 0);
    r.forget(w);
    expect(r.backlogMs(w, 7, at(0))).toBe(7);
  });
});
