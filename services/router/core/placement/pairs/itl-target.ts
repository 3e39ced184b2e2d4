import { prefillExtraMs } from "../../../../shared/core/step-model.ts";
import type { PlacementRequest, ScoredCandidate } from "../candidate.ts";

/**
 * What a ms counts that each gap between tokens is longer than its caller asked for: such an answer is of little use to him,
 * however soon it begins.
 */
const lateWeight = 4;

/** What missing a target for the time between tokens costs over a whole answer, ms; a target of 0 is none. */
export function itlCostMs(itlMs: number, targetMs: number, expectedOutputTokens: number): number {
  if (!(targetMs > 0) || itlMs <= targetMs) return 0;
  return lateWeight * (itlMs - targetMs) * Math.max(0, expectedOutputTokens - 1);
}

/**
 * What prompts add to the gaps between tokens on an engine that computes both, ms: each of the `others` that decode there is
 * followed by a request like this one when it ends, whose prompt all pay for. `extraMs` is the prefill time of one, spread
 * over its answer (the step of an aggregated engine, D(B) + B × P′ ÷ L).
 */
export function mixedMs(others: number, extraMs: number, expectedOutputTokens: number): number {
  return (others * extraMs) / Math.max(1, expectedOutputTokens);
}

/** A gap between tokens on an engine that spends such a share of its time on prompts for others, ms. */
export function besidePrompts(gapMs: number, prefillShare: number): number {
  return gapMs / (1 - prefillShare);
}

/**
 * Time between tokens expected of a request that runs whole on a worker, ms; 0 for an answer of one token. `prefillShare` is
 * the share of the engine's time that prompts of pairs take there (`PrefillShares`).
 */
export function wholeItlMs(
  on: ScoredCandidate,
  request: PlacementRequest,
  prefillShare: number,
): number {
  const { promptTokens, expectedOutputTokens } = request;
  if (expectedOutputTokens <= 1) return 0;
  const newTokens = Math.max(1, promptTokens - on.matchedTokens);
  const extraMs = prefillExtraMs(on.steps, newTokens, on.matchedTokens);
  const others = on.load.decoding + on.foreignRequests;
  const ownMs = on.decodeMs / (expectedOutputTokens - 1);
  return besidePrompts(ownMs, prefillShare) + mixedMs(others, extraMs, expectedOutputTokens);
}
