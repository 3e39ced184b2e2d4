import type { HeaderList } from "../hpack/header-list.ts";
import type { SendQueue } from "./send-queue.ts";

/** How a stream came to its end. */
export type StreamEnd = "ended" | "reset" | "connection_lost";

/** What takes a stream's content; called while the connection reads. */
export interface StreamListener {
  /** A piece of the request's body; only valid during the call. */
  onData(bytes: Uint8Array, start: number, end: number): void;
  /** The client will send no more. */
  onEnd(): void;
  /** Everything queued has been written. */
  onDrain(): void;
  /** The stream is over; nothing follows. */
  onClose(how: StreamEnd): void;
}

/** One stream that a client opened; its state, without the connection's part of it. */
export class H2Stream {
  readonly id: number;
  readonly headers: HeaderList;
  listener: StreamListener | undefined;
  /** What we may still send on it; may be negative after the client has shrunk its windows. */
  sendWindow: number;
  /** What the client may still send on it. */
  receiveWindow: number;
  /** Bytes received that no window update has given back. */
  unreturned = 0;
  /** Body bytes that content-length still promises; -1 when it promises nothing. */
  contentLeft: number;
  isRemoteEnded = false;
  isClosed = false;
  hasSentHeaders = false;
  /** Messages that wait for a window. */
  queue: SendQueue | undefined;
  /** Trailers that wait for the queue. */
  trailers: Uint8Array | undefined;
  /** When the queue last moved, ms. */
  movedAt = 0;

  constructor(options: {
    readonly id: number;
    readonly headers: HeaderList;
    readonly sendWindow: number;
    readonly receiveWindow: number;
  }) {
    this.id = options.id;
    this.headers = options.headers;
    this.sendWindow = options.sendWindow;
    this.receiveWindow = options.receiveWindow;
    this.contentLeft = options.headers.contentLength;
  }

  /** Bytes that wait in its queue. */
  get queuedBytes(): number {
    return this.queue === undefined ? 0 : this.queue.length;
  }
}
