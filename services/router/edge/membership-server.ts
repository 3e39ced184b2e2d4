import { randomBytes } from "node:crypto";
import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { isWorkerId, monoMs } from "../../shared/core/ids.ts";
import { toServiceError } from "../../shared/edge/grpc-server.ts";
import {
  hashSeedFingerprint,
  joinProof,
  verifyProof,
  type MeshKeys,
} from "../../shared/edge/keys.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import { toMeshError } from "../../shared/edge/wire.ts";
import type {
  ArtifactChunk,
  BlockDelta,
  Hello,
  JoinRequest,
  JoinResponse,
  LoadSample,
  MembershipServer,
  SnapshotChunk,
} from "../../shared/gen/kvmesh/worker/v1/worker.ts";
import { CounterWindow, workDone, type EngineCounters } from "../core/load/counter-delta.ts";
import type { FeedOutcome } from "../core/membership/block-feed.ts";
import {
  memberKey,
  type Member,
  type MemberFacts,
  type MemberRole,
} from "../core/membership/member.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { routerMetrics } from "../metrics.ts";
import { artifactBytesMax, type ModelRuntimes } from "./model-runtimes.ts";

type Call = ServerDuplexStream<JoinRequest, JoinResponse>;
type Reply = NonNullable<JoinResponse["message"]>;

const protocolVersion = 1;
/** A stream that has not said hello by then is ended, ms. */
const helloMsMax = 5_000;
/** Deltas between two acks at most. */
const ackEvery = 256;
/** A worker that has changed nothing hears from us so often all the same: it compares clocks by acks, ms. */
const quietAckMs = 5_000;
/** Resyncs in a row after which the stream is ended: its worker cannot produce a right snapshot. */
const resyncsInARowMax = 5;

/** Far above any model's. */
const kvBytesPerTokenMax = 1n << 30n;

const roles: Readonly<Record<number, MemberRole>> = { 1: "both", 2: "prefill", 3: "decode" };

/** What the membership service needs. */
export interface MembershipDependencies {
  readonly core: RouterCore;
  readonly runtimes: ModelRuntimes;
  readonly keys: MeshKeys;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof routerMetrics>;
  readonly instance: string;
  readonly epoch: number;
  readonly blockSizeTokens: number;
  readonly allowedCidrs: readonly Cidr[];
  /** An engine takes no new requests because it is to go: streams that can run elsewhere should leave it. */
  readonly onDraining?: (member: Member) => void;
  /** Carries out what the core wants done after a change. */
  readonly settle: () => void;
}

/** Counters by member, for people. */
export type CountersOf = (key: string) => EngineCounters | undefined;

