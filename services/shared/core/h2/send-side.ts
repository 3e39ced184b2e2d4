import type { BufferPool } from "./buffer-pool.ts";
import { defaultWindowBytes, int31Max } from "./codes.ts";
import type { FrameOutput } from "./frame-output.ts";
import type { H2Limits } from "./limits.ts";
import type { PeerSettings } from "./peer-settings.ts";
import { SendQueue } from "./send-queue.ts";
import type { H2Stream } from "./stream.ts";

/** Longest DATA frame written even when the client takes longer ones, so that streams take turns. */
const frameBytesMax = 64 << 10;

/** A table size update to 0: answers never use the dynamic table, whatever size the client allows. */
const emptyTable = 0x20;

/**
 * Writes answers within the client's windows (RFC 9113 §5.2). What does not fit waits in its stream's queue; streams
 * that wait take turns, one frame each.
 */
export class SendSide {
  readonly #out: FrameOutput;
  readonly #limits: H2Limits;
  readonly #pool: BufferPool;
  readonly #peer: PeerSettings;
  /** Called when the trailers of a stream that had to wait are written. */
  readonly #onTrailersSent: (stream: H2Stream) => void;
  readonly #waiting = new Set<H2Stream>();
  #window = defaultWindowBytes;
  #hasSentBlock = false;

  constructor(options: {
    readonly out: FrameOutput;
    readonly limits: H2Limits;
    readonly pool: BufferPool;
    readonly peer: PeerSettings;
    readonly onTrailersSent: (stream: H2Stream) => void;
  }) {
    this.#out = options.out;
    this.#limits = options.limits;
    this.#pool = options.pool;
    this.#peer = options.peer;
    this.#onTrailersSent = options.onTrailersSent;
  }

  /** Streams whose output waits. */
  get waiting(): ReadonlySet<H2Stream> {
    return this.#waiting;
  }

  /** What all streams together may still send. */
  get window(): number {
    return this.#window;
  }

  /** Writes a header block, which no window holds back. */
  headers(stream: H2Stream, block: Uint8Array, endStream: boolean): void {
    stream.hasSentHeaders = true;
    if (!this.#hasSentBlock) {
      this.#hasSentBlock = true;
      const first = new Uint8Array(block.length + 1);
      first[0] = emptyTable;
      first.set(block, 1);
      block = first;
    }
    this.#out.headers(stream.id, block, endStream, this.#frameMax());
  }

  #frameMax(): number {
    return Math.min(this.#peer.frameBytesMax, frameBytesMax);
  }

  /**
   * Writes `prefix` and `message`, or queues them. Returns why it cannot: the stream's queue or the server's memory
   * is full; nothing is queued then.
   */
  message(
    stream: H2Stream,
    prefix: Uint8Array,
    message: Uint8Array,
    now: number,
  ): "stream_queue_full" | "memory_full" | undefined {
    const length = prefix.length + message.length;
    if (
      stream.queuedBytes === 0 &&
      length <= this.#window &&
      length <= stream.sendWindow &&
      this.#out.length < this.#limits.outputBytesHigh
    ) {
      this.#window -= length;
      stream.sendWindow -= length;
      this.#writeMessage(stream.id, prefix, message);
      return undefined;
    }
    if (stream.queuedBytes + length > this.#limits.streamQueueBytesMax) return "stream_queue_full";
    stream.queue ??= new SendQueue(this.#pool);
    const wasEmpty = stream.queue.length === 0;
    if (!stream.queue.push(prefix, 0, prefix.length)) return "memory_full";
    if (!stream.queue.push(message, 0, message.length)) return "memory_full";
    if (wasEmpty) stream.movedAt = now;
    this.#waiting.add(stream);
    this.#pumpStream(stream, now, false);
    return undefined;
  }

  #writeMessage(streamId: number, prefix: Uint8Array, message: Uint8Array): void {
    const most = this.#frameMax();
    const first = Math.min(message.length, most - prefix.length);
    this.#out.prefixedData(streamId, prefix, message, first);
    for (let at = first; at < message.length; at += most) {
      this.#out.data(streamId, message, at, Math.min(message.length, at + most));
    }
  }

  /** Writes trailers, or keeps them until the queue is empty; true when they are written. */
  trailers(stream: H2Stream, block: Uint8Array): boolean {
    if (stream.queuedBytes > 0) {
      stream.trailers = block;
      return false;
    }
    this.headers(stream, block, true);
    return true;
  }

  /** Forgets a stream that is over. */
  drop(stream: H2Stream): void {
    this.#waiting.delete(stream);
    stream.queue?.clear();
    stream.trailers = undefined;
  }

  /** WINDOW_UPDATE of a stream; false when the window would pass 2^31-1. */
  streamUpdate(stream: H2Stream, increment: number, now: number): boolean {
    stream.sendWindow += increment;
    if (stream.sendWindow > int31Max) return false;
    if (stream.queuedBytes > 0) this.#pumpStream(stream, now, true);
    return true;
  }

  /** WINDOW_UPDATE of the connection; false when the window would pass 2^31-1. */
  connectionUpdate(increment: number, now: number): boolean {
    this.#window += increment;
    if (this.#window > int31Max) return false;
    // Streams that wait while this window was open wait for their own.
    if (this.#window === increment) this.pump(now);
    return true;
  }

  /** The client changed the window that streams start with; false when one would pass 2^31-1. */
  initialWindowChanged(streams: Iterable<H2Stream>, change: number, now: number): boolean {
    for (const stream of streams) {
      stream.sendWindow += change;
      if (stream.sendWindow > int31Max) return false;
    }
    if (change > 0) this.pump(now);
    return true;
  }

  /** Writes what the windows and the output's bound now allow. */
  pump(now: number): void {
    let hasMoved = true;
    while (hasMoved && this.#hasRoom()) {
      hasMoved = false;
      for (const stream of this.#waiting) {
        if (this.#writeFrame(stream, now)) hasMoved = true;
        if (stream.queuedBytes === 0) this.#emptied(stream, true);
        if (!this.#hasRoom()) break;
      }
    }
  }

  #hasRoom(): boolean {
    return this.#window > 0 && this.#out.length < this.#limits.outputBytesHigh;
  }

  #pumpStream(stream: H2Stream, now: number, tellsDrain: boolean): void {
    while (this.#hasRoom() && this.#writeFrame(stream, now));
    if (stream.queuedBytes === 0) this.#emptied(stream, tellsDrain);
  }

  #writeFrame(stream: H2Stream, now: number): boolean {
    const { queue } = stream;
    if (queue === undefined || queue.length === 0) return false;
    const count = Math.min(queue.length, this.#window, stream.sendWindow, this.#frameMax());
    if (count <= 0) return false;
    this.#out.data(stream.id, queue.bytes, queue.start, queue.start + count);
    queue.shift(count);
    this.#window -= count;
    stream.sendWindow -= count;
    stream.movedAt = now;
    return true;
  }

  #emptied(stream: H2Stream, tellsDrain: boolean): void {
    if (!this.#waiting.delete(stream)) return;
    if (stream.trailers !== undefined) {
      this.headers(stream, stream.trailers, true);
      stream.trailers = undefined;
      this.#onTrailersSent(stream);
    } else if (tellsDrain) stream.listener?.onDrain();
  }
}
