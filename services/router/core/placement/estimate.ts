import { decodeStepMs, prefillExtraMs } from "../../../shared/core/step-model.ts";
import type { CandidateInput, PlacementRequest } from "./candidate.ts";

/** What running a request on one worker is expected to take, ms. */
export interface Estimate {
  /** Until the engine starts with its prompt. */
  readonly queueMs: number;
  /** Added to that when the engine seems to hang. */
  readonly stallMs: number;
  /** Until its first token, from there. */
  readonly prefillMs: number;
  /** From its first token to its last. */
  readonly decodeMs: number;
  /** Added to the requests that decode there already, all together; stalls by its prefill count `stallWeight`. */
  readonly slowdownMs: number;
  /** Expected price of the blocks it pushes out of the cache. */
  readonly evictionMs: number;
}

/** Step budget assumed when an engine does not tell, tokens (vLLM's default on large devices). */
const stepTokensMaxDefault = 8_192;
/** Share of evicted tokens that somebody is expected to want again. */
const evictionReuseShare = 0.1;
/**
 * What a millisecond that a running answer stands still counts beside one before a first token. At 1 the sum of all
 * completion times is least, but long prompts then queue on one worker for tens of seconds to spare the answers on
 * the others; at 0.5 mean TTFT of long-prompt traffic is a fifth lower for 1 % of TPOT, and short-prompt traffic
 * does not change. Below 0.4 answers begin to suffer.
 */
const stallWeight = 0.5;

/**
 * Decode steps that a request waits for before its own begins. It arrives in the middle of one on average, and an engine
 * that schedules ahead of its device, as vLLM does, has the next one planned already.
 */
const arrivalSteps = 1.5;
/**
 * An engine may show nothing for so many of its longest steps, a whole budget of new tokens beside its decodes, before
 * it counts as hanging; within limits that hold whatever has been learned of it, ms.
 */
const stallSteps = 2;
const stallAfterMsMin = 200;
const stallAfterMsMax = 1_000;

/**
 * How much longer an engine will stand still that has stood still for `overdueMs`: nobody knows, so as long as it has
 * already, beyond what a busy engine may.
 */
function stallOf(overdueMs: number, longestStepMs: number): number {
  if (overdueMs <= stallAfterMsMin) return 0;
  const allowedMs = Math.max(stallAfterMsMin, stallSteps * longestStepMs);
  return Math.max(0, overdueMs - Math.min(stallAfterMsMax, allowedMs));
}

/**
 * Expected times on one worker. A prompt is computed in chunks within the engine's step budget, each in one
 * step with the decodes that run there, so it pays their step time and they pay for its chunk.
 */
export function estimate(candidate: CandidateInput, request: PlacementRequest): Estimate {
  const { load, steps } = candidate;
  const newTokens = Math.max(1, request.promptTokens - candidate.matchedTokens);
  const decoding = load.decoding + candidate.foreignRequests;
  const contextTokens =
    load.decodingContextTokens +
    (load.decoding > 0
      ? (load.decodingContextTokens / load.decoding) * candidate.foreignRequests
      : request.promptTokens * candidate.foreignRequests);

  const stepMs = decodeStepMs(steps, decoding, contextTokens);
  const budget = candidate.stepTokensMax > 0 ? candidate.stepTokensMax : stepTokensMaxDefault;
  const chunkCount = Math.ceil(newTokens / Math.max(1, budget - decoding));
  const extraMs = prefillExtraMs(steps, newTokens, candidate.matchedTokens);
  const baseStepMs = decoding > 0 ? stepMs : steps.c0;
  const prefillMs = extraMs + chunkCount * baseStepMs;
  const queueMs = Math.max(load.prefillBacklogMs, stepMs * arrivalSteps);

  const longestStepMs = stepMs + steps.c0 + prefillExtraMs(steps, budget, 0);
  const stallMs = stallOf(load.overdueMs, longestStepMs);

  const ownContext = request.promptTokens + request.expectedOutputTokens / 2;
  const withOwnMs = decodeStepMs(steps, decoding + 1, contextTokens + ownContext);
  const decodeMs = Math.max(0, request.expectedOutputTokens - 1) * withOwnMs;
  const sharedSteps = Math.min(load.decodingTokensLeft, request.expectedOutputTokens * decoding);
  const slowdownMs =
    stallWeight * extraMs * decoding + (steps.d1 + steps.d2 * ownContext) * sharedSteps;

  const free = Math.max(0, candidate.capacityTokens - candidate.heldTokens);
  const evicted =
    candidate.capacityTokens > 0 ? Math.max(0, newTokens + request.expectedOutputTokens - free) : 0;
  const evictionMs = evicted * steps.c1 * evictionReuseShare;
  return { queueMs, stallMs, prefillMs, decodeMs, slowdownMs, evictionMs };
}
