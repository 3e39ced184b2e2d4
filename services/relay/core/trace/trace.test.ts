import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { worthKeeping } from "./keep-rule.ts";
import { StreamGaps } from "./stream-gaps.ts";
import { TtftTimeline, type TtftParts } from "./ttft-timeline.ts";

const sum = (parts: TtftParts): number =>
  parts.relayMs + parts.prefillMs + parts.transferMs + parts.decodeMs + parts.retryMs;

describe("parts of the time to the first byte", () => {
  test("of a sequential pair", () => {
    const timeline = new TtftTimeline(100);
    timeline.prefillStarted(101);
    timeline.prefillEnded(151, true);
    timeline.answerStarted(152, false);
    expect(timeline.firstByte(172, 5)).toEqual({
      relayMs: 2,
      prefillMs: 50,
      transferMs: 15,
      decodeMs: 5,
      retryMs: 0,
    });
  });

  test("of legs that run at once, whichever ends first", () => {
    const begin = (): TtftTimeline => {
      const timeline = new TtftTimeline(0);
      timeline.prefillStarted(1);
      timeline.answerStarted(1, false);
      return timeline;
    };
    const exposed = begin();
    exposed.prefillEnded(41, true);
    expect(exposed.firstByte(53, 4)).toMatchObject({ prefillMs: 40, transferMs: 8, decodeMs: 4 });
    // Prefill answers only when its KV has gone: then nothing of the transfer is left to wait for.
    expect(begin().firstByte(53, 4)).toMatchObject({ prefillMs: 48, transferMs: 0, decodeMs: 4 });
  });

  test("of a pair whose prefill failed, and of one whose transfer did", () => {
    const prefill = new TtftTimeline(0);
    prefill.prefillStarted(1);
    prefill.prefillEnded(31, false);
    prefill.answerStarted(31, true);
    expect(prefill.firstByte(81, 5)).toEqual({
      relayMs: 1,
      prefillMs: 0,
      transferMs: 0,
      decodeMs: 50,
      retryMs: 30,
    });
    const transfer = new TtftTimeline(0);
    transfer.prefillStarted(0);
    transfer.prefillEnded(20, true);
    transfer.answerStarted(20, false);
    transfer.answerFailed(35);
    transfer.answerStarted(35, true);
    expect(transfer.firstByte(60, 5)).toMatchObject({ prefillMs: 20, retryMs: 15, decodeMs: 25 });
  });

  test("always add up to all of it", () => {
    const events = fc.array(
      fc.record({
        after: fc.double({ min: 0, max: 100, noNaN: true }),
        kind: fc.constantFrom("prefill", "answer", "local", "done", "failed", "lost"),
      }),
      { maxLength: 12 },
    );
    fc.assert(
      fc.property(events, fc.double({ min: 0, max: 50, noNaN: true }), (steps, stepMs) => {
        let now = 10;
        const timeline = new TtftTimeline(now);
        for (const { after, kind } of steps) {
          now += after;
          if (kind === "prefill") timeline.prefillStarted(now);
          else if (kind === "answer" || kind === "local") {
            timeline.answerStarted(now, kind === "local");
          } else if (kind === "lost") timeline.answerFailed(now);
          else timeline.prefillEnded(now, kind === "done");
        }
        const parts = timeline.firstByte(now + 7, stepMs);
        expect(sum(parts)).toBeCloseTo(now + 7 - 10, 6);
        for (const ms of Object.values(parts)) expect(ms).toBeGreaterThanOrEqual(0);
      }),
    );
  });
});

describe("gaps of a stream", () => {
  test("give quantiles to a factor of 1.2", () => {
    const gaps = new StreamGaps(0);
    let now = 0;
    for (let i = 1; i <= 1_000; i++) gaps.piece((now += i % 100 === 0 ? 60 : 10));
    const near = (value: number | undefined, truth: number): void => {
      expect(value).toBeGreaterThanOrEqual(truth);
      expect(value).toBeLessThanOrEqual(truth * 1.2);
    };
    near(gaps.quantileMs(0.5), 10);
    near(gaps.quantileMs(0.995), 60);
    expect(gaps.meanMs).toBeCloseTo(10.5, 6);
    expect(gaps.stalls).toBe(0);
  });

  test("tell a stall of the engine from one of the client", () => {
    const gaps = new StreamGaps(0);
    let now = 0;
    for (let i = 0; i < 50; i++) expect(gaps.piece((now += 10))).toBe(0);
    expect(gaps.piece((now += 300))).toBe(300);
    gaps.paused(now);
    expect(gaps.resumed((now += 400))).toBe(400);
    // The engine was not read meanwhile, and is not to blame for it.
    expect(gaps.piece((now += 10))).toBe(0);
    expect([gaps.stalls, gaps.engineStallMs, gaps.clientStallMs]).toEqual([2, 300, 400]);
  });

  test("are no stalls where they are all long, or not long", () => {
    const slow = new StreamGaps(0);
    let now = 0;
    slow.piece((now += 150));
    for (let i = 0; i < 20; i++) expect(slow.piece((now += 190))).toBe(0);
    expect(slow.piece((now += 900))).toBe(0);
    const quick = new StreamGaps(0);
    for (let i = 1; i < 50; i++) quick.piece(i);
    expect(quick.piece(49 + 150)).toBe(0);
    expect(new StreamGaps(0).quantileMs(0.5)).toBeUndefined();
  });
});

describe("which traces are kept without being sampled", () => {
  const good = { outcome: "done", migrations: 0, ttftMs: 100, predictedTtftMs: 90 } as const;

  test.each([
    [{}, undefined],
    [{ outcome: "client_cancel" as const }, undefined],
    [{ outcome: "engine_lost" as const, migrations: 1 }, "failed"],
    [{ migrations: 1 }, "migrated"],
    [{ ttftMs: 6_000, predictedTtftMs: 5_900 }, "slow"],
    [{ ttftMs: 600 }, "badly_predicted"],
    [{ ttftMs: 300 }, undefined],
    [{ ttftMs: 60, predictedTtftMs: 10 }, undefined],
    [{ ttftMs: 900, predictedTtftMs: 0 }, undefined],
  ])("%j: %s", (over, reason) => {
    expect(worthKeeping({ ...good, ...over })).toBe(reason);
  });
});
