import { createServer as createNetServer, type Server, type Socket } from "node:net";
import { createServer as createTlsServer, type TLSSocket } from "node:tls";
import { BufferPool } from "../../core/h2/buffer-pool.ts";
import { SpareBuffers } from "../../core/h2/spare-buffers.ts";
import type { GrpcCall } from "./grpc-call.ts";
import { GrpcConnection, type GrpcConnectionHost } from "./grpc-connection.ts";
import { fillLimits, type H2GrpcLimits } from "./h2-grpc-limits.ts";
import type {
  CallRefusal,
  ConnectionClose,
  H2GrpcCounts,
  H2GrpcOptions,
} from "./h2-grpc-options.ts";
import { readInto } from "./static-reads.ts";

export type { CallRefusal, ConnectionClose, H2GrpcCounts, H2GrpcOptions };

/** A gRPC server for a few hot methods, on an HTTP/2 of its own. */
export interface H2GrpcServer {
  /** Listens on TCP, port 0 for any; resolves with the port. May be called for several addresses. */
  listen(host: string, port: number): Promise<number>;
  /** Listens on a Unix socket. */
  listenUnix(path: string): Promise<void>;
  /**
   * Stops accepting, tells every client to open no more calls and resolves when all connections are closed. Calls
   * still open after `deadlineMs` end with UNAVAILABLE.
   */
  drain(deadlineMs: number): Promise<void>;
  /** Drops everything at once. */
  close(): Promise<void>;
  counts(): H2GrpcCounts;
}

const tickMs = 200;
/** A tick this late means that the process was blocked or stopped, not that clients were silent. */
const stallMs = 1_000;
/** A read takes up to this much; one buffer serves all sockets, since each read is used up before the next. */
const readBytes = 256 << 10;
/** Large write buffers kept for the next connection that needs one, bytes. */
const spareBytesKept = 16 << 20;

class LeanServer implements H2GrpcServer, GrpcConnectionHost {
  readonly options: H2GrpcOptions;
  readonly limits: H2GrpcLimits;
  readonly pool: BufferPool;
  readonly spares = new SpareBuffers(spareBytesKept);
  /** Calls with a deadline, some already over. */
  readonly #deadlines = new Set<GrpcCall>();
  readonly #clients = new Set<GrpcConnection>();
  readonly #listeners: Server[] = [];
  readonly #readBuffer = new Uint8Array(readBytes);
  readonly #refused: Partial<Record<CallRefusal, number>> = {};
  readonly #closed: Partial<Record<ConnectionClose, number>> = {};
  #tickedAt = performance.now();
  #connectionsTotal = 0;
  #callsTotal = 0;
  #ticker: NodeJS.Timeout | undefined;
  #onEmpty: (() => void) | undefined;

  constructor(options: H2GrpcOptions) {
    this.options = options;
    this.limits = fillLimits(options.limits);
    this.pool = new BufferPool(this.limits.bufferedBytesMax, this.limits.pooledBytesMax);
  }