/** (lo, hi) pairs from little-endian bytes. Copies when the bytes are not aligned. */
function readHashes(bytes: Buffer): Uint32Array {
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

function readFacts(hello: Hello): MemberFacts {
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

function readCounters(sample: LoadSample): EngineCounters {
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

/** One worker's join stream. */
class JoinStream {
  readonly #call: Call;
  readonly #d: MembershipDependencies;
  readonly #id: number;
  readonly #nonce = randomBytes(16);
  readonly #artifacts = new Map<string, { readonly parts: Buffer[]; bytes: number }>();
  readonly #deadline: NodeJS.Timeout;
  #member: Member | undefined;
  #counters: EngineCounters | undefined;
  #window = new CounterWindow();
  /** Snapshots and deltas since the last ack. */
  #unacked = 0;
  #ackedAt = -Infinity;
  #lastSentUnixUs = 0n;
  #resyncsInARow = 0;
  #ended = false;

  constructor(call: Call, id: number, dependencies: MembershipDependencies) {
    this.#call = call;
    this.#id = id;
    this.#d = dependencies;
    this.#deadline = setTimeout(() => {
      this.fail(new MeshError("deadline_exceeded", `no hello within ${helloMsMax} ms`));
    }, helloMsMax);
    this.#send({
      $case: "challenge",
      value: {
        protocolVersion,
        routerInstance: dependencies.instance,
        routerEpoch: BigInt(dependencies.epoch),
        nonce: this.#nonce,
        blockSizeTokens: dependencies.blockSizeTokens,
        hashSeedFingerprint: hashSeedFingerprint(dependencies.keys),
      },
    });
  }

  get counters(): EngineCounters | undefined {
    return this.#counters;
  }

  get memberKey(): string | undefined {
    return this.#member?.key;
  }

  receive(request: JoinRequest): void {
    if (this.#ended) return;
    try {
      this.#dispatch(request);
    } catch (error) {
      this.fail(toMeshError(error));
    }
    this.#d.settle();
  }

  /** Ends the stream with a named refusal. */
  fail(error: MeshError): void {
    if (this.#ended) return;
    this.#d.metrics.joinRefused.inc({ code: error.code });
    this.#d.log.warn(
      {
        event: "join_refused",
        workerId: this.#member?.workerId,
        code: error.code,
        reason: error.message,
      },
      "join stream refused",
    );
    this.#lost();
    this.#call.emit("error", toServiceError(error));
  }

  /** The stream is gone. */
  lost(): void {
    if (this.#ended) return;
    this.#lost();
    this.#d.settle();
  }

  /** Tells the worker that this router goes away. */
  drain(deadlineMs: number): void {
    if (!this.#ended) this.#send({ $case: "drain", value: { deadlineMs } });
  }

  /** Ends the stream without an error. */
  close(): void {
    if (this.#ended) return;
    this.#lost();
    this.#call.end();
  }

  #lost(): void {
    this.#ended = true;
    clearTimeout(this.#deadline);
    this.#d.runtimes.forget(this.#id);
    this.#d.core.streamLost(this.#id, this.#d.clock.now());
  }

  #dispatch(request: JoinRequest): void {
    const { message } = request;
    if (message === undefined) return;
    if (message.$case === "hello") {
      this.#hello(message.value);
      return;
    }
    const member = this.#member;
    if (member === undefined) {
      throw new MeshError("invalid_request", `${message.$case} came before hello`);
    }
    switch (message.$case) {
      case "snapshot":
        this.#snapshot(member, message.value);
        break;
      case "delta":
        this.#delta(member, message.value);
        break;
      case "load":
        this.#load(member, message.value);
        break;
      case "artifact":
        this.#artifact(message.value);
        break;
      case "state":
        this.#d.core.setReady(member.key, message.value.ready);
        if (!message.value.ready && message.value.reason === "draining") {
          this.#d.onDraining?.(member);
        }
        break;
      case "goodbye":
        this.#d.log.info(
          { event: "worker_left", workerId: member.workerId, reason: message.value.reason },
          "worker said goodbye",
        );
        this.#ended = true;
        clearTimeout(this.#deadline);
        this.#d.core.goodbye(member.key);
        this.#call.end();
        break;
    }
  }

  #hello(hello: Hello): void {
    const { core, clock, log, runtimes } = this.#d;
    if (hello.protocolVersion !== protocolVersion) {
      throw new MeshError(
        "invalid_request",
        `worker speaks protocol ${hello.protocolVersion}, this router ${protocolVersion}; run one version of kvmesh`,
      );
    }
    const facts = readFacts(hello);
    this.#checkProof(hello, facts);
    const key = memberKey(facts.workerId, facts.dpRank);
    if (this.#member !== undefined && this.#member.key !== key) {
      throw new MeshError(
        "invalid_request",
        `this stream is held for ${this.#member.key}; open another one for ${key}`,
        { field: "worker_id" },
      );
    }
    const { replacedStream } = core.admit(facts, this.#id, clock.now());
    clearTimeout(this.#deadline);
    this.#member = core.members.get(key);
    if (replacedStream !== undefined && replacedStream !== this.#id) {
      this.replaced?.(replacedStream);
    }
    this.#counters = undefined;
    this.#window = new CounterWindow();
    this.#send({ $case: "accepted", value: {} });
    runtimes.learn(facts);
    this.#askForFiles(facts);
    log.info(
      {
        event: "worker_joined",
        workerId: facts.workerId,
        model: facts.models[0],
        endpoint: facts.endpoint,
        epoch: facts.epoch,
        capacityTokens: facts.capacityTokens,
      },
      "worker joined",
    );
  }

  /** Asks for model files that no other worker is delivering. */
  #askForFiles(facts: MemberFacts): void {
    for (const sha256 of this.#d.runtimes.claim(facts, this.#id, this.#d.clock.now())) {
      this.#artifacts.set(sha256, { parts: [], bytes: 0 });
      this.#send({ $case: "artifact", value: { sha256: Buffer.from(sha256, "hex") } });
    }
  }

  /** Set by the service: ends a stream that a newer one replaces. */
  replaced: ((streamId: number) => void) | undefined;

  #checkProof(hello: Hello, facts: MemberFacts): void {
    const { keys, allowedCidrs } = this.#d;
    const proven = verifyProof(
      keys.join.filter(({ id }) => id === hello.joinKeyId),
      hello.joinProof,
      (key) =>
        joinProof(key, {
          workerId: facts.workerId,
          engineAddress: facts.endpoint,
          workerStartMs: BigInt(facts.epoch.workerStartMs),
          engineLife: BigInt(facts.epoch.engineLife),
          nonce: this.#nonce,
        }),
    );
    if (!proven) {
      throw new MeshError(
        "unauthenticated",
        `worker ${facts.workerId} has no valid join proof; give it the mesh's keys file (key ${hello.joinKeyId} was used)`,
      );
    }
    if (!hashSeedFingerprint(keys).equals(hello.hashSeedFingerprint)) {
      throw new MeshError(
        "invalid_request",
        `worker ${facts.workerId} uses another hash seed; give it the mesh's keys file`,
        { field: "hash_seed_fingerprint" },
      );
    }
    const endpoint = parseEndpoint(facts.endpoint);
    if (endpoint === undefined) {
      throw new MeshError("invalid_request", `engine address ${facts.endpoint} is not ip:port`, {
        field: "engine_address",
      });
    }
    if (!inCidrs(allowedCidrs, endpoint.host)) {
      throw new MeshError(
        "permission_denied",
        `engine address ${facts.endpoint} lies outside workers.allowedCidrs ` +
          `(${allowedCidrs.map((c) => c.text).join(", ")}); add its range to the router's settings`,
        { field: "engine_address" },
      );
    }
  }

  #snapshot(member: Member, chunk: SnapshotChunk): void {
    const hashes = readHashes(chunk.hashes);
    this.#d.metrics.blockEvents.inc({ kind: "snapshot" }, hashes.length / 2);
    const digest = chunk.xorDigest;
    const outcome = this.#d.core.snapshot(
      member.key,
      {
        baseSeq: Number(chunk.baseSeq),
        hashes,
        last: chunk.last,
        xorLo: Number(digest & 0xffff_ffffn),
        xorHi: Number(digest >> 32n),
        blockCount: Number(chunk.blockCount),
      },
      this.#d.clock.now(),
    );
    if (outcome.kind === "applied") {
      this.#resyncsInARow = 0;
      this.#ack(member);
    }
    this.#resync(member, outcome);
  }

  #delta(member: Member, delta: BlockDelta): void {
    const { metrics, core, clock } = this.#d;
    const stored = readHashes(delta.stored);
    const removed = readHashes(delta.removed);
    metrics.blockEvents.inc({ kind: "stored" }, stored.length / 2);
    metrics.blockEvents.inc({ kind: "removed" }, removed.length / 2);
    metrics.blockEventAge.observe(delta.eventAgeMs / 1_000);
    const change = { seq: Number(delta.seq), cleared: delta.cleared, removed, stored };
    const outcome = core.delta(member.key, change, clock.now());
    if (++this.#unacked >= ackEvery) this.#ack(member);
    this.#resync(member, outcome);
  }

  #resync(member: Member, outcome: FeedOutcome): void {
    if (outcome.kind !== "resync") return;
    this.#d.metrics.resyncs.inc({ reason: outcome.reason });
    this.#d.log.warn(
      { event: "resync_asked", workerId: member.workerId, reason: outcome.reason },
      "block stream of a worker has to be sent again",
    );
    if (++this.#resyncsInARow > resyncsInARowMax) {
      throw new MeshError("stale_epoch", `${resyncsInARowMax} snapshots in a row were wrong`);
    }
    this.#send({ $case: "resync", value: { reason: outcome.reason === "gap" ? 1 : 2 } });
  }

  #load(member: Member, sample: LoadSample): void {
    const { core, clock } = this.#d;
    const counters = readCounters(sample);
    this.#counters = counters;
    this.#lastSentUnixUs = sample.sentUnixUs;
    const { running, waiting, kvUsageRatio } = sample;
    const ageMs = Number.isFinite(sample.sampleAgeMs) ? Math.max(0, sample.sampleAgeMs) : 0;
    const at = monoMs(clock.now() - ageMs);
    const delta = this.#window.take(counters, at, member.facts?.capacityTokens ?? 0);
    const report = { running, waiting, kvUsageRatio, workDone: workDone(counters), at };
    core.report(member.key, report, delta);
    this.#d.metrics.loadReports.inc();
    if (member.facts !== undefined) this.#askForFiles(member.facts);
    // Deltas of a moment share the ack of the load report that follows them.
    if (this.#unacked > 0 || clock.now() - this.#ackedAt >= quietAckMs) this.#ack(member);
    if (core.repairDue(member.key, clock.now())) this.#repair(member);
  }

  /** Asks for a worker's blocks anew: some were dropped when the index was full, and now there is room for them. */
  #repair(member: Member): void {
    const { metrics, log } = this.#d;
    metrics.resyncs.inc({ reason: "room" });
    log.info(
      { event: "resync_asked", workerId: member.workerId, reason: "room" },
      "the index has room again for a worker's blocks",
    );
    this.#send({ $case: "resync", value: { reason: 3 } });
  }

  #artifact(chunk: ArtifactChunk): void {
    const sha256 = chunk.sha256.toString("hex");
    const pending = this.#artifacts.get(sha256);
    if (pending === undefined) return;
    pending.parts.push(chunk.content);
    pending.bytes += chunk.content.length;
    if (pending.bytes > artifactBytesMax) {
      throw new MeshError(
        "request_too_large",
        `file ${sha256} is larger than ${artifactBytesMax} bytes`,
      );
    }
    if (!chunk.last) return;
    this.#artifacts.delete(sha256);
    if (!this.#d.runtimes.deliver(sha256, Buffer.concat(pending.parts))) {
      throw new MeshError("invalid_request", `the file delivered as ${sha256} has another digest`);
    }
  }

  #ack(member: Member): void {
    this.#unacked = 0;
    this.#ackedAt = this.#d.clock.now();
    this.#send({
      $case: "ack",
      value: {
        appliedSeq: BigInt(member.appliedSeq),
        echoUnixUs: this.#lastSentUnixUs,
        routerUnixUs: BigInt(this.#d.clock.wallUnixUs()),
      },
    });
  }

  #send(message: Reply): void {
    this.#call.write({ message });
  }
}

