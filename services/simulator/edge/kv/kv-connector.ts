import type { Logger } from "pino";
import type { Clock } from "../../../shared/core/clock.ts";
import type { BlockContents } from "../../core/kv-transfer/block-contents.ts";
import {
  HandoffTable,
  type Handoff,
  type HandoffOutcome,
} from "../../core/kv-transfer/handoff-table.ts";
import type { LinkShape } from "../../core/kv-transfer/link-shaper.ts";
import { RoomTable } from "../../core/kv-transfer/rooms.ts";
import type { KvLoad, KvLoadResult } from "../../core/engine/engine-types.ts";
import type { EngineDriver } from "../engine-driver.ts";
import { KvPeers, type PeerAddress, type Pull, type PullOutcome } from "./kv-peers.ts";
import { KvServer, type KvIdentity, type ServerPull } from "./kv-server.ts";
import type { DecodeLeg } from "./transfer-role.ts";

/** A timer that is this late means that the process was stopped, ms; and what it then waits to read its sockets, ms. */
const standstillMs = 1_000;
const catchUpMs = 50;

/** Settings of KV transfer; times in ms. */
export interface KvConnectorOptions {
  readonly identity: KvIdentity;
  readonly bytesPerBlock: number;
  readonly leaseMs: number;
  readonly handshakeTimeoutMs: number;
  readonly stallTimeoutMs: number;
  /** SGLang: how long one side of a room waits for the other, and how long D waits for the transfer to begin. */
  readonly bootstrapTimeoutMs: number;
  readonly waitingTimeoutMs: number;
  readonly loadFailurePolicy: "fail" | "recompute";
  readonly shapeOf: (instance: string) => LinkShape;
}

/** A prefill leg that waits for its decode engine. */
export interface RoomLeg {
  /** The decode engine has allocated: prefill now. */
  begin(): void;
  /** The blocks are there; answer. */
  sent(): void;
  /** The room failed; what was begun is to be dropped. */
  failed(reason: string): void;
}

/** Told how loads end. */
export interface LoadListener {
  /** Tell the engine core `result`; `cachedTokens` is the prefill's number where the transfer brought it. */
  loaded(requestId: string, result: KvLoadResult, cachedTokens: number | undefined): void;
  /** Under policy `fail`, or when the peer said that there is nothing. */
  failed(requestId: string, reason: string): void;
}

/** Counts since start. */
export interface KvConnectorCounts {
  pulledBytes: number;
  pulledBlocks: number;
  completePulls: number;
  /** Pulls that did not bring every block, whatever was done about it. */
  failedPulls: number;
  damagedBlocks: number;
  /** Blocks that arrived whole and held something else than the prompt's KV. */
  foreignBlocks: number;
  /** Blocks that a failed pull left to be computed here. */
  recomputedBlocks: number;
}

interface Expected {
  readonly leg: DecodeLeg;
  readonly address: Promise<PeerAddress>;
  pull: Pull | undefined;
  /** The pull ended early, which tells the other side of its room. */
  isPullAborted: boolean;
  isOver: boolean;
}

/** What one pull took, for histograms and spans. */
export interface PullRecord {
  readonly requestId: string;
  readonly source: PeerAddress;
  readonly bytes: number;
  readonly blocks: number;
  readonly askedBlocks: number;
  readonly damagedBlocks: number;
  /** From the order to the end, and the part of it before the first byte. */
  readonly ms: number;
  readonly waitMs: number;
  /** Why it ended early; undefined when every byte came. */
  readonly failure: string | undefined;
}

/**
 * The KV connector of one engine: hand-offs it holds for others (prefill side), loads from others (decode side), and
 * the leases, rooms and times of both. Every request id or room is in at most one table, and leaves it when it ends.
 */
export class KvConnector {
  readonly counts: KvConnectorCounts = {
    pulledBytes: 0,
    pulledBlocks: 0,
    completePulls: 0,
    failedPulls: 0,
    damagedBlocks: 0,
    foreignBlocks: 0,
    recomputedBlocks: 0,
  };
  readonly server: KvServer;
  readonly #options: KvConnectorOptions;
  readonly #clock: Clock;
  readonly #log: Logger;
  readonly #driver: EngineDriver;
  readonly #listener: LoadListener;
  readonly #pullEnded: (record: PullRecord) => void;
  readonly #handoffs: HandoffTable;
  /** Engine request of a hand-off or room, by key. */
  readonly #requestOf = new Map<string, string>();
  readonly #rooms: RoomTable<RoomLeg, ServerPull>;
  readonly #expected = new Map<string, Expected>();
  readonly #peers: KvPeers;
  #timer: NodeJS.Timeout | undefined;
  #heardAfterStandstill = false;

