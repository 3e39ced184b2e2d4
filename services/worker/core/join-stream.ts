import type { MonoMs } from "../../shared/core/ids.ts";
import type { MeshBlockSink } from "./block-map.ts";
import { joinRefusal, type JoinRefusal } from "./join-refusal.ts";
import type { LoadSample } from "./load-sample.ts";
import { PendingDelta, type BlockChange } from "./pending-delta.ts";
import { hashesPerMessageMax, Snapshot, type SnapshotChunk } from "./snapshot.ts";

/** Version of the join protocol that this worker speaks. */
export const joinProtocolVersion = 1;

/** Where the stream to one router stands. */
export type JoinPhase =
  /** No call. */
  | "idle"
  /** Called; the router's challenge is awaited. */
  | "opening"
  /** Challenged; the hello is due. */
  | "challenged"
  /** Hello sent; the router's answer is awaited. */
  | "joining"
  /** A snapshot is wanted or under way. */
  | "snapshot"
  /** Deltas follow. */
  | "live"
  /** The goodbye is due. */
  | "leaving"
  /** Nothing more is sent. */
  | "ended";

/** A router's opening. */
export interface Challenge {
  readonly protocolVersion: number;
  readonly routerInstance: string;
  readonly routerEpoch: bigint;
  readonly nonce: Uint8Array;
  readonly blockSizeTokens: number;
  readonly hashSeedFingerprint: Uint8Array;
}

/** What happens to the stream. */
export type JoinInput =
  | { readonly kind: "opened" }
  | { readonly kind: "challenge"; readonly challenge: Challenge }
  | { readonly kind: "accepted" }
  | { readonly kind: "ack"; readonly appliedSeq: number }
  | { readonly kind: "resync" }
  | { readonly kind: "artifact_request"; readonly sha256: string }
  | { readonly kind: "drain"; readonly deadlineMs: number }
  | { readonly kind: "leave"; readonly reason: string }
  | { readonly kind: "ended" };

/** Why this side ends the stream. */
export type JoinEnd =
  | { readonly kind: "refused"; readonly refusal: JoinRefusal }
  /** The router sent what is not allowed here. */
  | { readonly kind: "protocol_error"; readonly message: string }
  /** A deadline passed. */
  | { readonly kind: "timeout"; readonly waitedFor: "challenge" | "accepted" | "write" | "ack" };

/** One message to send. */
export type JoinOutput =
  | { readonly kind: "hello"; readonly nonce: Uint8Array }
  | { readonly kind: "snapshot"; readonly chunk: SnapshotChunk }
  | {
      readonly kind: "delta";
      readonly seq: number;
      readonly change: BlockChange;
      readonly eventAgeMs: number;
    }
  | { readonly kind: "load"; readonly sample: LoadSample; readonly sampleAgeMs: number }
  | { readonly kind: "state"; readonly ready: boolean; readonly reason: string }
  | {
      readonly kind: "artifact";
      readonly sha256: string;
      readonly offset: number;
      readonly size: number;
      readonly last: boolean;
    }
  | { readonly kind: "goodbye"; readonly reason: string };

type Action =
  | "ignore"
  | "open"
  | "check_challenge"
  | "accept"
  | "ack"
  | "resync"
  | "send_artifact"
  | "note_drain"
  | "leave"
  | "end"
  | "refuse_message";

const fromRouterTooEarly = {
  accepted: "refuse_message",
  ack: "refuse_message",
  resync: "refuse_message",
  artifact_request: "refuse_message",
} as const;
const quiet = {
  opened: "ignore",
  challenge: "ignore",
  accepted: "ignore",
  ack: "ignore",
  resync: "ignore",
  artifact_request: "ignore",
  drain: "ignore",
  leave: "ignore",
  ended: "end",
} as const;
const member = {
  opened: "ignore",
  challenge: "refuse_message",
  accepted: "refuse_message",
  ack: "ack",
  resync: "resync",
  artifact_request: "send_artifact",
  drain: "note_drain",
  leave: "leave",
  ended: "end",
} as const;

