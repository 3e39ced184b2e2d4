/** One gRPC call on the lean HTTP/2 server, as its handler sees it. */
export interface GrpcStream {
  /** `/package.Service/Method`. */
  readonly path: string;
  /** A request header (gRPC metadata) by its lower-case name; several values are joined by commas. */
  header(name: string): string | undefined;
  /** Queues one message; its bytes are copied before the call returns. Does nothing after `end`, `reset` or `onClose`. */
  send(message: Uint8Array): void;
  /**
   * Sends the trailers, after everything queued. `status` is a gRPC status code, default 0 (OK); `metadata` are
   * further trailers, names in lower case, values in visible ASCII. Later calls do nothing.
   */
  end(
    status?: number,
    message?: string,
    metadata?: readonly (readonly [name: string, value: string])[],
  ): void;
  /**
   * Bytes queued by `send` that flow control or a full socket still holds back. Above the server's limit the call is
   * reset, so whoever sends much waits for `onDrain`.
   */
  readonly queuedBytes: number;
}

/** What takes a call's messages. All methods are called synchronously from the socket's read; none may throw. */
export interface GrpcHandler {
  /** One whole message. The view is only valid until the method returns: copy what must stay. */
  onMessage(message: Uint8Array): void;
  /** The client will send no more. */
  onHalfClose(): void;
  /** Everything that `send` had to queue has been written; only called after `queuedBytes` was above 0. */
  onDrain?(): void;
  /** The call is over: answered in full, reset by the client, refused by the server, or its connection lost. Called once, last. */
  onClose(how: "ended" | "reset" | "connection_lost"): void;
}

/** Makes the handler of a call. */
export type GrpcMethod = (stream: GrpcStream) => GrpcHandler;
