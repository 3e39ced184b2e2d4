import { ProcessingRequest } from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";

/** How the body is sent, as Envoy's filter is configured. */
export type ExchangeMode = "buffered" | "duplex";

/** Numbers of ProcessingMode.BodySendMode. */
const sendModes = { buffered: 2, duplex: 4 } as const;
/** Tags of ProcessingRequest.request_body, HttpBody.body and HttpBody.end_of_stream. */
const requestBodyTag = 0x22;
const bodyTag = 0x0a;
const endOfStreamTag = 0x10;

/** gRPC's prefix before a message of this length. */
function prefix(length: number): Buffer {
  const bytes = Buffer.alloc(5);
  bytes.writeUInt32BE(length, 1);
  return bytes;
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = value;
  while (rest > 127) {
    bytes.push((rest & 127) | 128);
    rest >>>= 7;
  }
  return Buffer.from([...bytes, rest]);
}

/** The headers that Envoy tells of a chat request, as a message with gRPC's prefix. */
export function headersMessage(
  mode: ExchangeMode,
  bodyBytes: number,
  requestId: string,
): readonly Buffer[] {
  const list: readonly (readonly [string, string])[] = [
    [":authority", "gateway.example:10000"],
    [":path", "/v1/chat/completions"],
    [":method", "POST"],
    [":scheme", "http"],
    ["content-type", "application/json"],
    ["content-length", bodyBytes.toString()],
    ["authorization", "Bearer not-a-secret"],
    ["user-agent", "openai-node/5.1.0"],
    ["accept", "application/json"],
    ["x-forwarded-proto", "http"],
    ["x-request-id", requestId],
    ["x-kvmesh-pool", "pool-default"],
  ];
  const message = ProcessingRequest.encode({
    request: {
      $case: "requestHeaders",
      value: {
        headers: {
          headers: list.map(([key, value]) => ({ key, value: "", rawValue: Buffer.from(value) })),
        },
        endOfStream: false,
      },
    },
    metadataContext: undefined,
    attributes: {},
    observabilityMode: false,
    protocolConfig: {
      requestBodyMode: sendModes[mode],
      responseBodyMode: 0,
      sendBodyWithoutWaitingForHeaderResponse: mode === "duplex",
    },
  }).finish();
  return [prefix(message.length), Buffer.from(message.buffer, message.byteOffset, message.length)];
}

/** A body as messages with gRPC's prefix, each of at most `pieceBytes` of it; the body is not copied. */
export function bodyMessages(body: Buffer, pieceBytes: number): readonly Buffer[] {
  const parts: Buffer[] = [];
  for (let at = 0; at < body.length; at += pieceBytes) {
    const piece = body.subarray(at, at + pieceBytes);
    const end = Buffer.from(at + pieceBytes >= body.length ? [endOfStreamTag, 1] : []);
    const head = Buffer.concat([Buffer.from([bodyTag]), varint(piece.length)]);
    const length = head.length + piece.length + end.length;
    const outer = Buffer.concat([Buffer.from([requestBodyTag]), varint(length)]);
    parts.push(Buffer.concat([prefix(outer.length + length), outer, head]), piece, end);
  }
  return parts.filter((part) => part.length > 0);
}
