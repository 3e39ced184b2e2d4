import { decodeStepMs, prefillExtraMs } from "../../../shared/core/step-model.ts";
import type { CandidateInput, PlacementRequest } from "./candidate.ts";

/** What running a request on one worker is expected to take, ms. */
export interface Estimate {
  /** Until the engine starts with its prompt. */
  readonly queueMs: number;
  /** Added to that, as a price more than as a prediction, when the engine's memory does not hold what runs and waits there. */
  readonly memoryMs: number;
  /** Added to that when the engine seems to hang. */
  readonly stallMs: number;
  /** Until its first token, from there. */
  readonly prefillMs: number;
  /** From its first token to its last. */
  readonly decodeMs: number;
  /** Added to the requests that decode there already: a price for its prefill and `decodeWeight` of what they get slower. */
  readonly slowdownMs: number;
  /** Expected price of the blocks it pushes out of the cache. */
  readonly evictionMs: number;
}

/** Step budget assumed when an engine does not tell, tokens (vLLM's default on large devices). */
const stepTokensMaxDefault = 8_192;
/** Share of evicted tokens that somebody is expected to want again. */
const evictionReuseShare = 0.1;
/**
 * What a millisecond after a first token counts beside one before it: somebody waits for a first token and reads along
 * afterwards. At 1 whole answers end soonest, but long prompts then queue for tens of seconds where few answers run; at 0.3
 * the mean time to first token of long-prompt traffic is a third lower and that of its slowest hundredth nearly half, for a
 * fifth more time per token. Short-prompt traffic hardly changes.
 */
export const decodeWeight = 0.3;
/**
 * Answers on a worker for which its prefill counts half again as a stall. That others stand still there matters, as does
 * that conversations which end there come back to where their blocks are and queue behind it; how many they are matters
 * less, since counted one by one they would keep every long prompt away from all workers but one.
 */
const stallHalf = 2;
/**
 * By how much freeing memory takes longer than the contexts that run there need to end: they grow meanwhile, and an engine
 * short of blocks takes them from whoever came last, whose prompt is then computed again. Chosen by what placement gains
 * from it; at 1, conversations with long contexts still pile up on one worker.
 */
const memoryFactor = 4;

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
 * Time until the engine has blocks for one more prompt and its answer. Contexts that run end evenly over twice the mean time
 * that they have left. How much of the memory is in use is what the engine said last, since prompts share blocks in ways
 * that the book does not know; when requests wait there, all that the book believes to run counts, some of which does not
 * yet. 0 where capacity is unknown or nothing runs.
 */
function memoryWaitMs(
  { load, capacityTokens, reportedKvUsageRatio, reportedWaiting }: CandidateInput,
  { expectedOutputTokens }: PlacementRequest,
  now: { newTokens: number; decoding: number; contextTokens: number; stepMs: number },
): number {
  if (capacityTokens <= 0 || now.decoding === 0) return 0;
  const reported = reportedKvUsageRatio * capacityTokens;
  const used = reportedWaiting > 0 ? Math.max(reported, now.contextTokens) : reported;
  const wanted = used + load.queuedPrefillTokens + now.newTokens + expectedOutputTokens;
  if (wanted <= capacityTokens) return 0;
  const tokensLeft = load.decoding > 0 ? load.decodingTokensLeft / load.decoding : 0;
  const endsInMs = 2 * now.stepMs * Math.max(tokensLeft, expectedOutputTokens / 2);
  const share = (wanted - capacityTokens) / Math.max(1, now.contextTokens);
  return memoryFactor * share * endsInMs;
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

  const memoryMs = memoryWaitMs(candidate, request, { newTokens, decoding, contextTokens, stepMs });

  const longestStepMs = stepMs + steps.c0 + prefillExtraMs(steps, budget, 0);
  const stallMs = stallOf(load.overdueMs, longestStepMs);

  const ownContext = request.promptTokens + request.expectedOutputTokens / 2;
  const withOwnMs = decodeStepMs(steps, decoding + 1, contextTokens + ownContext);
  const decodeMs = Math.max(0, request.expectedOutputTokens - 1) * withOwnMs;
  const sharedSteps = Math.min(load.decodingTokensLeft, request.expectedOutputTokens * decoding);
  const stallShare = decoding / (decoding + stallHalf);
  const slowdownMs =
    stallShare * extraMs + decodeWeight * (steps.d1 + steps.d2 * ownContext) * sharedSteps;

  const free = Math.max(0, candidate.capacityTokens - candidate.heldTokens);
  const evicted =
    candidate.capacityTokens > 0 ? Math.max(0, newTokens + request.expectedOutputTokens - free) : 0;
  const evictionMs = evicted * steps.c1 * evictionReuseShare;
  return { queueMs, memoryMs, stallMs, prefillMs, decodeMs, slowdownMs, evictionMs };
}
