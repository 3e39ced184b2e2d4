import { BufferPool } from "../../../shared/core/h2/buffer-pool.ts";
import type { GrpcHandler, GrpcMethod, GrpcStream } from "../../../shared/edge/h2/grpc-stream.ts";
import type { ImmediateAnswer, RoutingAnswer } from "../../core/exchange/exchange.ts";
import type { RequestHeaders } from "../../core/exchange/request-headers.ts";
import { AnswerMessages, writePieceHead } from "./answer-messages.ts";
import {
  ExchangeStream,
  type AnswerWriter,
  type BodyMemory,
  type CallMetadata,
  type ExtProcDependencies,
} from "./exchange-stream.ts";
import { PooledBody } from "./pooled-body.ts";
import { RequestReader } from "./request-reader.ts";

/** The gRPC status of a peer that breaks the protocol. */
const invalidArgument = 3;
/** An echo stops while this much of it waits for the proxy's window, bytes. */
const queuedBytesHigh = 256 << 10;
/** Buffers for bodies kept for reuse, bytes. */
const idleBytesMax = 16 << 20;

/** What all streams share. */
interface Shared {
  readonly dependencies: ExtProcDependencies;
  readonly memory: BodyMemory;
  readonly pool: BufferPool;
  readonly reader: RequestReader;
  readonly messages: AnswerMessages;
}

/** A part of an answer that waits for the proxy's window. */
type Waiting =
  | { readonly kind: "piece"; readonly piece: Uint8Array; readonly endOfStream: boolean }
  | { readonly kind: "trailers" }
  | { readonly kind: "end" };

/** One ext_proc stream on the lean server. */
class LeanStream implements GrpcHandler, AnswerWriter, CallMetadata {
  readonly #call: GrpcStream;
  readonly #shared: Shared;
  readonly #body: PooledBody;
  readonly #stream: ExchangeStream;
  #headers: RequestHeaders | undefined;
  #waiting: Waiting[] | undefined;
  #waitingAt = 0;

  constructor(call: GrpcStream, shared: Shared) {
    this.#call = call;
    this.#shared = shared;
    this.#body = new PooledBody(shared.pool, () => this.#claimedBytes());
    this.#stream = new ExchangeStream(
      { writer: this, metadata: this, bodyStore: this.#body },
      shared.dependencies,
      shared.memory,
    );
  }

  get(name: string): string | undefined {
    return this.#call.header(name);
  }

  onMessage(message: Uint8Array): void {
    const stream = this.#stream;
    if (stream.ended) return;
    let read;
    try {
      read = this.#shared.reader.read(message);
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error);
      stream.broken(`the message is no ProcessingRequest: ${why}`);
      return;
    }
    const { event, subset } = read;
    if (subset !== undefined) stream.limitTo(subset);
    if (event.kind === "request_headers") this.#headers = event.headers;
    stream.receive(event);
  }

  onHalfClose(): void {
    this.#stream.closed();
  }

  onDrain(): void {
    this.#sendWaiting();
  }

  onClose(): void {
    this.#stream.closed();
    this.#finished();
  }

  continueHeaders(): void {
    this.#call.send(this.#shared.messages.continueHeaders());
  }

  answerHeaders(answer: RoutingAnswer): void {
    this.#call.send(this.#shared.messages.route("requestHeaders", answer));
  }

  answerBody(answer: RoutingAnswer): void {
    this.#call.send(this.#shared.messages.route("requestBody", answer));
  }

  bodyPiece(piece: Uint8Array, endOfStream: boolean): void {
    this.#sendOrWait({ kind: "piece", piece, endOfStream });
  }

  answerTrailers(): void {
    this.#sendOrWait({ kind: "trailers" });
  }

  immediate(answer: ImmediateAnswer): void {
    this.#call.send(this.#shared.messages.immediate(answer));
  }

  extendTimeout(ms: number): void {
    this.#call.send(this.#shared.messages.extendTimeout(ms));
  }

  get isSending(): boolean {
    return this.#waiting !== undefined;
  }

  end(): void {
    this.#sendOrWait({ kind: "end" });
  }

  fail(reason: string): void {
    this.#call.end(invalidArgument, reason);
  }

  #sendOrWait(part: Waiting): void {
    if (this.#waiting !== undefined) this.#waiting.push(part);
    else if (part.kind !== "piece" || this.#call.queuedBytes < queuedBytesHigh) this.#send(part);
    else this.#waiting = [part];
  }

  #sendWaiting(): void {
    const waiting = this.#waiting;
    if (waiting === undefined) return;
    while (this.#waitingAt < waiting.length) {
      const part = waiting[this.#waitingAt] as Waiting;
      if (part.kind === "piece" && this.#call.queuedBytes >= queuedBytesHigh) return;
      this.#waitingAt++;
      this.#send(part);
    }
  }

  #send(part: Waiting): void {
    switch (part.kind) {
      case "piece":
        this.#sendPiece(part.piece, part.endOfStream);
        break;
      case "trailers":
        this.#call.send(this.#shared.messages.passTrailers());
        break;
      case "end":
        this.#finished();
        this.#call.end();
        break;
    }
  }

  /** The head of a message is written over what lies before the piece: room left free, or a piece already sent. */
  #sendPiece(piece: Uint8Array, endOfStream: boolean): void {
    if (piece.length === 0) {
      const head = new Uint8Array(32);
      this.#call.send(head.subarray(writePieceHead(head, head.length, 0, endOfStream)));
      return;
    }
    const { buffer, byteOffset, length } = piece;
    const whole = new Uint8Array(buffer, 0, byteOffset + length);
    this.#call.send(whole.subarray(writePieceHead(whole, byteOffset, length, endOfStream)));
  }

  /** Nothing of the body is needed any more. */
  #finished(): void {
    this.#waiting = undefined;
    this.#stream.sent();
    this.#body.release();
  }

  #claimedBytes(): number {
    return Number(this.#headers?.get("content-length"));
  }
}

/** The ext_proc service for the lean HTTP/2 server: messages are read and written in place. */
export function createLeanExtProc(dependencies: ExtProcDependencies): {
  readonly method: GrpcMethod;
  /** Bytes of bodies held now. */
  bodyMemoryBytes(): number;
} {
  const memory: BodyMemory = { bytes: 0 };
  const shared: Shared = {
    dependencies,
    memory,
    // What is out is bounded by the limit of body memory; rounded up to powers of two it is at most twice that.
    pool: new BufferPool(Number.MAX_SAFE_INTEGER, idleBytesMax),
    reader: new RequestReader(),
    messages: new AnswerMessages(),
  };
  return {
    method: (call) => new LeanStream(call, shared),
    bodyMemoryBytes: () => memory.bytes,
  };
}
