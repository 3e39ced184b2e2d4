import { endianness } from "node:os";
import type { StepModel } from "../../shared/core/step-model.ts";
import {
  Role,
  type Hello,
  type JoinRequest,
  type JoinResponse,
} from "../../shared/gen/kvmesh/worker/v1/worker.ts";
import { joinProtocolVersion, type JoinInput, type JoinOutput } from "../core/join-stream.ts";
import type { LoadSample } from "../core/load-sample.ts";
import type { Artifacts } from "./artifacts.ts";
import type { EngineFacts } from "./engine-http.ts";

/** Everything of a hello but what answers the challenge. */
export interface HelloFacts {
  readonly workerId: string;
  readonly dpRank: number;
  readonly workerStartMs: bigint;
  readonly engineLife: number;
  readonly pool: string;
  readonly engineAddress: string;
  readonly role: "both" | "prefill" | "decode";
  readonly engine: EngineFacts;
  readonly engineName: string;
  readonly stepTokensMax: number;
  readonly runningRequestsMax: number;
  readonly stepModel: StepModel | undefined;
  readonly kvTransfer: string;
  readonly kvBootstrap: string;
  readonly kvBytesPerToken: number;
  readonly artifacts: Artifacts;
  readonly hashSeedFingerprint: Buffer;
  readonly ready: boolean;
}

const roles = {
  both: Role.ROLE_BOTH,
  prefill: Role.ROLE_PREFILL,
  decode: Role.ROLE_DECODE,
} as const;

/** The hello message. */
export function toHello(
  facts: HelloFacts,
  proof: { readonly proof: Buffer; readonly keyId: string },
): Hello {
  const { engine, artifacts, stepModel } = facts;
  const { cache } = engine;
  return {
    protocolVersion: joinProtocolVersion,
    workerId: facts.workerId,
    dpRank: facts.dpRank,
    epoch: { workerStartMs: facts.workerStartMs, engineLife: BigInt(facts.engineLife) },
    pool: facts.pool,
    engineAddress: facts.engineAddress,
    role: roles[facts.role],
    model: {
      names: [...engine.modelNames],
      contextTokensMax: engine.contextTokensMax,
      tokenizerSha256: artifacts.tokenizerSha256,
      chatTemplateSha256: artifacts.chatTemplateSha256,
      addsSpecialTokens: artifacts.addsSpecialTokens,
      bosToken: artifacts.bosToken,
      eosToken: artifacts.eosToken,
    },
    cache: {
      engineBlockSizeTokens: cache?.blockSizeTokens ?? 0,
      capacityTokens: BigInt((cache?.blockSizeTokens ?? 0) * (cache?.blockCount ?? 0)),
      prefixCaching: cache?.prefixCaching ?? false,
      kvBytesPerToken: BigInt(facts.kvBytesPerToken),
    },
    engine: {
      name: facts.engineName,
      version: engine.version,
      stepTokensMax: facts.stepTokensMax > 0 ? facts.stepTokensMax : engine.stepTokensMax,
      runningRequestsMax:
        facts.runningRequestsMax > 0 ? facts.runningRequestsMax : engine.runningRequestsMax,
      stepModel:
        stepModel === undefined
          ? undefined
          : {
              prefillC0Ms: stepModel.c0,
              prefillC1MsPerToken: stepModel.c1,
              prefillC2MsPerTokenContext: stepModel.c2,
              decodeD0Ms: stepModel.d0,
              decodeD1MsPerSequence: stepModel.d1,
              decodeD2MsPerContextToken: stepModel.d2,
            },
      processStartSeconds: engine.processStartSeconds ?? 0,
    },
    hashSeedFingerprint: facts.hashSeedFingerprint,
    joinProof: proof.proof,
    joinKeyId: proof.keyId,
    ready: facts.ready,
    kvTransfer: facts.kvTransfer,
    kvBootstrap: facts.kvBootstrap,
  };
}

