import { HpackDecoder } from "../hpack/decoder.ts";
import type { HeaderList } from "../hpack/header-list.ts";
import type { BufferPool } from "./buffer-pool.ts";
import { ClosedStreams, type ClosedHow } from "./closed-streams.ts";
import { frameFlag, frameType, h2Error, int31Max, settingId } from "./codes.ts";
import { ConnectionDeadlines } from "./deadlines.ts";
import {
  connectionFault,
  flowControlFault,
  frameSizeFault,
  protocolFault,
  streamFault,
  type ConnectionEnd,
  type Fault,
  type StreamFault,
} from "./faults.ts";
import { FloodGuard } from "./flood-guard.ts";
import type { FrameOutput } from "./frame-output.ts";
import { FrameReader, type FrameSink } from "./frame-reader.ts";
import { checkFrame } from "./frame-rules.ts";
import { HeaderAssembly } from "./header-assembly.ts";
import type { FloodKind, H2Limits } from "./limits.ts";
import { uint31 } from "./octets.ts";
import { PeerSettings } from "./peer-settings.ts";
import { ReceiveSide } from "./receive-side.ts";
import { SendSide } from "./send-side.ts";
import { H2Stream, type StreamEnd } from "./stream.ts";

/** What a connection tells whoever serves it. */
export interface ConnectionListener {
  /** A well-formed request has come; sets the stream's `listener` unless it answers at once. */
  onStream(stream: H2Stream): void;
  /** A request was refused or a stream reset for the client's or the limits' sake. */
  onStreamFault(fault: StreamFault): void;
}

