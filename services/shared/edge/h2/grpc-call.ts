import type { BufferPool } from "../../core/h2/buffer-pool.ts";
import { h2Error } from "../../core/h2/codes.ts";
import type { H2Connection } from "../../core/h2/connection.ts";
import {
  MessageReader,
  type MessageFault,
  type MessageSink,
} from "../../core/h2/message-reader.ts";
import type { H2Stream, StreamEnd, StreamListener } from "../../core/h2/stream.ts";
import { answerBlock, grpcStatus, trailerBlock, type GrpcMetadata } from "./grpc-blocks.ts";
import type { GrpcHandler, GrpcMethod, GrpcStream } from "./grpc-stream.ts";

/** Why the server itself ended a call. */
export type CallFault =
  MessageFault | "message_cut_off" | "deadline_exceeded" | "handler_failed" | "shutting_down";

/** What a call needs of its server. */
export interface CallHost {
  readonly pool: BufferPool;
  readonly messageBytesMax: number;
  /** Output was written outside of a read: it has to be flushed. */
  touched(): void;
  /** Further trailers of a call that the server ends. */
  faultMetadata?(fault: CallFault, status: number, text: string): GrpcMetadata;
  /** The server ended a call. */
  onCallFault(fault: CallFault, path: string): void;
  /** A handler threw, which it must not. */
  onHandlerError(error: unknown, path: string): void;
}

const faultStatus: Readonly<Record<CallFault, number>> = {
  compressed: grpcStatus.unimplemented,
  message_too_large: grpcStatus.resourceExhausted,
  memory_full: grpcStatus.resourceExhausted,
  message_cut_off: grpcStatus.internal,
  deadline_exceeded: grpcStatus.deadlineExceeded,
  handler_failed: grpcStatus.internal,
  shutting_down: grpcStatus.unavailable,
};

/** gRPC's prefix of the message being sent; written and copied within one call. */
const prefix = new Uint8Array(5);

const identityOnly: GrpcMetadata = [["grpc-accept-encoding", "identity"]];

/** One gRPC call: turns a stream's bytes into messages for its handler and back. */
export class GrpcCall implements GrpcStream, StreamListener, MessageSink {
  readonly path: string;
  readonly #host: CallHost;
  readonly #connection: H2Connection;
  readonly #stream: H2Stream;
  readonly #reader: MessageReader;
  #handler: GrpcHandler | undefined;
  /** When the client's deadline passes, ms of the server's clock; undefined without one. */
  readonly deadlineAt: number | undefined;
  #isEnded = false;
  #isRefused = false;
  /** How the call ended while its handler was still being made. */
  #endedBefore: StreamEnd | undefined;

  /** Makes the handler; the call is the stream's listener from then on. */
  constructor(options: {
    readonly host: CallHost;
    readonly connection: H2Connection;
    readonly stream: H2Stream;
    readonly method: GrpcMethod;
    readonly deadlineAt: number | undefined;
  }) {
    this.#host = options.host;
    this.#connection = options.connection;
    this.#stream = options.stream;
    this.path = options.stream.headers.path;
    this.deadlineAt = options.deadlineAt;
    this.#reader = new MessageReader(options.host.pool, options.host.messageBytesMax, this);
    options.stream.listener = this;
    try {
      this.#handler = options.method(this);
    } catch (error) {
      this.#failed(error);
    }
    if (this.#endedBefore !== undefined) this.#close(this.#endedBefore);
  }

  get queuedBytes(): number {
    return this.#stream.queuedBytes;
  }

  /** Whether the call is over. */
  get isClosed(): boolean {
    return this.#stream.isClosed;
  }

  header(name: string): string | undefined {
    return this.#stream.headers.get(name);
  }

  send(message: Uint8Array): void {
    if (this.#isEnded || this.#stream.isClosed) return;
    const { length } = message;
    prefix[1] = length >>> 24;
    prefix[2] = length >>> 16;
    prefix[3] = length >>> 8;
    prefix[4] = length;
    if (!this.#stream.hasSentHeaders) this.#connection.sendHeaders(this.#stream, answerBlock);
    this.#connection.sendMessage(this.#stream, prefix, message);
    this.#host.touched();
  }

  end(status = 0, message?: string, metadata: GrpcMetadata = []): void {
    if (this.#isEnded || this.#stream.isClosed) return;
    this.#isEnded = true;
    const isOnly = !this.#stream.hasSentHeaders;
    this.#connection.sendTrailers(this.#stream, trailerBlock(status, message, metadata, isOnly));
    this.#host.touched();
  }

  /** Ends the call for a reason of the server's own; its handler sees a reset. */
  refuse(fault: CallFault, text: string): void {
    if (this.#stream.isClosed) return;
    this.#isRefused = true;
    this.#host.onCallFault(fault, this.path);
    if (this.#isEnded || this.queuedBytes > 0) {
      // Trailers would wait behind what the client does not take.
      this.#connection.reset(this.#stream, h2Error.cancel);
      this.#host.touched();
    } else {
      const status = faultStatus[fault];
      const more = this.#host.faultMetadata?.(fault, status, text) ?? [];
      this.end(status, text, fault === "compressed" ? [...identityOnly, ...more] : more);
    }
  }

  onData(bytes: Uint8Array, start: number, end: number): void {
    if (this.#isEnded) return;
    const fault = this.#reader.read(bytes, start, end);
    if (fault !== undefined) this.refuse(fault, this.#explain(fault));
  }

  #explain(fault: MessageFault): string {
    switch (fault) {
      case "compressed":
        return "compressed messages are not read: send with identity encoding";
      case "message_too_large":
        return `message of ${this.#reader.messageBytes} bytes is above ${this.#host.messageBytesMax}`;
      case "memory_full":
        return "memory for messages is used up: try again later";
    }
  }

  onEnd(): void {
    if (this.#isEnded) return;
    if (!this.#reader.isBetween) {
      this.refuse("message_cut_off", "the request ended inside a message");
      return;
    }
    try {
      this.#handler?.onHalfClose();
    } catch (error) {
      this.#failed(error);
    }
  }

  onDrain(): void {
    try {
      this.#handler?.onDrain?.();
    } catch (error) {
      this.#failed(error);
    }
  }

  onClose(how: StreamEnd): void {
    this.#reader.stop();
    const seen = this.#isRefused && how === "ended" ? "reset" : how;
    if (this.#handler === undefined) this.#endedBefore = seen;
    else this.#close(seen);
  }

  #close(how: StreamEnd): void {
    try {
      this.#handler?.onClose(how);
    } catch (error) {
      this.#failed(error);
    }
  }

  /** The reader found a message. */
  onMessage(message: Uint8Array): void {
    if (this.#isEnded) return;
    try {
      this.#handler?.onMessage(message);
    } catch (error) {
      this.#failed(error);
    }
  }

  /** A handler threw: a bug in it, which ends this call and no other. */
  #failed(error: unknown): void {
    this.#host.onHandlerError(error, this.path);
    this.refuse("handler_failed", "the call's handler failed");
  }
}
