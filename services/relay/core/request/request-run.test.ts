import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { PrefillReading } from "../engines/engine-adapter.ts";
import { legOutcomes } from "../../../shared/core/leg-outcome.ts";
import type { LegSlot } from "./leg-outcome.ts";
import { RequestRun, type RunEffect, type RunEvent, type RunPlan } from "./request-run.ts";

const body = (text: string): Uint8Array => new TextEncoder().encode(text);
const usage = { promptTokens: 10, cachedTokens: 4 };
const handoff: PrefillReading = { kind: "handoff", decodeBody: body("pull"), usage };

const pair = (over: Partial<Extract<RunPlan, { kind: "pair" }>> = {}): RunPlan => ({
  kind: "pair",
  order: "sequential",
  start: { prefillBody: body("prefill") },
  untouched: body("untouched"),
  canPrefillOnDecode: true,
  prefillWorkerId: "p",
  decodeWorkerId: "d",
  ...over,
});
const concurrent = pair({
  order: "concurrent",
  start: { prefillBody: body("prefill"), decodeBody: body("decode") },
  canPrefillOnDecode: false,
});
const whole: RunPlan = { kind: "whole", body: body("whole"), workerId: "w" };

/** Effects in short: `send answer untouched prefill_failed`. */
function brief(effects: readonly RunEffect[]): string[] {
  return effects.map((effect) => {
    switch (effect.kind) {
      case "send": {
        const what = new TextDecoder().decode(effect.body);
        return `send ${effect.leg} ${what}${effect.local === undefined ? "" : ` ${effect.local}`}`;
      }
      case "leg_ended":
        return `${effect.leg} ${effect.outcome}`;
      case "abort":
        return `abort ${effect.leg}`;
      case "place_again":
        return `place_again ${effect.excluded.join(",")}`;
      case "fail":
      case "break":
        return `${effect.kind} ${effect.code}`;
      case "over":
        return `over ${effect.outcome}`;
      default:
        return effect.kind;
    }
  });
}

const run = (plan: RunPlan, events: readonly RunEvent[]): string[] => {
  const request = new RequestRun(plan, 2);
  return events.flatMap((event) => brief(request.step(event)));
};

const begin: RunEvent = { kind: "begin" };
const read = (reading: PrefillReading): RunEvent => ({ kind: "prefill_read", reading });
const failed = (leg: LegSlot, outcome: (typeof legOutcomes)[number] = "lost"): RunEvent => ({
  kind: `${leg}_failed`,
  outcome,
  why: "gone",
});
const began: RunEvent = { kind: "answer_began" };
const ended: RunEvent = { kind: "answer_ended" };