/** Every state and every input; the README shows this table. */
export const joinTransitions: Readonly<
  Record<JoinPhase, Readonly<Record<JoinInput["kind"], Action>>>
> = {
  idle: { ...quiet, opened: "open", leave: "end" },
  opening: {
    opened: "ignore",
    challenge: "check_challenge",
    ...fromRouterTooEarly,
    drain: "note_drain",
    leave: "end",
    ended: "end",
  },
  challenged: {
    opened: "ignore",
    challenge: "refuse_message",
    ...fromRouterTooEarly,
    drain: "note_drain",
    leave: "end",
    ended: "end",
  },
  joining: {
    opened: "ignore",
    challenge: "refuse_message",
    ...fromRouterTooEarly,
    accepted: "accept",
    drain: "note_drain",
    leave: "leave",
    ended: "end",
  },
  snapshot: member,
  live: member,
  leaving: quiet,
  ended: { ...quiet, opened: "open" },
};

/** Bounds and deadlines of one join stream. */
export interface JoinLimits {
  /** Most blocks whose change waits for one router; past it a snapshot replaces them. */
  readonly pendingBlocksMax: number;
  readonly hashesPerMessage: number;
  readonly artifactBytesPerMessage: number;
  /** Longest wait for the challenge and for the answer to the hello, ms. */
  readonly handshakeMsMax: number;
  /** Longest time that the router may not read, ms. */
  readonly blockedMsMax: number;
  /**
   * Longest time without progress of the acks, ms, from a load sample sent while something was
   * unacknowledged: a router answers a load sample that follows them with an ack, deltas only now and then.
   */
  readonly ackMsMax: number;
  /** Least time between the starts of two snapshots, ms: a router that always asks gets no more. */
  readonly snapshotIntervalMsMin: number;
}

/** Defaults of the bounds that no setting covers. */
export const defaultJoinLimits: JoinLimits = {
  pendingBlocksMax: 262_144,
  hashesPerMessage: hashesPerMessageMax,
  artifactBytesPerMessage: 1024 * 1024,
  handshakeMsMax: 5_000,
  blockedMsMax: 30_000,
  ackMsMax: 30_000,
  snapshotIntervalMsMin: 250,
};

/** What the stream needs to know of the member that it speaks for. */
export interface JoinMember {
  readonly hashSeedFingerprint: Uint8Array;
  /** Takes a router's block size, or says why it cannot be. */
  agreeBlockSize(meshBlockSizeTokens: number): JoinRefusal | undefined;
  /** Every mesh block held now, pairs `[lo0, hi0, …]`. */
  meshHashes(): Uint32Array;
  isReady(): { readonly ready: boolean; readonly reason: string };
  /** Size of a file of the model by its digest in hex, or `undefined`. */
  artifactSize(sha256: string): number | undefined;
}

/** Time as the stream needs it. */
export interface JoinTime {
  readonly now: MonoMs;
  /** Wall clock, ms since 1970, to tell the age of engine events. */
  readonly wallUnixMs: number;
}

const artifactsQueuedMax = 4;
/** An engine that rests and shows nothing new is told of so often, ms: a thousand of them would keep a router busy. */
const restingLoadMs = 1_000;

/**
 * What to send to one router, and when. Messages are pulled: `next` gives the most urgent one whenever the
 * stream can take it, so a router that reads slowly gets changes merged instead of queued.
 *
 * Order of urgency: hello, state, snapshot, delta, load, artifact. A snapshot that was begun is finished;
 * changes since its first chunk follow as deltas. Deterministic.
 */