const keepalivePing = Uint8Array.of(0x6b, 0x65, 0x65, 0x70, 0, 0, 0, 0);
const drainPing = Uint8Array.of(0x64, 0x72, 0x61, 0x69, 0x6e, 0, 0, 0);
/** Streams taken before the client has acknowledged the limit. */
const unannouncedStreamsMax = 1_024;
/** How long a drain waits for its PING's answer before it names the last stream, ms. */
const drainPingMsMax = 1_000;

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
  readonly #receiver: ReceiveSide;
  readonly #sender: SendSide;
  readonly #floods: FloodGuard;
  readonly #deadlines: ConnectionDeadlines;
  readonly #closed = new ClosedStreams();
  readonly #streams = new Map<number, H2Stream>();
  #now: number;
  #lastStreamId = 0;
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
    this.#now = now;
    this.#reader = new FrameReader(this);
    this.#decoder = new HpackDecoder({
      tableBytesMax: limits.headerTableBytesMax,
      listBytesMax: limits.headerListBytesMax,
      fieldsMax: limits.headerFieldsMax,
    });
    this.#assembly = new HeaderAssembly(limits.headerBlockBytesMax, limits.continuationsMax);
    this.#floods = new FloodGuard(limits.floods, now);
    this.#deadlines = new ConnectionDeadlines(limits, now);
    output.settings([
      [settingId.headerTableSize, limits.headerTableBytesMax],
      [settingId.maxConcurrentStreams, limits.concurrentStreamsMax],
      [settingId.initialWindowSize, limits.streamWindowBytes],
      [settingId.maxHeaderListSize, limits.headerListBytesMax],
    ]);
    this.#receiver = new ReceiveSide(output, limits);
    this.#sender = new SendSide({
      out: output,
      limits,
      pool: options.pool,
      peer: this.#peer,
      onTrailersSent: (stream) => {
        this.#answered(stream);
      },
    });
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
    this.#reader.receive(bytes, end);
    this.#deadlines.heard(this.#reader.isCutOff || this.#assembly.streamId !== 0, now);
  }

  /** Checks the deadlines; call it a few times a second. `isPaused`: the socket is not being read for now. */
  tick(now: number, isPaused = false): void {
    this.#now = now;
    if (this.#end !== undefined) return;
    if (isPaused) this.#deadlines.hold(now);
    else {
      const action = this.#deadlines.check(now, this.#agreed(), this.#streams.size > 0);
      if (action === "ping") this.output.ping(false, keepalivePing, 0);
      else this.#apply(action);
    }
    if (this.#drain === "announced" && now - this.#drainedAt > drainPingMsMax) this.#nameLast();
    for (const stream of this.#sender.waiting) {
      if (now - stream.movedAt > this.#limits.sendStallMsMax) {
        this.reset(stream, h2Error.cancel, "send_stalled");
      }
    }
  }

  #agreed(): "nothing" | "theirs" | "both" {
    if (!this.#hasSettings) return "nothing";
    return this.#isAcknowledged ? "both" : "theirs";
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
    // One for its honesty, one for the RST_STREAM with which some clients follow the end (Envoy does).
    this.#floods.earn("rapid_reset", 2);
    if (stream.isRemoteEnded) this.#finish(stream, "ended", "both_ended");
    else {
      // The client need not send the rest (RFC 9113 §8.1).
      this.output.rstStream(stream.id, h2Error.none);
      this.#finish(stream, "ended", "early");
    }
  }

  #finish(stream: H2Stream, how: StreamEnd, closed: ClosedHow): void {
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
    this.#dataStream = undefined;
    const streams = this.streams();
    this.#streams.clear();
    // All of them first: what is told of one stream may act on another.
    for (const stream of streams) {
      stream.isClosed = true;
      this.#sender.drop(stream);
    }
    for (const stream of streams) stream.listener?.onClose("connection_lost");
  }

  #apply(fault: Fault | undefined): void {
    if (fault === undefined || this.#end !== undefined) return;
    if (fault.scope === "connection") {
      this.output.goaway(this.#lastStreamId, fault.code, fault.text);
      this.#over(fault.end);
      return;
    }
    const flood = this.#flood("stream_errors");
    if (flood !== undefined) {
      this.#apply(flood);
      return;
    }
    const stream = this.#streams.get(fault.streamId);
    if (stream !== undefined) {
      this.reset(stream, fault.code, fault.fault);
      return;
    }
    this.output.rstStream(fault.streamId, fault.code);
    this.#closed.add(fault.streamId, "early");
    this.#listener.onStreamFault(fault.fault);
  }

  #flood(kind: FloodKind): Fault | undefined {
    return this.#floods.take(kind, this.#now)
      ? undefined
      : connectionFault(h2Error.enhanceYourCalm, kind, kind);
  }

  /** Whether a stream was never opened. */
  #isIdle(streamId: number): boolean {
    return (streamId & 1) === 0 || streamId > this.#lastStreamId;
  }

  // What follows is called by the reader.
  badPreface(): void {
    this.#apply(connectionFault(h2Error.protocol, "preface_invalid", "not HTTP/2"));
  }

  frameStarts(type: number, flags: number, streamId: number, length: number): void {
    const fault = checkFrame(type, flags, streamId, length) ?? this.#checkOrder(type, streamId);
    if (fault !== undefined) this.#apply(fault);
  }

  #checkOrder(type: number, streamId: number): Fault | undefined {
    if (!this.#hasSettings && type !== frameType.settings) {
      return protocolFault("the first frame is not SETTINGS");
    }
    const blockStreamId = this.#assembly.streamId;
    if (blockStreamId === 0) {
      return type === frameType.continuation
        ? protocolFault("CONTINUATION without HEADERS")
        : undefined;
    }
    return type !== frameType.continuation || streamId !== blockStreamId
      ? protocolFault("another frame inside a header block")
      : undefined;
  }

  dataStarts(streamId: number, flags: number, length: number, padding: number): void {
    this.#dataFlags = flags;
    this.#dataStream = this.#streams.get(streamId);
    const fault = this.#judgeData(streamId, flags, length, padding);
    if (fault === undefined) return;
    this.#apply(fault);
    this.#dataStream = undefined;
  }

  #judgeData(streamId: number, flags: number, length: number, padding: number): Fault | undefined {
    if (padding < 0) return protocolFault("padding longer than its frame");
    const counted = this.#receiver.count(length);
    if (counted !== undefined) return counted;
    const stream = this.#dataStream;
    if (stream === undefined) {
      if (this.#isIdle(streamId)) return protocolFault("DATA on an idle stream");
      if (this.#closed.find(streamId) === "early") return undefined;
      return streamFault(streamId, h2Error.streamClosed, "stream_closed");
    }
    if (stream.isRemoteEnded) return streamFault(streamId, h2Error.streamClosed, "stream_closed");
    if (length === padding && (flags & frameFlag.endStream) === 0) {
      const flood = this.#flood("empty_data_flood");
      if (flood !== undefined) return flood;
    }
    return this.#receiver.countStream(stream, flags, length, length - padding);
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
    } else this.#receiver.giveBack(stream);
  }

  frame(
    type: number,
    flags: number,
    streamId: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): void {
    const fault = this.#frame(type, flags, streamId, bytes, start, end);
    if (fault !== undefined) this.#apply(fault);
  }

  #frame(
    type: number,
    flags: number,
    streamId: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Fault | undefined {
    switch (type) {
      case frameType.headers:
        return this.#headersFrame(flags, streamId, bytes, start, end);
      case frameType.continuation:
        return this.#addToBlock(flags, bytes, start, end);
      case frameType.windowUpdate:
        return this.#windowUpdate(streamId, uint31(bytes, start));
      case frameType.rstStream:
        return this.#rstStream(streamId);
      case frameType.settings:
        return (flags & frameFlag.ack) !== 0
          ? this.#settingsAck()
          : this.#settings(bytes, start, end);
      case frameType.ping:
        return this.#ping(flags, bytes, start);
      case frameType.goaway:
        this.#hasClientLeft = true;
        this.#endIfDone();
        return undefined;
      case frameType.priority:
        return this.#priority(streamId, bytes, start, end);
      default:
        return this.#flood("unknown_frame_flood");
    }
  }

  #headersFrame(
    flags: number,
    streamId: number,
    bytes: Uint8Array,
    start: number,
    end: number,
  ): Fault | undefined {
    if ((streamId & 1) === 0) return protocolFault(`HEADERS on stream ${streamId}`);
    if ((flags & frameFlag.padded) !== 0) {
      if (start === end) return frameSizeFault("HEADERS without its padding length");
      end -= bytes[start] as number;
      start++;
    }
    let dependsOnItself = false;
    if ((flags & frameFlag.priority) !== 0) {
      dependsOnItself = end - start >= 5 && uint31(bytes, start) === streamId;
      start += 5;
    }
    if (end < start) return protocolFault("padding or priority longer than its frame");
    if ((flags & frameFlag.endHeaders) === 0) {
      this.#assembly.begin(streamId, flags);
      return this.#addToBlock(0, bytes, start, end);
    }
    const list = this.#decoder.decode(bytes, start, end);
    if (list === undefined) return this.#compressionFault();
    if (dependsOnItself) {
      this.#lastStreamId = Math.max(this.#lastStreamId, streamId);
      return streamFault(streamId, h2Error.protocol, "stream_protocol_error");
    }
    return this.#headers(streamId, flags, list);
  }

  #addToBlock(flags: number, bytes: Uint8Array, start: number, end: number): Fault | undefined {
    const assembly = this.#assembly;
    const fault = assembly.add(bytes, start, end);
    if (fault !== undefined) return connectionFault(h2Error.enhanceYourCalm, fault, fault);
    if ((flags & frameFlag.endHeaders) === 0) return undefined;
    const { streamId, flags: firstFlags } = assembly;
    const list = this.#decoder.decode(assembly.bytes, 0, assembly.length);
    assembly.done();
    if (list === undefined) return this.#compressionFault();
    return this.#headers(streamId, firstFlags, list);
  }

  #compressionFault(): Fault {
    return connectionFault(h2Error.compression, "compression_error", this.#decoder.error);
  }

  #headers(streamId: number, flags: number, list: HeaderList): Fault | undefined {
    if (streamId <= this.#lastStreamId) return this.#laterHeaders(streamId, flags, list);
    this.#lastStreamId = streamId;
    if (streamId > this.#lastServed) {
      this.#closed.add(streamId, "early");
      return undefined;
    }
    if (this.#streams.size >= this.#concurrentStreamsMax()) {
      return streamFault(streamId, h2Error.refusedStream, "concurrent_streams");
    }
    const isEnd = (flags & frameFlag.endStream) !== 0;
    if (list.requestProblem() !== undefined || (isEnd && list.contentLength > 0)) {
      return streamFault(streamId, h2Error.protocol, "malformed_request");
    }
    const stream = new H2Stream({
      id: streamId,
      headers: list,
      sendWindow: this.#peer.initialWindowBytes,
      receiveWindow: this.#receiver.streamWindow,
    });
    this.#streams.set(streamId, stream);
    stream.isRemoteEnded = isEnd;
    this.#listener.onStream(stream);
    if (isEnd && !stream.isClosed) stream.listener?.onEnd();
    return undefined;
  }

  /** A client cannot keep to a limit that it does not know yet; Envoy's first burst would be refused. */
  #concurrentStreamsMax(): number {
    const { concurrentStreamsMax } = this.#limits;
    return this.#isAcknowledged
      ? concurrentStreamsMax
      : Math.max(concurrentStreamsMax, unannouncedStreamsMax);
  }

  /** HEADERS on a stream that was opened before: trailers, or a mistake. */
  #laterHeaders(streamId: number, flags: number, list: HeaderList): Fault | undefined {
    const stream = this.#streams.get(streamId);
    if (stream === undefined) {
      switch (this.#closed.find(streamId)) {
        case "early":
          return undefined;
        case "client_reset":
          return streamFault(streamId, h2Error.streamClosed, "stream_closed");
        case "both_ended":
          return connectionFault(h2Error.streamClosed, "protocol_error", "HEADERS after the end");
        case undefined:
          return protocolFault(`stream ${streamId} opened out of order`);
      }
    }
    if (stream.isRemoteEnded) return streamFault(streamId, h2Error.streamClosed, "stream_closed");
    const isEnd = (flags & frameFlag.endStream) !== 0;
    if (!isEnd || list.trailerProblem() !== undefined || stream.contentLeft > 0) {
      return streamFault(streamId, h2Error.protocol, "malformed_request");
    }
    stream.isRemoteEnded = true;
    stream.listener?.onEnd();
    return undefined;
  }

  #windowUpdate(streamId: number, increment: number): Fault | undefined {
    const flood = this.#flood("window_update_flood");
    if (flood !== undefined) return flood;
    if (streamId === 0) {
      if (increment === 0) return protocolFault("WINDOW_UPDATE by 0");
      return this.#sender.connectionUpdate(increment, this.#now)
        ? undefined
        : flowControlFault("window above 2^31-1");
    }
    if (this.#isIdle(streamId)) return protocolFault("WINDOW_UPDATE on an idle stream");
    const stream = this.#streams.get(streamId);
    if (stream === undefined) return undefined;
    if (increment === 0) return streamFault(streamId, h2Error.protocol, "stream_protocol_error");
    return this.#sender.streamUpdate(stream, increment, this.#now)
      ? undefined
      : streamFault(streamId, h2Error.flowControl, "stream_flow_control");
  }

  #rstStream(streamId: number): Fault | undefined {
    if (this.#isIdle(streamId)) return protocolFault("RST_STREAM on an idle stream");
    const stream = this.#streams.get(streamId);
    // A stream with an answer has cost the client its turn; Envoy resets one when it needs to hear no more.
    if (stream?.hasSentHeaders !== true) {
      const flood = this.#flood("rapid_reset");
      if (flood !== undefined) return flood;
    }
    if (stream !== undefined) this.#finish(stream, "reset", "client_reset");
    return undefined;
  }

  #settings(bytes: Uint8Array, start: number, end: number): Fault | undefined {
    const flood = this.#flood("settings_flood");
    if (flood !== undefined) return flood;
    this.#hasSettings = true;
    const before = this.#peer.initialWindowBytes;
    const error = this.#peer.read(bytes, start, end);
    if (error === h2Error.flowControl) return flowControlFault("initial window above 2^31-1");
    if (error !== h2Error.none) return protocolFault("a setting is out of range");
    this.output.settingsAck();
    const change = this.#peer.initialWindowBytes - before;
    if (change === 0) return undefined;
    return this.#sender.initialWindowChanged(this.#streams.values(), change, this.#now)
      ? undefined
      : flowControlFault("window above 2^31-1");
  }

  #settingsAck(): Fault | undefined {
    if (!this.#hasSettings) return protocolFault("the first frame acknowledges SETTINGS");
    if (!this.#isAcknowledged) this.#receiver.acknowledged(this.#streams.values());
    this.#isAcknowledged = true;
    return undefined;
  }

  #ping(flags: number, bytes: Uint8Array, start: number): Fault | undefined {
    if ((flags & frameFlag.ack) !== 0) {
      if (this.#drain === "announced" && bytes[start] === drainPing[0]) this.#nameLast();
      return undefined;
    }
    const flood = this.#flood("ping_flood");
    if (flood === undefined) this.output.ping(true, bytes, start);
    return flood;
  }

  /** Second half of a drain: every stream the client can have opened before it knew has come. */
  #nameLast(): void {
    this.#drain = "last_named";
    this.#lastServed = this.#lastStreamId;
    this.output.goaway(this.#lastStreamId, h2Error.none, "draining");
    this.#endIfDone();
  }

  #priority(streamId: number, bytes: Uint8Array, start: number, end: number): Fault | undefined {
    const flood = this.#flood("priority_flood");
    if (flood !== undefined) return flood;
    const isIdle = this.#isIdle(streamId);
    if (end - start !== 5) {
      // A stream that was never opened cannot be reset.
      return isIdle
        ? frameSizeFault(`PRIORITY of ${end - start} bytes`)
        : streamFault(streamId, h2Error.frameSize, "stream_protocol_error");
    }
    if (uint31(bytes, start) !== streamId) return undefined;
    return isIdle
      ? protocolFault("a stream depends on itself")
      : streamFault(streamId, h2Error.protocol, "stream_protocol_error");
  }
}
