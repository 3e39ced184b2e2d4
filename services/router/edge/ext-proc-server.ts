import { randomUUID } from "node:crypto";
import { status, type ServerDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "pino";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import { parseTraceparent, type TraceContext } from "../../shared/edge/tracing.ts";
import type { HeaderMap, HeaderValueOption } from "../../shared/gen/envoy/config/core/v3/base.ts";
import type {
  CommonResponse,
  ExternalProcessorServer,
  HeaderMutation,
  ProcessingRequest,
  ProcessingResponse,
} from "../../shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import {
  Exchange,
  type Answer,
  type BodyMode,
  type ExchangeEffect,
  type ExchangeEvent,
  type ImmediateAnswer,
  type RoutingAnswer,
} from "../core/exchange/exchange.ts";
import type { routerMetrics } from "../metrics.ts";
import { immediateError, type Decider } from "./decider.ts";

type Call = ServerDuplexStream<ProcessingRequest, ProcessingResponse>;
type Part = NonNullable<ProcessingResponse["response"]>;

/** Numbers of ProcessingMode.BodySendMode. */
const bodyModes: Readonly<Record<number, BodyMode>> = {
  0: "none",
  1: "unsupported",
  2: "buffered",
  3: "buffered_partial",
  4: "full_duplex",
};

const subsetNamespace = "envoy.lb.subset_hint";
const subsetKey = "x-gateway-destination-endpoint-subset";

function readHeaders(map: HeaderMap | undefined): Map<string, string> {
  const headers = new Map<string, string>();
  for (const { key, value, rawValue } of map?.headers ?? []) {
    headers.set(key.toLowerCase(), rawValue.length > 0 ? rawValue.toString("latin1") : value);
  }
  return headers;
}

/** The endpoints that the proxy limits the choice to: a list, or text with commas (endpoint picker protocol §Subset). */
function readSubset(request: ProcessingRequest): ReadonlySet<string> | undefined {
  const hint: unknown = request.metadataContext?.filterMetadata[subsetNamespace]?.[subsetKey];
  if (hint === undefined || hint === null) return undefined;
  const list: readonly unknown[] = Array.isArray(hint) ? hint : [hint];
  const parts = list.flatMap((entry) => (typeof entry === "string" ? entry.split(",") : []));
  return new Set(parts.map((part) => part.trim()).filter((part) => part !== ""));
}

function toEvent(message: ProcessingRequest, mode: BodyMode): ExchangeEvent {
  const { request } = message;
  switch (request?.$case) {
    case "requestHeaders":
      return {
        kind: "request_headers",
        headers: readHeaders(request.value.headers),
        endOfStream: request.value.endOfStream,
        bodyMode: mode,
      };
    case "requestBody":
      return {
        kind: "request_body",
        body: request.value.body,
        endOfStream: request.value.endOfStream,
      };
    case "requestTrailers":
      return { kind: "request_trailers" };
    case "responseHeaders":
    case "responseBody":
    case "responseTrailers":
      return { kind: "other", name: request.$case };
    case undefined:
      return { kind: "other", name: "an empty message" };
  }
}

function headerOption([key, value]: readonly [string, string]): HeaderValueOption {
  return {
    header: { key, value: "", rawValue: Buffer.from(value) },
    appendAction: 2,
    keepEmptyValue: false,
  };
}

function headerMutation(answer: RoutingAnswer): HeaderMutation {
  return {
    setHeaders: answer.setHeaders.map(headerOption),
    removeHeaders: [...answer.removeHeaders],
  };
}

const passing: CommonResponse = {
  status: 0,
  headerMutation: undefined,
  bodyMutation: undefined,
  trailers: undefined,
  clearRouteCache: false,
};

function routing(answer: RoutingAnswer): CommonResponse {
  return { ...passing, headerMutation: headerMutation(answer), clearRouteCache: true };
}

function message(response: Part, dynamicMetadata?: RoutingAnswer["metadata"]): ProcessingResponse {
  return {
    response,
    dynamicMetadata: dynamicMetadata === undefined ? undefined : { ...dynamicMetadata },
    modeOverride: undefined,
    overrideMessageTimeout: undefined,
    requestDrain: false,
  };
}

function immediate(answer: ImmediateAnswer): Part {
  return {
    $case: "immediateResponse",
    value: {
      status: { code: answer.status as 200 },
      headers: { setHeaders: answer.headers.map(headerOption), removeHeaders: [] },
      body: Buffer.from(answer.body),
      grpcStatus: { status: answer.grpcStatus },
      details: answer.details,
    },
  };
}

/** Limits of request bodies. */
export interface BodyLimits {
  readonly bodyBytesMax: number;
  readonly bodyMemoryBytesMax: number;
}

/** What the ext_proc service needs. */
export interface ExtProcDependencies {
  readonly decider: Decider;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof routerMetrics>;
  readonly limits: BodyLimits;
}

/** One ext_proc stream: wire messages to exchange events and back. */
class ExtProcStream {
  readonly #call: Call;
  readonly #d: ExtProcDependencies;
  readonly #memory: { bytes: number };
  readonly #exchange = new Exchange();
  readonly #startedUnixUs: number;
  #mode: BodyMode = "none";
  #first = true;
  #held = 0;
  #chunks = 0;
  #subset: ReadonlySet<string> | undefined;
  #ended = false;

  constructor(call: Call, dependencies: ExtProcDependencies, memory: { bytes: number }) {
    this.#call = call;
    this.#d = dependencies;
    this.#memory = memory;
    this.#startedUnixUs = dependencies.clock.wallUnixUs();
  }

