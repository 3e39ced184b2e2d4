import type { HeaderField } from "../core/request/forwarded-headers.ts";

/** A request that came whole, whatever protocol brought it. */
export interface ClientRequest {
  readonly method: string;
  readonly path: string;
  readonly body: Uint8Array;
  /** When it came, ms, where that was before it is taken in. */
  readonly arrivedAt?: number;
  /** A header by its lower-case name; several values are joined by commas. */
  header(name: string): string | undefined;
  /** All header fields; names in lower case. */
  fields(): Iterable<HeaderField>;
  /** The body is not needed any more, so that others may have its memory. Twice is once. */
  bodyDone(): void;
  /**
   * Told once when nothing of the request is needed any more, the body included. `hasBegun`: whether its placement was
   * used.
   */
  over(hasBegun: boolean): void;
}

/** What a client's answer tells whoever writes it. */
export interface AnswerListener {
  /** The client takes more again, after `write` said no. */
  onDrain(): void;
  /** The client is gone before the answer was complete. Called once, and not after `end`. */
  onGone(): void;
}

/** The way back to a client. */
export interface ClientAnswer {
  listener: AnswerListener | undefined;
  /** Sends status and fields; once, before anything else. */
  head(status: number, fields: readonly HeaderField[]): void;
  /** Sends bytes, which are copied or sent before they change; false when enough waits and `onDrain` will follow. */
  write(bytes: Uint8Array): boolean;
  /** Ends a complete answer. */
  end(): void;
  /** Breaks an answer off, so that the client cannot take it for complete. */
  destroy(): void;
}