/** The membership service with what `main` needs of it. */
export interface MembershipService {
  readonly service: MembershipServer;
  readonly countersOf: CountersOf;
  /** Announces the end to every worker. */
  drain(deadlineMs: number): void;
  /** Ends every stream. */
  close(): void;
}

/** Serves `Membership/Join`. */
export function createMembershipService(dependencies: MembershipDependencies): MembershipService {
  const streams = new Map<number, JoinStream>();
  let nextId = 1;
  return {
    service: {
      join: (call: Call) => {
        const id = nextId++;
        const stream = new JoinStream(call, id, dependencies);
        streams.set(id, stream);
        stream.replaced = (other) => {
          streams
            .get(other)
            ?.fail(new MeshError("stale_epoch", "a newer stream of this worker took over"));
        };
        call.on("data", (request: JoinRequest) => {
          stream.receive(request);
        });
        const gone = (): void => {
          stream.lost();
          streams.delete(id);
        };
        call.on("end", () => {
          gone();
          call.end();
        });
        call.on("cancelled", gone);
        call.on("error", gone);
      },
    },
    countersOf: (key) => {
      for (const stream of streams.values()) if (stream.memberKey === key) return stream.counters;
      return undefined;
    },
    drain: (deadlineMs) => {
      for (const stream of streams.values()) stream.drain(deadlineMs);
    },
    close: () => {
      for (const stream of streams.values()) stream.close();
    },
  };
}
