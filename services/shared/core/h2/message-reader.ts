import type { BufferPool } from "./buffer-pool.ts";

/** Why a body cannot be read as gRPC messages. */
export type MessageFault = "compressed" | "message_too_large" | "memory_full";

/** What takes the messages. */
export interface MessageSink {
  /** One whole message, only valid during the call. */
  onMessage(message: Uint8Array): void;
}

/** Memory given to a message at once; a longer one grows as it comes, since its length is only a claim. */
const firstBytes = 1 << 20;

/**
 * Cuts a request's body into gRPC messages: one octet "compressed", four of length, the message. A message that lies
 * whole in one piece is handed on in place, any other is put together in a pooled buffer.
 */
export class MessageReader {
  readonly #pool: BufferPool;
  readonly #bytesMax: number;
  readonly #sink: MessageSink;
  #prefixLength = 0;
  #length = 0;
  #buffer: Uint8Array | undefined;
  #filled = 0;
  #isStopped = false;

  /** `bytesMax`: longest message taken. */
  constructor(pool: BufferPool, bytesMax: number, sink: MessageSink) {
    this.#pool = pool;
    this.#bytesMax = bytesMax;
    this.#sink = sink;
  }

  /** Length of the message being read, bytes. */
  get messageBytes(): number {
    return this.#length;
  }

  /** Whether the body has come to a point between two messages. */
  get isBetween(): boolean {
    return this.#prefixLength === 0;
  }

  /** Gives the memory back and ignores what still comes; may be called by the sink. */
  stop(): void {
    this.#isStopped = true;
    if (this.#buffer !== undefined) this.#pool.give(this.#buffer);
    this.#buffer = undefined;
  }

  /** Reads a piece of the body; after a fault nothing more is read. */
  read(bytes: Uint8Array, start: number, end: number): MessageFault | undefined {
    let at = start;
    while (at < end && !this.#isStopped) {
      if (this.#prefixLength < 5) {
        if (this.#prefixLength === 0 && bytes[at] !== 0) return this.#fault("compressed");
        at = this.#readPrefix(bytes, at, end);
        if (this.#prefixLength < 5) return undefined;
        if (this.#length > this.#bytesMax) return this.#fault("message_too_large");
        this.#filled = 0;
        if (end - at >= this.#length) {
          this.#prefixLength = 0;
          const from = at;
          at += this.#length;
          this.#sink.onMessage(bytes.subarray(from, at));
          continue;
        }
        this.#buffer = this.#pool.take(Math.min(this.#length, firstBytes));
        if (this.#buffer === undefined) return this.#fault("memory_full");
      }
      const count = Math.min(end - at, this.#length - this.#filled);
      if (!this.#append(bytes, at, at + count)) return this.#fault("memory_full");
      at += count;
      if (this.#filled === this.#length) this.#deliver();
    }
    return undefined;
  }

  /** Reads as much of the prefix as there is. */
  #readPrefix(bytes: Uint8Array, at: number, end: number): number {
    if (this.#prefixLength === 0) {
      this.#length = 0;
      this.#prefixLength = 1;
      at++;
    }
    while (this.#prefixLength < 5 && at < end) {
      this.#length = this.#length * 256 + (bytes[at++] as number);
      this.#prefixLength++;
    }
    return at;
  }

  #append(bytes: Uint8Array, start: number, end: number): boolean {
    let buffer = this.#buffer as Uint8Array;
    const filled = this.#filled + end - start;
    if (filled > buffer.length) {
      const grown = this.#pool.take(Math.min(this.#length, Math.max(filled, buffer.length * 4)));
      if (grown === undefined) return false;
      grown.set(buffer.subarray(0, this.#filled));
      this.#pool.give(buffer);
      this.#buffer = grown;
      buffer = grown;
    }
    buffer.set(bytes.subarray(start, end), this.#filled);
    this.#filled = filled;
    return true;
  }

  #deliver(): void {
    const buffer = this.#buffer as Uint8Array;
    // The handler may stop the reader, which must not give this buffer back while the handler reads it.
    this.#buffer = undefined;
    this.#prefixLength = 0;
    this.#sink.onMessage(buffer.subarray(0, this.#length));
    this.#pool.give(buffer);
  }

  #fault(fault: MessageFault): MessageFault {
    this.stop();
    return fault;
  }
}
