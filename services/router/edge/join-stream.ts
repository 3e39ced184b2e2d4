import type { Logger } from "pino";
import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { monoMs } from "../../shared/core/ids.ts";
import {
  hashSeedFingerprint,
  joinProof,
  verifyProof,
  type MeshKeys,
} from "../../shared/edge/keys.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import {
  ResyncReason,
  type ArtifactChunk,
  type BlockDelta,
  type Hello,
  type JoinRequest,
  type JoinResponse,
  type LoadSample,
  type SnapshotChunk,
} from "../../shared/gen/kvmesh/worker/v1/worker.ts";
import { CounterWindow, workDone, type EngineCounters } from "../core/load/counter-delta.ts";
import type { FeedOutcome } from "../core/membership/block-feed.ts";
import { memberKey, type Member, type MemberFacts } from "../core/membership/member.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { routerMetrics } from "../metrics.ts";
import { readCounters, readFacts, readHashes } from "./join-facts.ts";
import type { Lease, LeaseHolder } from "./lease-streams.ts";
import { artifactBytesMax, type ModelRuntimes } from "./model-runtimes.ts";

type Reply = NonNullable<JoinResponse["message"]>;

const protocolVersion = 1;
/** Deltas between two acks at most. */
const ackEvery = 256;
/** A worker that has changed nothing hears from us so often all the same: it compares clocks by acks, ms. */
const quietAckMs = 5_000;
/** Resyncs in a row after which the stream is ended: its worker cannot produce a right snapshot. */
const resyncsInARowMax = 5;

/** Why a snapshot is asked for, as the protocol numbers it. */
const resyncReasons = {
  gap: ResyncReason.RESYNC_REASON_GAP,
  digest: ResyncReason.RESYNC_REASON_DIGEST,
  room: ResyncReason.RESYNC_REASON_INDEX_ROOM,
} as const;

/** What the streams of workers need. */
export interface JoinStreamDependencies {
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
  /** Ends an older stream of the same worker. */
  readonly replace: (streamId: number) => void;
}

/** One worker's join stream: its hello, its blocks, its load, and the files that it delivers. */
export class JoinStream implements LeaseHolder<JoinRequest> {
  readonly #lease: Lease<JoinResponse>;
  readonly #d: JoinStreamDependencies;
  readonly #artifacts = new Map<string, { readonly parts: Buffer[]; bytes: number }>();
  #member: Member | undefined;
  #counters: EngineCounters | undefined;
  #window = new CounterWindow();
  /** Snapshots and deltas since the last ack. */
  #unacked = 0;
  #ackedAt = -Infinity;
  #lastSentUnixUs = 0n;
  #resyncsInARow = 0;

  constructor(lease: Lease<JoinResponse>, dependencies: JoinStreamDependencies) {
    this.#lease = lease;
    this.#d = dependencies;
    this.#send({
      $case: "challenge",
      value: {
        protocolVersion,
        routerInstance: dependencies.instance,
        routerEpoch: BigInt(dependencies.epoch),
        nonce: lease.nonce,
        blockSizeTokens: dependencies.blockSizeTokens,
        hashSeedFingerprint: hashSeedFingerprint(dependencies.keys),
      },
    });
  }

  /** What its engine's counters said last. */
  get counters(): EngineCounters | undefined {
    return this.#counters;
  }

  /** The member that it holds. */
  get member(): Member | undefined {
    return this.#member;
  }

  gone(): void {
    this.#d.runtimes.forget(this.#lease.id);
    this.#d.core.streamLost(this.#lease.id, this.#d.clock.now());
  }

  /** Tells the worker that this router goes away. */
  drain(deadlineMs: number): void {
    this.#send({ $case: "drain", value: { deadlineMs } });
  }

  receive({ message }: JoinRequest): void {
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
        this.#goodbye(member, message.value.reason);
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
    const { id } = this.#lease;
    const { replacedStream } = core.admit(facts, id, clock.now());
    this.#lease.accepted();
    this.#member = core.members.get(key);
    if (replacedStream !== undefined && replacedStream !== id) this.#d.replace(replacedStream);
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
    const { runtimes, clock } = this.#d;
    for (const sha256 of runtimes.claim(facts, this.#lease.id, clock.now())) {
      this.#artifacts.set(sha256, { parts: [], bytes: 0 });
      this.#send({ $case: "artifact", value: { sha256: Buffer.from(sha256, "hex") } });
    }
  }

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
          nonce: this.#lease.nonce,
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
    const reason = outcome.reason === "gap" ? resyncReasons.gap : resyncReasons.digest;
    this.#send({ $case: "resync", value: { reason } });
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
    this.#send({ $case: "resync", value: { reason: resyncReasons.room } });
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
    this.#lease.send({ message });
  }

  #goodbye(member: Member, reason: string): void {
    const { core, log } = this.#d;
    log.info(
      { event: "worker_left", workerId: member.workerId, reason: reason.slice(0, 200) },
      "worker said goodbye",
    );
    core.goodbye(member.key);
    this.#lease.end();
  }
}
