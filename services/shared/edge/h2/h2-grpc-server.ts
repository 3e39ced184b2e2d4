import { createServer as createNetServer, type Server, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { createServer as createTlsServer, type TlsOptions, type TLSSocket } from "node:tls";
import { BufferPool } from "../../core/h2/buffer-pool.ts";
import { H2Connection, type ConnectionListener } from "../../core/h2/connection.ts";
import type { ConnectionEnd, StreamFault } from "../../core/h2/faults.ts";
import { FrameOutput } from "../../core/h2/frame-output.ts";
import type { H2Stream } from "../../core/h2/stream.ts";
import { grpcStatus, httpStatusBlock, parseGrpcTimeout, trailerBlock } from "./grpc-blocks.ts";
import { GrpcCall, type CallFault, type CallHost } from "./grpc-call.ts";
import type { GrpcMethod } from "./grpc-stream.ts";
import { fillLimits, type H2GrpcLimits, type H2GrpcLimitSettings } from "./h2-grpc-limits.ts";
import { H2Socket } from "./h2-socket.ts";
import { readInto } from "./static-reads.ts";

/** Why a call was refused or ended by the server. */
export type CallRefusal =
  CallFault | StreamFault | "unknown_method" | "not_allowed" | "not_grpc" | "headers_too_large";

/** Why a connection ended or was not taken. */
export type ConnectionClose = ConnectionEnd | "too_many_connections" | "tls_failed" | "no_alpn";

/** What happens beside the calls, for logs and metrics; each is also counted. */
export interface H2GrpcHooks {
  /** A call was refused or ended by the server. `path` is empty when it was not read. */
  onRefused?(reason: CallRefusal, path: string, peer: string): void;
  /** A connection ended. */
  onClosed?(reason: ConnectionClose, peer: string): void;
  /** A handler threw: a bug in it. Its call has been ended with INTERNAL. */
  onHandlerError?(error: unknown, path: string): void;
}

/** What `createH2GrpcServer` takes. */
export interface H2GrpcOptions extends H2GrpcHooks {
  /** Handlers by `/package.Service/Method`. */
  readonly methods: ReadonlyMap<string, GrpcMethod>;
  readonly limits?: H2GrpcLimitSettings;
  /** Certificate, key and the like; without it the server speaks cleartext HTTP/2 with prior knowledge. */
  readonly tls?: TlsOptions;
  /** Who may call what; `peerAddress` is an IP address, or `unix` for a Unix socket. Everybody may without it. */
  allow?(path: string, peerAddress: string): boolean;
}

/** Figures of a server. Reasons that have not occurred are absent. */
export interface H2GrpcCounts {
  readonly connections: number;
  readonly streams: number;
  /** Since the start. */
  readonly connectionsTotal: number;
  readonly callsTotal: number;
  readonly refused: Readonly<Partial<Record<CallRefusal, number>>>;
  readonly closed: Readonly<Partial<Record<ConnectionClose, number>>>;
  /** Messages being received and answers waiting to be sent. */
  readonly bufferedBytes: number;
  /** Message buffers kept for reuse. */
  readonly pooledBytes: number;
}

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
/** A read takes up to this much; one buffer serves all sockets, since each read is used up before the next. */
const readBytes = 256 << 10;

function isGrpc(contentType: string | undefined): boolean {
  if (contentType === "application/grpc") return true;
  return contentType !== undefined && /^application\/grpc[+;]/.test(contentType);
}

/** One connection and what belongs to it. */
class Client implements ConnectionListener, CallHost {
  readonly peer: string;
  readonly pool: BufferPool;
  readonly messageBytesMax: number;
  readonly connection: H2Connection;
  readonly socket: H2Socket;
  readonly #server: LeanServer;

  constructor(server: LeanServer, stream: Duplex, peer: string) {
    this.#server = server;
    this.peer = peer;
    this.pool = server.pool;
    this.messageBytesMax = server.limits.messageBytesMax;
    this.connection = new H2Connection({
      limits: server.limits,
      pool: server.pool,
      listener: this,
      output: new FrameOutput(16 << 10),
      now: performance.now(),
    });
    this.socket = new H2Socket({
      socket: stream,
      connection: this.connection,
      outputBytesMax: server.limits.outputBytesHigh * 2,
      now: () => performance.now(),
    });
  }

  onStream(stream: H2Stream): void {
    const server = this.#server;
    const { headers } = stream;
    const { path } = headers;
    if (headers.isOverLimit) {
      const text = `request headers: ${headers.count} fields of ${headers.size} bytes are above the limit`;
      this.#refuse(stream, "headers_too_large", grpcStatus.resourceExhausted, text);
      return;
    }
    if (headers.method !== "POST") {
      this.#refuseHttp(stream, 405);
      return;
    }
    if (!isGrpc(headers.get("content-type"))) {
      this.#refuseHttp(stream, 415);
      return;
    }
    if (server.options.allow?.(path, this.peer) === false) {
      const text = `caller ${this.peer} is not on the allow-list of ${path}`;
      this.#refuse(stream, "not_allowed", grpcStatus.permissionDenied, text);
      return;
    }
    const method = server.options.methods.get(path);
    if (method === undefined) {
      const text = `method ${path} is not served here`;
      this.#refuse(stream, "unknown_method", grpcStatus.unimplemented, text);
      return;
    }
    server.callsTotal++;
    const timeout = headers.get("grpc-timeout");
    const timeoutMs = timeout === undefined ? undefined : parseGrpcTimeout(timeout);
    const deadlineAt = timeoutMs === undefined ? undefined : performance.now() + timeoutMs;
    const { connection } = this;
    const call = new GrpcCall({ host: this, connection, stream, method, deadlineAt });
    if (deadlineAt !== undefined) server.deadlines.add(call);
  }

  #refuse(stream: H2Stream, reason: CallRefusal, status: number, text: string): void {
    this.#server.countRefusal(reason, stream.headers.path, this.peer);
    this.connection.sendTrailers(stream, trailerBlock(status, text, [], true));
  }

  #refuseHttp(stream: H2Stream, status: number): void {
    this.#server.countRefusal("not_grpc", stream.headers.path, this.peer);
    this.connection.sendTrailers(stream, httpStatusBlock(status));
  }

  onStreamFault(fault: StreamFault): void {
    this.#server.countRefusal(fault, "", this.peer);
  }

  touched(): void {
    this.socket.touched();
  }

  onCallFault(fault: CallFault, path: string): void {
    this.#server.countRefusal(fault, path, this.peer);
  }

  onHandlerError(error: unknown, path: string): void {
    this.#server.options.onHandlerError?.(error, path);
  }

  /** Ends every call with UNAVAILABLE. */
  endCalls(): void {
    for (const { listener } of this.connection.streams()) {
      if (listener instanceof GrpcCall) listener.refuse("shutting_down", "the server shuts down");
    }
    this.socket.touched();
  }
}

