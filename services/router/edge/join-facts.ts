import { parseEndpoint } from "../../shared/core/endpoint.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { isWorkerId } from "../../shared/core/ids.ts";
import type { Hello, LoadSample } from "../../shared/gen/kvmesh/worker/v1/worker.ts";
import type { EngineCounters } from "../core/load/counter-delta.ts";
import type { MemberFacts, MemberRole } from "../core/membership/member.ts";

/** Far above any model's. */
const kvBytesPerTokenMax = 1n << 30n;

const roles: Readonly<Record<number, MemberRole>> = { 1: "both", 2: "prefill", 3: "decode" };

/** (lo, hi) pairs from little-endian bytes. Copies when the bytes are not aligned. */
export function readHashes(bytes: Buffer): Uint32Array {
  if (bytes.length % 8 !== 0) {
    throw new MeshError(
      "invalid_request",
      `hashes must be 8 bytes each, got ${bytes.length} bytes`,
    );
  }
  if (bytes.length === 0) return new Uint32Array(0);
  const copy = new Uint8Array(bytes.length);
  copy.set(bytes);
  return new Uint32Array(copy.buffer);
}

/** A worker's facts from its hello. Throws `invalid_request` naming the field that cannot be. */
export function readFacts(hello: Hello): MemberFacts {
  const { model, cache, engine, epoch } = hello;
  const bad = (field: string, what: string): never => {
    throw new MeshError("invalid_request", `${field}: ${what}`, { field });
  };
  if (model === undefined || cache === undefined || engine === undefined || epoch === undefined) {
    return bad("hello", "model, cache, engine and epoch are required");
  }
  if (!isWorkerId(hello.workerId)) bad("worker_id", "must be 1 to 128 of A-Z a-z 0-9 . _ : -");
  if (!/^[A-Za-z0-9._-]{1,64}$/.test(hello.pool))
    bad("pool", "must be 1 to 64 of A-Z a-z 0-9 . _ -");
  const role = roles[hello.role];
  if (role === undefined) return bad("role", "must be both, prefill or decode");
  if (!/^[A-Za-z0-9._-]{0,64}$/.test(hello.kvTransfer)) {
    bad("kv_transfer", "must be at most 64 of A-Z a-z 0-9 . _ -");
  }
  if (hello.kvBootstrap !== "" && parseEndpoint(hello.kvBootstrap) === undefined) {
    bad("kv_bootstrap", "must be host:port");
  }
  if (cache.kvBytesPerToken > kvBytesPerTokenMax) {
    bad("cache.kv_bytes_per_token", `must be at most ${kvBytesPerTokenMax}`);
  }
  const steps = engine.stepModel;
  if (steps !== undefined && !Object.values(steps).every((ms) => ms >= 0 && ms < Infinity)) {
    bad("engine.step_model", "must hold finite times that are not negative");
  }
  return {
    workerId: hello.workerId,
    dpRank: hello.dpRank,
    epoch: { workerStartMs: Number(epoch.workerStartMs), engineLife: Number(epoch.engineLife) },
    pool: hello.pool,
    endpoint: hello.engineAddress,
    role,
    models: model.names,
    contextTokensMax: model.contextTokensMax,
    tokenizerSha256: model.tokenizerSha256.toString("hex"),
    chatTemplateSha256: model.chatTemplateSha256.toString("hex"),
    addsSpecialTokens: model.addsSpecialTokens,
    bosToken: model.bosToken,
    eosToken: model.eosToken,
    engineBlockSizeTokens: cache.engineBlockSizeTokens,
    capacityTokens: Number(cache.capacityTokens),
    prefixCaching: cache.prefixCaching,
    engineName: engine.name,
    engineVersion: engine.version,
    stepTokensMax: engine.stepTokensMax,
    runningRequestsMax: engine.runningRequestsMax,
    stepModel:
      steps === undefined
        ? undefined
        : {
            c0: steps.prefillC0Ms,
            c1: steps.prefillC1MsPerToken,
            c2: steps.prefillC2MsPerTokenContext,
            d0: steps.decodeD0Ms,
            d1: steps.decodeD1MsPerSequence,
            d2: steps.decodeD2MsPerContextToken,
          },
    ready: hello.ready,
    kvTransfer: hello.kvTransfer,
    kvBootstrap: hello.kvBootstrap,
    kvBytesPerToken: Number(cache.kvBytesPerToken),
  };
}

/** An engine's counters from a load sample. */
export function readCounters(sample: LoadSample): EngineCounters {
  return {
    running: sample.running,
    waiting: sample.waiting,
    kvUsageRatio: sample.kvUsageRatio,
    prefixQueryTokens: Number(sample.prefixQueryTokens),
    prefixHitTokens: Number(sample.prefixHitTokens),
    promptTokens: Number(sample.promptTokens),
    generatedTokens: Number(sample.generatedTokens),
    finishedRequests: Number(sample.finishedRequests),
    interTokenSecondsSum: sample.interTokenSecondsSum,
    interTokenCount: Number(sample.interTokenCount),
  };
}
