import { monoMs, workerId, type MonoMs } from "../../services/shared/core/ids.ts";
import { stepModels } from "../../services/shared/core/step-model.ts";
import type { Reservation } from "../../services/router/core/load/reservation.ts";
import type { WorkerLoad } from "../../services/router/core/load/worker-book.ts";
import type { MemberFacts, MemberNotice } from "../../services/router/core/membership/member.ts";
import type { CandidateInput } from "../../services/router/core/placement/candidate.ts";
import type { PolicyRequest } from "../../services/router/core/placement/policy.ts";
import type { ServedRecord } from "../../services/router/core/load/request-ends.ts";
import type { PlaceInput } from "../../services/router/core/placement/place-input.ts";
import { RouterCore } from "../../services/router/core/router-core.ts";
import type { RouterCoreOptions } from "../../services/router/core/router-options.ts";

/** The step model that builders use: an 8B model on an H100. */
export const stepModel = (() => {
  const model = stepModels["h100_sxm/llama-3.1-8b/tp1"];
  if (model === undefined) throw new Error("the calibration is gone");
  return model;
})();

/** A worker's hello; `index` gives the id and the port. */
export function memberFacts(index: number, over: Partial<MemberFacts> = {}): MemberFacts {
  return {
    workerId: `w${index}`,
    dpRank: 0,
    epoch: { workerStartMs: 1_000, engineLife: 1 },
    pool: "default",
    endpoint: `127.0.0.1:${8_100 + index}`,
    role: "both",
    models: ["m"],
    contextTokensMax: 100_000,
    tokenizerSha256: "",
    chatTemplateSha256: "",
    addsSpecialTokens: false,
    bosToken: "",
    eosToken: "",
    engineBlockSizeTokens: 16,
    capacityTokens: 112_500,
    prefixCaching: true,
    engineName: "vllm",
    engineVersion: "0.32.0",
    stepTokensMax: 8_192,
    stepModel,
    ready: true,
    ...over,
  };
}

/** What a peer tells of the worker of `memberFacts(index)`. */
export function memberNotice(index: number, over: Partial<MemberNotice> = {}): MemberNotice {
  const { workerId: id, dpRank, epoch, pool, endpoint, models, ready } = memberFacts(index);
  return {
    workerId: id,
    dpRank,
    epoch,
    pool,
    endpoint,
    models,
    ready,
    held: true,
    goodbye: false,
    ...over,
  };
}

/** A reservation; the book sets its times. */
export function reservation(
  decisionId: string,
  openedAt: MonoMs,
  over: Partial<Reservation> = {},
): Reservation {
  return {
    decisionId,
    workerId: workerId("w0"),
    own: true,
    openedAt,
    promptTokens: 1_000,
    uncachedTokens: 500,
    expectedOutputTokens: 100,
    prefillMs: 10,
    prefillEndsAt: openedAt,
    endsAt: openedAt,
    hardEndAt: openedAt,
    ...over,
  };
}

/** A load; nothing going on by default. */
export function workerLoad(over: Partial<WorkerLoad> = {}): WorkerLoad {
  return {
    openRequests: 0,
    prefillBacklogMs: 0,
    queuedPrefillTokens: 0,
    decoding: 0,
    decodingContextTokens: 0,
    decodingTokensLeft: 0,
    overdueMs: 0,
    ...over,
  };
}

/** A candidate; idle and cold by default. */
export function candidateInput(id: string, over: Partial<CandidateInput> = {}): CandidateInput {
  return {
    workerId: workerId(id),
    endpoint: `${id}:8000`,
    matchedBlocks: 0,
    matchedTokens: 0,
    load: workerLoad(),
    foreignRequests: 0,
    steps: stepModel,
    heldTokens: 0,
    capacityTokens: 112_500,
    stepTokensMax: 8_192,
    suspect: false,
    reportedRunning: 0,
    reportedWaiting: 0,
    reportedKvUsageRatio: 0,
    reportedAgeMs: 100,
    ...over,
  };
}

/** A request as policies see it; by default of a prompt that nobody has, the first of its pool. */
export function policyRequest(over: Partial<PolicyRequest> = {}): PolicyRequest {
  return {
    promptTokens: 1_600,
    expectedOutputTokens: 100,
    hashes: promptHashes(1, 100),
    blockSizeTokens: 16,
    session: "",
    turn: 0,
    now: monoMs(0),
    ...over,
  };
}

/** A core with small limits and blocks of 16 tokens. */
export function routerCore(over: Partial<RouterCoreOptions> = {}): RouterCore {
  return new RouterCore({
    decisionPrefix: "r0.1",
    blockSizeTokens: 16,
    policy: "kv",
    graceMs: 5_000,
    membersMax: 16,
    blocksMax: 65_536,
    reservationsMax: 1_000,
    decisionsMax: 1_000,
    outputTokensDefault: 100,
    fallbacksMax: 3,
    ...over,
  });
}

/** `count` hashes of a made-up prompt: distinct for distinct (prompt, position). */
export function promptHashes(prompt: number, count: number): Uint32Array {
  const hashes = new Uint32Array(2 * count);
  for (let i = 0; i < count; i++) {
    hashes[2 * i] = Math.imul(prompt * 65_537 + i, 0x9e3779b1);
    hashes[2 * i + 1] = Math.imul(prompt + 1, 0x85ebca6b) ^ i;
  }
  return hashes;
}

/** A request to place; by default of a prompt that nobody has. */
export function placeInput(over: Partial<PlaceInput> = {}): PlaceInput {
  return {
    requestId: "req-1",
    pool: "default",
    model: "m",
    promptTokens: 1_600,
    hashes: promptHashes(1, 100),
    tokensMax: undefined,
    answer: "stream",
    loadOnlyReason: "",
    subset: undefined,
    dryRun: false,
    unixUs: 1_790_000_000_000_000,
    ...over,
  };
}

/** A good answer of the engine of `memberFacts(index)`. */
export function servedRecord(index: number, over: Partial<ServedRecord> = {}): ServedRecord {
  return {
    ttftMs: 40,
    durationMs: 900,
    servedEndpoint: `127.0.0.1:${8_100 + index}`,
    status: 200,
    responseFlags: "",
    attempts: 1,
    responseBytes: 4_000,
    ...over,
  };
}

/** Milliseconds as `MonoMs`. */
export const at = monoMs;
