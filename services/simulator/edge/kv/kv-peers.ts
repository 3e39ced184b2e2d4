import { connect, type Socket } from "node:net";
import { crc32 } from "node:zlib";
import type { Logger } from "pino";
import type { Clock } from "../../../shared/core/clock.ts";
import {
  encodeFrame,
  FrameReader,
  heartbeatIdsMax,
  kvProtocolVersion,
  type Frame,
  type PullMode,
} from "../../core/kv-transfer/frames.ts";
import { PullAssembly, type PulledBlocks } from "../../core/kv-transfer/pull-assembly.ts";
import type { KvIdentity } from "./kv-server.ts";

/** Bytes read from a socket at once, into a buffer that is used again for every read. */
const readBufferBytes = 1_048_576;
/** A timer that is this late means that the process was stopped, ms. */
const standstillMs = 1_000;
/** Between two attempts to reach a peer that never answered, ms. */
const reconnectMs = 100;
/** Peers connected at once. */
const peersMax = 256;
/** Addresses remembered as having answered; all are forgotten beyond. */
const knownMax = 4_096;

/** Where a prefill engine serves its blocks. */
export interface PeerAddress {
  readonly host: string;
  readonly port: number;
}

/** What to pull, and what it must hold. */
export interface PullOrder {
  readonly mode: PullMode;
  readonly key: string;
  readonly firstBlock: number;
  /** Physical blocks, for mode `blocks`. */
  readonly blocks: readonly number[];
  /** (low, high) of each block. */
  readonly keys: Uint32Array;
  /** Longest silence before the first byte and between two chunks, ms. */
  readonly firstByteMsMax: number;
  readonly stallMsMax: number;
}

/** How a pull ended. */
export interface PullOutcome {
  readonly blocks: PulledBlocks;
  readonly receivedBytes: number;
  readonly receivedBlocks: number;
  /** From the order to the end, and the share of it after the first byte, ms. */
  readonly ms: number;
  readonly transferMs: number;
  /** What the prefill engine said at the end; absent when it did not get that far. */
  readonly end: { readonly cachedTokens: number; readonly tokens: readonly number[] } | undefined;
  /** Why it ended early; absent when all came. */
  readonly failure: string | undefined;
}

/** A pull in progress. */
export interface Pull {
  readonly outcome: Promise<PullOutcome>;
  /** Ends it now; the outcome then has `failure` "aborted". */
  abort(): void;
}

/** What a `KvPeers` is made of. */
export interface KvPeersOptions {
  readonly identity: KvIdentity;
  readonly bytesPerBlock: number;
  readonly handshakeMsMax: number;
  /** Heartbeats for held keys go out this often. */
  readonly heartbeatMs: number;
  readonly clock: Clock;
  readonly log: Logger;
}

interface ActivePull {
  readonly id: number;
  readonly order: PullOrder;
  readonly assembly: PullAssembly;
  readonly startedAt: number;
  firstByteAt: number | undefined;
  heardAt: number;
  resolve(outcome: PullOutcome): void;
}

/**
 * The decode side of KV transfer: one connection per prefill engine, made when first needed, many pulls on each.
 * A peer that was reached before and is gone fails at once; one that never answered is tried until
 * `handshakeMsMax`, as ZeroMQ does under vLLM's handshake.
 */
export class KvPeers {
  /** Notices that could not be delivered. */
  failedNotices = 0;
  readonly #options: KvPeersOptions;
  readonly #peers = new Map<string, Peer>();
  readonly #known = new Set<string>();
  readonly #timer: NodeJS.Timeout;
  #nextId = 1;
  #closed = false;

