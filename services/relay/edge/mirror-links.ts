import { randomBytes } from "node:crypto";
import type { ClientDuplexStream } from "@grpc/grpc-js";
import { Metadata } from "@grpc/grpc-js";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import type { TokenKey } from "../../shared/core/placement-token/placement-token.ts";
import { mirrorProofMessage } from "../../shared/core/placement-token/relay-proof.ts";
import { createChannelCredentials, createChannelOptions } from "../../shared/edge/grpc-client.ts";
import {
  MirrorClient,
  type KeepRequest,
  type KeepResponse,
  type MirroredStream,
  type MirrorHello,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import type { GuardedStream, StreamPoint } from "../core/guard/guarded-stream.ts";
import { chooseBuddy } from "../core/resume/buddy.ts";
import { packIds, writeHead } from "../core/resume/mirror-state.ts";
import type { MirroredState, MirrorStore } from "../core/resume/mirror-store.ts";
import { looseIdsMax, signResume, type ResumePoint } from "../core/resume/resume-token.ts";
import type { LiveRelay, LiveTopology } from "../core/topology/live-topology.ts";

/** How long growth of streams is gathered before it is sent, ms. */
const flushEveryMs = 20;
const streamsPerMessage = 1_024;
/** Most of one stream that is mirrored, bytes. */
export const mirrorBytesMax = 64 << 10;
const takeMsMax = 1_000;
/** Ends of streams that wait to be told; others are forgotten by their buddy in time. */
const overMax = 65_536;
/** A buddy that could not be reached is left out for so long, ms. */
const restMs = 5_000;
/** How often links are looked for whose buddy is gone, ms. */
const sweepEveryMs = 1_000;

/** What the mirroring of streams needs. */
export interface MirrorLinksOptions {
  readonly instance: string;
  readonly epoch: number;
  readonly joinKey: TokenKey;
  readonly resumeKey: TokenKey;
  readonly topology: LiveTopology;
  /** What other relays mirror here. */
  readonly store: MirrorStore;
  readonly clock: Clock;
}

/** One guarded stream as its buddy is kept up to date with it. */
export class StreamMirror {
  readonly key = randomBytes(16);
  readonly #bodySha256: Uint8Array;
  #link: MirrorLink;
  readonly #options: MirrorLinksOptions;
  #stream: GuardedStream | undefined;
  #traceparent = "";
  #sent = 0;
  #acked = 0;
  #hasHead = false;
  #isRefused = false;
  /** Whether the buddy has it: not known yet, until its first word or until that is waited for no longer. */
  #standing: "opening" | "kept" | "unkept" = "opening";
  /** Told once when it is no longer open whether the buddy has it. */
  onSettled: () => void = () => undefined;

  constructor(link: MirrorLink, bodySha256: Uint8Array, options: MirrorLinksOptions) {
    this.#link = link;
    this.#bodySha256 = bodySha256;
    this.#options = options;
  }

  /** The relay that keeps it. */
  get buddy(): string {
    return this.#link.instance;
  }

  /** What it is chosen by. */
  get bodySha256(): Uint8Array {
    return this.#bodySha256;
  }

  /** Another buddy keeps it from now on. */
  moveTo(link: MirrorLink): void {
    this.#link = link;
  }

  /** The stream that is mirrored; its events are named with `nameOf`. `traceparent`: of its request, or empty. */
  follow(stream: GuardedStream, traceparent: string): void {
    this.#stream = stream;
    this.#traceparent = traceparent;
  }

  /** Whether the buddy has not said yet that it has the stream. What is named meanwhile must not go out before it does. */
  get isOpening(): boolean {
    return this.#standing === "opening";
  }

  /** Whether the buddy has the stream, so that it can be resumed from its last name. */
  get isKept(): boolean {
    return this.#standing === "kept";
  }

  /** The buddy's first word is waited for no longer; its streams begin elsewhere for a while. */
  late(): void {
    this.#link.late();
    this.#settle("unkept");
  }

  /** The buddy does not keep it. */
  refused(): void {
    this.#isRefused = true;
    this.#settle("unkept");
  }

  #settle(standing: "kept" | "unkept"): void {
    const wasOpening = this.isOpening;
    this.#standing = standing;
    if (wasOpening) this.onSettled();
  }

  /** The token of an event; nothing while the buddy is too far behind, or does not have the stream. */
  nameOf(point: StreamPoint): string | undefined {
    const stream = this.#stream;
    const isLost = this.#standing === "unkept" || this.#link.isClosed;
    if (stream === undefined || isLost || point.index - this.#acked > looseIdsMax) {
      return undefined;
    }
    const looseFrom = Math.min(this.#acked, point.index);
    return signResume(
      {
        buddy: this.buddy,
        key: this.key,
        bodySha256: this.#bodySha256,
        point,
        looseFrom,
        looseIds: stream.generated.subarray(looseFrom, point.index),
        issuedUnixMs: Math.round(this.#options.clock.wallUnixUs() / 1_000),
      },
      this.#options.resumeKey,
    );
  }

  /** Whether its beginning was sent to the buddy. */
  get isBegun(): boolean {
    return this.#hasHead;
  }

  /** The stream grew. */
  grew(): void {
    if (!this.#isRefused) this.#link.grew(this);
  }

  /** The request is over. `complete`: the client has everything, so that nothing need be kept. */
  ended(complete: boolean): void {
    if (!complete) this.#link.flush();
    this.#stream = undefined;
    this.#link.ended(this, complete);
  }

  /** The stream cannot be continued after all: the buddy is to forget it at once, so that nobody goes on with it. */
  givenUp(): void {
    this.ended(true);
    this.#link.flush();
  }

  acked(count: number): void {
    if (this.#isRefused || !this.#hasHead) return;
    this.#acked = Math.max(this.#acked, count);
    this.#settle("kept");
  }

  /**
   * The link broke: everything is sent again, to another buddy or, `isStranded`, to the one that may have forgotten it. What
   * waited for the first one's word then waits for the other's.
   */
  restart(isStranded: boolean): void {
    this.#sent = 0;
    this.#acked = 0;
    this.#hasHead = false;
    if (isStranded || !this.isOpening) this.#settle("unkept");
  }

  /** What the buddy does not have yet; nothing when it has all, or the stream is too large. */
  take(): MirroredStream | undefined {
    const stream = this.#stream;
    const prompt = stream?.promptIds;
    const frame = stream?.frame;
    if (stream === undefined || prompt === undefined || frame === undefined) return undefined;
    if (4 * (prompt.length + stream.sentCount) + 1_024 > mirrorBytesMax) {
      this.refused();
      return undefined;
    }
    const fromIndex = this.#sent;
    const ids = stream.generated.subarray(fromIndex, stream.sentCount);
    if (ids.length === 0 && this.#hasHead) return undefined;
    const traceparent = this.#traceparent;
    const head = this.#hasHead
      ? Buffer.alloc(0)
      : Buffer.from(writeHead({ frame, promptIds: prompt, traceparent }));
    this.#hasHead = true;
    this.#sent = stream.sentCount;
    return { key: this.key, fromIndex, tokenIds: Buffer.from(packIds(ids)), head, ended: false };
  }
}

/** The stream to one buddy. */
class MirrorLink {
  readonly instance: string;
  readonly address: string;
  /** Life of the buddy. */
  readonly epoch: number;
  readonly client: MirrorClient;
  readonly #hello: () => MirrorHello;
  readonly #clock: Clock;
  readonly #move: (mirror: StreamMirror) => boolean;
  readonly #all = new Map<string, StreamMirror>();
  readonly #grown = new Set<StreamMirror>();
  readonly #over: Buffer[] = [];
  #call: ClientDuplexStream<KeepRequest, KeepResponse> | undefined;
  #isWritable = true;
  #isClosed = false;
  #isFlushDue = false;
  restUntil = 0;
  /** Until when no stream begins with this buddy, since it was late. */
  lateUntil = 0;

  constructor(options: {
    readonly instance: string;
    readonly address: string;
    readonly epoch: number;
    readonly hello: () => MirrorHello;
    readonly clock: Clock;
    /** Finds another buddy for a stream; false when there is none. */
    readonly move: (mirror: StreamMirror) => boolean;
  }) {
    this.instance = options.instance;
    this.address = options.address;
    this.epoch = options.epoch;
    this.#hello = options.hello;
    this.#clock = options.clock;
    this.#move = options.move;
    this.client = new MirrorClient(
      options.address,
      createChannelCredentials(),
      createChannelOptions(),
    );
  }

  /** Whether no stream is kept up to date over this link. */
  get isIdle(): boolean {
    return this.#all.size === 0;
  }

  /** Whether the buddy is reached over another link now, or not at all. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  add(mirror: StreamMirror): void {
    this.#all.set(mirror.key.toString("latin1"), mirror);
  }

  grew(mirror: StreamMirror): void {
    this.#grown.add(mirror);
    // A stream of which its buddy knows nothing cannot be resumed at all: its beginning does not wait for the next round.
    if (mirror.isBegun || this.#isFlushDue) return;
    this.#isFlushDue = true;
    setImmediate(() => {
      this.#isFlushDue = false;
      this.flush();
    });
  }

  /** The buddy did not confirm a stream in time. */
  late(): void {
    this.lateUntil = this.#clock.now() + restMs;
  }

  ended(mirror: StreamMirror, complete: boolean): void {
    this.#grown.delete(mirror);
    this.#all.delete(mirror.key.toString("latin1"));
    if (complete && this.#over.length < overMax) this.#over.push(mirror.key);
  }

  /** Sends what has grown, unless the buddy does not keep up: then it waits, and tokens carry more ids until they cannot. */
  flush(): void {
    // Mirrors keep their link when their buddy comes back at another address; that one must not be dialled again.
    if (this.#isClosed || this.#grown.size + this.#over.length === 0) return;
    if (this.#clock.now() < this.restUntil) return;
    const call = this.#call ?? this.#dial();
    if (!this.#isWritable) return;
    const streams: MirroredStream[] = [];
    for (const mirror of this.#grown) {
      if (streams.length === streamsPerMessage) break;
      this.#grown.delete(mirror);
      const growth = mirror.take();
      if (growth !== undefined) streams.push(growth);
    }
    const none = Buffer.alloc(0);
    for (const key of this.#over.splice(0, streamsPerMessage - streams.length)) {
      streams.push({ key, fromIndex: 0, tokenIds: none, head: none, ended: true });
    }
    if (streams.length === 0) return;
    this.#isWritable = call.write({ message: { $case: "streams", value: { streams } } });
  }

  close(): void {
    this.#isClosed = true;
    this.#call?.cancel();
    this.client.close();
  }

  #dial(): ClientDuplexStream<KeepRequest, KeepResponse> {
    const call = this.client.keep();
    this.#call = call;
    this.#isWritable = true;
    call.write({ message: { $case: "hello", value: this.#hello() } });
    call.on("data", ({ acks, refusedKeys }: KeepResponse) => {
      for (const { key, tokenCount } of acks) {
        this.#all.get(Buffer.from(key).toString("latin1"))?.acked(tokenCount);
      }
      for (const key of refusedKeys) {
        const mirror = this.#all.get(Buffer.from(key).toString("latin1"));
        mirror?.refused();
      }
    });
    call.on("drain", () => {
      this.#isWritable = true;
    });
    call.on("error", () => undefined);
    call.on("status", () => {
      if (this.#call !== call) return;
      this.#call = undefined;
      this.restUntil = this.#clock.now() + restMs;
      for (const [key, mirror] of [...this.#all]) {
        const hasMoved = this.#move(mirror);
        mirror.restart(!hasMoved);
        if (hasMoved) {
          this.#all.delete(key);
          this.#grown.delete(mirror);
        } else this.#grown.add(mirror);
      }
    });
    return call;
  }
}

/** Keeps buddies up to date with this relay's guarded streams, and fetches those of relays that are gone. */
export class MirrorLinks {
  readonly #options: MirrorLinksOptions;
  readonly #links = new Map<string, MirrorLink>();
  #timer: NodeJS.Timeout | undefined;
  #sweepAt = 0;
  #isStopped = false;

  constructor(options: MirrorLinksOptions) {
    this.#options = options;
  }

  start(): void {
    this.#timer = setInterval(() => {
      for (const link of this.#links.values()) link.flush();
      this.#sweep();
    }, flushEveryMs);
  }

  /** Lets go of links to relays that are gone, once no stream uses them. */
  #sweep(): void {
    const { topology, clock } = this.#options;
    const now = clock.now();
    if (now < this.#sweepAt) return;
    this.#sweepAt = now + sweepEveryMs;
    const present = new Set(topology.relays().map(({ instance }) => instance));
    for (const [name, link] of this.#links) {
      if (!link.isIdle || present.has(name)) continue;
      link.close();
      this.#links.delete(name);
    }
  }

  /** Links to other relays, those that rest included. */
  get size(): number {
    return this.#links.size;
  }

  stop(): void {
    this.#isStopped = true;
    clearInterval(this.#timer);
    for (const link of this.#links.values()) {
      link.flush();
      link.close();
    }
    this.#links.clear();
  }

  /** A mirror for a new stream; nothing when no other relay is there. */
  open(bodySha256: Uint8Array): StreamMirror | undefined {
    const link = this.#choose(bodySha256);
    if (link === undefined) return undefined;
    const mirror = new StreamMirror(link, bodySha256, this.#options);
    link.add(mirror);
    return mirror;
  }

  /** The link to the relay that is to keep a stream; none to a relay that could not be reached a moment ago, or was late. */
  #choose(bodySha256: Uint8Array): MirrorLink | undefined {
    const { topology, instance, clock } = this.#options;
    const now = clock.now();
    const relays = topology.relays().filter(({ instance: name, epoch }) => {
      const link = this.#links.get(name);
      // A relay that has started again is another one, and need not rest.
      if (link === undefined || link.epoch !== epoch) return true;
      return link.restUntil <= now && link.lateUntil <= now;
    });
    // Any key would do to choose by; the body's digest spreads as well as one.
    const buddy = chooseBuddy(relays, instance, bodySha256);
    return buddy === undefined ? undefined : this.#link(buddy);
  }

  /** Gives a stream whose buddy is lost another one, which gets all of it at once. */
  #move(mirror: StreamMirror): boolean {
    const link = this.#isStopped ? undefined : this.#choose(mirror.bodySha256);
    if (link === undefined) return false;
    mirror.moveTo(link);
    link.add(mirror);
    // After the mirror has been told to begin anew.
    setImmediate(() => {
      mirror.grew();
    });
    return true;
  }

  /** What is kept of a stream, here or at its buddy. Throws `resume_lost` when it is gone. */
  async take(resume: ResumePoint): Promise<MirroredState> {
    const { instance, store, topology } = this.#options;
    const lost = (why: string): MeshError =>
      new MeshError("resume_lost", `the stream cannot be resumed: ${why}; send the request anew`);
    // What was put back is here, whoever kept it before.
    const state = store.take(Buffer.from(resume.key).toString("latin1"));
    if (state !== undefined) return state;
    if (resume.buddy === instance) throw lost("nothing is kept of it any more");
    const buddy = topology.relays().find((relay) => relay.instance === resume.buddy);
    if (buddy === undefined) throw lost(`relay ${resume.buddy}, which kept it, is gone`);
    const { client } = this.#link(buddy);
    return new Promise((resolve, reject) => {
      client.take(
        { key: Buffer.from(resume.key), caller: this.#hello() },
        new Metadata(),
        { deadline: Date.now() + takeMsMax },
        (error, response) => {
          if (error !== null) reject(lost(error.details));
          else resolve({ head: response.head, ids: response.tokenIds });
        },
      );
    });
  }

  /** Keeps here what was taken but could not be gone on with, so that the client may resume it once more. */
  putBack(resume: ResumePoint, { head, ids }: MirroredState): void {
    const { store, clock } = this.#options;
    const growth = { fromIndex: 0, ids, head };
    store.grow(Buffer.from(resume.key).toString("latin1"), growth, clock.now());
  }

  #link({ instance, h2Address: address, epoch }: LiveRelay): MirrorLink {
    let link = this.#links.get(instance);
    if (link !== undefined && (link.address !== address || link.epoch !== epoch)) {
      link.close();
      link = undefined;
    }
    if (link === undefined) {
      link = new MirrorLink({
        instance,
        address,
        epoch,
        hello: () => this.#hello(),
        clock: this.#options.clock,
        move: (mirror) => this.#move(mirror),
      });
      this.#links.set(instance, link);
    }
    return link;
  }

  #hello(): MirrorHello {
    const { instance, epoch, joinKey, clock } = this.#options;
    const minute = Math.floor(clock.wallUnixUs() / 60_000_000);
    const message = mirrorProofMessage({ relay: instance, epoch, minute });
    return {
      protocolVersion: 1,
      instance,
      epoch: BigInt(epoch),
      proof: Buffer.from(joinKey.mac(message)),
      joinKeyId: joinKey.id,
      proofMinute: BigInt(minute),
    };
  }
}
