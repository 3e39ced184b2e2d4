import { describe, expect, test } from "vitest";
import { stepModels, type StepModel } from "../../../shared/core/step-model.ts";
import { freezeFloorMs } from "./freeze-floor.ts";

const of = (name: string): StepModel => stepModels[name] as StepModel;
const small = of("h100_sxm/llama-3.1-8b/tp1");
const large = of("h100_sxm/llama-3.1-70b/tp4");

describe("freezeFloorMs", () => {
  test("is what is set where the engine's longest steps are shorter", () => {
    const engine = { steps: small, stepTokensMax: 8_192, decoding: 8, contextTokens: 64_000 };
    expect(freezeFloorMs(400, engine)).toBe(400);
    expect(freezeFloorMs(5_000, { ...engine, steps: large })).toBe(5_000);
  });

  test("leaves time for two steps full of somebody else's prompt", () => {
    const engine = { steps: large, stepTokensMax: 0, decoding: 8, contextTokens: 100_000 };
    const floorMs = freezeFloorMs(400, engine);
    expect(floorMs).toBeGreaterThan(1_000);
    expect(floorMs).toBeLessThan(1_200);
    // An engine with a small budget shows tokens sooner.
    expect(freezeFloorMs(400, { ...engine, stepTokensMax: 2_048 })).toBe(400);
  });
});
