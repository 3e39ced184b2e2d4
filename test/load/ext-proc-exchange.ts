import { ProcessingResponse } from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import { bodyMessages, headersMessage, type ExchangeMode } from "./ext-proc-messages.ts";
import type { LeanGrpcConnection } from "./lean-grpc-client.ts";

/** Method of the filter's stream. */
export const extProcMethod = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";

/** What one exchange gave. */
export interface ExchangeOutcome {
  /** From the last byte of the body written to the routing answer, ms. */
  readonly decisionMs: number;
  /** From the headers written to the end of the stream, ms. */
  readonly exchangeMs: number;
  readonly metadata: ProcessingResponse["dynamicMetadata"];
}

/** What Envoy reads from a connection at once, bytes; a streamed body comes in pieces of this size. */
const pieceBytes = 16_384;

/** A request whose messages are ready to be sent. */
export interface PreparedExchange {
  readonly bodyBytes: number;
  /** The body as one message with gRPC's prefix, in parts. */
  readonly buffered: readonly Buffer[];
  /** The body as pieces, each a message with its prefix. */
  readonly pieces: readonly Buffer[];
}

/** Makes the messages of a body. The body itself is not copied. */
export function prepareExchange(body: Buffer): PreparedExchange {
  return {
    bodyBytes: body.length,
    buffered: bodyMessages(body, body.length),
    pieces: bodyMessages(body, pieceBytes),
  };
}

/**
 * One HTTP request as Envoy's filter tells it to a processor, over the lean client; resolves when the stream has ended.
 * Rejects for an immediate answer, a failed stream, an answer of the wrong kind, or a body that did not come back whole.
 */
export function exchange(
  connection: LeanGrpcConnection,
  mode: ExchangeMode,
  prepared: PreparedExchange,
  requestId: string,
): Promise<ExchangeOutcome> {
  return new Promise((resolve, reject) => {
    const startedAt = performance.now();
    let writtenAt = Number.NaN;
    let decidedAt = Number.NaN;
    let metadata: ProcessingResponse["dynamicMetadata"];
    let echoed = 0;
    let failure: string | undefined;
    const call = connection.call({
      onMessage: (message) => {
        const answer = ProcessingResponse.decode(message);
        const { response } = answer;
        // The request waits for its turn; the answer follows.
        if (response === undefined && answer.overrideMessageTimeout !== undefined) return;
        if (response?.$case === "requestHeaders" && mode === "buffered") {
          connection.send(call, prepared.buffered, false);
          writtenAt = performance.now();
        } else if (response?.$case === "requestHeaders" || response?.$case === "requestBody") {
          if (Number.isNaN(decidedAt)) {
            decidedAt = performance.now();
            metadata = answer.dynamicMetadata;
          }
          if (response.$case === "requestHeaders") return;
          if (mode === "buffered") {
            connection.send(call, [], true);
            return;
          }
          const mutation = response.value.response?.bodyMutation?.mutation;
          if (mutation?.$case !== "streamedResponse") failure = "a body answer without a piece";
          else {
            echoed += mutation.value.body.length;
            if (mutation.value.endOfStream) connection.send(call, [], true);
          }
        } else if (response?.$case === "immediateResponse") {
          failure = `refused: ${response.value.body.toString()}`;
        } else failure = `unexpected answer ${response?.$case ?? "without a part"}`;
      },
      onEnd: (error) => {
        failure ??= error;
        if (failure === undefined && Number.isNaN(decidedAt)) failure = "ended without an answer";
        if (mode === "duplex" && failure === undefined && echoed !== prepared.bodyBytes) {
          failure = `${echoed.toString()} of ${prepared.bodyBytes.toString()} bytes came back`;
        }
        if (failure !== undefined) reject(new Error(failure));
        else {
          const endedAt = performance.now();
          resolve({ decisionMs: decidedAt - writtenAt, exchangeMs: endedAt - startedAt, metadata });
        }
      },
    });
    connection.send(call, headersMessage(mode, prepared.bodyBytes, requestId), false);
    if (mode === "buffered") return;
    connection.send(call, prepared.pieces, false);
    writtenAt = performance.now();
  });
}
