import { describe, expect, test } from "vitest";
import {
  at,
  candidateInput,
  memberFacts,
  placeInput,
  promptHashes,
  routerCore,
  workerLoad,
} from "../../../../../test/support/router-builders.ts";
import { stepModels } from "../../../../shared/core/step-model.ts";
import type { WorkerId } from "../../../../shared/core/ids.ts";
import { readHints } from "../../admission/request-hints.ts";
import type { Decision } from "../../decisions/decision.ts";
import { estimate } from "../estimate.ts";
import type { RouterCore } from "../../router-core.ts";
import { itlCostMs, wholeItlMs } from "./itl-target.ts";
import { pairDefaults } from "./pair-placer.ts";

describe("itlCostMs", () => {
  test("is nothing within the target or without one, and grows with the gaps beyond it", () => {
    expect([itlCostMs(14, 15, 100), itlCostMs(15, 15, 100), itlCostMs(99, 0, 100)]).toEqual([
      0, 0, 0,
    ]);
    expect(itlCostMs(16, 15, 101)).toBe(400);
    expect(itlCostMs(17, 15, 101)).toBe(800);
    expect(itlCostMs(99, 15, 1)).toBe(0);
  });
});

describe("wholeItlMs", () => {
  test("is the step alone on an idle engine, and more by the prompts that follow the others' answers", () => {
    const request = { promptTokens: 12_000, expectedOutputTokens: 343 };
    const on = (decoding: number) => {
      const load = workerLoad({ decoding, decodingContextTokens: decoding * 12_000 });
      const input = candidateInput("w0", { load });
      const { decodeMs, prefillMs } = estimate(input, request);
      const terms = { terms: [], costMs: 0, predictedTtftMs: 0, prefillMs, decodeMs };
      return { ...input, ...terms };
    };
    const idle = on(0);
    expect(wholeItlMs(idle, request, 0)).toBeCloseTo(idle.decodeMs / 342);
    const busy = on(4);
    const { c1, c2 } = busy.steps;
    const promptMs = c1 * 12_000 + c2 * 12_000 * 6_000;
    expect(wholeItlMs(busy, request, 0)).toBeCloseTo(busy.decodeMs / 342 + (4 * promptMs) / 343);
    expect(wholeItlMs(busy, { promptTokens: 100, expectedOutputTokens: 1 }, 0)).toBe(0);
  });
});

test("an answer beside prompts for others stands still for their share of the time", () => {
  const request = { promptTokens: 12_000, expectedOutputTokens: 343 };
  const input = candidateInput("w0", {});
  const { decodeMs, prefillMs } = estimate(input, request);
  const on = { ...input, terms: [], costMs: 0, predictedTtftMs: 0, prefillMs, decodeMs };
  const aloneMs = wholeItlMs(on, request, 0);
  expect(wholeItlMs(on, request, 0.5)).toBeCloseTo(2 * aloneMs);
});

/**
 * An engine that does both and one of each kind, of the 70B model, and a relay; the first and the last decode `busy` each, or only
 * those that are `busyWorkers`. The first one takes legs of pairs with a `connector` alone.
 */
function mixedCore(
  busy: number,
  tokens: { readonly prompt: number; readonly answer: number },
  { connector = "", busyWorkers = ["w0", "w2"] } = {},
) {
  const steps = stepModels["h100_sxm/llama-3.1-70b/tp4"];
  if (steps === undefined) throw new Error("the calibration is gone");
  const shared = { stepModel: steps, kvTransfer: "NixlConnector", capacityTokens: 600_000 };
  const core = routerCore({
    outputTokensDefault: tokens.answer,
    pairs: pairDefaults,
  });
  const facts = { ...shared, contextTokensMax: 131_072 };
  core.admit(memberFacts(0, { ...facts, kvTransfer: connector }), 1, at(0));
  core.admit(memberFacts(1, { ...facts, role: "prefill" }), 2, at(0));
  core.admit(memberFacts(2, { ...facts, role: "decode" }), 3, at(0));
  core.relays.attach(
    {
      instance: "relay-0",
      epoch: 1,
      h2Address: "127.0.0.1:9100",
      httpAddress: "127.0.0.1:9101",
      engines: ["vllm"],
      streamsMax: 100,
    },
    1,
  );
  for (let i = 0; i < busy; i++) {
    for (const worker of busyWorkers) {
      core.peerReserved(
        {
          decisionId: `r9.1.${worker}.${i}`,
          workerId: worker as never,
          promptTokens: tokens.prompt,
          uncachedTokens: 0,
          expectedOutputTokens: tokens.answer,
          ageMs: 0,
        },
        at(10),
      );
    }
  }
  return core;
}

