import type { WorkerId } from "../../../shared/core/ids.ts";
import { column, rowLength } from "../load/worker-columns.ts";
import type { CandidateInput, CostTerm, CostTermName, PlacementRequest } from "./candidate.ts";

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
const decodeWeight = 0.3;
/** A request that waits so long for its first token counts twice, one that waits longer more: nobody is left behind, ms. */
const tailMs = 3_000;
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

/** Places of `Estimate` in what `estimateRow` writes. */
export const estimated = {
  queueMs: 0,
  memoryMs: 1,
  stallMs: 2,
  prefillMs: 3,
  decodeMs: 4,
  slowdownMs: 5,
  evictionMs: 6,
} as const;

/** Numbers that `estimateRow` writes. */
export const estimatedCount = 7;

/**
 * Expected times on the worker of one row of `WorkerColumns`, its last columns filled in; writes them to `out`. A prompt is
 * computed in chunks within the engine's step budget, each in one step with the decodes that run there, so it pays
 * their step time and they pay for its chunk.
 *
 * Time until the engine has blocks for one more prompt and its answer: contexts that run end evenly over twice the mean time
 * that they have left. How much of the memory is in use is what the engine said last, since prompts share blocks in ways
 * that the book does not know; when requests wait there, all that the book believes to run counts, some of which does not
 * yet. 0 where capacity is unknown or nothing runs.
 *
 * Plain arithmetic over one array, without objects: it runs for each worker of a pool at each request.
 */
export function estimateRow(
  values: Float64Array,
  at: number,
  promptTokens: number,
  expectedOutputTokens: number,
  out: Float64Array,
): void {
  const matchedTokens = values[at + column.matchedTokens] as number;
  const newTokens = Math.max(1, promptTokens - matchedTokens);
  const ownDecoding = values[at + column.decoding] as number;
  const foreignRequests = values[at + column.foreignRequests] as number;
  const decoding = ownDecoding + foreignRequests;
  const ownContextTokens = values[at + column.contextTokens] as number;
  const tokensLeft = values[at + column.tokensLeft] as number;
  let contextTokens = ownContextTokens;
  if (foreignRequests > 0) {
    const each = ownDecoding > 0 ? ownContextTokens / ownDecoding : promptTokens;
    contextTokens += each * foreignRequests;
  }

  const c0 = values[at + column.c0] as number;
  const c1 = values[at + column.c1] as number;
  const c2 = values[at + column.c2] as number;
  const d0 = values[at + column.d0] as number;
  const d1 = values[at + column.d1] as number;
  const d2 = values[at + column.d2] as number;
  const stepMs = decoding > 0 ? d0 + d1 * decoding + d2 * contextTokens : 0;
  const stepTokensMax = values[at + column.stepTokensMax] as number;
  const budget = stepTokensMax > 0 ? stepTokensMax : stepTokensMaxDefault;
  const chunkCount = Math.ceil(newTokens / Math.max(1, budget - decoding));
  const extraMs = c1 * newTokens + c2 * newTokens * (matchedTokens + newTokens / 2);
  out[estimated.prefillMs] = extraMs + chunkCount * (decoding > 0 ? stepMs : c0);
  out[estimated.queueMs] = Math.max(values[at + column.backlogMs] as number, stepMs * arrivalSteps);

  const capacityTokens = values[at + column.capacityTokens] as number;
  let memoryMs = 0;
  if (capacityTokens > 0 && decoding > 0) {
    const reported = (values[at + column.kvUsageRatio] as number) * capacityTokens;
    const hasWaiting = (values[at + column.waiting] as number) > 0;
    const used = hasWaiting ? Math.max(reported, contextTokens) : reported;
    const queued = values[at + column.queuedTokens] as number;
    const wanted = used + queued + newTokens + expectedOutputTokens;
    if (wanted > capacityTokens) {
      const left = ownDecoding > 0 ? tokensLeft / ownDecoding : 0;
      const endsInMs = 2 * stepMs * Math.max(left, expectedOutputTokens / 2);
      const share = (wanted - capacityTokens) / Math.max(1, contextTokens);
      memoryMs = memoryFactor * share * endsInMs;
    }
  }
  out[estimated.memoryMs] = memoryMs;

  const overdueMs = values[at + column.overdueMs] as number;
  const longestStepMs = stepMs + c0 + c1 * budget + (c2 * budget * budget) / 2;
  out[estimated.stallMs] = overdueMs > 0 ? stallOf(overdueMs, longestStepMs) : 0;

  const ownTokens = promptTokens + expectedOutputTokens / 2;
  const withOwnMs = d0 + d1 * (decoding + 1) + d2 * (contextTokens + ownTokens);
  out[estimated.decodeMs] = Math.max(0, expectedOutputTokens - 1) * withOwnMs;
  const sharedSteps = Math.min(tokensLeft, expectedOutputTokens * decoding);
  const stallShare = decoding / (decoding + stallHalf);
  out[estimated.slowdownMs] =
    stallShare * extraMs + decodeWeight * (d1 + d2 * ownTokens) * sharedSteps;

  let evicted = 0;
  if (capacityTokens > 0) {
    const free = Math.max(0, capacityTokens - (values[at + column.heldTokens] as number));
    evicted = Math.max(0, newTokens + expectedOutputTokens - free);
  }
  out[estimated.evictionMs] = evicted * c1 * evictionReuseShare;
}

