import type { Logger } from "pino";
import type { Clock } from "../../shared/core/clock.ts";
import type { MonoMs } from "../../shared/core/ids.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import {
  BlockMap,
  groupSizeOf,
  type BlockSkipReason,
  type MeshBlockSink,
} from "../core/block-map.ts";
import {
  EventStream,
  type StreamEffect,
  type StreamInput,
  type StreamLimits,
} from "../core/event-stream.ts";
import { joinRefusal, type JoinRefusal } from "../core/join-refusal.ts";
import type { KvEventBatch } from "../core/kv-events/kv-event.ts";
import type { LoadSample } from "../core/load-sample.ts";
import type { workerMetrics } from "../metrics.ts";
import type { EngineFacts, EventSource } from "./engine-http.ts";
import type { HelloFacts } from "./join-wire.ts";
import { KvEventSocket } from "./kv-event-socket.ts";
import type { LinkMember, RouterLink } from "./router-link.ts";

/** What a member is made from. */
export interface MemberOptions {
  readonly dpRank: number;
  /** The rest of the hello; what changes is filled in by the member. */
  readonly identity: Omit<HelloFacts, "dpRank" | "engine" | "engineLife" | "ready">;
  readonly hashSeed: Uint8Array;
  /** Block size from the settings; without one the first router decides. */
  readonly blockSizeTokens: number | undefined;
  readonly blocksFactor: number;
  readonly blocksUnknownMax: number;
  readonly streamLimits: StreamLimits;
  /** Endpoints from the settings, in place of what the engine says. */
  readonly eventSource: (facts: EngineFacts, dpRank: number) => EventSource | undefined;
  readonly engineState: () => {
    readonly ready: boolean;
    readonly reason: string;
    readonly life: number;
  };
  /** Looks at the engine now; resolves when a restart, if it shows one, has been handled. */
  readonly probeEngine: () => Promise<void>;
  readonly onSequenceRestart: () => void;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof workerMetrics>;
}

/** How long after a connect the subscription certainly works, ms: what was missed before is fetched then. */
const settleMs = 500;
/** Silence after which the worker asks whether it missed something, ms: ZeroMQ drops without a word. */
const quietMs = 10_000;

/**
 * One data-parallel rank of the engine as a member of the mesh: its event stream, its block map, and the
 * links that tell routers about both.
 */
export class Member implements LinkMember, MeshBlockSink {
  readonly dpRank: number;
  readonly links = new Map<string, RouterLink>();
  readonly #options: MemberOptions;
  readonly #stop = new AbortController();
  readonly #stream: EventStream;
  readonly #seen: Record<BlockSkipReason, number>;
  #facts: EngineFacts;
  #map: BlockMap | undefined;
  #meshBlockSizeTokens: number | undefined;
  #socket: KvEventSocket | undefined;
  #source: EventSource | undefined;
  #lastBatchAt: MonoMs;
  #overflows = 0;

  constructor(facts: EngineFacts, options: MemberOptions) {
    this.dpRank = options.dpRank;
    this.#options = options;
    this.#facts = facts;
    this.#stream = new EventStream(options.streamLimits);
    this.#lastBatchAt = options.clock.now();
    this.#seen = noSkips();
    void this.#watchQuiet();
  }

  get hashSeedFingerprint(): Uint8Array {
    return this.#options.identity.hashSeedFingerprint;
  }

  helloFacts(): HelloFacts {
    const { ready, life } = this.#options.engineState();
    return {
      ...this.#options.identity,
      dpRank: this.dpRank,
      engine: this.#facts,
      engineLife: life,
      ready,
    };
  }

  isReady(): { readonly ready: boolean; readonly reason: string } {
    return this.#options.engineState();
  }

  artifactSize(sha256: string): number | undefined {
    return this.#options.identity.artifacts.files.get(sha256)?.length;
  }

  meshHashes(): Uint32Array {
    return this.#map?.meshHashes() ?? new Uint32Array(0);
  }