  constructor(options: KvPeersOptions) {
    this.#options = options;
    this.#timer = setInterval(() => {
      for (const peer of this.#peers.values()) peer.heartbeat();
    }, options.heartbeatMs);
    this.#timer.unref();
  }

  /** From now on the hand-off's lease is kept alive. */
  hold(address: PeerAddress, key: string): void {
    this.#peer(address)?.held.add(key);
  }

  /** The hand-off may go; told to the peer, or counted when it cannot be. */
  done(address: PeerAddress, key: string, outcome: "pulled" | "aborted"): void {
    const peer = this.#peer(address);
    if (peer === undefined) {
      this.failedNotices++;
      return;
    }
    peer.held.delete(key);
    peer.send(encodeFrame({ kind: "done", key, outcome }), () => {
      this.failedNotices++;
    });
  }

  /** Stops the heartbeats for a key without a word. */
  unhold(address: PeerAddress, key: string): void {
    this.#peers.get(addressKey(address))?.held.delete(key);
  }

  /** Starts a pull. Never rejects: a failure is part of the outcome. */
  pull(address: PeerAddress, order: PullOrder): Pull {
    const { clock, bytesPerBlock } = this.#options;
    const assembly = new PullAssembly({
      keys: order.keys,
      bytesPerBlock,
      checksum: crc32,
    });
    const now = clock.now();
    const { promise, resolve } = Promise.withResolvers<PullOutcome>();
    const id = this.#nextId++;
    const active: ActivePull = {
      id,
      order,
      assembly,
      startedAt: now,
      firstByteAt: undefined,
      heardAt: now,
      resolve,
    };
    const peer = this.#peer(address);
    if (peer === undefined) {
      resolve(outcomeOf(active, now, "too many peers"));
      return { outcome: promise, abort: () => undefined };
    }
    peer.start(active);
    return {
      outcome: promise,
      abort: () => {
        peer.abort(active, "aborted");
      },
    };
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
    for (const peer of this.#peers.values()) peer.destroy("closed");
  }

  #peer(address: PeerAddress): Peer | undefined {
    const key = addressKey(address);
    const open = this.#peers.get(key);
    if (open !== undefined) return open;
    if (this.#closed || this.#peers.size >= peersMax) return undefined;
    const peer = new Peer(address, this.#options, {
      isKnown: this.#known.has(key),
      ready: () => {
        if (this.#known.size >= knownMax) this.#known.clear();
        this.#known.add(key);
      },
      closed: () => {
        if (this.#peers.get(key) === peer) this.#peers.delete(key);
      },
    });
    this.#peers.set(key, peer);
    return peer;
  }
}

function addressKey(address: PeerAddress): string {
  return `${address.host}:${address.port}`;
}

function outcomeOf(pull: ActivePull, now: number, failure: string | undefined): PullOutcome {
  return {
    blocks: pull.assembly.result(),
    receivedBytes: pull.assembly.receivedBytes,
    receivedBlocks: pull.assembly.completeBlocks,
    ms: now - pull.startedAt,
    transferMs: pull.firstByteAt === undefined ? 0 : now - pull.firstByteAt,
    end: undefined,
    failure,
  };
}

/** One prefill engine. States: connecting → ready → closed; a closed one is replaced. */
class Peer {
  readonly held = new Set<string>();
  readonly #address: PeerAddress;
  readonly #options: KvPeersOptions;
  readonly #events: { isKnown: boolean; ready: () => void; closed: () => void };
  readonly #pulls = new Map<number, ActivePull>();
  /** Sent once the peer is ready. */
  #queued: { readonly bytes: Uint8Array; readonly lost: () => void }[] = [];
  #state: "connecting" | "ready" | "closed" = "connecting";
  #socket: Socket | undefined;
  #retry: NodeJS.Timeout | undefined;
  #watch: NodeJS.Timeout | undefined;
  readonly #deadline: number;
  readonly #buffer = Buffer.allocUnsafe(readBufferBytes);

  constructor(
    address: PeerAddress,
    options: KvPeersOptions,
    events: { isKnown: boolean; ready: () => void; closed: () => void },
  ) {
    this.#address = address;
    this.#options = options;
    this.#events = events;
    this.#deadline = options.clock.now() + options.handshakeMsMax;
    this.#connect();
  }

  start(pull: ActivePull): void {
    this.#pulls.set(pull.id, pull);
    const { mode, key, firstBlock, blocks, keys } = pull.order;
    const blockCount = keys.length / 2;
    const ids = Uint32Array.from(blocks);
    this.send(
      encodeFrame({ kind: "pull", id: pull.id, mode, key, firstBlock, blockCount, blocks: ids }),
      () => undefined,
    );
    this.#arm();
  }

  abort(pull: ActivePull, reason: string): void {
    if (this.#pulls.get(pull.id) !== pull) return;
    // Behind the order itself, which may still wait for the connection.
    this.send(encodeFrame({ kind: "abort", id: pull.id, reason }), () => undefined);
    this.#end(pull, reason);
  }

  send(bytes: Uint8Array, lost: () => void): void {
    if (this.#state === "ready") this.#socket?.write(bytes);
    else if (this.#state === "connecting") this.#queued.push({ bytes, lost });
    else lost();
  }

  heartbeat(): void {
    if (this.#state !== "ready" || this.held.size === 0) return;
    const keys = [...this.held];
    for (let at = 0; at < keys.length; at += heartbeatIdsMax) {
      const some = keys.slice(at, at + heartbeatIdsMax);
      this.#socket?.write(encodeFrame({ kind: "heartbeat", keys: some }));
    }
  }

  destroy(reason: string): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    clearTimeout(this.#retry);
    clearTimeout(this.#watch);
    this.#socket?.destroy();
    this.#events.closed();
    for (const queued of this.#queued) queued.lost();
    this.#queued = [];
    for (const pull of [...this.#pulls.values()]) this.#end(pull, reason);
  }

  #connect(): void {
    const { clock } = this.#options;
    const buffer = this.#buffer;
    const reader = new FrameReader((frame) => {
      this.#take(frame);
    });
    let hello = false;
    const socket = connect({
      ...this.#address,
      noDelay: true,
      onread: {
        buffer,
        callback: (size) => {
          hello = true;
          try {
            reader.feed(buffer.subarray(0, size));
          } catch (error) {
            this.#options.log.warn({ event: "kv_peer_refused", err: error }, "KV peer refused");
            this.destroy("protocol error");
          }
          return true;
        },
      },
    });
    this.#socket = socket;
    const { engineId, instance, fingerprint } = this.#options.identity;
    socket.once("connect", () => {
      const version = kvProtocolVersion;
      socket.write(encodeFrame({ kind: "hello", version, engineId, instance, fingerprint }));
    });
    socket.on("error", () => {
      // `close` follows.
    });
    socket.once("close", () => {
      if (this.#state === "closed") return;
      const mayRetry = this.#state === "connecting" && !this.#events.isKnown && !hello;
      if (!mayRetry || clock.now() + reconnectMs > this.#deadline) {
        this.destroy(this.#state === "ready" ? "connection lost" : "peer not reachable");
        return;
      }
      this.#retry = setTimeout(() => {
        this.#connect();
      }, reconnectMs);
    });
    // A listener that never says hello is as good as none.
    this.#watchHandshake();
  }

  #watchHandshake(): void {
    clearTimeout(this.#watch);
    const left = Math.max(1, this.#deadline - this.#options.clock.now());
    this.#watch = setTimeout(() => {
      if (this.#state === "connecting") this.destroy("handshake timed out");
    }, left);
  }

  #take(frame: Frame): void {
    const now = this.#options.clock.now();
    if (frame.kind === "hello") {
      if (frame.fingerprint !== this.#options.identity.fingerprint) {
        this.destroy("layouts differ");
        return;
      }
      this.#state = "ready";
      clearTimeout(this.#watch);
      this.#events.ready();
      for (const { bytes } of this.#queued) this.#socket?.write(bytes);
      this.#queued = [];
      this.#arm();
      return;
    }
    if (frame.kind !== "chunk" && frame.kind !== "end" && frame.kind !== "abort") {
      this.destroy("protocol error");
      return;
    }
    if (frame.kind === "abort" && frame.id === 0) {
      this.#options.log.warn({ event: "kv_peer_refused", reason: frame.reason }, "KV peer refused");
      this.destroy("layouts differ");
      return;
    }
    const pull = this.#pulls.get(frame.id);
    // What was under way when a pull was given up still arrives.
    if (pull === undefined) return;
    pull.heardAt = now;
    pull.firstByteAt ??= now;
    switch (frame.kind) {
      case "chunk":
        pull.assembly.take(frame);
        return;
      case "end":
        this.#pulls.delete(pull.id);
        pull.resolve({
          ...outcomeOf(pull, now, pull.assembly.isComplete ? undefined : "ended too early"),
          end: { cachedTokens: frame.cachedTokens, tokens: frame.tokens },
        });
        return;
      case "abort":
        this.#end(pull, frame.reason);
        return;
    }
  }

  #end(pull: ActivePull, reason: string): void {
    this.#pulls.delete(pull.id);
    pull.resolve(outcomeOf(pull, this.#options.clock.now(), reason));
  }

  /** Ends pulls that have been silent for too long, and looks again when the next may be. */
  #arm(dueAt = Infinity): void {
    if (this.#state !== "ready") return;
    clearTimeout(this.#watch);
    const now = this.#options.clock.now();
    if (now - dueAt > standstillMs) {
      // This process stood still, not its peers: what they sent has yet to be read.
      for (const pull of this.#pulls.values()) pull.heardAt = now;
    }
    let next = Infinity;
    for (const pull of [...this.#pulls.values()]) {
      const { firstByteMsMax, stallMsMax } = pull.order;
      const limit = pull.firstByteAt === undefined ? firstByteMsMax : stallMsMax;
      const due = pull.heardAt + limit;
      if (due <= now) this.abort(pull, "stalled");
      else next = Math.min(next, due, now + stallMsMax);
    }
    if (next === Infinity) return;
    this.#watch = setTimeout(
      () => {
        this.#arm(next);
      },
      Math.ceil(next - now),
    );
  }
}