export class JoinStream implements MeshBlockSink {
  readonly #member: JoinMember;
  readonly #limits: JoinLimits;
  readonly #pending: PendingDelta;
  #phase: JoinPhase = "idle";
  #phaseSince = 0;
  #nonce: Uint8Array = new Uint8Array(0);
  #seq = 0;
  #ackedSeq = 0;
  #snapshotUnacked = false;
  #ackDueSince: number | undefined;
  #blockedSince: number | undefined;
  #snapshot: Snapshot | undefined;
  #snapshotWanted = false;
  #snapshotNotBefore = 0;
  #oldestEventUnixMs: number | undefined;
  #load: { readonly sample: LoadSample; readonly takenAt: MonoMs } | undefined;
  #toldLoad: { readonly sample: LoadSample; readonly takenAt: MonoMs } | undefined;
  #toldReady: boolean | undefined;
  #artifacts: { readonly sha256: string; readonly size: number; offset: number }[] = [];
  #goodbye = "";
  #draining = false;
  /** Snapshots begun on this object's streams. */
  snapshotCount = 0;
  /** Times that pending changes were dropped for a snapshot. */
  overflowCount = 0;

  constructor(member: JoinMember, limits: JoinLimits = defaultJoinLimits) {
    this.#member = member;
    this.#limits = limits;
    this.#pending = new PendingDelta(limits.pendingBlocksMax);
  }

  get phase(): JoinPhase {
    return this.#phase;
  }

  /** Deltas sent that the router has not acknowledged. */
  get unackedCount(): number {
    return this.#seq - this.#ackedSeq;
  }

  get pendingBlockCount(): number {
    return this.#pending.count;
  }

  /** Whether the router said that it goes away. */
  get isDraining(): boolean {
    return this.#draining;
  }

