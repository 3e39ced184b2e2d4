import { EventEmitter } from "node:events";
import { status } from "@grpc/grpc-js";
import { createReflection } from "../../shared/edge/grpc-reflection.ts";
import type { GrpcMethod, GrpcStream } from "../../shared/edge/h2/grpc-stream.ts";

const servedProtos = ["kvmesh/inference/v1/inference.proto", "kvmesh/relay/v1/relay.proto"];
const methodPaths = [
  "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
  "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/** One method as the reflection package registers it, whatever server it is given. */
interface Registered {
  readonly requestDeserialize: (bytes: Buffer) => unknown;
  readonly responseSerialize: (value: unknown) => Buffer;
  readonly handler: (call: ReflectionCall) => void;
}

/** What the package needs of a call: requests as events, answers as values. */
class ReflectionCall extends EventEmitter {
  readonly #stream: GrpcStream;
  readonly #serialize: (value: unknown) => Buffer;

  constructor(stream: GrpcStream, serialize: (value: unknown) => Buffer) {
    super();
    this.#stream = stream;
    this.#serialize = serialize;
  }

  write(answer: unknown): void {
    this.#stream.send(this.#serialize(answer));
  }

  end(): void {
    this.#stream.end();
  }
}

function register(): ReadonlyMap<string, Registered> {
  const methods = new Map<string, Registered>();
  createReflection(servedProtos).addToServer({
    addService: (service, implementation) => {
      for (const [name, { path, requestDeserialize, responseSerialize }] of Object.entries(
        service,
      )) {
        const handler = implementation[name] as unknown as Registered["handler"];
        methods.set(path, { requestDeserialize, responseSerialize, handler });
      }
    },
  });
  return methods;
}

/** gRPC server reflection over what relays serve. The descriptors are read when somebody asks for the first time. */
export function createReflectionMethods(): ReadonlyMap<string, GrpcMethod> {
  let registered: ReadonlyMap<string, Registered> | undefined;
  const methodOf =
    (path: string): GrpcMethod =>
    (stream) => {
      registered ??= register();
      const method = registered.get(path);
      if (method === undefined) {
        stream.end(status.UNIMPLEMENTED, `${path} is not served`);
        return {
          onMessage: () => undefined,
          onHalfClose: () => undefined,
          onClose: () => undefined,
        };
      }
      const call = new ReflectionCall(stream, method.responseSerialize);
      method.handler(call);
      return {
        onMessage: (bytes) => {
          let request: unknown;
          try {
            request = method.requestDeserialize(Buffer.from(bytes));
          } catch {
            stream.end(status.INVALID_ARGUMENT, "the message is no ServerReflectionRequest");
            return;
          }
          call.emit("data", request);
        },
        onHalfClose: () => {
          call.emit("end");
        },
        onClose: () => {
          call.removeAllListeners();
        },
      };
    };
  return new Map(methodPaths.map((path) => [path, methodOf(path)]));
}
