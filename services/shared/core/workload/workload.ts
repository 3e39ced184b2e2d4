import type { MeshError } from "../errors.ts";

/** One request of a workload: when it comes, how long it is, and which prefix blocks it is made of. */
export interface WorkloadRequest {
  /** Arrival, ms from the start of the workload; never below that of the request before. */
  readonly atMs: number;
  /** Prompt length in tokens, at least 1. */
  readonly inputTokens: number;
  /** Answer length in tokens, at least 1. */
  readonly outputTokens: number;
  /**
   * Ids of the leading blocks of the prompt, `blockTokens` tokens each, at most
   * ceil(inputTokens / blockTokens) of them; the last may name a partial block. Equal ids mean equal
   * content. Tokens past the named blocks belong to this request alone.
   */
  readonly blockIds: Uint32Array | readonly number[];
  /** Conversation the request belongs to, where the source says. */
  readonly session?: string;
}

/** Requests in order of arrival, with where they come from. Values, never changed in place. */
export interface Workload {
  readonly name: string;
  /** Tokens in one block of `blockIds`. */
  readonly blockTokens: number;
  readonly requests: readonly WorkloadRequest[];
  readonly description: string;
  readonly licence: string;
  readonly source: string;
}

/** How a workload is meant to be run; a caller may use other figures. */
export interface WorkloadDefaults {
  /** Arrival times are divided by this. */
  readonly rateFactor: number;
  /** Engines the figures below are meant for. */
  readonly workers: number;
  /** KV cache of one engine, in tokens. */
  readonly kvTokensPerWorker: number;
  /** Longest prompt plus answer an engine must take, in tokens. */
  readonly contextTokensMax: number;
}

/** Most requests one workload may hold; more is refused, because all of them are kept in memory. */
export const workloadRequestsMax = 2_000_000;

/** Most block references of one workload (4 bytes each, 256 MiB in all); more is refused. */
export const workloadBlockReferencesMax = 64_000_000;

/** Sorted ascending `atMs`, positive lengths, no more blocks than the prompt can hold: or `invalid_request`. */
export function checkRequest(
  request: WorkloadRequest,
  { previousAtMs, blockTokens }: { previousAtMs: number; blockTokens: number },
  fail: (field: string, problem: string) => MeshError,
): void {
  if (request.atMs < previousAtMs) {
    throw fail(
      "timestamp",
      `goes back from ${String(previousAtMs)} to ${String(request.atMs)} ms; sort the file by time`,
    );
  }
  const blocksMax = Math.ceil(request.inputTokens / blockTokens);
  if (request.blockIds.length > blocksMax) {
    throw fail(
      "hash_ids",
      `names ${String(request.blockIds.length)} blocks, but ${String(request.inputTokens)} tokens ` +
        `are at most ${String(blocksMax)} blocks of ${String(blockTokens)}; is the block size right?`,
    );
  }
}

/** Facts of a workload that say what a cache can gain on it. Ratios 0–1, rate per second. */
export interface WorkloadFacts {
  readonly requests: number;
  readonly sessions: number;
  readonly durationMs: number;
  /** Requests per second over the whole duration, before any rate factor. */
  readonly ratePerSecond: number;
  readonly inputTokensMean: number;
  readonly outputTokensMean: number;
  /** Longest prompt plus answer. */
  readonly contextTokensMax: number;
  readonly blocksUnique: number;
  readonly blockReferences: number;
  /** Share of prompt tokens in leading blocks that some earlier request already had: one cache without end. */
  readonly infiniteCacheHitRatio: number;
}

/** Computes the facts of a workload in one pass; O(block references). */
export function workloadFacts(workload: Workload): WorkloadFacts {
  const seen = new Set<number>();
  const sessions = new Set<string>();
  let inputTokens = 0;
  let outputTokens = 0;
  let hitTokens = 0;
  let blockReferences = 0;
  let contextTokensMax = 0;
  for (const request of workload.requests) {
    inputTokens += request.inputTokens;
    outputTokens += request.outputTokens;
    contextTokensMax = Math.max(contextTokensMax, request.inputTokens + request.outputTokens);
    if (request.session !== undefined) sessions.add(request.session);
    const { blockIds } = request;
    blockReferences += blockIds.length;
    let matched = 0;
    while (matched < blockIds.length && seen.has(blockIds[matched] as number)) matched++;
    hitTokens += Math.min(matched * workload.blockTokens, request.inputTokens);
    for (let i = matched; i < blockIds.length; i++) seen.add(blockIds[i] as number);
  }
  const count = workload.requests.length;
  const durationMs = workload.requests.at(-1)?.atMs ?? 0;
  return {
    requests: count,
    sessions: sessions.size,
    durationMs,
    ratePerSecond: durationMs === 0 ? 0 : (count / durationMs) * 1_000,
    inputTokensMean: count === 0 ? 0 : inputTokens / count,
    outputTokensMean: count === 0 ? 0 : outputTokens / count,
    contextTokensMax,
    blocksUnique: seen.size,
    blockReferences,
    infiniteCacheHitRatio: inputTokens === 0 ? 0 : hitTokens / inputTokens,
  };
}
