import { defaultWindowBytes, frameFlag, h2Error } from "./codes.ts";
import { flowControlFault, streamFault, type Fault } from "./faults.ts";
import type { FrameOutput } from "./frame-output.ts";
import type { H2Limits } from "./limits.ts";
import type { H2Stream } from "./stream.ts";

/**
 * The windows that the client sends into (RFC 9113 §5.2 and §6.9). Bytes are given back when half a window has been
 * received, so that updates are rare; padding and dropped DATA count like any other.
 */
export class ReceiveSide {
  readonly #out: FrameOutput;
  readonly #limits: H2Limits;
  #window: number;
  #unreturned = 0;
  /** What new streams start with; the protocol's default holds until the client has acknowledged a smaller one. */
  #streamWindow: number;

  constructor(out: FrameOutput, limits: H2Limits) {
    this.#out = out;
    this.#limits = limits;
    this.#window = Math.max(defaultWindowBytes, limits.connectionWindowBytes);
    this.#streamWindow = Math.max(defaultWindowBytes, limits.streamWindowBytes);
    const more = this.#window - defaultWindowBytes;
    if (more > 0) out.windowUpdate(0, more);
  }

  /** Window of a new stream. */
  get streamWindow(): number {
    return this.#streamWindow;
  }

  /** The client knows our settings now: a stream window below the default holds from here on. */
  acknowledged(streams: Iterable<H2Stream>): void {
    const change = this.#limits.streamWindowBytes - this.#streamWindow;
    this.#streamWindow += change;
    for (const stream of streams) stream.receiveWindow += change;
  }

  /** Counts a DATA frame against the connection, whatever becomes of it. */
  count(length: number): Fault | undefined {
    this.#window -= length;
    if (this.#window < 0) return flowControlFault("the connection's window is exceeded");
    this.#unreturned += length;
    if (this.#unreturned >= this.#limits.connectionWindowBytes >>> 1) {
      this.#out.windowUpdate(0, this.#unreturned);
      this.#window += this.#unreturned;
      this.#unreturned = 0;
    }
    return undefined;
  }

  /** Counts it against its stream, and its content against content-length. */
  countStream(stream: H2Stream, flags: number, length: number, content: number): Fault | undefined {
    stream.receiveWindow -= length;
    stream.unreturned += length;
    if (stream.receiveWindow < 0) {
      return streamFault(stream.id, h2Error.flowControl, "stream_flow_control");
    }
    if (stream.contentLeft < 0) return undefined;
    stream.contentLeft -= content;
    const isEnd = (flags & frameFlag.endStream) !== 0;
    return stream.contentLeft < 0 || (isEnd && stream.contentLeft > 0)
      ? streamFault(stream.id, h2Error.protocol, "malformed_request")
      : undefined;
  }

  /** Gives a stream's bytes back when it is time to. */
  giveBack(stream: H2Stream): void {
    if (stream.unreturned < this.#limits.streamWindowBytes >>> 1) return;
    this.#out.windowUpdate(stream.id, stream.unreturned);
    stream.receiveWindow += stream.unreturned;
    stream.unreturned = 0;
  }
}