  constructor(
    options: KvConnectorOptions,
    parts: {
      clock: Clock;
      log: Logger;
      driver: EngineDriver;
      contents: BlockContents;
      listener: LoadListener;
      pullEnded: (record: PullRecord) => void;
    },
  ) {
    this.#options = options;
    this.#clock = parts.clock;
    this.#log = parts.log;
    this.#driver = parts.driver;
    this.#listener = parts.listener;
    this.#pullEnded = parts.pullEnded;
    this.#handoffs = new HandoffTable(options.leaseMs);
    this.#rooms = new RoomTable(options.bootstrapTimeoutMs);
    const { identity, bytesPerBlock } = options;
    const { clock, log, contents } = parts;
    this.#peers = new KvPeers({
      identity,
      bytesPerBlock,
      handshakeMsMax: options.handshakeTimeoutMs,
      heartbeatMs: options.leaseMs / 6,
      clock,
      log,
    });
    this.server = new KvServer({
      identity,
      bytesPerBlock,
      clock,
      log,
      shapeOf: options.shapeOf,
      host: {
        contentOf: (block) => (block < contents.capacityBlocks ? contents.keyOf(block) : undefined),
        pulled: (pull) => {
          this.#pulled(pull, contents.capacityBlocks);
        },
        pullAborted: (pull) => {
          const { mode, key } = pull.request;
          if (mode === "room") this.#failRoom(key, "the decode engine left", pull);
        },
        done: (key, outcome) => {
          this.#done(key, outcome);
        },
        heartbeat: (keys) => {
          for (const key of keys) this.#handoffs.heartbeat(key, clock.now());
          this.#arm();
        },
      },
    });
  }

  /** Whether a hand-off of this key is held. */
  holds(key: string): boolean {
    return this.#handoffs.get(key) !== undefined;
  }

  get heldHandoffs(): number {
    return this.#handoffs.held;
  }

  get heldBlocks(): number {
    return this.#handoffs.heldBlocks;
  }

  get endedHandoffs(): Readonly<Record<HandoffOutcome, number>> {
    return this.#handoffs.ended;
  }

  get failedNotices(): number {
    return this.#peers.failedNotices;
  }

  /** Rooms in progress on this prefill engine, and loads in progress on this decode engine. */
  get openRooms(): number {
    return this.#rooms.size;
  }

  get openLoads(): number {
    return this.#expected.size;
  }

  /** Holds what an ended prefill kept until it is pulled, given up, or its lease ends. Undefined when nothing is kept. */
  openHandoff(handoff: {
    readonly key: string;
    readonly requestId: string;
    readonly promptTokens: number;
    readonly cachedTokens: number;
  }): Handoff | undefined {
    const blocks = this.#driver.core.keptBlocks(handoff.requestId);
    if (blocks === undefined) return undefined;
    const { key, promptTokens, cachedTokens } = handoff;
    if (this.#handoffs.get(key) !== undefined) {
      this.#driver.releaseKept(handoff.requestId);
      return undefined;
    }
    this.#handoffs.open({ id: key, blocks, promptTokens, cachedTokens }, this.#clock.now());
    this.#requestOf.set(key, handoff.requestId);
    this.#arm();
    return this.#handoffs.get(key);
  }

  /** Ends a hand-off from this side, as when its answer could not be delivered. */
  dropHandoff(key: string): void {
    if (this.#handoffs.end(key, "aborted") !== undefined) this.#release(key);
  }

  /** A prefill leg waits in a room; false when there is one already. */
  enterRoom(key: string, leg: RoomLeg): boolean {
    const room = this.#rooms.enterLeg(key, leg, this.#clock.now());
    if (room === undefined) return false;
    if (room.state === "waitingForInput") leg.begin();
    this.#arm();
    return true;
  }

  /** The prefill of a room ended, and its blocks are kept: send them. */
  roomPrefilled(
    key: string,
    requestId: string,
    end: { readonly cachedTokens: number; readonly tokens: readonly number[] },
  ): void {
    const room = this.#rooms.get(key);
    const blocks = this.#driver.core.keptBlocks(requestId);
    if (room?.pull === undefined || blocks === undefined || !this.#rooms.apply(key, "prefilled")) {
      this.#driver.releaseKept(requestId);
      return;
    }
    this.#requestOf.set(key, requestId);
    const { firstBlock, blockCount } = room.pull.request;
    const wanted = blocks.slice(firstBlock, firstBlock + blockCount);
    if (wanted.length === blockCount) room.pull.start(wanted, end);
    else this.#failRoom(key, `the prompt has ${blocks.length} blocks here`);
  }

  /** The prefill leg's client left. */
  leaveRoom(key: string, reason: string): void {
    this.#failRoom(key, reason);
  }

  /** A request whose prompt will be loaded was accepted: its lease is kept alive from now on. */
  expect(requestId: string, leg: DecodeLeg): void {
    const address = leg.address();
    const expected: Expected = {
      leg,
      address,
      pull: undefined,
      isPullAborted: false,
      isOver: false,
    };
    this.#expected.set(requestId, expected);
    address.then(
      (found) => {
        if (leg.isLeased && !expected.isOver) this.#peers.hold(found, leg.key);
      },
      () => {
        // The load, which waits for the same promise, fails with it.
      },
    );
  }

  /** The engine has allocated the blocks of a request: pull them. */
  load(load: KvLoad): void {
    const requestId = load.sequence.request.id;
    const expected = this.#expected.get(requestId);
    if (expected === undefined) return;
    this.#run(requestId, expected, load).catch((error: unknown) => {
      this.#log.error({ event: "kv_load_failed", err: error }, "KV load failed");
      this.#fail(requestId, expected, "Internal server error");
    });
  }

  /** The client of a request left, at whatever stage; the prefill engine is told to release. */
  cancel(requestId: string): void {
    const expected = this.#expected.get(requestId);
    if (expected === undefined) return;
    this.#expected.delete(requestId);
    expected.isOver = true;
    expected.pull?.abort();
    expected.isPullAborted = expected.pull !== undefined;
    this.#notify(expected, "aborted");
  }

  /** Fault: the shape of all links from here. */
  reshape(shape: LinkShape): void {
    this.server.reshape(shape);
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#peers.close();
    this.server.close();
  }

  async #run(requestId: string, expected: Expected, load: KvLoad): Promise<void> {
    const { leg } = expected;
    let address: PeerAddress;
    try {
      address = await expected.address;
    } catch (error) {
      if (!expected.isOver) this.#loadEnded(requestId, expected, load, undefined, reasonOf(error));
      return;
    }
    if (this.#expected.get(requestId) !== expected) return;
    const blockCount = load.keys.length / 2;
    const blocks = leg.remoteBlocks.slice(load.firstBlock, load.firstBlock + blockCount);
    if (leg.mode === "blocks" && blocks.length !== blockCount) {
      this.#loadEnded(requestId, expected, load, undefined, "the hand-off has fewer blocks");
      return;
    }
    const { stallTimeoutMs, waitingTimeoutMs } = this.#options;
    expected.pull = this.#peers.pull(address, {
      mode: leg.mode,
      key: leg.key,
      firstBlock: load.firstBlock,
      blocks,
      keys: load.keys,
      firstByteMsMax: leg.mode === "room" ? waitingTimeoutMs : stallTimeoutMs,
      stallMsMax: stallTimeoutMs,
    });
    const outcome = await expected.pull.outcome;
    this.#countPull(requestId, address, blockCount, outcome);
    expected.isPullAborted = outcome.failure !== undefined;
    if (this.#expected.get(requestId) !== expected) return;
    this.#loadEnded(requestId, expected, load, outcome, outcome.failure);
  }

  #countPull(
    requestId: string,
    source: PeerAddress,
    askedBlocks: number,
    outcome: PullOutcome,
  ): void {
    const { counts } = this;
    counts.pulledBytes += outcome.receivedBytes;
    counts.pulledBlocks += outcome.receivedBlocks;
    counts.damagedBlocks += outcome.blocks.damagedBlocks;
    counts.foreignBlocks += outcome.blocks.foreign.size;
    this.#pullEnded({
      requestId,
      source,
      bytes: outcome.receivedBytes,
      blocks: outcome.receivedBlocks,
      askedBlocks,
      damagedBlocks: outcome.blocks.damagedBlocks,
      ms: outcome.ms,
      waitMs: outcome.ms - outcome.transferMs,
      failure: outcome.failure,
    });
  }

  #loadEnded(
    requestId: string,
    expected: Expected,
    load: KvLoad,
    outcome: PullOutcome | undefined,
    failure: string | undefined,
  ): void {
    const asked = load.keys.length / 2;
    const goodBlocks = outcome?.blocks.goodBlocks ?? 0;
    const isWhole = goodBlocks === asked && failure === undefined;
    if (isWhole) this.counts.completePulls++;
    else this.counts.failedPulls++;
    const reason = failure ?? "blocks arrived damaged";
    if (!isWhole) {
      this.#log.warn(
        { event: "kv_load_incomplete", requestId, reason, askedBlocks: asked, goodBlocks },
        "KV load incomplete",
      );
      if (this.#options.loadFailurePolicy === "fail") {
        this.#fail(requestId, expected, reason);
        return;
      }
      this.counts.recomputedBlocks += asked - goodBlocks;
    }
    this.#expected.delete(requestId);
    expected.isOver = true;
    const { leg } = expected;
    // In a room the prefill leg has done its part when the transfer came to its end, whatever arrived damaged.
    const isDone = isWhole || (leg.mode === "room" && failure === undefined);
    this.#notify(expected, isDone ? "pulled" : "aborted");
    const firstTokens = leg.firstTokens ?? outcome?.end?.tokens;
    const result: KvLoadResult = {
      goodBlocks,
      ...(outcome === undefined ? {} : { foreign: outcome.blocks.foreign }),
      ...(isWhole && firstTokens !== undefined && leg.mode !== "blocks" ? { firstTokens } : {}),
    };
    this.#listener.loaded(requestId, result, leg.cachedTokens ?? outcome?.end?.cachedTokens);
  }

  #fail(requestId: string, expected: Expected, reason: string): void {
    if (this.#expected.get(requestId) !== expected) return;
    this.#expected.delete(requestId);
    expected.isOver = true;
    this.#notify(expected, "aborted");
    this.#listener.failed(requestId, reason);
  }

  #notify(expected: Expected, outcome: "pulled" | "aborted"): void {
    const { leg } = expected;
    if (leg.mode === "room" && expected.isPullAborted) return;
    expected.address.then(
      (address) => {
        this.#peers.done(address, leg.key, outcome);
      },
      () => undefined,
    );
  }

  #pulled(pull: ServerPull, capacityBlocks: number): void {
    const { mode, key, firstBlock, blockCount, blocks } = pull.request;
    switch (mode) {
      case "blocks":
        // One-sided: nobody asks whether the hand-off still exists.
        if (blocks.every((block) => block < capacityBlocks)) {
          pull.start([...blocks], { cachedTokens: 0, tokens: [] });
        } else {
          pull.abort("no such block");
        }
        return;
      case "handoff": {
        const handoff = this.#handoffs.get(key);
        const wanted = handoff?.blocks.slice(firstBlock, firstBlock + blockCount);
        if (handoff === undefined || wanted?.length !== blockCount) pull.abort("unknown hand-off");
        else pull.start(wanted, { cachedTokens: handoff.cachedTokens, tokens: [] });
        return;
      }
      case "room": {
        const room = this.#rooms.enterPull(key, pull, this.#clock.now());
        if (room === undefined) {
          pull.abort("the room is taken");
          return;
        }
        this.#arm();
        if (room.state === "waitingForInput") room.leg?.begin();
        return;
      }
    }
  }

  #done(key: string, outcome: "pulled" | "aborted"): void {
    if (this.#handoffs.end(key, outcome) !== undefined) {
      this.#release(key);
      this.#arm();
      return;
    }
    const room = this.#rooms.get(key);
    if (room === undefined) return;
    if (outcome === "aborted") {
      this.#failRoom(key, "the decode engine left");
    } else if (this.#rooms.apply(key, "sent")) {
      this.#release(key);
      room.pull?.close();
      room.leg?.sent();
    }
  }

  /** With `pull` only if it is the room's. */
  #failRoom(key: string, reason: string, pull?: ServerPull): void {
    const room = this.#rooms.get(key);
    if (room === undefined || (pull !== undefined && room.pull !== pull)) return;
    const { leg, pull: open } = room;
    if (!this.#rooms.apply(key, "failed")) return;
    this.#release(key);
    open?.abort(reason);
    leg?.failed(reason);
  }

  #release(key: string): void {
    const requestId = this.#requestOf.get(key);
    this.#requestOf.delete(key);
    if (requestId !== undefined) this.#driver.releaseKept(requestId);
  }

  /** One timer for the next lease or room that may end. */
  #arm(): void {
    clearTimeout(this.#timer);
    const next = Math.min(
      this.#handoffs.nextExpiry() ?? Infinity,
      this.#rooms.nextExpiry() ?? Infinity,
    );
    if (next === Infinity) return;
    this.#timer = setTimeout(
      () => {
        const now = this.#clock.now();
        if (now - next > standstillMs && !this.#heardAfterStandstill) {
          // This process stood still: heartbeats that came meanwhile are read before anything is given up.
          this.#heardAfterStandstill = true;
          this.#timer = setTimeout(() => {
            this.#arm();
          }, catchUpMs);
          return;
        }
        this.#heardAfterStandstill = false;
        for (const handoff of this.#handoffs.expire(now)) this.#release(handoff.id);
        for (const room of this.#rooms.expire(now)) {
          room.pull?.abort("the prefill leg did not come");
          room.leg?.failed("the decode engine did not come");
        }
        this.#arm();
      },
      Math.max(1, Math.ceil(next - this.#clock.now())),
    );
    this.#timer.unref();
  }
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