/** Terms of our own cost, in the order of `costOf`. */
export const ownTerms = [
  "queue",
  "memory",
  "stall",
  "prefill",
  "tail",
  "decode",
  "slowdown",
  "eviction",
  "affinity",
] as const satisfies readonly CostTermName[];

/** What a worker costs for not being the one that served the conversation last, ms. */
export function affinityOf(worker: WorkerId, request: PlacementRequest): number {
  const { home, affinityMs = 0 } = request;
  return home === undefined || home === worker ? 0 : affinityMs;
}

/**
 * Our own cost from what `estimateRow` wrote, and the price of leaving the conversation's worker: the sum of its terms,
 * which it writes to `terms`, ms.
 */
export function costOf(times: Float64Array, terms: Float64Array, affinityMs: number): number {
  const queueMs = times[estimated.queueMs] as number;
  const memoryMs = times[estimated.memoryMs] as number;
  const stallMs = times[estimated.stallMs] as number;
  const prefillMs = times[estimated.prefillMs] as number;
  const firstTokenMs = queueMs + memoryMs + stallMs + prefillMs;
  const tail = (firstTokenMs * firstTokenMs) / tailMs;
  const decode = decodeWeight * (times[estimated.decodeMs] as number);
  const slowdownMs = times[estimated.slowdownMs] as number;
  const evictionMs = times[estimated.evictionMs] as number;
  terms[0] = queueMs;
  terms[1] = memoryMs;
  terms[2] = stallMs;
  terms[3] = prefillMs;
  terms[4] = tail;
  terms[5] = decode;
  terms[6] = slowdownMs;
  terms[7] = evictionMs;
  terms[8] = affinityMs;
  const own = queueMs + memoryMs + stallMs + prefillMs + tail + decode + slowdownMs + evictionMs;
  return own + affinityMs;
}

const row = new Float64Array(rowLength);
const times = new Float64Array(estimatedCount);
const terms = new Float64Array(ownTerms.length);

/** `estimateRow` for a candidate by itself. */
export function estimate(candidate: CandidateInput, request: PlacementRequest): Estimate {
  const { load, steps } = candidate;
  row[column.decoding] = load.decoding;
  row[column.foreignRequests] = candidate.foreignRequests;
  row[column.overdueMs] = load.overdueMs;
  row[column.kvUsageRatio] = candidate.reportedKvUsageRatio;
  row[column.waiting] = candidate.reportedWaiting;
  row[column.c0] = steps.c0;
  row[column.c1] = steps.c1;
  row[column.c2] = steps.c2;
  row[column.d0] = steps.d0;
  row[column.d1] = steps.d1;
  row[column.d2] = steps.d2;
  row[column.capacityTokens] = candidate.capacityTokens;
  row[column.stepTokensMax] = candidate.stepTokensMax;
  row[column.matchedTokens] = candidate.matchedTokens;
  row[column.heldTokens] = candidate.heldTokens;
  row[column.backlogMs] = load.prefillBacklogMs;
  row[column.queuedTokens] = load.queuedPrefillTokens;
  row[column.contextTokens] = load.decodingContextTokens;
  row[column.tokensLeft] = load.decodingTokensLeft;
  estimateRow(row, 0, request.promptTokens, request.expectedOutputTokens, times);
  return {
    queueMs: times[estimated.queueMs] as number,
    memoryMs: times[estimated.memoryMs] as number,
    stallMs: times[estimated.stallMs] as number,
    prefillMs: times[estimated.prefillMs] as number,
    decodeMs: times[estimated.decodeMs] as number,
    slowdownMs: times[estimated.slowdownMs] as number,
    evictionMs: times[estimated.evictionMs] as number,
  };
}

/** `costOf` as terms by name. */
export function termsOf(expected: Estimate, affinityMs: number): CostTerm[] {
  times[estimated.queueMs] = expected.queueMs;
  times[estimated.memoryMs] = expected.memoryMs;
  times[estimated.stallMs] = expected.stallMs;
  times[estimated.prefillMs] = expected.prefillMs;
  times[estimated.decodeMs] = expected.decodeMs;
  times[estimated.slowdownMs] = expected.slowdownMs;
  times[estimated.evictionMs] = expected.evictionMs;
  costOf(times, terms, affinityMs);
  return ownTerms.map((name, i) => ({ name, ms: terms[i] as number }));
}
