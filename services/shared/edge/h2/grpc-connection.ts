import type { Duplex } from "node:stream";
import type { BufferPool } from "../../core/h2/buffer-pool.ts";
import { H2Connection, type ConnectionListener } from "../../core/h2/connection.ts";
import type { StreamFault } from "../../core/h2/faults.ts";
import { FrameOutput } from "../../core/h2/frame-output.ts";
import type { SpareBuffers } from "../../core/h2/spare-buffers.ts";
import type { H2Stream } from "../../core/h2/stream.ts";
import {
  grpcStatus,
  httpStatusBlock,
  parseGrpcTimeout,
  trailerBlock,
  type GrpcMetadata,
} from "./grpc-blocks.ts";
import { GrpcCall, type CallFault, type CallHost } from "./grpc-call.ts";
import type { H2GrpcLimits } from "./h2-grpc-limits.ts";
import type { CallRefusal, H2GrpcOptions } from "./h2-grpc-options.ts";
import { H2Socket } from "./h2-socket.ts";

function isGrpc(contentType: string | undefined): boolean {
  if (contentType === "application/grpc") return true;
  return contentType !== undefined && /^application\/grpc[+;]/.test(contentType);
}

/** What a connection needs of its server. */
export interface GrpcConnectionHost {
  readonly options: H2GrpcOptions;
  readonly limits: H2GrpcLimits;
  readonly pool: BufferPool;
  readonly spares: SpareBuffers;
  /** A call was refused or ended by the server. */
  countRefusal(reason: CallRefusal, path: string, peer: string): void;
  /** A call has begun. */
  callBegan(call: GrpcCall): void;
}

/** One client's connection: turns its requests into calls of the server's methods, or refuses them. */
export class GrpcConnection implements ConnectionListener, CallHost {
  readonly peer: string;
  readonly pool: BufferPool;
  readonly messageBytesMax: number;
  readonly connection: H2Connection;
  readonly socket: H2Socket;
  readonly #server: GrpcConnectionHost;

  constructor(server: GrpcConnectionHost, stream: Duplex, peer: string) {
    this.#server = server;
    this.peer = peer;
    this.pool = server.pool;
    this.messageBytesMax = server.limits.messageBytesMax;
    this.connection = new H2Connection({
      limits: server.limits,
      pool: server.pool,
      listener: this,
      output: new FrameOutput(16 << 10, server.spares),
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
    const isCall = isGrpc(headers.get("content-type"));
    if (!isCall && server.options.onHttp !== undefined) {
      server.options.onHttp({
        connection: this.connection,
        stream,
        peer: this.peer,
        touched: () => {
          this.touched();
        },
      });
      return;
    }
    if (headers.method !== "POST") {
      this.#refuseHttp(stream, 405);
      return;
    }
    if (!isCall) {
      this.#refuseHttp(stream, 415);
      return;
    }
    if (server.options.allow?.(path, this.peer) === false) {
      const service = path.slice(1, path.lastIndexOf("/"));
      const text = `caller ${this.peer} is not on the allow-list of ${service}`;
      this.#refuse(stream, "not_allowed", grpcStatus.permissionDenied, text);
      return;
    }
    const method = server.options.methods.get(path);
    if (method === undefined) {
      const text = `method ${path} is not served here`;
      this.#refuse(stream, "unknown_method", grpcStatus.unimplemented, text);
      return;
    }
    const timeout = headers.get("grpc-timeout");
    const timeoutMs = timeout === undefined ? undefined : parseGrpcTimeout(timeout);
    const deadlineAt = timeoutMs === undefined ? undefined : performance.now() + timeoutMs;
    const { connection } = this;
    server.callBegan(new GrpcCall({ host: this, connection, stream, method, deadlineAt }));
  }

  #refuse(stream: H2Stream, reason: CallRefusal, status: number, text: string): void {
    this.#server.countRefusal(reason, stream.headers.path, this.peer);
    const more = this.#server.options.refusalMetadata?.(reason, status, text) ?? [];
    this.connection.sendTrailers(stream, trailerBlock(status, text, more, true));
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

  faultMetadata(fault: CallFault, status: number, text: string): GrpcMetadata {
    return this.#server.options.refusalMetadata?.(fault, status, text) ?? [];
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
