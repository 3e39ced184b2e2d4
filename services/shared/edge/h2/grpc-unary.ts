import { grpcStatus } from "./grpc-blocks.ts";
import type { GrpcMethod } from "./grpc-stream.ts";

/** Answer of a unary method: a message, or a status that says why there is none. */
export type UnaryAnswer =
  { readonly message: Uint8Array } | { readonly status: number; readonly text: string };

/** Makes a method of a function from one message to one answer. */
export function unaryMethod(answer: (message: Uint8Array) => UnaryAnswer): GrpcMethod {
  return (stream) => {
    let result: UnaryAnswer | undefined;
    let messages = 0;
    return {
      onMessage(message) {
        if (++messages === 1) result = answer(message);
      },
      onHalfClose() {
        if (messages !== 1 || result === undefined) {
          stream.end(grpcStatus.internal, `a unary call has one message, not ${messages}`);
        } else if ("message" in result) {
          stream.send(result.message);
          stream.end();
        } else stream.end(result.status, result.text);
      },
      onClose: () => undefined,
    };
  };
}
