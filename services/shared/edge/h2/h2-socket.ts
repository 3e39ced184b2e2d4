import type { Duplex } from "node:stream";
import type { H2Connection } from "../../core/h2/connection.ts";
import type { FrameOutput } from "../../core/h2/frame-output.ts";

/** How long a closed connection's peer may take to close its side, ms. */
const lingerMs = 1_000;

/**
 * Joins a connection to its socket: one write for all that a read has caused, one write under way at a time. While
 * it is under way output gathers; when that grows beyond a bound the socket is not read either.
 */
export class H2Socket {
  readonly #socket: Duplex;
  readonly #connection: H2Connection;
  readonly #output: FrameOutput;
  readonly #outputBytesMax: number;
  readonly #now: () => number;
  #writing: Uint8Array | undefined;
  #writingSince = 0;
  #isReading = false;
  #isFlushQueued = false;
  #isPaused = false;
  #closingSince: number | undefined;
  readonly #flushSoon = (): void => {
    this.#isFlushQueued = false;
    this.#flush();
  };
  readonly #onWritten = (): void => {
    const written = this.#writing as Uint8Array;
    this.#writing = undefined;
    this.#output.giveBack(written);
    if (this.#connection.end === undefined) this.#connection.pump(this.#now());
    this.#flush();
    if (this.#isPaused && this.#output.length < this.#outputBytesMax) {
      this.#isPaused = false;
      this.#socket.resume();
    }
  };

  constructor(options: {
    readonly socket: Duplex;
    readonly connection: H2Connection;
    readonly outputBytesMax: number;
    readonly now: () => number;
  }) {
    this.#socket = options.socket;
    this.#connection = options.connection;
    this.#output = options.connection.output;
    this.#outputBytesMax = options.outputBytesMax;
    this.#now = options.now;
    this.touched();
  }

  /** Hands on what the socket gave. */
  receive(bytes: Uint8Array, length: number): void {
    this.#isReading = true;
    this.#connection.receive(bytes, length, this.#now());
    this.#isReading = false;
    this.#flush();
    if (this.#output.length > this.#outputBytesMax && !this.#isPaused) {
      this.#isPaused = true;
      this.#socket.pause();
    }
  }

  /** Something was written into the output, perhaps outside of a read. */
  touched(): void {
    if (this.#isReading || this.#isFlushQueued) return;
    this.#isFlushQueued = true;
    queueMicrotask(this.#flushSoon);
  }

  /**
   * Checks deadlines, those of the connection included. `wasStalled`: this process has not run for a while, so that
   * what the client did in time may still lie unread in its socket; its deadlines wait for the next tick.
   */
  tick(now: number, writeStallMsMax: number, wasStalled: boolean): void {
    this.#connection.tick(now, wasStalled || this.#isPaused);
    if (!wasStalled) {
      if (this.#writing !== undefined && now - this.#writingSince > writeStallMsMax) {
        this.#connection.socketEnded("write_stalled");
        this.#socket.destroy();
      } else if (this.#closingSince !== undefined && now - this.#closingSince > lingerMs) {
        this.#socket.destroy();
      }
    }
    this.#flush();
  }

  /** Drops the socket without a word. */
  destroy(): void {
    this.#socket.destroy();
  }

  #flush(): void {
    if (this.#writing !== undefined || this.#socket.destroyed) return;
    const { length } = this.#output;
    if (length > 0) {
      const full = this.#output.swap();
      this.#writing = full;
      this.#writingSince = this.#now();
      this.#socket.write(Buffer.from(full.buffer, full.byteOffset, length), this.#onWritten);
    }
    if (this.#connection.end !== undefined && this.#closingSince === undefined) {
      this.#closingSince = this.#now();
      this.#socket.end();
    }
  }
}
