import { HpackDecoder } from "../hpack/decoder.ts";
import type { HeaderList } from "../hpack/header-list.ts";
import type { BufferPool } from "./buffer-pool.ts";
import { ClosedStreams } from "./closed-streams.ts";
import {
  defaultFrameBytesMax,
  defaultWindowBytes,
  frameFlag,
  frameType,
  h2Error,
  int31Max,
  settingId,
} from "./codes.ts";
import { FloodGuard } from "./flood-guard.ts";
import type { FrameOutput } from "./frame-output.ts";
import { FrameReader, type FrameSink } from "./frame-reader.ts";
import { HeaderAssembly } from "./header-assembly.ts";
import type { FloodKind, H2Limits } from "./limits.ts";
import { PeerSettings } from "./peer-settings.ts";
import { SendSide } from "./send-side.ts";
import { H2Stream, type StreamEnd } from "./stream.ts";

/** Why a stream was refused or reset by this side. */
export type StreamFault =
  | "concurrent_streams"
  | "malformed_request"
  | "stream_protocol_error"
  | "stream_flow_control"
  | "stream_closed"
  | "stream_queue_full"
  | "memory_full"
  | "send_stalled";

/** Why a connection ended. */
export type ConnectionEnd =
  | FloodKind
  | "protocol_error"
  | "frame_size_error"
  | "flow_control_error"
  | "compression_error"
  | "header_block_too_large"
  | "continuation_flood"
  | "preface_invalid"
  | "preface_timeout"
  | "header_block_timeout"
  | "keepalive_timeout"
  | "idle"
  | "drained"
  | "client_left"
  | "socket_closed"
  | "write_stalled";

/** What a connection tells whoever serves it. */
export interface ConnectionListener {
  /** A well-formed request has come; sets the stream's `listener` unless it answers at once. */
  onStream(stream: H2Stream): void;
  /** A request was refused or a stream reset for the client's or the limits' sake. */
  onStreamFault(fault: StreamFault): void;
}

const keepalivePing = Uint8Array.of(0x6b, 0x65, 0x65, 0x70, 0, 0, 0, 0);
const drainPing = Uint8Array.of(0x64, 0x72, 0x61, 0x69, 0x6e, 0, 0, 0);
/** How long a drain waits for its PING's answer before it names the last stream, ms. */
const drainPingMsMax = 1_000;

function uint31(bytes: Uint8Array, at: number): number {
  return (
    (((bytes[at] as number) & 0x7f) << 24) |
    ((bytes[at + 1] as number) << 16) |
    ((bytes[at + 2] as number) << 8) |
    (bytes[at + 3] as number)
  );
}

/**
 * The server's end of one HTTP/2 connection (RFC 9113), without socket and clock: bytes and the time go in, frames
 * come out in `output`, requests go to the listener. What the client does wrong ends the stream or the connection,
 * as the RFC says; nothing throws.
 */
export class H2Connection implements FrameSink {
  /** What is to be written to the socket. */
  readonly output: FrameOutput;
  readonly #limits: H2Limits;
  readonly #listener: ConnectionListener;
  readonly #reader: FrameReader;
  readonly #decoder: HpackDecoder;
  readonly #assembly: HeaderAssembly;
  readonly #peer = new PeerSettings();
  readonly #sender: SendSide;
  readonly #floods: FloodGuard;
  readonly #closed = new ClosedStreams();
  readonly #streams = new Map<number, H2Stream>();
  #now: number;
  readonly #startedAt: number;
  #heardAt: number;
  #streamsAt: number;
  /** Since when a frame or header block has been incomplete, or undefined. */
  #cutOffSince: number | undefined;
  #pingedAt: number | undefined;
  #lastStreamId = 0;
  #receiveWindow: number;
  #unreturned = 0;
  /** What new streams may receive; the default counts until the client has acknowledged a smaller one. */
  #streamWindow: number;
  #hasSettings = false;
  #isAcknowledged = false;
  #hasClientLeft = false;
  #drain: "no" | "announced" | "last_named" = "no";
  #drainedAt = 0;
  /** Streams above it are ignored once a drain has named the last one. */
  #lastServed = int31Max;
  #end: ConnectionEnd | undefined;
  /** The stream whose DATA is being read; undefined when that is dropped. */
  #dataStream: H2Stream | undefined;
  #dataFlags = 0;