class LeanServer implements H2GrpcServer {
  readonly options: H2GrpcOptions;
  readonly limits: H2GrpcLimits;
  readonly pool: BufferPool;
  /** Calls with a deadline. */
  readonly deadlines = new Set<GrpcCall>();
  callsTotal = 0;
  readonly #clients = new Set<Client>();
  readonly #listeners: Server[] = [];
  readonly #readBuffer = new Uint8Array(readBytes);
  readonly #refused: Partial<Record<CallRefusal, number>> = {};
  readonly #closed: Partial<Record<ConnectionClose, number>> = {};
  #connectionsTotal = 0;
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
    const client = new Client(this, socket, peer);
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

  #watch(socket: Socket, client: Client): void {
    socket.on("error", () => undefined);
    socket.on("close", () => {
      client.connection.socketEnded("socket_closed");
      this.#countClose(client.connection.end ?? "socket_closed", client.peer);
      this.#clients.delete(client);
      if (this.#clients.size === 0) this.#onEmpty?.();
    });
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
    for (const call of this.deadlines) {
      const isLate = call.deadlineAt !== undefined && call.deadlineAt <= now;
      if (isLate) call.refuse("deadline_exceeded", "the caller's deadline has passed");
      if (call.isClosed) this.deadlines.delete(call);
    }
    for (const client of this.#clients) client.socket.tick(now, this.limits.sendStallMsMax);
  }

  counts(): H2GrpcCounts {
    let streams = 0;
    for (const { connection } of this.#clients) streams += connection.streamCount;
    return {
      connections: this.#clients.size,
      streams,
      connectionsTotal: this.#connectionsTotal,
      callsTotal: this.callsTotal,
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