function ask(core: RouterCore, itlMs: number, promptTokens: number): Decision {
  let made: Decision | undefined;
  core.placeInTurn(
    {
      input: placeInput({
        promptTokens,
        hashes: promptHashes(9, Math.floor(promptTokens / 16)),
        isPairable: true,
      }),
      hints: readHints(
        (name) => (name === "x-kvmesh-slo-itl-ms" ? String(itlMs) : undefined),
        undefined,
      ),
      bytes: 0,
      decided: (decision) => {
        made = decision;
      },
    },
    at(20),
  );
  if (made === undefined) throw new Error("it waits");
  return made;
}

describe("a target for the time between tokens", () => {
  test("sends a long prompt with a short answer to a pair, which keeps it where running whole does not", () => {
    const tokens = { prompt: 12_000, answer: 343 };
    const decision = ask(mixedCore(3, tokens), 15, tokens.prompt);
    const { form, itl } = decision.pair ?? {};
    expect(itl?.targetMs).toBe(15);
    expect(itl?.pairMs).toBeLessThan(15);
    expect(itl?.wholeMs).toBeGreaterThan(15);
    expect(itl?.wholeCostMs).toBeGreaterThan(0);
    expect([form, decision.pair?.candidates[0]?.term("itl")]).toEqual(["pair", 0]);
  });

  test("counts for nothing where both keep it", () => {
    const tokens = { prompt: 1_024, answer: 1_024 };
    const decision = ask(mixedCore(3, tokens), 100, tokens.prompt);
    expect(decision.pair?.itl).toMatchObject({ targetMs: 100, wholeCostMs: 0 });
    expect(decision.pair?.itl?.wholeMs).toBeLessThan(100);
    const without = ask(mixedCore(3, tokens), 0, tokens.prompt);
    expect(without.pair?.itl).toBeUndefined();
    expect([decision.pair?.form, decision.pair?.marginMs]).toEqual([
      without.pair?.form,
      without.pair?.marginMs,
    ]);
  });

  test("keeps an answer off an engine that is idle but for the prompts of others", () => {
    const tokens = { prompt: 12_000, answer: 343 };
    const made = () => mixedCore(3, tokens, { connector: "NixlConnector", busyWorkers: ["w2"] });
    const idle = ask(made(), 15, tokens.prompt);
    expect([idle.pair?.form, idle.workerId]).toEqual(["whole", "w0"]);
    const core = made();
    // One such prompt every 1.5 s, from pairs that answer elsewhere.
    for (let ms = -60_000; ms < 0; ms += 1_500)
      core.pairs.prefillPlaced("w0" as WorkerId, 750, at(ms));
    const decision = ask(core, 15, tokens.prompt);
    expect(decision.pair?.form).toBe("pair");
    expect(decision.pair?.itl?.wholeMs).toBeGreaterThan(20);
    expect(decision.pair?.candidates[0]?.decodeWorkerId).toBe("w2");
  });

  test("is part of a pair's cost when its decode worker misses it", () => {
    const tokens = { prompt: 12_000, answer: 343 };
    const core = mixedCore(3, tokens);
    // Admission would hold it back: no engine's step is so short.
    core.setPlaceOnArrival("default", true);
    const decision = ask(core, 1, tokens.prompt);
    const [pair] = decision.pair?.candidates ?? [];
    expect(pair?.term("itl")).toBeCloseTo(4 * ((pair?.itlMs ?? 0) - 1) * 342);
    const sum = pair?.terms.reduce((total, { ms }) => total + ms, 0);
    expect(pair?.costMs).toBeCloseTo(sum ?? 0);
  });
});
