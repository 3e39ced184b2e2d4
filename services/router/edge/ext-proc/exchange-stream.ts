import { randomUUID } from "node:crypto";
import type { Logger } from "pino";
import type { Clock } from "../../../shared/core/clock.ts";
import { MeshError } from "../../../shared/core/errors.ts";
import type { Metrics } from "../../../shared/edge/metrics.ts";
import { parseTraceparent, type TraceContext } from "../../../shared/edge/tracing.ts";
import {
  Exchange,
  ReceivedParts,
  type Answer,
  type BodyMode,
  type BodyStore,
  type ExchangeEffect,
  type ExchangeEvent,
  type ExchangeRequest,
  type ImmediateAnswer,
  type RoutingAnswer,
} from "../../core/exchange/exchange.ts";
import type { RequestHeaders } from "../../core/exchange/request-headers.ts";
import type { routerMetrics } from "../../metrics.ts";
import { immediateError } from "../decider.ts";
import type { RequestDecider, WaitingDecision } from "../request-decider.ts";

/** Writes the answers of one exchange in the transport's own way. Calls after `end` or `fail` do nothing. */
export interface AnswerWriter {
  /** The headers go on as they are; the body is awaited. */
  continueHeaders(): void;
  /** Routes the request, as the answer to its headers. */
  answerHeaders(answer: RoutingAnswer): void;
  /** Routes the request, as the answer to its body. */
  answerBody(answer: RoutingAnswer): void;
  /** Sends a piece of the body back; `piece` is a view of the body as it was received. */
  bodyPiece(piece: Uint8Array, endOfStream: boolean): void;
  /** Lets the trailers pass. */
  answerTrailers(): void;
  /** Answers the client instead of passing the request on. */
  immediate(answer: ImmediateAnswer): void;
  /** Restarts the proxy's timer for the pending message with this time, ms. */
  extendTimeout(ms: number): void;
  /** Whether parts of the answer still wait to be sent; the stream is told by `sent` when they have been. */
  readonly isSending: boolean;
  /** Ends the stream well, after what waits to be sent. */
  end(): void;
  /** Ends the stream as broken by the peer (INVALID_ARGUMENT) with a reason. */
  fail(reason: string): void;
}

/** Metadata of the gRPC call, by lower-case name. */
export interface CallMetadata {
  get(name: string): string | undefined;
}

/** What carries one stream. */
export interface StreamTransport {
  readonly writer: AnswerWriter;
  readonly metadata: CallMetadata;
  /** Where bodies that are sent back are kept; needed when the views in events do not outlive the call. */
  readonly bodyStore?: BodyStore;
}

/** Limits of request bodies. */
export interface BodyLimits {
  /** Largest body of one request, bytes. */
  readonly bodyBytesMax: number;
  /** Bodies held at once by all streams, bytes. */
  readonly bodyMemoryBytesMax: number;
}

/** What ext_proc streams need, whatever carries them. */
export interface ExtProcDependencies {
  readonly decider: RequestDecider;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof routerMetrics>;
  readonly limits: BodyLimits;
}

/** Bytes of bodies that all streams hold. */
export interface BodyMemory {
  bytes: number;
}

function traceContextOf(fields: {
  get(name: "traceparent" | "tracestate"): string | undefined;
}): TraceContext | undefined {
  const text = fields.get("traceparent");
  return text === undefined ? undefined : parseTraceparent(text, fields.get("tracestate"));
}

type End = "answered" | "cancelled" | "protocol_error";

/**
 * One ext_proc stream without its transport: exchange events in, answers out through an `AnswerWriter`. It keeps the
 * limits of body memory, puts the request's context together, lets requests wait and counts how streams end. The
 * stream ends right after its answer, so that nothing later depends on this process.
 */
export class ExchangeStream {
  readonly #writer: AnswerWriter;
  readonly #metadata: CallMetadata;
  readonly #d: ExtProcDependencies;
  readonly #memory: BodyMemory;
  readonly #exchange: Exchange;
  readonly #startedUnixUs: number;
  #mode: BodyMode = "none";
  #held = 0;
  #chunks = 0;
  #subset: ReadonlySet<string> | undefined;
  #waiting: WaitingDecision | undefined;
  #ended = false;

  constructor(transport: StreamTransport, dependencies: ExtProcDependencies, memory: BodyMemory) {
    this.#writer = transport.writer;
    this.#metadata = transport.metadata;
    this.#exchange = new Exchange(transport.bodyStore ?? new ReceivedParts());
    this.#d = dependencies;
    this.#memory = memory;
    this.#startedUnixUs = dependencies.clock.wallUnixUs();
    dependencies.metrics.extProcStreams.inc();
  }

  /** Whether the stream has ended; what comes afterwards is ignored. */
  get ended(): boolean {
    return this.#ended;
  }

  /** Limits the choice to these endpoints. The first limit of a stream counts. */
  limitTo(subset: ReadonlySet<string>): void {
    this.#subset ??= subset;
  }

