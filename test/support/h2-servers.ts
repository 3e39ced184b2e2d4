import type { GrpcMethod } from "../../services/shared/edge/h2/grpc-stream.ts";
import {
  createH2GrpcServer,
  type H2GrpcOptions,
  type H2GrpcServer,
} from "../../services/shared/edge/h2/h2-grpc-server.ts";

/** Path of the method that sends every message back. */
export const echoPath = "/kvmesh.test.Echo/Stream";

/** What happened in the echo method's calls. */
export interface EchoLog {
  calls: number;
  halfCloses: number;
  readonly closes: Record<"ended" | "reset" | "connection_lost", number>;
}

/** Path of the method that sends every message back and never ends a call itself. */
export const holdPath = "/kvmesh.test.Echo/Hold";

/** A method that sends every message back; unless it `holds` it ends with the client. */
export function echoMethod(log: EchoLog, holds = false): GrpcMethod {
  return (stream) => {
    log.calls++;
    return {
      onMessage: (message) => {
        stream.send(message);
      },
      onHalfClose: () => {
        log.halfCloses++;
        if (!holds) stream.end();
      },
      onClose: (how) => {
        log.closes[how]++;
      },
    };
  };
}

/** An empty log. */
export function echoLog(): EchoLog {
  return { calls: 0, halfCloses: 0, closes: { ended: 0, reset: 0, connection_lost: 0 } };
}

/** A server with the echo method beside those given, listening on a free port of this machine. */
export async function startEchoServer(
  options: Partial<H2GrpcOptions> = {},
): Promise<{ readonly server: H2GrpcServer; readonly port: number; readonly log: EchoLog }> {
  const log = echoLog();
  const methods = new Map([
    [echoPath, echoMethod(log)],
    [holdPath, echoMethod(log, true)],
    ...(options.methods ?? []),
  ]);
  const server = createH2GrpcServer({ ...options, methods });
  return { server, port: await server.listen("127.0.0.1", 0), log };
}

/** Waits until `isTrue`, looking every few ms; fails after `msMax`. */
export async function until(isTrue: () => boolean, msMax = 5_000): Promise<void> {
  const deadline = performance.now() + msMax;
  while (!isTrue()) {
    if (performance.now() > deadline)
      throw new Error(`not within ${msMax} ms: ${isTrue.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