  /** `now`: ms of a monotonic clock, here as in every call; it never goes back. */
  constructor(options: {
    readonly limits: H2Limits;
    readonly pool: BufferPool;
    readonly listener: ConnectionListener;
    readonly output: FrameOutput;
    readonly now: number;
  }) {
    const { limits, output, now } = options;
    this.#limits = limits;
    this.#listener = options.listener;
    this.output = output;
    this.#reader = new FrameReader(this);
    this.#decoder = new HpackDecoder({
      tableBytesMax: limits.headerTableBytesMax,
      listBytesMax: limits.headerListBytesMax,
      fieldsMax: limits.headerFieldsMax,
    });
    this.#assembly = new HeaderAssembly(limits.headerBlockBytesMax, limits.continuationsMax);
    this.#floods = new FloodGuard(limits.floods, now);
    this.#now = now;
    this.#startedAt = now;
    this.#heardAt = now;
    this.#streamsAt = now;
    this.#receiveWindow = Math.max(defaultWindowBytes, limits.connectionWindowBytes);
    this.#streamWindow = Math.max(defaultWindowBytes, limits.streamWindowBytes);
    this.#sender = new SendSide({
      out: output,
      limits,
      pool: options.pool,
      peer: this.#peer,
      onTrailersSent: (stream) => {
        this.#answered(stream);
      },
    });
    output.settings([
      [settingId.headerTableSize, limits.headerTableBytesMax],
      [settingId.maxConcurrentStreams, limits.concurrentStreamsMax],
      [settingId.initialWindowSize, limits.streamWindowBytes],
      [settingId.maxHeaderListSize, limits.headerListBytesMax],
    ]);
    const more = this.#receiveWindow - defaultWindowBytes;
    if (more > 0) output.windowUpdate(0, more);
  }

  /** Why the connection is over: write what is left in `output`, then close the socket. Undefined while it is not. */
  get end(): ConnectionEnd | undefined {
    return this.#end;
  }

  /** Streams open now. */
  get streamCount(): number {
    return this.#streams.size;
  }

  /** The streams open now; the list does not change while they end. */
  streams(): readonly H2Stream[] {
    return [...this.#streams.values()];
  }

  /** Reads what has come, `bytes[0, end)`. */
  receive(bytes: Uint8Array, end: number, now: number): void {
    this.#now = now;
    this.#heardAt = now;
    this.#pingedAt = undefined;
    this.#reader.receive(bytes, end);
    if (this.#reader.isCutOff || this.#assembly.streamId !== 0) this.#cutOffSince ??= now;
    else this.#cutOffSince = undefined;
  }

  /** Checks the deadlines; call it a few times a second. */
  tick(now: number): void {
    this.#now = now;
    if (this.#end !== undefined) return;
    const limits = this.#limits;
    if (!this.#hasSettings && now - this.#startedAt > limits.prefaceMsMax) {
      this.#fail(h2Error.protocol, "preface_timeout", "no preface in time");
    } else if (
      this.#cutOffSince !== undefined &&
      now - this.#cutOffSince > limits.headerBlockMsMax
    ) {
      this.#fail(h2Error.enhanceYourCalm, "header_block_timeout", "frame not completed in time");
    } else if (this.#pingedAt !== undefined && now - this.#pingedAt > limits.keepaliveTimeoutMs) {
      this.#fail(h2Error.none, "keepalive_timeout", "no answer to PING");
    } else if (this.#drain === "announced" && now - this.#drainedAt > drainPingMsMax) {
      this.#nameLast();
    }
    if (this.#streams.size > 0) this.#streamsAt = now;
    else if (limits.idleMsMax > 0 && now - this.#streamsAt > limits.idleMsMax) {
      this.#fail(h2Error.none, "idle", "idle");
    }
    if (this.#pingedAt === undefined && now - this.#heardAt > limits.keepaliveMs) {
      this.#pingedAt = now;
      this.output.ping(false, keepalivePing, 0);
    }
    for (const stream of this.#sender.waiting) {
      if (now - stream.movedAt > limits.sendStallMsMax) {
        this.reset(stream, h2Error.cancel, "send_stalled");
      }
    }
  }

  /** Writes queued messages for which there is room again. */
  pump(now: number): void {
    this.#now = now;
    this.#sender.pump(now);
  }

  /** Tells the client to open no more streams; those that are open go on, and the connection ends after the last. */
  drain(now: number): void {
    if (this.#drain !== "no" || this.#end !== undefined) return;
    this.#now = now;
    this.#drain = "announced";
    this.#drainedAt = now;
    this.output.goaway(int31Max, h2Error.none, "draining");
    this.output.ping(false, drainPing, 0);
  }

  /** The socket is gone, or has to go for the given reason; every stream ends with it. */
  socketEnded(why: ConnectionEnd): void {
    if (this.#end === undefined) this.#over(why);
  }

  /** Sends response headers. */
  sendHeaders(stream: H2Stream, block: Uint8Array): void {
    if (!stream.isClosed) this.#sender.headers(stream, block, false);
  }

  /** Sends `prefix` and `message` as DATA, or queues them; resets the stream when its queue or the memory is full. */
  sendMessage(stream: H2Stream, prefix: Uint8Array, message: Uint8Array): void {
    if (stream.isClosed) return;
    const fault = this.#sender.message(stream, prefix, message, this.#now);
    if (fault !== undefined) this.reset(stream, h2Error.enhanceYourCalm, fault);
  }

  /** Sends a header block that ends the answer, after what is queued. */
  sendTrailers(stream: H2Stream, block: Uint8Array): void {
    if (stream.isClosed || stream.trailers !== undefined) return;
    if (this.#sender.trailers(stream, block)) this.#answered(stream);
  }

  /** Ends a stream with RST_STREAM; a `fault` is told to the listener. */
  reset(stream: H2Stream, code: number, fault?: StreamFault): void {
    if (stream.isClosed) return;
    this.output.rstStream(stream.id, code);
    if (fault !== undefined) this.#listener.onStreamFault(fault);
    this.#finish(stream, "reset", "early");
  }

  #answered(stream: H2Stream): void {
    this.#floods.earn("rapid_reset", 1);
    if (stream.isRemoteEnded) this.#finish(stream, "ended", "both_ended");
    else {
      // The client need not send the rest (RFC 9113 §8.1).
      this.output.rstStream(stream.id, h2Error.none);
      this.#finish(stream, "ended", "early");
    }
  }

  #finish(stream: H2Stream, how: StreamEnd, closed: "early" | "both_ended" | "client_reset"): void {
    stream.isClosed = true;
    this.#streams.delete(stream.id);
    this.#closed.add(stream.id, closed);
    this.#sender.drop(stream);
    if (this.#dataStream === stream) this.#dataStream = undefined;
    stream.listener?.onClose(how);
    this.#endIfDone();
  }

  #endIfDone(): void {
    if (this.#streams.size > 0 || this.#end !== undefined) return;
    if (this.#drain === "last_named") this.#over("drained");
    else if (this.#hasClientLeft) this.#over("client_left");
  }

  #over(why: ConnectionEnd): void {
    this.#end = why;
    this.#reader.stop();
    const streams = [...this.#streams.values()];
    this.#streams.clear();
    for (const stream of streams) {
      stream.isClosed = true;
      this.#sender.drop(stream);
      stream.listener?.onClose("connection_lost");
    }
  }

  #fail(code: number, why: ConnectionEnd, text: string): void {
    if (this.#end !== undefined) return;
    this.output.goaway(this.#lastStreamId, code, text);
    this.#over(why);
  }

  #protocol(text: string): void {
    this.#fail(h2Error.protocol, "protocol_error", text);
  }

  #flood(kind: FloodKind): boolean {
    if (this.#floods.take(kind, this.#now)) return false;
    this.#fail(h2Error.enhanceYourCalm, kind, kind);
    return true;
  }

  /** Answers what a client did wrong on one stream. */
  #streamError(streamId: number, code: number, fault: StreamFault): void {
    if (this.#flood("stream_errors")) return;
    const stream = this.#streams.get(streamId);
    if (stream !== undefined) {
      this.reset(stream, code, fault);
      return;
    }
    this.output.rstStream(streamId, code);
    this.#closed.add(streamId, "early");
    this.#listener.onStreamFault(fault);
  }

  badPreface(): void {
    this.#fail(h2Error.protocol, "preface_invalid", "not HTTP/2");
  }

  frameStarts(type: number, _flags: number, streamId: number, length: number): void {
    if (length > defaultFrameBytesMax) {
      this.#fail(h2Error.frameSize, "frame_size_error", `frame of ${length} bytes`);
    } else if (!this.#hasSettings && type !== frameType.settings) {
      this.#protocol("the first frame is not SETTINGS");
    } else if (this.#assembly.streamId !== 0) {
      if (type !== frameType.continuation || streamId !== this.#assembly.streamId) {
        this.#protocol("a frame inside a header block");
      }
    } else if (type === frameType.continuation) this.#protocol("CONTINUATION without HEADERS");
  }

  dataStarts(streamId: number, flags: number, length: number, padding: number): void {
    this.#dataStream = undefined;
    this.#dataFlags = flags;
    if (streamId === 0) {
      this.#protocol("DATA on stream 0");
      return;
    }
    if (padding < 0) {
      this.#protocol("padding longer than its frame");
      return;
    }
    this.#receiveWindow -= length;
    if (this.#receiveWindow < 0) {
      this.#fail(h2Error.flowControl, "flow_control_error", "connection window exceeded");
      return;
    }
    this.#returnToConnection(length);
    const stream = this.#streams.get(streamId);
    if (stream === undefined) {
      this.#dataOnClosed(streamId);
      return;
    }
    if (stream.isRemoteEnded) {
      this.#streamError(streamId, h2Error.streamClosed, "stream_closed");
      return;
    }
    if (
      length === padding &&
      (flags & frameFlag.endStream) === 0 &&
      this.#flood("empty_data_flood")
    )
      return;
    stream.receiveWindow -= length;
    stream.unreturned += length;
    if (stream.receiveWindow < 0) {
      this.#streamError(streamId, h2Error.flowControl, "stream_flow_control");
      return;
    }
    if (stream.contentLeft >= 0) {
      stream.contentLeft -= length - padding;
      const isEnd = (flags & frameFlag.endStream) !== 0;
      if (stream.contentLeft < 0 || (isEnd && stream.contentLeft > 0)) {
        this.#streamError(streamId, h2Error.protocol, "malformed_request");
        return;
      }
    }
    this.#dataStream = stream;
  }

  #dataOnClosed(streamId: number): void {
    if ((streamId & 1) === 0 || streamId > this.#lastStreamId) {
      this.#protocol("DATA on an idle stream");
      return;
    }
    if (this.#closed.find(streamId) !== "early") {
      this.#streamError(streamId, h2Error.streamClosed, "stream_closed");
    }
  }

  data(bytes: Uint8Array, start: number, end: number): void {
    this.#dataStream?.listener?.onData(bytes, start, end);
  }

  dataEnds(): void {
    const stream = this.#dataStream;
    if (stream === undefined) return;
    this.#dataStream = undefined;
    if ((this.#dataFlags & frameFlag.endStream) !== 0) {
      stream.isRemoteEnded = true;
      stream.listener?.onEnd();
    } else if (stream.unreturned >= this.#limits.streamWindowBytes >>> 1) {
      this.output.windowUpdate(stream.id, stream.unreturned);
      stream.receiveWindow += stream.unreturned;
      stream.unreturned = 0;
    }
  }

  #returnToConnection(length: number): void {
    this.#unreturned += length;
    if (this.#unreturned < this.#limits.connectionWindowBytes >>> 1) return;
    this.output.windowUpdate(0, this.#unreturned);
    this.#receiveWindow += this.#unreturned;
    this.#unreturned = 0;
  }

  frame(
    type: number,
    flags: number,
    streamId: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    switch (type) {
      case frameType.headers: {
        this.#headersFrame(flags, streamId, bytes, start, end);
        return;
      }
      case frameType.continuation: {
        this.#addToBlock(flags, bytes, start, end);
        return;
      }
      case frameType.windowUpdate: {
        this.#windowUpdate(streamId, bytes, start, end);
        return;
      }
      case frameType.rstStream: {
        this.#rstStream(streamId, end - start);
        return;
      }
      case frameType.settings: {
        this.#settings(flags, streamId, bytes, start, end);
        return;
      }
      case frameType.ping: {
        this.#ping(flags, streamId, bytes, start, end);
        return;
      }
      case frameType.goaway: {
        this.#goaway(streamId, end - start);
        return;
      }
      case frameType.priority: {
        this.#priority(streamId, bytes, start, end);
        return;
      }
      case frameType.pushPromise: {
        this.#protocol("PUSH_PROMISE from a client");
        return;
      }
      default:
        this.#flood("unknown_frame_flood");
    }
  }

  #headersFrame(
    flags: number,
    streamId: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    if (streamId === 0 || (streamId & 1) === 0) {
      this.#protocol(`HEADERS on stream ${streamId}`);
      return;
    }
    if ((flags & frameFlag.padded) !== 0) {
      if (start === end) {
        this.#frameSize("HEADERS without its padding length");
        return;
      }
      const padding = bytes[start] as number;
      start++;
      end -= padding;
    }
    let dependsOnItself = false;
    if ((flags & frameFlag.priority) !== 0) {
      dependsOnItself = end - start >= 5 && uint31(bytes, start) === streamId;
      start += 5;
    }
    if (end < start) {
      this.#protocol("padding or priority longer than its frame");
      return;
    }
    if ((flags & frameFlag.endHeaders) === 0) {
      this.#assembly.begin(streamId, flags);
      this.#addToBlock(0, bytes, start, end);
      return;
    }
    const list = this.#decode(bytes, start, end);
    if (list === undefined) return;
    if (dependsOnItself) {
      this.#selfDependent(streamId);
      return;
    }
    this.#headers(streamId, flags, list);
  }

  #selfDependent(streamId: number): void {
    if (streamId > this.#lastStreamId) this.#lastStreamId = streamId;
    this.#streamError(streamId, h2Error.protocol, "stream_protocol_error");
  }

  #addToBlock(flags: number, bytes: Uint8Array, start: number, end: number): void {
    const assembly = this.#assembly;
    const fault = assembly.add(bytes, start, end);
    if (fault !== undefined) {
      this.#fail(h2Error.enhanceYourCalm, fault, fault);
      return;
    }
    if ((flags & frameFlag.endHeaders) === 0) return;
    const { streamId, flags: firstFlags } = assembly;
    const list = this.#decode(assembly.bytes, 0, assembly.length);
    assembly.done();
    if (list !== undefined) this.#headers(streamId, firstFlags, list);
  }

  #decode(bytes: Uint8Array, start: number, end: number): HeaderList | undefined {
    const list = this.#decoder.decode(bytes, start, end);
    if (list === undefined) {
      this.#fail(h2Error.compression, "compression_error", this.#decoder.error);
    }
    return list;
  }

  #headers(streamId: number, flags: number, list: HeaderList): void {
    if (streamId <= this.#lastStreamId) {
      this.#laterHeaders(streamId, flags, list);
      return;
    }
    this.#lastStreamId = streamId;
    if (streamId > this.#lastServed) {
      this.#closed.add(streamId, "early");
      return;
    }
    if (this.#streams.size >= this.#limits.concurrentStreamsMax) {
      this.#streamError(streamId, h2Error.refusedStream, "concurrent_streams");
      return;
    }
    const isEnd = (flags & frameFlag.endStream) !== 0;
    if (list.requestProblem() !== undefined || (isEnd && list.contentLength > 0)) {
      this.#streamError(streamId, h2Error.protocol, "malformed_request");
      return;
    }
    const stream = new H2Stream({
      id: streamId,
      headers: list,
      sendWindow: this.#peer.initialWindowBytes,
      receiveWindow: this.#streamWindow,
    });
    this.#streams.set(streamId, stream);
    stream.isRemoteEnded = isEnd;
    this.#listener.onStream(stream);
    if (isEnd && !stream.isClosed) stream.listener?.onEnd();
  }

  /** HEADERS on a stream that was opened before: trailers, or a mistake. */
  #laterHeaders(streamId: number, flags: number, list: HeaderList): void {
    const stream = this.#streams.get(streamId);
    if (stream === undefined) {
      switch (this.#closed.find(streamId)) {
        case "early":
          return;
        case "client_reset": {
          this.#streamError(streamId, h2Error.streamClosed, "stream_closed");
          return;
        }
        case "both_ended": {
          this.#fail(h2Error.streamClosed, "protocol_error", "HEADERS on a closed stream");
          return;
        }
        case undefined: {
          this.#protocol(`stream ${streamId} opened out of order`);
          return;
        }
      }
    }
    if (stream.isRemoteEnded) {
      this.#streamError(streamId, h2Error.streamClosed, "stream_closed");
      return;
    }
    const isEnd = (flags & frameFlag.endStream) !== 0;
    if (!isEnd || list.trailerProblem() !== undefined || stream.contentLeft > 0) {
      this.#streamError(streamId, h2Error.protocol, "malformed_request");
      return;
    }
    stream.isRemoteEnded = true;
    stream.listener?.onEnd();
  }

  #frameSize(text: string): void {
    this.#fail(h2Error.frameSize, "frame_size_error", text);
  }

  /** Whether a stream was never opened. */
  #isIdle(streamId: number): boolean {
    return (streamId & 1) === 0 || streamId > this.#lastStreamId;
  }

  #windowUpdate(streamId: number, bytes: Uint8Array, start: number, end: number): void {
    if (end - start !== 4) {
      this.#frameSize("WINDOW_UPDATE of a wrong length");
      return;
    }
    if (this.#flood("window_update_flood")) return;
    const increment = uint31(bytes, start);
    if (streamId === 0) {
      if (increment === 0) {
        this.#protocol("WINDOW_UPDATE by 0");
        return;
      }
      if (!this.#sender.connectionUpdate(increment, this.#now)) {
        this.#fail(h2Error.flowControl, "flow_control_error", "window above 2^31-1");
      }
      return;
    }
    if (this.#isIdle(streamId)) {
      this.#protocol("WINDOW_UPDATE on an idle stream");
      return;
    }
    const stream = this.#streams.get(streamId);
    if (stream === undefined) return;
    if (increment === 0) {
      this.#streamError(streamId, h2Error.protocol, "stream_protocol_error");
      return;
    }
    if (!this.#sender.streamUpdate(stream, increment, this.#now)) {
      this.#streamError(streamId, h2Error.flowControl, "stream_flow_control");
    }
  }

  #rstStream(streamId: number, length: number): void {
    if (length !== 4) {
      this.#frameSize("RST_STREAM of a wrong length");
      return;
    }
    if (streamId === 0) {
      this.#protocol("RST_STREAM on stream 0");
      return;
    }
    if (this.#isIdle(streamId)) {
      this.#protocol("RST_STREAM on an idle stream");
      return;
    }
    if (this.#flood("rapid_reset")) return;
    const stream = this.#streams.get(streamId);
    if (stream !== undefined) this.#finish(stream, "reset", "client_reset");
  }

  #settings(flags: number, streamId: number, bytes: Uint8Array, start: number, end: number): void {
    if (streamId !== 0) {
      this.#protocol("SETTINGS on a stream");
      return;
    }
    if ((flags & frameFlag.ack) !== 0) {
      if (end !== start) {
        this.#frameSize("acknowledgement with a payload");
        return;
      }
      this.#acknowledged();
      return;
    }
    if ((end - start) % 6 !== 0) {
      this.#frameSize("SETTINGS of a wrong length");
      return;
    }
    if (this.#flood("settings_flood")) return;
    this.#hasSettings = true;
    const before = this.#peer.initialWindowBytes;
    const error = this.#peer.read(bytes, start, end);
    if (error !== h2Error.none) {
      const why = error === h2Error.flowControl ? "flow_control_error" : "protocol_error";
      this.#fail(error, why, "SETTINGS out of range");
      return;
    }
    this.output.settingsAck();
    const change = this.#peer.initialWindowBytes - before;
    if (change === 0) return;
    if (!this.#sender.initialWindowChanged(this.#streams.values(), change, this.#now)) {
      this.#fail(h2Error.flowControl, "flow_control_error", "window above 2^31-1");
    }
  }

  /** The client knows our settings now: a stream window below the default holds from here on. */
  #acknowledged(): void {
    if (!this.#hasSettings) {
      this.#protocol("the first frame acknowledges SETTINGS");
      return;
    }
    if (this.#isAcknowledged) return;
    this.#isAcknowledged = true;
    const change = this.#limits.streamWindowBytes - this.#streamWindow;
    this.#streamWindow += change;
    for (const stream of this.#streams.values()) stream.receiveWindow += change;
  }

  #ping(flags: number, streamId: number, bytes: Uint8Array, start: number, end: number): void {
    if (streamId !== 0) {
      this.#protocol("PING on a stream");
      return;
    }
    if (end - start !== 8) {
      this.#frameSize("PING of a wrong length");
      return;
    }
    if ((flags & frameFlag.ack) !== 0) {
      const isDrain = bytes[start] === drainPing[0] && this.#drain === "announced";
      if (isDrain) this.#nameLast();
      return;
    }
    if (!this.#flood("ping_flood")) this.output.ping(true, bytes, start);
  }

  /** Second half of a drain: every stream the client can have opened before it knew has come. */
  #nameLast(): void {
    this.#drain = "last_named";
    this.#lastServed = this.#lastStreamId;
    this.output.goaway(this.#lastStreamId, h2Error.none, "draining");
    this.#endIfDone();
  }

  #goaway(streamId: number, length: number): void {
    if (streamId !== 0) {
      this.#protocol("GOAWAY on a stream");
      return;
    }
    if (length < 8) {
      this.#frameSize("GOAWAY of a wrong length");
      return;
    }
    this.#hasClientLeft = true;
    this.#endIfDone();
  }

  #priority(streamId: number, bytes: Uint8Array, start: number, end: number): void {
    if (streamId === 0) {
      this.#protocol("PRIORITY on stream 0");
      return;
    }
    if (this.#flood("priority_flood")) return;
    const isIdle = this.#isIdle(streamId);
    if (end - start !== 5) {
      // A stream that was never opened cannot be reset.
      if (isIdle) {
        this.#frameSize("PRIORITY of a wrong length");
        return;
      }
      this.#streamError(streamId, h2Error.frameSize, "stream_protocol_error");
      return;
    }
    if (uint31(bytes, start) !== streamId) return;
    if (isIdle) this.#protocol("a stream depends on itself");
    else this.#streamError(streamId, h2Error.protocol, "stream_protocol_error");
  }
}
