import { createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { crc32 } from "node:zlib";
import type { Logger } from "pino";
import type { Clock } from "../../../shared/core/clock.ts";
import { monoMs } from "../../../shared/core/ids.ts";
import { fillBlockContent } from "../../core/kv-transfer/block-content.ts";
import {
  encodeFrame,
  FrameReader,
  kvProtocolVersion,
  layOutChunk,
  type Frame,
} from "../../core/kv-transfer/frames.ts";
import { LinkShaper, type LinkShape } from "../../core/kv-transfer/link-shaper.ts";
import { chunkBytesFor, planChunks, type ChunkPlan } from "../../core/kv-transfer/pull-plan.ts";

type PullFrame = Extract<Frame, { kind: "pull" }>;

/** Bytes that may wait in one socket before no more content is made. */
const socketBytesMax = 1_048_576;
/** How far ahead of a shaped link chunks are booked, ms. */
const bookAheadMs = 5;
/** Connections and pulls in progress per connection; more are refused. */
const connectionsMax = 256;
const pullsMax = 4_096;

/** Identity that both sides tell each other first. */
export interface KvIdentity {
  readonly engineId: string;
  readonly instance: string;
  readonly fingerprint: string;
}

/** One pull that a decode engine asked for. */
export interface ServerPull {
  readonly request: PullFrame;
  /** Sends what these blocks hold when they are read, then the end. */
  start(
    blocks: readonly number[],
    end: { readonly cachedTokens: number; readonly tokens: readonly number[] },
  ): void;
  /** Refuses or gives up. */
  abort(reason: string): void;
  /** The puller has said that it is done. Rooms are open until then, also after all was sent. */
  close(): void;
}

/** What the server asks of its engine. Nothing here may throw. */
export interface KvServerHost {
  /** Key of what a physical block holds now, or undefined when there is no such block. */
  contentOf(block: number): { readonly low: number; readonly high: number } | undefined;
  pulled(pull: ServerPull): void;
  /** The puller gave up, or its connection is gone: before the end was sent, in a room before it said done. */
  pullAborted(pull: ServerPull): void;
  done(key: string, outcome: "pulled" | "aborted"): void;
  heartbeat(keys: readonly string[]): void;
}

/** Faults of the sending side, counted down as they happen. */
export interface LinkFaults {
  /** Chunks in which one bit is turned over, after the checksum was made. */
  flips: number;
  /** Connections to cut after their next chunk. */
  cuts: number;
  /** No chunk leaves before this time, clock ms. */
  stalledUntil: number;
}

interface ActivePull extends ServerPull {
  chunks: Iterator<ChunkPlan> | undefined;
  blocks: readonly number[];
  end: Uint8Array | undefined;
}

/** A chunk or end on its way over a shaped link. */
interface InFlight {
  readonly dueAt: number;
  readonly pull: ActivePull;
  readonly plan: ChunkPlan | undefined;
}

/**
 * Serves KV blocks of one engine over TCP. Content is made when it is sent. Pulls of one connection share it chunk by
 * chunk; a link (this engine → that instance) may have a speed and a delay.
 */
export class KvServer {
  readonly faults: LinkFaults = { flips: 0, cuts: 0, stalledUntil: -Infinity };
  /** Content bytes and blocks given to sockets. */
  sentBytes = 0;
  sentBlocks = 0;
  readonly #server: Server;
  readonly #connections = new Set<ServerConnection>();
  readonly #options: KvServerOptions;

  constructor(options: KvServerOptions) {
    this.#options = options;
    this.#server = createServer({ noDelay: true }, (socket) => {
      if (this.#connections.size >= connectionsMax) {
        socket.destroy();
        return;
      }
      const connection = new ServerConnection(socket, options, this);
      this.#connections.add(connection);
      socket.once("close", () => {
        this.#connections.delete(connection);
        connection.closed();
      });
    });
  }

  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(port, host, () => {
        this.#server.removeListener("error", reject);
        resolve();
      });
    });
    return (this.#server.address() as AddressInfo).port;
  }

  /** Fault: nothing is sent for `ms`. */
  stall(ms: number): void {
    this.faults.stalledUntil = this.#options.clock.now() + ms;
  }

  /** Changes the shape of every link, also of open connections. */
  reshape(shape: LinkShape): void {
    for (const connection of this.#connections) connection.reshape(shape);
    this.#options.shapeOf = () => shape;
  }

  close(): void {
    this.#server.close();
    for (const connection of this.#connections) connection.destroy();
  }
}

/** What a `KvServer` is made of. */
export interface KvServerOptions {
  readonly identity: KvIdentity;
  readonly bytesPerBlock: number;
  readonly host: KvServerHost;
  readonly clock: Clock;
  readonly log: Logger;
  /** Shape of the link to an instance. */
  shapeOf: (instance: string) => LinkShape;
}

class ServerConnection {
  readonly #socket: Socket;
  readonly #options: KvServerOptions;
  readonly #server: KvServer;
  readonly #pulls = new Map<number, ActivePull>();
  /** Pulls with chunks left, in turn. */
  readonly #turn: ActivePull[] = [];
  readonly #inFlight: InFlight[] = [];
  #shaper = new LinkShaper({ bytesPerS: 0, latencyMs: 0 });
  #helloed = false;
  #timer: NodeJS.Timeout | undefined;
  #pumping = false;

  constructor(socket: Socket, options: KvServerOptions, server: KvServer) {
    this.#socket = socket;
    this.#options = options;
    this.#server = server;
    const reader = new FrameReader((frame) => {
      this.#take(frame);
    });
    socket.on("data", (bytes: Buffer) => {
      try {
        reader.feed(bytes);
      } catch (error) {
        options.log.warn({ event: "kv_peer_refused", err: error }, "KV peer broke the protocol");
        socket.destroy();
      }
    });
    socket.on("drain", () => {
      this.#pump();
    });
    socket.on("error", () => {
      // `close` follows and ends the pulls.
    });
    const { engineId, instance, fingerprint } = options.identity;
    const version = kvProtocolVersion;
    socket.write(encodeFrame({ kind: "hello", version, engineId, instance, fingerprint }));
  }

  reshape(shape: LinkShape): void {
    this.#shaper.reshape(shape);
    this.#pump();
  }

  destroy(): void {
    this.#socket.destroy();
  }

  closed(): void {
    clearTimeout(this.#timer);
    this.#turn.length = 0;
    this.#inFlight.length = 0;
    const open = [...this.#pulls.values()];
    this.#pulls.clear();
    for (const pull of open) this.#options.host.pullAborted(pull);
  }

  #take(frame: Frame): void {
    const { host, identity } = this.#options;
    if (frame.kind === "hello") {
      if (
        frame.version !== kvProtocolVersion ||
        frame.fingerprint !== identity.fingerprint ||
        this.#helloed
      ) {
        const theirs = `protocol ${frame.version}, ${frame.fingerprint}`;
        const ours = `protocol ${kvProtocolVersion}, ${identity.fingerprint}`;
        const reason = `layouts differ: here ${ours}, there ${theirs}`.slice(0, 1_000);
        this.#socket.end(encodeFrame({ kind: "abort", id: 0, reason }));
        return;
      }
      this.#helloed = true;
      this.#shaper = new LinkShaper(this.#options.shapeOf(frame.instance));
      return;
    }
    if (!this.#helloed) {
      this.#socket.destroy();
      return;
    }
    switch (frame.kind) {
      case "pull":
        this.#later(() => {
          this.#accept(frame);
        });
        return;
      case "done":
        this.#later(() => {
          host.done(frame.key, frame.outcome);
        });
        return;
      case "heartbeat":
        host.heartbeat(frame.keys);
        return;
      case "abort":
        this.#drop(frame.id);
        return;
      case "chunk":
      case "end":
        this.#socket.destroy();
        return;
    }
  }

  /** The way from the puller to here takes the link's delay as well. */
  #later(act: () => void): void {
    if (this.#shaper.latencyMs === 0) act();
    else setTimeout(act, this.#shaper.latencyMs);
  }

  #accept(request: PullFrame): void {
    if (this.#socket.destroyed) return;
    if (this.#pulls.has(request.id) || this.#pulls.size >= pullsMax) {
      this.#socket.write(encodeFrame({ kind: "abort", id: request.id, reason: "too many pulls" }));
      return;
    }
    const pull: ActivePull = {
      request,
      chunks: undefined,
      blocks: [],
      end: undefined,
      start: (blocks, end) => {
        if (this.#pulls.get(request.id) !== pull) return;
        pull.blocks = blocks;
        pull.chunks = planChunks(
          blocks.length,
          this.#options.bytesPerBlock,
          chunkBytesFor(this.#shaper.bytesPerS),
        );
        pull.end = encodeFrame({ kind: "end", id: request.id, ...end });
        this.#turn.push(pull);
        this.#pump();
      },
      abort: (reason) => {
        if (this.#pulls.get(request.id) !== pull) return;
        this.#forget(pull);
        if (this.#socket.writable) {
          this.#socket.write(encodeFrame({ kind: "abort", id: request.id, reason }));
        }
      },
      close: () => {
        if (this.#pulls.get(request.id) === pull) this.#forget(pull);
      },
    };
    this.#pulls.set(request.id, pull);
    this.#options.host.pulled(pull);
  }

  #drop(id: number): void {
    const pull = this.#pulls.get(id);
    if (pull === undefined) return;
    this.#forget(pull);
    this.#options.host.pullAborted(pull);
  }

  #forget(pull: ActivePull): void {
    this.#pulls.delete(pull.request.id);
    const at = this.#turn.indexOf(pull);
    if (at >= 0) this.#turn.splice(at, 1);
  }

  /** Sends what may be sent now and sets the timer for what comes later. */
  #pump(): void {
    if (this.#pumping || this.#isGone()) return;
    this.#pumping = true;
    clearTimeout(this.#timer);
    const now = this.#options.clock.now();
    const { faults } = this.#server;
    let wakeAt = Infinity;
    if (now < faults.stalledUntil) {
      wakeAt = faults.stalledUntil;
    } else {
      this.#deliver(now);
      while (this.#turn.length > 0 && this.#socket.writableLength < socketBytesMax) {
        const last = this.#inFlight.at(-1);
        const sentUntil = last === undefined ? now : last.dueAt - this.#shaper.latencyMs;
        if (sentUntil > now + bookAheadMs) break;
        this.#book(now);
        this.#deliver(now);
        if (this.#isGone()) break;
      }
      wakeAt = this.#inFlight[0]?.dueAt ?? Infinity;
    }
    this.#pumping = false;
    if (wakeAt < Infinity && !this.#isGone()) {
      this.#timer = setTimeout(
        () => {
          this.#pump();
        },
        Math.max(0, Math.ceil(wakeAt - now)),
      );
    }
  }

  /** Books the next chunk, or the end, of the pull whose turn it is. */
  #book(now: number): void {
    const pull = this.#turn.shift() as ActivePull;
    const next = pull.chunks?.next();
    const plan = next?.done === false ? next.value : undefined;
    const bytes = plan === undefined ? 64 : plan.contentBytes;
    const dueAt = this.#shaper.isShaped ? this.#shaper.send(bytes, monoMs(now)) : now;
    this.#inFlight.push({ dueAt, pull, plan });
    if (plan !== undefined) this.#turn.push(pull);
  }

  #deliver(now: number): void {
    while (this.#inFlight.length > 0) {
      const head = this.#inFlight[0] as InFlight;
      if (head.dueAt > now) return;
      this.#inFlight.shift();
      const { pull, plan } = head;
      if (this.#pulls.get(pull.request.id) !== pull) continue;
      if (plan === undefined) {
        // A room ends with the puller's word. If the connection goes before that, the end may never have arrived.
        if (pull.request.mode !== "room") this.#pulls.delete(pull.request.id);
        this.#socket.write(pull.end as Uint8Array);
        continue;
      }
      this.#sendChunk(pull, plan);
      if (this.#isGone()) return;
    }
  }

  #isGone(): boolean {
    return this.#socket.destroyed;
  }

  #sendChunk(pull: ActivePull, plan: ChunkPlan): void {
    const room = layOutChunk({ id: pull.request.id, ...plan });
    const wordsEach = plan.contentBytes / plan.blockCount / 4;
    for (let i = 0; i < plan.blockCount; i++) {
      const words = room.words.subarray(i * wordsEach, (i + 1) * wordsEach);
      const key = this.#options.host.contentOf(pull.blocks[plan.firstBlock + i] as number);
      fillBlockContent(words, key ?? { low: 0, high: 0 }, plan.offsetBytes / 4);
      room.checksums[i] = crc32(new Uint8Array(words.buffer, words.byteOffset, words.byteLength));
    }
    const { faults } = this.#server;
    if (faults.flips > 0) {
      faults.flips--;
      const at = room.words.length >> 1;
      room.words[at] = (room.words[at] as number) ^ 1;
    }
    this.#server.sentBytes += plan.contentBytes;
    const isLastPiece = plan.offsetBytes + wordsEach * 4 === this.#options.bytesPerBlock;
    if (isLastPiece) this.#server.sentBlocks += plan.blockCount;
    this.#socket.write(room.bytes);
    if (faults.cuts > 0) {
      faults.cuts--;
      this.#socket.destroySoon();
      this.#turn.length = 0;
      this.#inFlight.length = 0;
    }
  }
}
