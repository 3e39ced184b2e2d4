import { h2Error } from "../../shared/core/h2/codes.ts";
import type { H2Stream, StreamEnd, StreamListener } from "../../shared/core/h2/stream.ts";
import { encodeHeaderBlock } from "../../shared/core/hpack/block-writer.ts";
import type { GrpcMethod } from "../../shared/edge/h2/grpc-stream.ts";
import { createH2GrpcServer, type H2GrpcServer } from "../../shared/edge/h2/h2-grpc-server.ts";
import type { HttpOnH2 } from "../../shared/edge/h2/h2-grpc-options.ts";
import type { HeaderField } from "../core/request/forwarded-headers.ts";
import { BodyCharge, type BodyMemory, type BodyRefusal } from "./body-memory.ts";
import type { AnswerListener, ClientAnswer, ClientRequest } from "./client-exchange.ts";
import type { RequestTaker } from "./http1-server.ts";
import { refusalMetadata } from "./refusal-details.ts";

const noPrefix = new Uint8Array(0);
/** Ends every complete answer, so that proxies can tell it from one that broke off in the middle of nothing. */
const completeTrailers = encodeHeaderBlock([["x-kvmesh-outcome", "done"]]);

/** A request on HTTP/2: gathers the body, then is the way back. */
class H2Exchange implements StreamListener, ClientAnswer, ClientRequest {
  listener: AnswerListener | undefined;
  readonly method: string;
  readonly path: string;
  body: Uint8Array = noPrefix;
  readonly #http: HttpOnH2;
  readonly #stream: H2Stream;
  readonly #taker: RequestTaker;
  readonly #charge: BodyCharge;
  readonly #bufferBytesMax: number;
  readonly #bodyTimer: NodeJS.Timeout;
  #parts: Buffer[] = [];
  #isWhole = false;
  #isEnded = false;

  constructor(
    http: HttpOnH2,
    options: Pick<H2ServerOptions, "taker" | "memory" | "bodyMs" | "clientBufferBytesMax">,
  ) {
    this.#http = http;
    this.#stream = http.stream;
    this.#taker = options.taker;
    this.#charge = new BodyCharge(options.memory);
    this.#bufferBytesMax = options.clientBufferBytesMax;
    this.method = http.stream.headers.method;
    this.path = http.stream.headers.path;
    this.#bodyTimer = setTimeout(() => {
      this.destroy();
    }, options.bodyMs);
    http.stream.listener = this;
  }

  header(name: string): string | undefined {
    return this.#stream.headers.get(name);
  }

  bodyDone(): void {
    this.#charge.giveBack();
  }

  over(): void {
    this.#charge.giveBack();
  }

  *fields(): Iterable<HeaderField> {
    for (const { name, value } of this.#stream.headers.fields) yield [name, value];
  }

  onData(bytes: Uint8Array, start: number, end: number): void {
    if (this.#isWhole) return;
    const refusal = this.#charge.take(end - start);
    if (refusal === undefined) this.#parts.push(Buffer.from(bytes.subarray(start, end)));
    else this.#refuse(refusal);
  }

  onEnd(): void {
    if (this.#isWhole) return;
    const parts = this.#parts;
    this.body = parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
    this.#gathered();
    this.#taker.take(this, this);
    // The exchange keeps the body for as long as it needs it.
    this.body = noPrefix;
  }

  onDrain(): void {
    this.listener?.onDrain();
  }

  onClose(how: StreamEnd): void {
    if (!this.#isWhole) {
      this.#gathered();
      this.#charge.giveBack();
    }
    if (how !== "ended" && !this.#isEnded) this.listener?.onGone();
  }

  head(status: number, fields: readonly HeaderField[]): void {
    const block = encodeHeaderBlock([[":status", String(status)], ...fields]);
    this.#http.connection.sendHeaders(this.#stream, block);
    this.#http.touched();
  }

  write(bytes: Uint8Array): boolean {
    this.#http.connection.sendMessage(this.#stream, noPrefix, bytes);
    this.#http.touched();
    return this.#stream.queuedBytes <= this.#bufferBytesMax;
  }

  end(): void {
    this.#isEnded = true;
    this.#http.connection.sendTrailers(this.#stream, completeTrailers);
    this.#http.touched();
  }

  destroy(): void {
    this.#http.connection.reset(this.#stream, h2Error.internal);
    this.#http.touched();
  }

  #refuse(reason: BodyRefusal): void {
    this.#gathered();
    this.#charge.giveBack();
    this.#taker.refuse(this, reason);
  }

  #gathered(): void {
    clearTimeout(this.#bodyTimer);
    this.#isWhole = true;
    this.#parts = [];
  }
}

/** Options of `startH2Server`. */
export interface H2ServerOptions {
  readonly host: string;
  readonly port: number;
  readonly taker: RequestTaker;
  readonly memory: BodyMemory;
  readonly bodyMs: number;
  readonly clientBufferBytesMax: number;
  /** Streams of one connection; Envoy has one connection per worker thread. */
  readonly streamsMax: number;
  readonly methods: ReadonlyMap<string, GrpcMethod>;
  allow(path: string, peer: string): boolean;
}

/** Serves plain HTTP and gRPC on HTTP/2 with prior knowledge. */
export async function startH2Server(
  options: H2ServerOptions,
): Promise<{ readonly server: H2GrpcServer; readonly port: number }> {
  const server = createH2GrpcServer({
    methods: options.methods,
    limits: {
      concurrentStreamsMax: options.streamsMax,
      messageBytesMax: options.memory.bodyBytesMax,
      // What is above it waits at the engines: writers stop at `clientBufferBytesMax`.
      streamQueueBytesMax: 16 << 20,
      bufferedBytesMax: 1 << 30,
    },
    allow: (path, peer) => options.allow(path, peer),
    refusalMetadata,
    onHttp: (http) => {
      new H2Exchange(http, options);
    },
    // A bug stops the process, as one anywhere else does.
    onHandlerError: (error) => {
      queueMicrotask(() => {
        throw error;
      });
    },
  });
  return { server, port: await server.listen(options.host, options.port) };
}
