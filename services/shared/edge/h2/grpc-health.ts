import { grpcStatus } from "./grpc-blocks.ts";
import type { GrpcMethod, GrpcStream } from "./grpc-stream.ts";
import { unaryMethod } from "./grpc-unary.ts";

/** States of a service in `grpc.health.v1`. */
export const servingStatus = { unknown: 0, serving: 1, notServing: 2, serviceUnknown: 3 } as const;

/** One of the states. */
export type ServingStatus = (typeof servingStatus)[keyof typeof servingStatus];

const utf8 = new TextDecoder();

/** Reads `HealthCheckRequest`; undefined when it is no such message. */
export function readHealthRequest(bytes: Uint8Array): string | undefined {
  let service = "";
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; at < bytes.length && factor < 2 ** 49; factor *= 128) {
      const octet = bytes[at++] as number;
      value += (octet & 0x7f) * factor;
      if (octet < 0x80) return value;
    }
    return Number.NaN;
  };
  while (at < bytes.length) {
    const tag = varint();
    if ((tag & 7) === 0) varint();
    else if ((tag & 7) === 1) at += 8;
    else if ((tag & 7) === 5) at += 4;
    else if ((tag & 7) === 2) {
      const length = varint();
      if (!(at + length <= bytes.length)) return undefined;
      if (tag === 10) service = utf8.decode(bytes.subarray(at, at + length));
      at += length;
    } else return undefined;
  }
  return at === bytes.length ? service : undefined;
}

function writeStatus(status: ServingStatus): Uint8Array {
  return status === servingStatus.unknown ? new Uint8Array(0) : Uint8Array.of(8, status);
}

/** `grpc.health.v1.Health`: states by service name, "" for the whole process. */
export class GrpcHealth {
  readonly #states = new Map<string, ServingStatus>();
  readonly #watches = new Map<GrpcStream, string>();

  /** Sets a state and tells those who watch it. */
  set(service: string, status: ServingStatus): void {
    if (this.#states.get(service) === status) return;
    this.#states.set(service, status);
    for (const [stream, watched] of this.#watches) {
      if (watched === service) stream.send(writeStatus(status));
    }
  }

  /** Ends every watch, so that a drain need not wait for them. */
  endWatches(): void {
    for (const stream of this.#watches.keys()) {
      stream.end(grpcStatus.unavailable, "the server shuts down");
    }
  }

  /** The service's methods, for `createH2GrpcServer`. */
  methods(): ReadonlyMap<string, GrpcMethod> {
    return new Map([
      ["/grpc.health.v1.Health/Check", this.#check()],
      ["/grpc.health.v1.Health/Watch", this.#watch()],
    ]);
  }

  #check(): GrpcMethod {
    return unaryMethod((message) => {
      const service = readHealthRequest(message);
      if (service === undefined) {
        return { status: grpcStatus.internal, text: "the message is no HealthCheckRequest" };
      }
      const status = this.#states.get(service);
      return status === undefined
        ? { status: grpcStatus.notFound, text: `no service ${service}` }
        : { message: writeStatus(status) };
    });
  }

  #watch(): GrpcMethod {
    return (stream) => ({
      onMessage: (message) => {
        const service = readHealthRequest(message);
        if (service === undefined) {
          stream.end(grpcStatus.internal, "the message is no HealthCheckRequest");
          return;
        }
        this.#watches.set(stream, service);
        stream.send(writeStatus(this.#states.get(service) ?? servingStatus.serviceUnknown));
      },
      onHalfClose: () => undefined,
      onClose: () => {
        this.#watches.delete(stream);
      },
    });
  }
}
