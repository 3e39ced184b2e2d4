/**
 * A server of the transport benchmark, a process of its own: `h2-bench-server.ts lean` answers `ext_proc` calls on the
 * mesh's own HTTP/2, `grpc-js` on grpc-js with generated messages, which is what everybody starts with. Both answer
 * the headers and the body with constant messages and look at nothing.
 */
import { Server, ServerCredentials, type ServerDuplexStream } from "@grpc/grpc-js";
import { createH2GrpcServer } from "../../services/shared/edge/h2/h2-grpc-server.ts";
import type { GrpcMethod } from "../../services/shared/edge/h2/grpc-stream.ts";
import {
  ExternalProcessorService,
  ProcessingResponse,
  type ExternalProcessorServer,
  type ProcessingRequest,
} from "../../services/shared/gen/envoy/service/ext_proc/v3/external_processor.ts";

type Call = ServerDuplexStream<ProcessingRequest, ProcessingResponse>;

const passing = {
  status: 0,
  headerMutation: undefined,
  bodyMutation: undefined,
  trailers: undefined,
  clearRouteCache: false,
} as const;

function answer(response: NonNullable<ProcessingResponse["response"]>): ProcessingResponse {
  return {
    response,
    dynamicMetadata: undefined,
    modeOverride: undefined,
    overrideMessageTimeout: undefined,
    requestDrain: false,
  };
}

const headersAnswer = answer({ $case: "requestHeaders", value: { response: passing } });
const bodyAnswer = answer({
  $case: "requestBody",
  value: {
    response: {
      ...passing,
      headerMutation: {
        setHeaders: [
          {
            header: {
              key: "x-gateway-destination-endpoint",
              value: "",
              rawValue: Buffer.from("127.0.0.1:8000"),
            },
            appendAction: 2,
            keepEmptyValue: false,
          },
        ],
        removeHeaders: [],
      },
      clearRouteCache: true,
    },
  },
});
const messageBytesMax = 64 << 20;
const windowBytes = 4 << 20;

function serveLean(): Promise<number> {
  const answers = [headersAnswer, bodyAnswer].map((one) => ProcessingResponse.encode(one).finish());
  const method: GrpcMethod = (stream) => {
    let received = 0;
    return {
      onMessage: () => {
        const next = answers[received++];
        if (next !== undefined) stream.send(next);
      },
      onHalfClose: () => {
        stream.end();
      },
      onClose: () => undefined,
    };
  };
  const server = createH2GrpcServer({
    methods: new Map([[ExternalProcessorService.process.path, method]]),
    limits: { messageBytesMax, streamWindowBytes: windowBytes },
  });
  return server.listen("127.0.0.1", 0);
}

function serveGrpcJs(): Promise<number> {
  const implementation: ExternalProcessorServer = {
    process: (call: Call) => {
      call.on("data", ({ request }: ProcessingRequest) => {
        call.write(request?.$case === "requestBody" ? bodyAnswer : headersAnswer);
      });
      call.on("end", () => {
        call.end();
      });
      call.on("error", () => undefined);
    },
  };
  const server = new Server({
    "grpc.max_receive_message_length": messageBytesMax,
    "grpc-node.flow_control_window": windowBytes,
  });
  server.addService(ExternalProcessorService, implementation);
  return new Promise((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
      if (error === null) resolve(port);
      else reject(error);
    });
  });
}

const port = await (process.argv[2] === "lean" ? serveLean() : serveGrpcJs());
process.send?.({ kind: "ready", port });
process.on("disconnect", () => process.exit(0));
process.on("SIGTERM", () => process.exit(0));
