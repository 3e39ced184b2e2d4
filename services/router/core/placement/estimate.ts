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
  /** Added to the requests that decode there already: a price for its prefill, and what they get slower. */
  readonly slowdownMs: number;
  /** Expected price of the blocks it pushes out of the cache. */
  readonly evictionMs: number;
}

/** Step budget assumed when an engine does not tell, tokens (vLLM's default on large devices). */
const stepTokensMaxDefault = 8_192;
/** Share of evicted tokens that somebody is expected to want again. */
const evictionReuseShare = 0.1;
/** What the parts of a cost weigh against each other. */
export interface CostWeights {
  /** What a millisecond that a running answer stands still for another prompt counts beside one of one's own wait. */
  readonly stall: number;
  /** A request that waits so long for its first token counts twice, one that waits longer more: nobody is left behind, ms. */
  readonly tailMs: number;
  /**
   * By how much freeing memory takes longer than the contexts that run there need to end: they grow meanwhile, and an
   * engine short of blocks takes them from whoever came last, whose prompt is then computed again.
   */
  readonly memory: number;
}

/** What placement is to favour where it cannot have both; matters where prompts are long and engines full. */
export const preferenceNames = ["balanced", "first-token"] as const;

/** One of `preferenceNames`. */
export type Preference = (typeof preferenceNames)[number];

/**
 * Weights, chosen by `sim baselines --windows 8` over both workloads. `balanced` spares running answers, so that time per
 * token stays lowest; long prompts then wait longer for engines where few answers run. `first-token` shortens those waits,
 * their slowest hundredth by up to two fifths, for a seventh more time per token. Above what a fleet can serve it gains
 * nothing but that hundredth: mean waits are then shorter with `balanced`. Short prompts hardly notice.
 */
export const preferences: Readonly<Record<Preference, CostWeights>> = {
  balanced: { stall: 0.4, tailMs: 3_000, memory: 1 },
  "first-token": { stall: 0.1, tailMs: 300, memory: 8 },
};

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

/** Places of `Estimate` in what `costRows` writes to `times`. */
export const estimated = {
  queueMs: 0,
  memoryMs: 1,
  stallMs: 2,
  prefillMs: 3,
  decodeMs: 4,
  slowdownMs: 5,
  evictionMs: 6,
} as const;

/** Numbers of one estimate. */
export const estimatedCount = 7;

/** Terms of our own cost, in the order of `termsInto`. */
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

/** A request, and where its costs go. */
export interface CostQuestion {
  readonly promptTokens: number;
  readonly expectedOutputTokens: number;
  /** Row of the worker that served the conversation last; −1 for none. */
  readonly homeRow: number;
  /** What going anywhere else costs, ms. */
  readonly affinityMs: number;
  readonly weights: CostWeights;
  /** Rows of `WorkerColumns`, their last columns filled in. */
  readonly values: Float64Array;
  readonly rows: Int32Array;
  /** So many of the rows are meant. */
  readonly count: number;
  /** Takes the cost on each, ms. */
  readonly costs: Float64Array;
  /** Takes the estimate for the last of them. */
  readonly times: Float64Array;
}

/**
 * Expected times and our own cost on each of some workers. A prompt is computed in chunks within the engine's step budget,
 * each in one step with the decodes that run there, so it pays their step time and they pay for its chunk.
 *
 * Time until the engine has blocks for one more prompt and its answer: contexts that run end evenly over twice the mean time
 * that they have left. How much of the memory is in use is what the engine said last, since prompts share blocks in ways
 * that the book does not know; when requests wait there, all that the book believes to run counts, some of which does not
 * yet. 0 where capacity is unknown or nothing runs.
 *
 * One loop of plain arithmetic, since it runs over a whole pool at each request: calls would box every number (`bench
 * placement`: some 20 ns a worker instead of 100).
 */