  agreeBlockSize(meshBlockSizeTokens: number): JoinRefusal | undefined {
    const configured = this.#options.blockSizeTokens;
    if (configured !== undefined && configured !== meshBlockSizeTokens) {
      return joinRefusal(
        "block_size",
        `the router's blocks hold ${String(meshBlockSizeTokens)} tokens, worker.blockSizeTokens says ${String(configured)}`,
      );
    }
    const engineBlockSizeTokens = this.#facts.cache?.blockSizeTokens;
    if (
      engineBlockSizeTokens !== undefined &&
      groupSizeOf({ engineBlockSizeTokens, meshBlockSizeTokens }) === undefined
    ) {
      return joinRefusal(
        "block_size",
        `the engine's blocks hold ${String(engineBlockSizeTokens)} tokens, which does not divide the mesh's ${String(meshBlockSizeTokens)}`,
      );
    }
    if (this.#meshBlockSizeTokens === meshBlockSizeTokens) return undefined;
    for (const link of this.links.values()) {
      if (link.state !== "member") continue;
      return joinRefusal(
        "block_size",
        `this router's blocks hold ${String(meshBlockSizeTokens)} tokens, those of ${link.target} ${String(this.#meshBlockSizeTokens)}`,
      );
    }
    this.#meshBlockSizeTokens = meshBlockSizeTokens;
    this.#rebuild();
    return undefined;
  }

  stored(lo: number, hi: number): void {
    for (const link of this.links.values()) link.stream.stored(lo, hi);
  }

  removed(lo: number, hi: number): void {
    for (const link of this.links.values()) link.stream.removed(lo, hi);
  }

  cleared(): void {
    for (const link of this.links.values()) link.stream.cleared();
  }

  /**
   * The engine is in another life with these facts: everything known of it goes, every router hears a new
   * hello. `streamRestarted`: the event stream noticed it first and has begun again already.
   */
  newLife(facts: EngineFacts, streamRestarted: boolean): void {
    const isSame =
      facts.cache?.blockSizeTokens === this.#facts.cache?.blockSizeTokens &&
      facts.modelNames[0] === this.#facts.modelNames[0];
    this.#facts = facts;
    for (const link of this.links.values()) link.restart();
    if (this.#meshBlockSizeTokens === undefined || (streamRestarted && isSame)) return;
    this.#rebuild();
  }

  /** A load sample for every router. */
  sampled(sample: LoadSample): void {
    const now = this.#options.clock.now();
    for (const link of this.links.values()) {
      link.stream.sampled(sample, now);
      link.pump();
    }
  }

  /** Tells every router what changed, readiness included. */
  pump(): void {
    for (const link of this.links.values()) link.pump();
  }

  /** Refreshes the gauges. */
  observe(): void {
    const { metrics } = this.#options;
    const rank = String(this.dpRank);
    metrics.blocks.set({ rank, kind: "engine" }, this.#map?.engineBlockCount ?? 0);
    metrics.blocks.set({ rank, kind: "mesh" }, this.#map?.meshBlockCount ?? 0);
    for (const link of this.links.values()) link.observe();
  }

  /** Ends the event sockets; links are closed by their owner. */
  close(): void {
    this.#stop.abort();
    this.#socket?.close();
  }

  /** A fresh map and, where the sockets changed, fresh sockets; the stream starts from the beginning. */
  #rebuild(): void {
    const { cache, modelNames } = this.#facts;
    const source = this.#options.eventSource(this.#facts, this.dpRank);
    this.#map?.forget();
    this.#map = undefined;
    if (source === undefined || cache?.prefixCaching !== true) {
      this.#socket?.close();
      this.#socket = undefined;
      this.#source = undefined;
      const why =
        source === undefined ? "the engine publishes no KV events" : "prefix caching is off";
      const mend =
        "start the engine with --kv-events-config '{\"enable_kv_cache_events\": true, …}'";
      this.#options.log.warn({ event: "kv_events_absent", why, mend }, "placed by load only");
      return;
    }
    const { blocksFactor, blocksUnknownMax, hashSeed } = this.#options;
    this.#map = new BlockMap({
      engineBlockSizeTokens: cache.blockSizeTokens,
      meshBlockSizeTokens: this.#meshBlockSizeTokens ?? cache.blockSizeTokens,
      engineBlocksMax:
        cache.blockCount === 0 ? blocksUnknownMax : Math.ceil(cache.blockCount * blocksFactor),
      hashSeed,
      model: modelNames[0] ?? "",
      sink: this,
    });
    Object.assign(this.#seen, noSkips());
    this.#overflows = 0;
    this.#step({ kind: "reset" });
    if (sameSource(this.#source, source)) return;
    this.#socket?.close();
    this.#step({ kind: "disconnected" });
    this.#source = source;
    this.#socket = this.#openSocket(source);
  }

  #openSocket(source: EventSource): KvEventSocket {
    const { log, metrics, clock } = this.#options;
    const rank = String(this.dpRank);
    const socket = new KvEventSocket(source, {
      connected: () => {
        void this.#connected(socket);
      },
      disconnected: () => {
        if (socket === this.#socket) this.#step({ kind: "disconnected" });
      },
      batch: (seq, payload) => {
        if (socket !== this.#socket) return;
        this.#lastBatchAt = clock.now();
        this.#step({ kind: "live", seq, payload });
      },
      malformed: () => {
        metrics.eventBatches.inc({ rank, outcome: "undecodable" });
      },
    });
    log.info({ event: "kv_events_subscribed", rank, ...source }, "subscribed to KV events");
    socket.run().catch((error: unknown) => {
      log.error({ event: "kv_events_failed", rank, err: error }, "the KV event socket failed");
    });
    return socket;
  }

  /** A lost connection may have been a restart, so the engine is looked at before anything is applied. */
  async #connected(socket: KvEventSocket): Promise<void> {
    await this.#options.probeEngine();
    if (socket !== this.#socket) return;
    this.#step({ kind: "connected" });
    try {
      await this.#options.clock.sleep(settleMs, this.#stop.signal);
    } catch {
      return;
    }
    if (socket === this.#socket && this.#stream.phase === "live") this.#step({ kind: "connected" });
  }

  async #watchQuiet(): Promise<void> {
    const { clock } = this.#options;
    for (;;) {
      try {
        await clock.sleep(quietMs, this.#stop.signal);
      } catch {
        return;
      }
      const isQuiet = clock.now() - this.#lastBatchAt >= quietMs;
      if (isQuiet && this.#stream.phase === "live" && this.#socket?.canReplay === true) {
        this.#step({ kind: "connected" });
      }
    }
  }

  #step(input: StreamInput): void {
    const { metrics, clock } = this.#options;
    const startedAt = clock.now();
    const effects = this.#stream.step(input);
    for (const effect of effects) this.#carryOut(effect);
    if (effects.length === 0) return;
    metrics.eventSeconds.observe((clock.now() - startedAt) / 1_000);
    this.pump();
  }

  #carryOut(effect: StreamEffect): void {
    const { metrics, log } = this.#options;
    const rank = String(this.dpRank);
    switch (effect.kind) {
      case "apply":
        metrics.eventBatches.inc({ rank, outcome: "applied" });
        this.#apply(effect.batch);
        return;
      case "forget":
        metrics.forgets.inc({ rank, reason: effect.reason });
        log.info({ event: "blocks_forgotten", rank, reason: effect.reason }, "blocks given up");
        this.#map?.forget();
        return;
      case "request_replay":
        void this.#replay(effect.replayId, effect.fromSeq);
        return;
      case "engine_restarted":
        this.#options.onSequenceRestart();
        return;
      case "undecodable":
        metrics.eventBatches.inc({ rank, outcome: "undecodable" });
        log.warn(
          { event: "kv_batch_undecodable", rank, seq: effect.seq, ...effect.failure },
          "a KV event batch cannot be read; it is fetched again",
        );
        return;
      case "dropped":
        metrics.eventBatches.inc({ rank, outcome: effect.reason });
        return;
      case "gap":
        metrics.eventGaps.inc({ rank });
        return;
    }
  }

  #apply(batch: KvEventBatch): void {
    const map = this.#map;
    if (map === undefined) return;
    const { metrics } = this.#options;
    const rank = String(this.dpRank);
    for (const event of batch.events) {
      map.apply(event);
      metrics.events.inc({ rank, kind: event.kind });
    }
    if (batch.unknownEventCount > 0) {
      metrics.events.inc({ rank, kind: "unknown" }, batch.unknownEventCount);
    }
    for (const link of this.links.values())
      link.stream.eventsApplied(batch.publishedSeconds * 1_000);
    for (const [reason, count] of Object.entries(map.skipped) as [BlockSkipReason, number][]) {
      const more = count - this.#seen[reason];
      if (more > 0) metrics.skippedBlocks.inc({ rank, reason }, more);
      this.#seen[reason] = count;
    }
    if (map.overflowCount > this.#overflows) {
      this.#overflows = map.overflowCount;
      metrics.forgets.inc({ rank, reason: "overflow" });
      this.#options.log.warn(
        { event: "blocks_overflowed", rank },
        "the engine announced more blocks than it can hold; all were given up",
      );
    }
  }

  async #replay(replayId: number, fromSeq: number): Promise<void> {
    const socket = this.#socket;
    const { clock, metrics } = this.#options;
    const ended =
      (await socket?.replay(
        fromSeq,
        (seq, payload) => {
          if (socket === this.#socket) this.#step({ kind: "replayed", replayId, seq, payload });
        },
        () => clock.now(),
      )) ?? false;
    if (this.#stop.signal.aborted) return;
    metrics.eventReplays.inc({ rank: String(this.dpRank), outcome: ended ? "ended" : "failed" });
    this.#step({ kind: ended ? "replay_ended" : "replay_failed", replayId });
  }
}

function noSkips(): Record<BlockSkipReason, number> {
  return {
    orphan: 0,
    opaque: 0,
    tier: 0,
    group: 0,
    block_size: 0,
    unchainable: 0,
    conflict: 0,
    unknown_removal: 0,
  };
}

function sameSource(a: EventSource | undefined, b: EventSource): boolean {
  return a?.endpoint === b.endpoint && a.replayEndpoint === b.replayEndpoint && a.topic === b.topic;
}
