import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { stepModel } from "../../../../test/support/router-builders.ts";
import { SeededRandom } from "../../../shared/core/random.ts";
import { decodeStepMs, prefillMs, type StepModel } from "../../../shared/core/step-model.ts";
import { defaultStepModel, fasterOf, WorkerModel, type CounterDelta } from "./worker-model.ts";

const slower: StepModel = { c0: 8, c1: 0.04, c2: 1.6e-6, d0: 10, d1: 0.03, d2: 6e-5 };

const delta = (over: Partial<CounterDelta> = {}): CounterDelta => ({
  interTokenMs: 10,
  interTokenCount: 500,
  running: 5,
  contextTokens: 10_000,
  computedTokens: 0,
  finished: 0,
  generatedTokens: 500,
  ...over,
});

/** Feeds samples of an engine whose true coefficients are `truth`, 10 % noise. */
function teach(model: WorkerModel, truth: StepModel, samples: number, seed = 1): void {
  const random = new SeededRandom(seed);
  const noise = (): number => 0.9 + 0.2 * random.next();
  for (let i = 0; i < samples; i++) {
    const cachedTokens = random.int(8_000);
    const newTokens = 1 + random.int(8_000);
    model.observePrefill({
      newTokens,
      cachedTokens,
      ms: prefillMs(truth, newTokens, cachedTokens) * noise(),
    });
    const running = 1 + random.int(60);
    const contextTokens = running * (500 + random.int(3_000));
    const interTokenMs = decodeStepMs(truth, running, contextTokens) * noise();
    model.observeInterval(
      delta({ running, contextTokens, interTokenMs, interTokenCount: running * 40 }),
    );
  }
}

describe("WorkerModel", () => {
  test("starts from the calibrated model of its engine, or from defaults", () => {
    expect(new WorkerModel(stepModel).steps).toEqual(stepModel);
    expect(new WorkerModel(undefined).steps).toEqual(defaultStepModel);
  });

  test.each([
    ["from the defaults", undefined],
    ["from a calibration of a faster engine", stepModel],
  ])("learns an engine that is slower, %s", (_name, prior) => {
    const model = new WorkerModel(prior);
    teach(model, slower, 2_000);
    for (const [newTokens, cached] of [
      [500, 0],
      [4_000, 0],
      [4_000, 6_000],
    ] as const) {
      const truth = prefillMs(slower, newTokens, cached);
      expect(Math.abs(model.prefillMs(newTokens, cached) - truth) / truth).toBeLessThan(0.1);
    }
    for (const [batch, context] of [
      [2, 3_000],
      [30, 60_000],
    ] as const) {
      const truth = decodeStepMs(slower, batch, context);
      expect(Math.abs(model.decodeStepMs(batch, context) - truth) / truth).toBeLessThan(0.1);
    }
  });

  test("takes the time of prompts computed in an interval out of its token gaps", () => {
    const model = new WorkerModel(stepModel);
    const random = new SeededRandom(4);
    for (let i = 0; i < 1_000; i++) {
      const running = 1 + random.int(40);
      const contextTokens = running * 2_000;
      const steps = 40;
      const computedTokens = random.int(8_000);
      model.observeInterval(
        delta({
          running,
          contextTokens,
          computedTokens,
          interTokenCount: steps * running,
          interTokenMs:
            decodeStepMs(stepModel, running, contextTokens) +
            (stepModel.c1 * computedTokens) / steps,
        }),
      );
    }
    const truth = decodeStepMs(stepModel, 20, 40_000);
    expect(Math.abs(model.decodeStepMs(20, 40_000) - truth) / truth).toBeLessThan(0.05);
  });

  test("begins anew from a guess that few observations overrule, and keeps how long answers are", () => {
    const model = new WorkerModel(stepModel);
    teach(model, slower, 2_000);
    model.observeInterval(delta({ finished: 10, generatedTokens: 2_000 }));
    const mean = model.outputTokensMean;
    model.restart(stepModel);
    expect(model.steps).toEqual(stepModel);
    expect(model.outputTokensMean).toBe(mean);
    const calibrated = new WorkerModel(stepModel);
    for (const one of [model, calibrated]) teach(one, slower, 3);
    const truth = prefillMs(slower, 4_000, 0);
    const wrong = (one: WorkerModel) => Math.abs(one.prefillMs(4_000, 0) - truth) / truth;
    expect(wrong(model)).toBeLessThan(0.25);
    expect(wrong(model)).toBeLessThan(wrong(calibrated));
  });

  test("knows the faster of two engines", () => {
    expect(fasterOf(slower, stepModel)).toBe(stepModel);
    expect(fasterOf(stepModel, slower)).toBe(stepModel);
    expect(fasterOf(stepModel, { ...stepModel })).toBe(stepModel);
  });

  test("learns how long answers are", () => {
    const model = new WorkerModel(undefined);
    expect(model.outputTokensMean).toBeUndefined();
    model.observeInterval(delta({ finished: 10, generatedTokens: 2_000 }));
    expect(model.outputTokensMean).toBe(200);
    for (let i = 0; i < 100; i++)
      model.observeInterval(delta({ finished: 10, generatedTokens: 500 }));
    expect(model.outputTokensMean).toBeCloseTo(50, 0);
  });

  test("ignores intervals with too few gaps and engines at rest", () => {
    const model = new WorkerModel(stepModel);
    model.observeInterval(delta({ interTokenCount: 7, interTokenMs: 500 }));
    model.observeInterval(delta({ running: 0.4, interTokenMs: 500 }));
    model.observePrefill({ newTokens: 0, cachedTokens: 10, ms: 500 });
    model.observePrefill({ newTokens: 10, cachedTokens: 10, ms: 0 });
    expect(model.steps).toEqual(stepModel);
  });

  test("gives the median of recent relative errors", () => {
    const model = new WorkerModel(undefined);
    expect(model.errorRatioP50()).toBeUndefined();
    for (const [predicted, observed] of [
      [10, 10],
      [15, 10],
      [30, 10],
      [5, 0],
    ] as const) {
      model.observeError(predicted, observed);
    }
    expect(model.errorRatioP50()).toBe(0.5);
    for (let i = 0; i < 128; i++) model.observeError(11, 10);
    expect(model.errorRatioP50()).toBeCloseTo(0.1);
  });

  test("stays finite, non-negative and teachable through garbage", () => {
    const number = fc.oneof(
      fc.double(),
      fc.constantFrom(NaN, Infinity, -Infinity, 0, 1e300, -1e300),
    );
    const garbage = fc.record({
      interTokenMs: number,
      interTokenCount: number,
      running: number,
      contextTokens: number,
      computedTokens: number,
      finished: number,
      generatedTokens: number,
    });
    const sample = fc.record({ newTokens: number, cachedTokens: number, ms: number });
    fc.assert(
      fc.property(fc.array(fc.tuple(garbage, sample), { maxLength: 15 }), (inputs) => {
        const model = new WorkerModel(undefined);
        for (const [interval, prefill] of inputs) {
          model.observeInterval(interval);
          model.observePrefill(prefill);
          for (const value of Object.values(model.steps)) {
            expect(Number.isFinite(value)).toBe(true);
            expect(value).toBeGreaterThanOrEqual(0);
          }
          const mean = model.outputTokensMean;
          if (mean !== undefined) expect(mean >= 1 && mean <= 1_000_000).toBe(true);
        }
      }),
      { numRuns: 200 },
    );
  });
});