  receive(request: ProcessingRequest): void {
    if (this.#ended) return;
    if (this.#first) {
      this.#first = false;
      this.#mode = bodyModes[request.protocolConfig?.requestBodyMode ?? 0] ?? "unsupported";
    }
    this.#subset ??= readSubset(request);
    const event = toEvent(request, this.#mode);
    if (event.kind === "request_body") {
      this.#chunks++;
      const refusal = this.#hold(event.body.length);
      if (refusal !== undefined) {
        const reason = refusal.code === "overloaded" ? "body_memory" : refusal.code;
        this.#write(message(immediate(immediateError(refusal, reason))));
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

  #hold(bytes: number): MeshError | undefined {
    const { bodyBytesMax, bodyMemoryBytesMax } = this.#d.limits;
    if (this.#held + bytes > bodyBytesMax) {
      return new MeshError("request_too_large", `the body is larger than ${bodyBytesMax} bytes`);
    }
    if (this.#memory.bytes + bytes > bodyMemoryBytesMax) {
      return new MeshError(
        "overloaded",
        `bodies in flight fill the ${bodyMemoryBytesMax} bytes for them`,
        {
          retryAfterMs: 1_000,
        },
      );
    }
    this.#held += bytes;
    this.#memory.bytes += bytes;
    return undefined;
  }

  #carryOut(effects: readonly ExchangeEffect[]): void {
    for (const effect of effects) {
      switch (effect.kind) {
        case "continue_headers":
          this.#write(message({ $case: "requestHeaders", value: { response: passing } }));
          break;
        case "decide":
          this.#carryOut(this.#exchange.decided(this.#decide(effect)));
          break;
        case "answer_headers": {
          const { answer } = effect;
          const part: Part = { $case: "requestHeaders", value: { response: routing(answer) } };
          this.#write(message(part, answer.metadata));
          break;
        }
        case "answer_body": {
          const { answer } = effect;
          const part: Part = { $case: "requestBody", value: { response: routing(answer) } };
          this.#write(message(part, answer.metadata));
          break;
        }
        case "body_piece":
          this.#write(this.#piece(effect.piece, effect.endOfStream));
          break;
        case "answer_trailers":
          this.#write(message({ $case: "requestTrailers", value: { headerMutation: undefined } }));
          break;
        case "immediate":
          this.#write(message(immediate(effect.answer)));
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

  #piece(piece: Uint8Array, endOfStream: boolean): ProcessingResponse {
    const body = Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength);
    const streamed = {
      body,
      endOfStream,
      endOfStreamWithoutMessage: false,
      grpcMessageCompressed: false,
    };
    return message({
      $case: "requestBody",
      value: {
        response: {
          ...passing,
          bodyMutation: { mutation: { $case: "streamedResponse", value: streamed } },
        },
      },
    });
  }

  #decide(effect: Extract<ExchangeEffect, { kind: "decide" }>): Answer {
    const { headers } = effect.request;
    const { parent, link } = this.#traceContexts(headers);
    return this.#d.decider.decide(effect.request, {
      method: headers.get(":method") ?? "",
      path: headers.get(":path") ?? "",
      requestId: headers.get("x-request-id") ?? randomUUID(),
      parent,
      link,
      subset: this.#subset,
      startedUnixUs: this.#startedUnixUs,
      bodyMode: this.#mode,
      bodyChunks: this.#chunks,
    });
  }

  /** Parent is the context in the gRPC metadata; a header of another trace becomes a link, or the parent without metadata. */
  #traceContexts(headers: ReadonlyMap<string, string>): {
    parent: TraceContext | undefined;
    link: TraceContext | undefined;
  } {
    const { metadata } = this.#call;
    const text = (name: string): string | undefined => metadata.get(name)[0]?.toString();
    const fromProxy = parseTraceparent(text("traceparent"), text("tracestate"));
    const fromClient = parseTraceparent(headers.get("traceparent"), headers.get("tracestate"));
    if (fromProxy === undefined) return { parent: fromClient, link: undefined };
    const link = fromClient !== undefined && fromClient.traceId !== fromProxy.traceId;
    return { parent: fromProxy, link: link ? fromClient : undefined };
  }

  #write(response: ProcessingResponse): void {
    this.#call.write(response);
  }

  #fail(reason: string): void {
    // Released first: the error also reaches this stream's own listener, which would count a cancelled stream.
    this.#release("protocol_error");
    this.#call.emit("error", { code: status.INVALID_ARGUMENT, details: reason });
    this.#d.log.warn(
      { event: "ext_proc_protocol_error", reason },
      "ext_proc peer broke the protocol",
    );
  }

  #end(how: "answered" | "cancelled"): void {
    this.#call.end();
    this.#release(how);
  }

  #release(how: "answered" | "cancelled" | "protocol_error"): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#memory.bytes -= this.#held;
    this.#held = 0;
    this.#d.metrics.extProcStreams.dec();
    this.#d.metrics.extProcEnds.inc({ end: how });
  }
}

/** The ext_proc service. Each stream ends right after its answer, so that nothing later depends on this process. */
export function createExtProcService(dependencies: ExtProcDependencies): {
  readonly service: ExternalProcessorServer;
  /** Bytes of bodies held now. */
  bodyMemoryBytes(): number;
} {
  const memory = { bytes: 0 };
  return {
    bodyMemoryBytes: () => memory.bytes,
    service: {
      process: (call: Call) => {
        dependencies.metrics.extProcStreams.inc();
        const stream = new ExtProcStream(call, dependencies, memory);
        call.on("data", (request: ProcessingRequest) => {
          stream.receive(request);
        });
        call.on("end", () => {
          stream.closed();
        });
        call.on("cancelled", () => {
          stream.closed();
        });
        call.on("error", () => {
          stream.closed();
        });
      },
    },
  };
}