  /** Takes one message. Views in it need not be valid after the call unless the exchange keeps its body. */
  receive(event: ExchangeEvent): void {
    if (this.#ended) return;
    if (event.kind === "request_headers") this.#mode = event.bodyMode;
    if (event.kind === "request_body" && this.#exchange.takesBody) {
      this.#chunks++;
      const refusal = this.#hold(event.body.length);
      if (refusal !== undefined) {
        const reason = refusal.code === "overloaded" ? "body_memory" : refusal.code;
        this.#writer.immediate(immediateError(refusal, reason));
        this.#d.metrics.refused.inc({ code: refusal.code });
        this.#end("answered");
        return;
      }
    }
    this.#carryOut(this.#exchange.receive(event));
  }

  /** The proxy needs nothing more: the client left, or it has what it wanted. */
  closed(): void {
    if (!this.#ended) this.#end("cancelled");
  }

  /** The peer sent something that is no message of this protocol. */
  broken(reason: string): void {
    if (!this.#ended) this.#fail(reason);
  }

  /** Everything that waited to be sent has been, or never will be. */
  sent(): void {
    this.#letGo();
  }

  #hold(bytes: number): MeshError | undefined {
    const { bodyBytesMax, bodyMemoryBytesMax } = this.#d.limits;
    if (this.#held + bytes > bodyBytesMax) {
      return new MeshError("request_too_large", `the body is larger than ${bodyBytesMax} bytes`);
    }
    if (this.#memory.bytes + bytes > bodyMemoryBytesMax) {
      return new MeshError(
        "overloaded",
        `bodies in flight fill the ${bodyMemoryBytesMax} bytes for them`,
        { retryAfterMs: 1_000 },
      );
    }
    this.#held += bytes;
    this.#memory.bytes += bytes;
    return undefined;
  }

  #letGo(): void {
    this.#memory.bytes -= this.#held;
    this.#held = 0;
  }

  #carryOut(effects: readonly ExchangeEffect[]): void {
    for (const effect of effects) {
      switch (effect.kind) {
        case "continue_headers":
          this.#writer.continueHeaders();
          break;
        case "decide":
          this.#decide(effect.request);
          break;
        case "extend_timeout":
          this.#writer.extendTimeout(effect.ms);
          break;
        case "answer_headers":
          this.#writer.answerHeaders(effect.answer);
          break;
        case "answer_body":
          this.#writer.answerBody(effect.answer);
          break;
        case "body_piece":
          this.#writer.bodyPiece(effect.piece, effect.endOfStream);
          break;
        case "answer_trailers":
          this.#writer.answerTrailers();
          break;
        case "immediate":
          this.#writer.immediate(effect.answer);
          break;
        case "end":
          this.#end("answered");
          break;
        case "fail":
          this.#fail(effect.reason);
          break;
      }
    }
  }

  #decide(request: ExchangeRequest): void {
    const { headers } = request;
    const { parent, link } = this.#traceContexts(headers);
    const context = {
      method: headers.get(":method") ?? "",
      path: headers.get(":path") ?? "",
      requestId: requestIdOf(headers),
      parent,
      link,
      subset: this.#subset,
      startedUnixUs: this.#startedUnixUs,
      bodyMode: this.#mode,
      bodyChunks: this.#chunks,
    };
    const waiting = this.#d.decider.decide(request, context, (answer) => {
      this.#answer(answer);
    });
    if (waiting === undefined || this.#ended) return;
    this.#waiting = waiting;
    if (!this.#exchange.keepsBody) this.#letGo();
    this.#carryOut(this.#exchange.waiting(waiting.waitMsMax));
  }

  #answer(answer: Answer): void {
    this.#waiting = undefined;
    if (!this.#ended) this.#carryOut(this.#exchange.decided(answer));
  }

  /** Parent is the context in the gRPC metadata; a header of another trace becomes a link, or the parent without metadata. */
  #traceContexts(headers: RequestHeaders): {
    parent: TraceContext | undefined;
    link: TraceContext | undefined;
  } {
    const fromProxy = traceContextOf(this.#metadata);
    const fromClient = traceContextOf(headers);
    if (fromProxy === undefined) return { parent: fromClient, link: undefined };
    const link = fromClient !== undefined && fromClient.traceId !== fromProxy.traceId;
    return { parent: fromProxy, link: link ? fromClient : undefined };
  }

  #fail(reason: string): void {
    // Released first: failing may reach this stream's own listeners, which would count a cancelled stream.
    this.#release("protocol_error");
    this.#writer.fail(reason);
    this.#d.log.warn(
      { event: "ext_proc_protocol_error", reason },
      "ext_proc peer broke the protocol",
    );
  }

  #end(how: End): void {
    // Released first, for the same reason: what waits is forgotten before the transport says that the call is over.
    this.#release(how);
    this.#writer.end();
  }

  #release(how: End): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#waiting?.cancel();
    this.#waiting = undefined;
    if (!this.#writer.isSending) this.#letGo();
    this.#d.metrics.extProcStreams.dec();
    this.#d.metrics.extProcEnds.inc({ end: how });
  }
}

/** Longest request id that is kept, characters: thousands of them are, and a client may choose them. */
const requestIdLengthMax = 256;

/** A request's id; a fresh one for a request that has none, or one too long to keep. */
function requestIdOf(headers: RequestHeaders): string {
  const id = headers.get("x-request-id") ?? "";
  return id === "" || id.length > requestIdLengthMax ? randomUUID() : id;
}