  /** Takes one input; an answer means that the caller must end the call. */
  step(input: JoinInput, now: MonoMs): JoinEnd | undefined {
    switch (joinTransitions[this.#phase][input.kind]) {
      case "ignore":
        return undefined;
      case "open":
        this.#begin();
        this.#enter("opening", now);
        return undefined;
      case "check_challenge":
        return input.kind === "challenge" ? this.#check(input.challenge, now) : undefined;
      case "accept":
        this.#enter("snapshot", now);
        this.#snapshotWanted = true;
        return undefined;
      case "ack":
        if (input.kind === "ack") this.#acknowledge(input.appliedSeq);
        return undefined;
      case "resync":
        this.#wantSnapshot();
        return undefined;
      case "send_artifact":
        return input.kind === "artifact_request" ? this.#queueArtifact(input.sha256) : undefined;
      case "note_drain":
        this.#draining = true;
        return undefined;
      case "leave":
        this.#goodbye = input.kind === "leave" ? input.reason : "";
        this.#enter("leaving", now);
        return undefined;
      case "end":
        this.#enter("ended", now);
        this.#pending.reset();
        this.#snapshot = undefined;
        return undefined;
      case "refuse_message":
        return {
          kind: "protocol_error",
          message: `the router sent ${input.kind} while the stream was ${this.#phase}`,
        };
    }
  }

  stored(lo: number, hi: number): void {
    if (!this.#collects()) return;
    this.#pending.stored(lo, hi);
    if (this.#pending.isFull) this.#overflow();
  }

  removed(lo: number, hi: number): void {
    if (!this.#collects()) return;
    this.#pending.removed(lo, hi);
    if (this.#pending.isFull) this.#overflow();
  }

  cleared(): void {
    if (this.#collects()) this.#pending.cleared();
  }

  /** Notes when the engine published the changes just told, ms since 1970. */
  eventsApplied(publishedUnixMs: number): void {
    if (!this.#pending.isEmpty) this.#oldestEventUnixMs ??= publishedUnixMs;
  }

  /**
   * Takes a load sample; one that could not be sent yet is replaced. Samples of an engine that works are all told, since
   * a router sees from counters that stand still that it hangs; of one that rests only what is new, or once a second.
   */
  sampled(sample: LoadSample, takenAt: MonoMs): void {
    const told = this.#toldLoad;
    const isNews =
      told === undefined ||
      sample.running + sample.waiting > 0 ||
      takenAt - told.takenAt >= restingLoadMs ||
      !isSameLoad(sample, told.sample);
    if (isNews || this.#load !== undefined) this.#load = { sample, takenAt };
  }

  /** Says whether the last write was taken; `true` from the next drain on. */
  setWritable(writable: boolean, now: MonoMs): void {
    if (writable) this.#blockedSince = undefined;
    else this.#blockedSince ??= now;
  }

  get isBlocked(): boolean {
    return this.#blockedSince !== undefined;
  }

  /** The next message, or `undefined` when there is none now. Call again after `wakeAt` and after any input. */
  next(time: JoinTime): JoinOutput | undefined {
    switch (this.#phase) {
      case "idle":
      case "opening":
      case "joining":
      case "ended":
        return undefined;
      case "challenged":
        this.#enter("joining", time.now);
        this.#toldReady = this.#member.isReady().ready;
        return { kind: "hello", nonce: this.#nonce };
      case "leaving":
        this.#enter("ended", time.now);
        return { kind: "goodbye", reason: this.#goodbye };
      case "snapshot":
        return this.#nextState() ?? this.#nextChunk(time.now) ?? this.#nextLoadOrArtifact(time.now);
      case "live":
        return this.#nextState() ?? this.#nextDelta(time) ?? this.#nextLoadOrArtifact(time.now);
    }
  }

  /** When to call `next` and `tick` again at the latest. */
  wakeAt(): number | undefined {
    return this.#phase === "snapshot" && this.#snapshot === undefined
      ? this.#snapshotNotBefore
      : undefined;
  }

  /** Checks the deadlines. */
  tick(now: MonoMs): JoinEnd | undefined {
    const { handshakeMsMax, blockedMsMax, ackMsMax } = this.#limits;
    const inPhaseMs = now - this.#phaseSince;
    if (this.#phase === "opening" && inPhaseMs > handshakeMsMax) {
      return { kind: "timeout", waitedFor: "challenge" };
    }
    if (this.#phase === "joining" && inPhaseMs > handshakeMsMax) {
      return { kind: "timeout", waitedFor: "accepted" };
    }
    if (this.#blockedSince !== undefined && now - this.#blockedSince > blockedMsMax) {
      return { kind: "timeout", waitedFor: "write" };
    }
    if (this.#ackDueSince !== undefined && now - this.#ackDueSince > ackMsMax) {
      return { kind: "timeout", waitedFor: "ack" };
    }
    return undefined;
  }

  #enter(phase: JoinPhase, now: MonoMs): void {
    this.#phase = phase;
    this.#phaseSince = now;
  }

  #begin(): void {
    this.#pending.reset();
    this.#seq = 0;
    this.#ackedSeq = 0;
    this.#snapshotUnacked = false;
    this.#ackDueSince = undefined;
    this.#blockedSince = undefined;
    this.#snapshot = undefined;
    this.#snapshotWanted = false;
    this.#snapshotNotBefore = 0;
    this.#oldestEventUnixMs = undefined;
    this.#load = undefined;
    this.#toldLoad = undefined;
    this.#toldReady = undefined;
    this.#artifacts = [];
    this.#draining = false;
  }

  #check(challenge: Challenge, now: MonoMs): JoinEnd | undefined {
    const refusal = this.#refusalOf(challenge);
    if (refusal !== undefined) return { kind: "refused", refusal };
    this.#nonce = challenge.nonce;
    this.#enter("challenged", now);
    return undefined;
  }

  #refusalOf(challenge: Challenge): JoinRefusal | undefined {
    if (challenge.protocolVersion !== joinProtocolVersion) {
      return joinRefusal(
        "protocol_version",
        `the router speaks join protocol ${String(challenge.protocolVersion)}, this worker ${String(joinProtocolVersion)}`,
      );
    }
    if (!equalBytes(challenge.hashSeedFingerprint, this.#member.hashSeedFingerprint)) {
      return joinRefusal("hash_seed", "the router hashes with another seed than this worker");
    }
    return this.#member.agreeBlockSize(challenge.blockSizeTokens);
  }

  #acknowledge(appliedSeq: number): void {
    // Acks of an earlier numbering or beyond what was sent say nothing.
    if (appliedSeq < this.#ackedSeq || appliedSeq > this.#seq) return;
    const isProgress = appliedSeq > this.#ackedSeq || this.#snapshotUnacked;
    this.#ackedSeq = appliedSeq;
    if (this.#phase === "live") this.#snapshotUnacked = false;
    if (isProgress || !this.#owesAck()) this.#ackDueSince = undefined;
  }

  #owesAck(): boolean {
    return this.#snapshotUnacked || this.unackedCount > 0;
  }

  #wantSnapshot(): void {
    this.#pending.reset();
    this.#oldestEventUnixMs = undefined;
    this.#snapshotWanted = true;
    if (this.#phase === "live") this.#phase = "snapshot";
  }

  #overflow(): void {
    this.overflowCount++;
    this.#wantSnapshot();
  }

  /** Changes are kept from the first chunk of a snapshot on, unless another snapshot is to follow. */
  #collects(): boolean {
    if (this.#snapshotWanted) return false;
    return this.#phase === "live" || this.#snapshot !== undefined;
  }

  #queueArtifact(sha256: string): JoinEnd | undefined {
    const size = this.#member.artifactSize(sha256);
    if (size === undefined) {
      return {
        kind: "protocol_error",
        message: `the router asked for a file that the hello did not name: ${sha256}`,
      };
    }
    const isQueued = this.#artifacts.some((artifact) => artifact.sha256 === sha256);
    if (!isQueued && this.#artifacts.length < artifactsQueuedMax) {
      this.#artifacts.push({ sha256, size, offset: 0 });
    }
    return undefined;
  }

  #nextState(): JoinOutput | undefined {
    const { ready, reason } = this.#member.isReady();
    if (ready === this.#toldReady) return undefined;
    this.#toldReady = ready;
    return { kind: "state", ready, reason };
  }

  #nextChunk(now: MonoMs): JoinOutput | undefined {
    if (this.#snapshot === undefined && now < this.#snapshotNotBefore) return undefined;
    this.#snapshot ??= this.#beginSnapshot(now);
    const chunk = this.#snapshot.next();
    if (chunk?.last === true) {
      this.#snapshot = undefined;
      this.#snapshotUnacked = true;
      if (!this.#snapshotWanted) this.#phase = "live";
    }
    return chunk === undefined ? undefined : { kind: "snapshot", chunk };
  }

  #beginSnapshot(now: MonoMs): Snapshot {
    const { hashesPerMessage, snapshotIntervalMsMin } = this.#limits;
    this.#snapshotWanted = false;
    this.#snapshotNotBefore = now + snapshotIntervalMsMin;
    this.snapshotCount++;
    return new Snapshot(
      { baseSeq: this.#seq, hashesPerChunk: hashesPerMessage },
      this.#member.meshHashes(),
    );
  }

  #nextDelta(time: JoinTime): JoinOutput | undefined {
    if (this.#pending.isEmpty) return undefined;
    const change = this.#pending.take(this.#limits.hashesPerMessage);
    this.#seq++;
    const oldest = this.#oldestEventUnixMs ?? time.wallUnixMs;
    if (this.#pending.count === 0) this.#oldestEventUnixMs = undefined;
    return {
      kind: "delta",
      seq: this.#seq,
      change,
      eventAgeMs: Math.max(0, time.wallUnixMs - oldest),
    };
  }

  #nextLoadOrArtifact(now: MonoMs): JoinOutput | undefined {
    if (this.#load !== undefined) {
      const { sample, takenAt } = this.#load;
      this.#toldLoad = this.#load;
      this.#load = undefined;
      if (this.#owesAck()) this.#ackDueSince ??= now;
      return { kind: "load", sample, sampleAgeMs: Math.max(0, now - takenAt) };
    }
    const artifact = this.#artifacts[0];
    if (artifact === undefined) return undefined;
    const { offset } = artifact;
    const size = Math.min(this.#limits.artifactBytesPerMessage, artifact.size - offset);
    artifact.offset += size;
    const last = artifact.offset === artifact.size;
    if (last) this.#artifacts.shift();
    return { kind: "artifact", sha256: artifact.sha256, offset, size, last };
  }
}

function isSameLoad(a: LoadSample, b: LoadSample): boolean {
  return (Object.keys(a) as (keyof LoadSample)[]).every((name) => a[name] === b[name]);
}

function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
