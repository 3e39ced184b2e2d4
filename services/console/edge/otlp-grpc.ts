import type { Cidr } from "../../shared/core/cidr.ts";
import { createGrpcServer, listen, unary } from "../../shared/edge/grpc-server.ts";
import { TraceServiceService } from "../../shared/gen/opentelemetry/proto/collector/trace/v1/trace_service.ts";
import type { Receiver } from "./receiver.ts";

/** A started OTLP/gRPC server. */
export interface OtlpGrpc {
  /** Port chosen. */
  readonly port: number;
  /** Reports not serving, ends open calls within `graceMs`, stops. */
  close(graceMs: number): Promise<void>;
}

/** OTLP over gRPC: `TraceService/Export`, with health and reflection beside it. */
export async function startOtlpGrpc(options: {
  readonly host: string;
  readonly port: number;
  readonly receiver: Receiver;
  readonly messageBytesMax: number;
  readonly allowed: readonly Cidr[];
  readonly reflection: boolean;
  readonly onRefused: () => void;
}): Promise<OtlpGrpc> {
  const service = "opentelemetry.proto.collector.trace.v1.TraceService";
  const grpc = createGrpcServer({
    callers: [{ service, allowed: options.allowed }],
    onRefused: options.onRefused,
    messageBytesMax: options.messageBytesMax,
    reflection: options.reflection,
  });
  grpc.add(TraceServiceService, {
    export: unary((request: Parameters<Receiver["accept"]>[0]) =>
      Promise.resolve(options.receiver.accept(request, "grpc")),
    ),
  });
  const port = await listen(grpc.server, options.host, options.port);
  grpc.health.setStatus("", "SERVING");
  grpc.health.setStatus(service, "SERVING");
  return {
    port,
    close: (graceMs) =>
      new Promise((resolve) => {
        grpc.health.setStatus("", "NOT_SERVING");
        grpc.health.setStatus(service, "NOT_SERVING");
        const timer = setTimeout(() => {
          grpc.server.forceShutdown();
        }, graceMs);
        grpc.server.tryShutdown(() => {
          clearTimeout(timer);
          resolve();
        });
      }),
  };
}
