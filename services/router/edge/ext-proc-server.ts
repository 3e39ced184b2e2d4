import { status, type ServerDuplexStream } from "@grpc/grpc-js";
import type {
  ExternalProcessorServer,
  ProcessingRequest,
  ProcessingResponse,
} from "../../shared/gen/envoy/service/ext_proc/v3/external_processor.ts";
import {
  ExchangeStream,
  type AnswerWriter,
  type BodyMemory,
  type ExtProcDependencies,
} from "./ext-proc/exchange-stream.ts";
import {
  continueMessage,
  extendMessage,
  immediateMessage,
  pieceMessage,
  readSubset,
  routeMessage,
  toEvent,
  trailersMessage,
} from "./ext-proc/generated-messages.ts";

type Call = ServerDuplexStream<ProcessingRequest, ProcessingResponse>;

/** Answers as messages of the generated code on a grpc-js call. */
function answersTo(call: Call): AnswerWriter {
  return {
    continueHeaders: () => {
      call.write(continueMessage());
    },
    answerHeaders: (answer) => {
      call.write(routeMessage("requestHeaders", answer));
    },
    answerBody: (answer) => {
      call.write(routeMessage("requestBody", answer));
    },
    bodyPiece: (piece, endOfStream) => {
      call.write(pieceMessage(piece, endOfStream));
    },
    answerTrailers: () => {
      call.write(trailersMessage());
    },
    immediate: (answer) => {
      call.write(immediateMessage(answer));
    },
    extendTimeout: (ms) => {
      call.write(extendMessage(ms));
    },
    isSending: false,
    end: () => {
      call.end();
    },
    fail: (reason) => {
      call.emit("error", { code: status.INVALID_ARGUMENT, details: reason });
    },
  };
}

/** The ext_proc service on grpc-js with generated messages: the plain version, which the lean one is compared with. */
export function createExtProcService(dependencies: ExtProcDependencies): {
  readonly service: ExternalProcessorServer;
  /** Bytes of bodies held now. */
  bodyMemoryBytes(): number;
} {
  const memory: BodyMemory = { bytes: 0 };
  return {
    bodyMemoryBytes: () => memory.bytes,
    service: {
      process: (call: Call) => {
        const metadata = {
          get: (name: string): string | undefined => call.metadata.get(name)[0]?.toString(),
        };
        const transport = { writer: answersTo(call), metadata };
        const stream = new ExchangeStream(transport, dependencies, memory);
        const closed = (): void => {
          stream.closed();
        };
        call.on("data", (request: ProcessingRequest) => {
          const subset = readSubset(request.metadataContext);
          if (subset !== undefined) stream.limitTo(subset);
          stream.receive(toEvent(request));
        });
        call.on("end", closed);
        call.on("cancelled", closed);
        call.on("error", closed);
      },
    },
  };
}