/** Any message but the hello. */
export function toJoinRequest(
  output: Exclude<JoinOutput, { readonly kind: "hello" }>,
  context: { readonly artifacts: Artifacts; readonly nowUnixUs: number },
): JoinRequest {
  switch (output.kind) {
    case "snapshot": {
      const { chunk } = output;
      return {
        message: {
          $case: "snapshot",
          value: {
            baseSeq: BigInt(chunk.baseSeq),
            hashes: hashBytes(chunk.hashes),
            last: chunk.last,
            xorDigest: (BigInt(chunk.digestHi) << 32n) | BigInt(chunk.digestLo),
            blockCount: BigInt(chunk.blockCount),
          },
        },
      };
    }
    case "delta":
      return {
        message: {
          $case: "delta",
          value: {
            seq: BigInt(output.seq),
            stored: hashBytes(output.change.stored),
            removed: hashBytes(output.change.removed),
            cleared: output.change.cleared,
            eventAgeMs: output.eventAgeMs,
          },
        },
      };
    case "load":
      return {
        message: {
          $case: "load",
          value: toLoad(output.sample, output.sampleAgeMs, context.nowUnixUs),
        },
      };
    case "state":
      return { message: { $case: "state", value: { ready: output.ready, reason: output.reason } } };
    case "artifact": {
      const content = context.artifacts.files.get(output.sha256) ?? Buffer.alloc(0);
      return {
        message: {
          $case: "artifact",
          value: {
            sha256: Buffer.from(output.sha256, "hex"),
            content: content.subarray(output.offset, output.offset + output.size),
            last: output.last,
          },
        },
      };
    }
    case "goodbye":
      return { message: { $case: "goodbye", value: { reason: output.reason } } };
  }
}

/** What a router's message means to the stream; `undefined` for one of a later version, which is skipped. */
export function toJoinInput(response: JoinResponse): JoinInput | undefined {
  const { message } = response;
  switch (message?.$case) {
    case undefined:
      return undefined;
    case "challenge":
      return { kind: "challenge", challenge: message.value };
    case "accepted":
      return { kind: "accepted" };
    case "ack":
      return { kind: "ack", appliedSeq: Number(message.value.appliedSeq) };
    case "resync":
      return { kind: "resync" };
    case "artifact":
      return { kind: "artifact_request", sha256: message.value.sha256.toString("hex") };
    case "drain":
      return { kind: "drain", deadlineMs: message.value.deadlineMs };
  }
}

function toLoad(
  sample: LoadSample,
  sampleAgeMs: number,
  nowUnixUs: number,
): Extract<NonNullable<JoinRequest["message"]>, { $case: "load" }>["value"] {
  const whole = (value: number): bigint => BigInt(Math.round(value));
  const small = (value: number): number => Math.min(0xffff_ffff, Math.round(value));
  return {
    running: small(sample.running),
    waiting: small(sample.waiting),
    kvUsageRatio: sample.kvUsageRatio,
    promptTokens: whole(sample.promptTokens),
    prefixQueryTokens: whole(sample.prefixQueryTokens),
    prefixHitTokens: whole(sample.prefixHitTokens),
    generatedTokens: whole(sample.generatedTokens),
    finishedRequests: whole(sample.finishedRequests),
    preemptions: whole(sample.preemptions),
    interTokenSecondsSum: sample.interTokenSecondsSum,
    interTokenCount: whole(sample.interTokenCount),
    prefillSecondsSum: sample.prefillSecondsSum,
    prefillCount: whole(sample.prefillCount),
    sampleAgeMs,
    sentUnixUs: BigInt(Math.round(nowUnixUs)),
  };
}

/** Hash pairs as 8 bytes little-endian each: on little-endian machines the memory is the message. */
function hashBytes(hashes: Uint32Array): Buffer {
  const bytes = Buffer.from(hashes.buffer, hashes.byteOffset, hashes.byteLength);
  return endianness() === "LE" ? bytes : Buffer.from(bytes).swap32();
}
