import type { ExternalProcessorClient } from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import type {
  ProcessingRequest,
  ProcessingResponse,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";

/** How the body is sent, as Envoy's filter is configured. */
export type ExchangeMode = "buffered" | "duplex";

/** Numbers of ProcessingMode.BodySendMode. */
const sendModes = { buffered: 2, duplex: 4 } as const;
/** What Envoy reads from a connection at once, bytes; a streamed body comes in pieces of this size. */
const pieceBytes = 16_384;

/** What one exchange gave. */
export interface ExchangeOutcome {
  /** From the last byte of the body written to the routing answer, ms. */
  readonly decisionMs: number;
  /** From the headers written to the end of the stream, ms. */
  readonly exchangeMs: number;
  readonly metadata: ProcessingResponse["dynamicMetadata"];
}

function headers(size: number, requestId: string): ProcessingRequest {
  const list: readonly (readonly [string, string])[] = [
    [":authority", "gateway.example:10000"],
    [":path", "/v1/chat/completions"],
    [":method", "POST"],
    [":scheme", "http"],
    ["content-type", "application/json"],
    ["content-length", size.toString()],
    ["authorization", "Bearer not-a-secret"],
    ["user-agent", "openai-node/5.1.0"],
    ["accept", "application/json"],
    ["x-forwarded-proto", "http"],
    ["x-request-id", requestId],
    ["x-kvmesh-pool", "pool-default"],
  ];
  return {
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
    protocolConfig: undefined,
  };
}

function bodyPart(body: Buffer, endOfStream: boolean): ProcessingRequest {
  return {
    request: {
      $case: "requestBody",
      value: { body, endOfStream, endOfStreamWithoutMessage: false, grpcMessageCompressed: false },
    },
    metadataContext: undefined,
    attributes: {},
    observabilityMode: false,
    protocolConfig: undefined,
  };
}

/**
 * One HTTP request as Envoy's filter tells it to a processor; resolves when the stream has ended. Rejects for an
 * immediate answer, a failed stream, an answer of the wrong kind, or a body that did not come back whole.
 */
export function exchange(
  client: ExternalProcessorClient,
  mode: ExchangeMode,
  body: Buffer,
  requestId: string,
): Promise<ExchangeOutcome> {
  return new Promise((resolve, reject) => {
    const call = client.process({ deadline: Date.now() + 30_000 });
    const startedAt = performance.now();
    let writtenAt = Number.NaN;
    let decidedAt = Number.NaN;
    let metadata: ProcessingResponse["dynamicMetadata"];
    let echoed = 0;
    let failure: string | undefined;
    const decided = (response: ProcessingResponse): void => {
      decidedAt = performance.now();
      metadata = response.dynamicMetadata;
    };
    call.on("data", (answer: ProcessingResponse) => {
      const { response } = answer;
      if (response?.$case === "requestHeaders") {
        if (mode === "duplex") decided(answer);
        else {
          call.write(bodyPart(body, true));
          writtenAt = performance.now();
        }
      } else if (response?.$case === "requestBody") {
        if (mode === "buffered") {
          decided(answer);
          call.end();
        } else {
          const mutation = response.value.response?.bodyMutation?.mutation;
          if (mutation?.$case !== "streamedResponse") failure = "a body answer without a piece";
          else {
            echoed += mutation.value.body.length;
            if (mutation.value.endOfStream) call.end();
          }
        }
      } else if (response?.$case === "immediateResponse") {
        failure = `refused: ${response.value.body.toString()}`;
      } else failure = `unexpected answer ${response?.$case ?? "without a part"}`;
    });
    call.on("error", (error: Error) => {
      reject(error);
    });
    call.on("end", () => {
      if (failure === undefined && Number.isNaN(decidedAt)) failure = "ended without an answer";
      if (mode === "duplex" && failure === undefined && echoed !== body.length) {
        failure = `${echoed.toString()} of ${body.length.toString()} bytes came back`;
      }
      if (failure !== undefined) reject(new Error(failure));
      else {
        const endedAt = performance.now();
        resolve({ decisionMs: decidedAt - writtenAt, exchangeMs: endedAt - startedAt, metadata });
      }
    });
    const first = headers(body.length, requestId);
    call.write({
      ...first,
      protocolConfig: {
        requestBodyMode: sendModes[mode],
        responseBodyMode: 0,
        sendBodyWithoutWaitingForHeaderResponse: mode === "duplex",
      },
    });
    if (mode === "buffered") return;
    for (let at = 0; at < body.length; at += pieceBytes) {
      const end = at + pieceBytes;
      call.write(bodyPart(body.subarray(at, end), end >= body.length));
    }
    writtenAt = performance.now();
  });
}