describe("request run", () => {
  test("a pair prefills, then decodes with the hand-off", () => {
    expect(run(pair(), [begin, read(handoff), began, ended])).toEqual([
      "send prefill prefill",
      "prefill done",
      "send answer pull",
      "pass",
      "answer done",
      "over done",
    ]);
  });

  test("concurrent legs begin together, and the answer passes whenever it comes", () => {
    const none: PrefillReading = { kind: "none", why: "" };
    expect(run(concurrent, [begin, began, read(none), ended])).toEqual([
      "send prefill prefill",
      "send answer decode",
      "pass",
      "prefill done",
      "answer done",
      "over done",
    ]);
  });

  test("a failed prefill is computed on decode, from the untouched body", () => {
    expect(run(pair(), [begin, failed("prefill"), began, ended])).toEqual([
      "send prefill prefill",
      "prefill lost",
      "send answer untouched prefill_failed",
      "pass",
      "answer done",
      "over done",
    ]);
    const none: PrefillReading = { kind: "none", why: "no params" };
    expect(run(pair(), [begin, read(none)])).toContain("prefill no_handoff");
  });

  test("decode that cannot pull recomputes once, without the hand-off", () => {
    const error = failed("answer", "engine_error");
    expect(run(pair(), [begin, read(handoff), error, error])).toEqual([
      "send prefill prefill",
      "prefill done",
      "send answer pull",
      "answer engine_error",
      "send answer untouched transfer_failed",
      "answer engine_error",
      "place_again d",
    ]);
  });

  test("an engine that cannot prefill on decode takes both legs elsewhere", () => {
    expect(run(concurrent, [begin, failed("prefill")])).toEqual([
      "send prefill prefill",
      "send answer decode",
      "prefill lost",
      "abort answer",
      "answer cancelled",
      "place_again p",
    ]);
    expect(run(concurrent, [begin, failed("answer")])).toEqual([
      "send prefill prefill",
      "send answer decode",
      "answer lost",
      "abort prefill",
      "prefill cancelled",
      "place_again d",
    ]);
  });

  test("a lost answer is placed again before its first byte, and told inside it after", () => {
    const placed: RunEvent = { kind: "placed", plan: whole };
    expect(run(whole, [begin, failed("answer"), placed, began, failed("answer")])).toEqual([
      "send answer whole",
      "answer lost",
      "place_again w",
      "send answer whole",
      "pass",
      "answer lost",
      "break worker_lost",
      "over engine_lost",
    ]);
    expect(run(whole, [begin, failed("answer"), placed, failed("answer")]).slice(-2)).toEqual([
      "fail worker_lost",
      "over engine_lost",
    ]);
  });

  test("the client's leaving stops both engines first", () => {
    expect(run(concurrent, [begin, { kind: "client_gone" }]).slice(2)).toEqual([
      "abort answer",
      "abort prefill",
      "prefill cancelled",
      "answer cancelled",
      "over client_cancel",
    ]);
    const request = new RequestRun(pair(), 2);
    for (const event of [begin, read(handoff)]) request.step(event);
    expect(request.step({ kind: "client_gone" })[0]).toEqual({
      kind: "abort",
      leg: "answer",
      handoff: true,
    });
  });

  test("a pair that must not be used goes to decode untouched", () => {
    expect(run(pair({ unpaired: "choices" }), [begin])).toEqual([
      "prefill not_started",
      "send answer untouched choices",
    ]);
  });

  test("a complete prefill answer is the answer", () => {
    const final: PrefillReading = { kind: "final", answer: body("all"), usage };
    expect(run(pair(), [begin, read(final)])).toEqual([
      "send prefill prefill",
      "prefill done",
      "answer not_started",
      "answer",
      "over done",
    ]);
  });

  test("holds its invariants whatever happens", () => {
    const reading = fc.constantFrom<PrefillReading>(
      handoff,
      { kind: "final", answer: body("all"), usage },
      { kind: "none", why: "" },
    );
    const plan = fc.constantFrom(pair(), concurrent, whole, pair({ unpaired: "batch" }));
    const outcome = fc.constantFrom(...legOutcomes.filter((name) => name !== "not_started"));
    const event = fc.oneof<fc.Arbitrary<RunEvent>[]>(
      reading.map(read),
      fc.tuple(fc.constantFrom<LegSlot>("prefill", "answer"), outcome).map((x) => failed(...x)),
      fc.constantFrom<RunEvent>(began, ended, { kind: "client_gone" }, { kind: "overdue" }),
      plan.map((placed): RunEvent => ({ kind: "placed", plan: placed })),
      fc.constant<RunEvent>({ kind: "not_placed", code: "no_ready_worker", why: "none" }),
    );
    fc.assert(
      fc.property(plan, fc.array(event, { maxLength: 12 }), (first, events) => {
        const request = new RequestRun(first, 3);
        const open = { prefill: 0, answer: 0 };
        let heads = 0;
        let pulls = 0;
        let prefills = 0;
        let isOver = false;
        for (const one of [begin, ...events, { kind: "client_gone" } as RunEvent]) {
          for (const effect of request.step(one)) {
            expect(isOver).toBe(false);
            if (effect.kind === "send") {
              open[effect.leg]++;
              expect(open[effect.leg]).toBe(1);
              if (effect.leg === "prefill") prefills++;
              if (effect.handoff) pulls++;
            }
            if (effect.kind === "leg_ended" && effect.outcome !== "not_started") {
              if (open[effect.leg] > 0) open[effect.leg]--;
            }
            if (effect.kind === "pass" || effect.kind === "answer" || effect.kind === "fail") {
              heads++;
            }
            if (effect.kind === "break") expect(heads).toBe(1);
            if (effect.kind === "over") isOver = true;
          }
          expect(pulls).toBeLessThanOrEqual(prefills);
        }
        expect(isOver).toBe(true);
        expect(request.isOver).toBe(true);
        expect(open).toEqual({ prefill: 0, answer: 0 });
        expect(heads).toBeLessThanOrEqual(1);
      }),
      { numRuns: 800 },
    );
  });
});