  async listen(host: string, port: number): Promise<number> {
    const address = (await this.#bind({ host, port })).address();
    return address === null || typeof address === "string" ? 0 : address.port;
  }

  async listenUnix(path: string): Promise<void> {
    await this.#bind({ path });
  }

  #bind(where: { host: string; port: number } | { path: string }): Promise<Server> {
    const listener = this.#createListener();
    this.#listeners.push(listener);
    this.#ticker ??= setInterval(() => {
      this.#tick();
    }, tickMs);
    return new Promise((resolve, reject) => {
      listener.once("error", reject);
      listener.listen(where, () => {
        listener.removeListener("error", reject);
        listener.on("error", () => undefined);
        resolve(listener);
      });
    });
  }

  #createListener(): Server {
    const { tls } = this.options;
    if (tls === undefined) {
      return createNetServer({ noDelay: true, pauseOnConnect: true }, (socket) => {
        this.#accept(socket, true);
      });
    }
    const listener = createTlsServer({
      minVersion: "TLSv1.2",
      handshakeTimeout: this.limits.prefaceMsMax,
      ...tls,
      ALPNProtocols: ["h2"],
    });
    listener.on("secureConnection", (socket: TLSSocket) => {
      socket.setNoDelay(true);
      if (socket.alpnProtocol === "h2") this.#accept(socket, false);
      else {
        this.#countClose("no_alpn", peerOf(socket));
        socket.destroy();
      }
    });
    listener.on("tlsClientError", (_error, socket) => {
      this.#countClose("tls_failed", peerOf(socket));
    });
    return listener;
  }

  #accept(accepted: Socket, isPaused: boolean): void {
    const peer = peerOf(accepted);
    if (this.#clients.size >= this.limits.connectionsMax) {
      this.#countClose("too_many_connections", peer);
      accepted.destroy();
      return;
    }
    this.#connectionsTotal++;
    const buffer = this.#readBuffer;
    // A read never comes before this turn of the event loop is over.
    const taken = isPaused
      ? readInto(accepted, buffer, (length) => {
          client.socket.receive(buffer, length);
        })
      : undefined;
    const socket = taken ?? accepted;
    const client = new GrpcConnection(this, socket, peer);
    this.#clients.add(client);
    this.#watch(socket, client);
    if (taken === undefined) {
      const { socket: receiver } = client;
      socket.on("data", (chunk: Buffer) => {
        receiver.receive(chunk, chunk.length);
      });
      socket.resume();
    }
  }

  #watch(socket: Socket, client: GrpcConnection): void {
    socket.on("error", () => undefined);
    socket.on("close", () => {
      client.connection.socketEnded("socket_closed");
      this.#countClose(client.connection.end ?? "socket_closed", client.peer);
      this.#clients.delete(client);
      if (this.#clients.size === 0) this.#onEmpty?.();
    });
  }

  callBegan(call: GrpcCall): void {
    this.#callsTotal++;
    if (call.deadlineAt !== undefined) this.#deadlines.add(call);
  }

  countRefusal(reason: CallRefusal, path: string, peer: string): void {
    this.#refused[reason] = (this.#refused[reason] ?? 0) + 1;
    this.options.onRefused?.(reason, path, peer);
  }

  #countClose(reason: ConnectionClose, peer: string): void {
    this.#closed[reason] = (this.#closed[reason] ?? 0) + 1;
    this.options.onClosed?.(reason, peer);
  }

  #tick(): void {
    const now = performance.now();
    for (const call of this.#deadlines) {
      const isLate = call.deadlineAt !== undefined && call.deadlineAt <= now;
      if (isLate) call.refuse("deadline_exceeded", "the caller's deadline has passed");
      if (call.isClosed) this.#deadlines.delete(call);
    }
    const wasStalled = now - this.#tickedAt > stallMs;
    this.#tickedAt = now;
    const { sendStallMsMax } = this.limits;
    for (const client of this.#clients) client.socket.tick(now, sendStallMsMax, wasStalled);
  }

  counts(): H2GrpcCounts {
    let streams = 0;
    for (const { connection } of this.#clients) streams += connection.streamCount;
    return {
      connections: this.#clients.size,
      streams,
      connectionsTotal: this.#connectionsTotal,
      callsTotal: this.#callsTotal,
      refused: { ...this.#refused },
      closed: { ...this.#closed },
      bufferedBytes: this.pool.outBytes,
      pooledBytes: this.pool.idleBytes,
    };
  }

  async drain(deadlineMs: number): Promise<void> {
    for (const listener of this.#listeners) listener.close();
    const now = performance.now();
    for (const client of this.#clients) {
      client.connection.drain(now);
      client.socket.touched();
    }
    if (!(await this.#emptyWithin(deadlineMs))) {
      for (const client of this.#clients) client.endCalls();
      await this.#emptyWithin(2_000);
    }
    await this.close();
  }

  /** Whether the last connection closes within `ms`. */
  async #emptyWithin(ms: number): Promise<boolean> {
    if (this.#clients.size === 0) return true;
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        resolve(false);
      }, ms);
      this.#onEmpty = () => {
        clearTimeout(timer);
        resolve(true);
      };
    });
  }

  async close(): Promise<void> {
    for (const listener of this.#listeners) listener.close();
    for (const client of this.#clients) client.socket.destroy();
    await this.#emptyWithin(1_000);
    clearInterval(this.#ticker);
  }
}

function peerOf(socket: Socket): string {
  return socket.remoteAddress?.replace(/^::ffff:(?=\d+\.)/, "") ?? "unix";
}

/** Makes a server; nothing listens yet. */
export function createH2GrpcServer(options: H2GrpcOptions): H2GrpcServer {
  return new LeanServer(options);
}
