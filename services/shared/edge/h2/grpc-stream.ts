/** One gRPC call on the lean HTTP/2 server, as its handler sees it. */
export interface GrpcStream {
  /** `/package.Service/Method`. */
  readonly path: string;
  /** A request header (gRPC metadata) by its lower-case name; several values are joined by commas. */
  header(name: string): string | undefined;
  /** Queues one message; its bytes are copied before the call returns. Does nothing after `end`, `reset` or `onClose`. */
  send(message: Uint8Array): void;
  /** Sends the trailers. `status` is a gRPC status code, default 0 (OK). Later calls do nothing. */
  end(status?: number, message?: string): void;
  /** Bytes queued by `send` that flow control still holds back. */
  readonly queuedBytes: number;
}

/** What takes a call's messages. All methods are called synchronously from the socket's read; none may throw. */
export interface GrpcHandler {
  /** One whole message. The view is only valid until the method returns: copy what must stay. */
  onMessage(message: Uint8Array): void;
  /** The client will send no more. */
  onHalfClose(): void;
  /** The call is over: answered in full, reset by the client, refused by the server, or its connection lost. Called once, last. */
  onClose(how: "ended" | "reset" | "connection_lost"): void;
}

/** Makes the handler of a call. */
export type GrpcMethod = (stream: GrpcStream) => GrpcHandler;
