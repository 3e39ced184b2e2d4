import type {
  HeaderMap,
  HeaderValueOption,
  Metadata,
} from "../../../shared/gen/envoy/config/core/v3/base.ts";
import type {
  CommonResponse,
  HeaderMutation,
  ProcessingRequest,
  ProcessingResponse,
} from "../../../shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import type {
  BodyMode,
  ExchangeEvent,
  ImmediateAnswer,
  RoutingAnswer,
} from "../../core/exchange/exchange.ts";

type Part = NonNullable<ProcessingResponse["response"]>;

/** Numbers of ProcessingMode.BodySendMode. */
const bodyModes: Readonly<Record<number, BodyMode>> = {
  0: "none",
  1: "unsupported",
  2: "buffered",
  3: "buffered_partial",
  4: "full_duplex",
};

/** The body mode of a ProcessingMode.BodySendMode number. */
export function bodyModeOf(sendMode: number): BodyMode {
  return bodyModes[sendMode] ?? "unsupported";
}

/** Namespace of the metadata in which a proxy limits the choice of endpoints. */
export const subsetNamespace = "envoy.lb.subset_hint";
const subsetKey = "x-gateway-destination-endpoint-subset";

/** The endpoints that the proxy limits the choice to: a list, or text with commas (endpoint picker protocol §Subset). */
export function readSubset(metadata: Metadata | undefined): ReadonlySet<string> | undefined {
  const hint: unknown = metadata?.filterMetadata[subsetNamespace]?.[subsetKey];
  if (hint === undefined || hint === null) return undefined;
  const list: readonly unknown[] = Array.isArray(hint) ? hint : [hint];
  const parts = list.flatMap((entry) => (typeof entry === "string" ? entry.split(",") : []));
  return new Set(parts.map((part) => part.trim()).filter((part) => part !== ""));
}

/** Lower case of ASCII alone: other letters, such as the Kelvin sign, must not turn a foreign name into one of ours. */
function lowerAscii(name: string): string {
  return name.replace(/[A-Z]+/g, (letters) => letters.toLowerCase());
}

function readHeaders(map: HeaderMap | undefined): Map<string, string> {
  const headers = new Map<string, string>();
  for (const { key, value, rawValue } of map?.headers ?? []) {
    headers.set(lowerAscii(key), rawValue.length > 0 ? rawValue.toString("latin1") : value);
  }
  return headers;
}

/** A decoded message as an exchange event. */
export function toEvent({ request, protocolConfig }: ProcessingRequest): ExchangeEvent {
  switch (request?.$case) {
    case "requestHeaders":
      return {
        kind: "request_headers",
        headers: readHeaders(request.value.headers),
        endOfStream: request.value.endOfStream,
        bodyMode: bodyModeOf(protocolConfig?.requestBodyMode ?? 0),
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

function message(
  response: Part | undefined,
  over: Partial<ProcessingResponse> = {},
): ProcessingResponse {
  return {
    response,
    dynamicMetadata: undefined,
    modeOverride: undefined,
    overrideMessageTimeout: undefined,
    requestDrain: false,
    ...over,
  };
}

/** The headers go on as they are. */
export function continueMessage(): ProcessingResponse {
  return message({ $case: "requestHeaders", value: { response: passing } });
}

/** The routing answer to headers or to a body. */
export function routeMessage(
  to: "requestHeaders" | "requestBody",
  answer: RoutingAnswer,
): ProcessingResponse {
  const dynamicMetadata = { ...answer.metadata };
  return message({ $case: to, value: { response: routing(answer) } }, { dynamicMetadata });
}

/** A piece of the body on its way back. */
export function pieceMessage(piece: Uint8Array, endOfStream: boolean): ProcessingResponse {
  const streamed = {
    body: Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength),
    endOfStream,
    endOfStreamWithoutMessage: false,
    grpcMessageCompressed: false,
  };
  const bodyMutation = { mutation: { $case: "streamedResponse" as const, value: streamed } };
  return message({ $case: "requestBody", value: { response: { ...passing, bodyMutation } } });
}

/** Trailers pass. */
export function trailersMessage(): ProcessingResponse {
  return message({ $case: "requestTrailers", value: { headerMutation: undefined } });
}

/** An answer to the client. */
export function immediateMessage(answer: ImmediateAnswer): ProcessingResponse {
  return message({
    $case: "immediateResponse",
    value: {
      status: { code: answer.status as 200 },
      headers: { setHeaders: answer.headers.map(headerOption), removeHeaders: [] },
      body: Buffer.from(answer.body),
      grpcStatus: { status: answer.grpcStatus },
      details: answer.details,
    },
  });
}

/** Restarts the timer of the pending message, ms; alone in its message, as Envoy wants it. */
export function extendMessage(ms: number): ProcessingResponse {
  const whole = Math.max(1, Math.ceil(ms));
  const seconds = Math.floor(whole / 1_000);
  const overrideMessageTimeout = {
    seconds: BigInt(seconds),
    nanos: (whole - seconds * 1_000) * 1_000_000,
  };
  return message(undefined, { overrideMessageTimeout });
}