export function costRows(question: CostQuestion): void {
  const { values, rows, count, costs, times, promptTokens, expectedOutputTokens } = question;
  const { homeRow, affinityMs, weights } = question;
  const { stall: stallWeight, tailMs, memory: memoryFactor } = weights;
  const ownTokens = promptTokens + expectedOutputTokens / 2;
  for (let i = 0; i < count; i++) {
    const row = rows[i] as number;
    const at = row * rowLength;
    const matchedTokens = values[at + column.matchedTokens] as number;
    const newTokens = Math.max(1, promptTokens - matchedTokens);
    const ownDecoding = values[at + column.decoding] as number;
    const foreignRequests = values[at + column.foreignRequests] as number;
    const decoding = ownDecoding + foreignRequests;
    const tokensLeft = values[at + column.tokensLeft] as number;
    let contextTokens = values[at + column.contextTokens] as number;
    if (foreignRequests > 0) {
      const each = ownDecoding > 0 ? contextTokens / ownDecoding : promptTokens;
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
    const chunkTokens = Math.max(1, budget - decoding);
    const chunkCount = newTokens <= chunkTokens ? 1 : Math.ceil(newTokens / chunkTokens);
    const extraMs = c1 * newTokens + c2 * newTokens * (matchedTokens + newTokens / 2);
    const prefillMs = extraMs + chunkCount * (decoding > 0 ? stepMs : c0);
    const queueMs = Math.max(values[at + column.backlogMs] as number, stepMs * arrivalSteps);

    const capacityTokens = values[at + column.capacityTokens] as number;
    let memoryMs = 0;
    let evicted = 0;
    if (capacityTokens > 0) {
      const reported = (values[at + column.kvUsageRatio] as number) * capacityTokens;
      const hasWaiting = (values[at + column.waiting] as number) > 0;
      const used = hasWaiting ? Math.max(reported, contextTokens) : reported;
      const queuedTokens = values[at + column.queuedTokens] as number;
      const wanted = used + queuedTokens + newTokens + expectedOutputTokens;
      if (wanted > capacityTokens && decoding > 0) {
        const left = ownDecoding > 0 ? tokensLeft / ownDecoding : 0;
        const endsInMs = 2 * stepMs * Math.max(left, expectedOutputTokens / 2);
        const share = (wanted - capacityTokens) / Math.max(1, contextTokens);
        memoryMs = memoryFactor * share * endsInMs;
      }
      const free = Math.max(0, capacityTokens - (values[at + column.heldTokens] as number));
      evicted = Math.max(0, newTokens + expectedOutputTokens - free);
    }

    const overdueMs = values[at + column.overdueMs] as number;
    let stallMs = 0;
    if (overdueMs > 0) {
      stallMs = stallOf(overdueMs, stepMs + c0 + c1 * budget + (c2 * budget * budget) / 2);
    }

    const withOwnMs = d0 + d1 * (decoding + 1) + d2 * (contextTokens + ownTokens);
    const decodeMs = Math.max(0, expectedOutputTokens - 1) * withOwnMs;
    const sharedSteps = Math.min(tokensLeft, expectedOutputTokens * decoding);
    const slowdownMs = stallWeight * extraMs * decoding + (d1 + d2 * ownTokens) * sharedSteps;
    const evictionMs = evicted * c1 * evictionReuseShare;

    times[estimated.queueMs] = queueMs;
    times[estimated.memoryMs] = memoryMs;
    times[estimated.stallMs] = stallMs;
    times[estimated.prefillMs] = prefillMs;
    times[estimated.decodeMs] = decodeMs;
    times[estimated.slowdownMs] = slowdownMs;
    times[estimated.evictionMs] = evictionMs;
    const firstMs = queueMs + memoryMs + stallMs + prefillMs;
    const own = firstMs + tailOf(firstMs, tailMs) + decodeMs + slowdownMs + evictionMs;
    costs[i] = own + (row === homeRow ? 0 : affinityMs);
  }
}

/** What a wait for a first token costs beyond itself, ms. */
export function tailOf(firstTokenMs: number, tailMs: number): number {
  return firstTokenMs * firstTokenMs * (1 / tailMs);
}

/** Writes the terms whose sum, in this order, is the cost of an estimate, ms, to `terms` from `at` on. */
export function termsInto(
  times: Float64Array,
  weights: CostWeights,
  affinityMs: number,
  terms: number[],
  at: number,
): void {
  const queueMs = times[estimated.queueMs] as number;
  const memoryMs = times[estimated.memoryMs] as number;
  const stallMs = times[estimated.stallMs] as number;
  const prefillMs = times[estimated.prefillMs] as number;
  terms[at] = queueMs;
  terms[at + 1] = memoryMs;
  terms[at + 2] = stallMs;
  terms[at + 3] = prefillMs;
  terms[at + 4] = tailOf(queueMs + memoryMs + stallMs + prefillMs, weights.tailMs);
  terms[at + 5] = times[estimated.decodeMs] as number;
  terms[at + 6] = times[estimated.slowdownMs] as number;
  terms[at + 7] = times[estimated.evictionMs] as number;
  terms[at + 8] = affinityMs;
}

/** What `estimate` and `termsOf` work with. */
const alone = {
  values: new Float64Array(rowLength),
  rows: Int32Array.of(0),
  count: 1,
  homeRow: -1,
  affinityMs: 0,
  costs: new Float64Array(1),
  times: new Float64Array(estimatedCount),
} as const;

/** The estimate of `costRows` for a candidate by itself. */
export function estimate(
  candidate: CandidateInput,
  request: PlacementRequest,
  weights: CostWeights = preferences.balanced,
): Estimate {
  const { load, steps } = candidate;
  const { values, times } = alone;
  values[column.decoding] = load.decoding;
  values[column.foreignRequests] = candidate.foreignRequests;
  values[column.overdueMs] = load.overdueMs;
  values[column.kvUsageRatio] = candidate.reportedKvUsageRatio;
  values[column.waiting] = candidate.reportedWaiting;
  values[column.c0] = steps.c0;
  values[column.c1] = steps.c1;
  values[column.c2] = steps.c2;
  values[column.d0] = steps.d0;
  values[column.d1] = steps.d1;
  values[column.d2] = steps.d2;
  values[column.capacityTokens] = candidate.capacityTokens;
  values[column.stepTokensMax] = candidate.stepTokensMax;
  values[column.matchedTokens] = candidate.matchedTokens;
  values[column.heldTokens] = candidate.heldTokens;
  values[column.backlogMs] = load.prefillBacklogMs;
  values[column.queuedTokens] = load.queuedPrefillTokens;
  values[column.contextTokens] = load.decodingContextTokens;
  values[column.tokensLeft] = load.decodingTokensLeft;
  const { promptTokens, expectedOutputTokens } = request;
  costRows({ ...alone, weights, promptTokens, expectedOutputTokens });
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

/** Our own cost of an estimate as terms by name. */
export function termsOf(expected: Estimate, weights: CostWeights, affinityMs: number): CostTerm[] {
  const { times } = alone;
  times[estimated.queueMs] = expected.queueMs;
  times[estimated.memoryMs] = expected.memoryMs;
  times[estimated.stallMs] = expected.stallMs;
  times[estimated.prefillMs] = expected.prefillMs;
  times[estimated.decodeMs] = expected.decodeMs;
  times[estimated.slowdownMs] = expected.slowdownMs;
  times[estimated.evictionMs] = expected.evictionMs;
  const terms: number[] = [];
  termsInto(times, weights, affinityMs, terms, 0);
  return ownTerms.map((name, i) => ({ name, ms: terms[i] as number }));
}
