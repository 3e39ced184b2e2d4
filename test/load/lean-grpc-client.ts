import { once } from "node:events";
import { connect, type Socket } from "node:net";

const frameHeaderBytes = 9;
const frameTypes = {
  data: 0,
  headers: 1,
  rstStream: 3,
  settings: 4,
  ping: 6,
  goAway: 7,
  windowUpdate: 8,
} as const;
const endStreamFlag = 1;
const ackFlag = 1;
const endHeadersFlag = 4;
const initialWindowSetting = 4;
const frameSizeSetting = 5;
/** What this client lets the server send: enough that an echoed body never waits. */
const streamWindowBytes = 4 * 1024 * 1024;
const connectionWindowBytes = 64 * 1024 * 1024;
const updateAfterBytes = 8 * 1024 * 1024;

function frame(
  type: number,
  flags: number,
  streamId: number,
  payload: Buffer = Buffer.alloc(0),
): Buffer {
  const bytes = Buffer.alloc(frameHeaderBytes + payload.length);
  bytes.writeUIntBE(payload.length, 0, 3);
  bytes[3] = type;
  bytes[4] = flags;
  bytes.writeUInt32BE(streamId, 5);
  payload.copy(bytes, frameHeaderBytes);
  return bytes;
}

function settings(pairs: readonly (readonly [id: number, value: number])[]): Buffer {
  const payload = Buffer.alloc(6 * pairs.length);
  pairs.forEach(([id, value], i) => {
    payload.writeUInt16BE(id, 6 * i);
    payload.writeUInt32BE(value, 6 * i + 2);
  });
  return payload;
}

/** A header block of literals that nobody indexes: lengths below 127, no Huffman code (RFC 7541 §6.2.2). */
function headerBlock(headers: readonly (readonly [name: string, value: string])[]): Buffer {
  const parts: Buffer[] = [];
  for (const [name, value] of headers) {
    if (name.length > 126 || value.length > 126) throw new Error(`header ${name} is too long`);
    parts.push(Buffer.from([0, name.length]), Buffer.from(name));
    parts.push(Buffer.from([value.length]), Buffer.from(value));
  }
  return Buffer.concat(parts);
}

/** What a call's owner hears. */
export interface LeanCallEvents {
  onMessage(message: Buffer): void;
  /** The stream is over; `error` is set when it did not end with trailers. */
  onEnd(error: string | undefined): void;
}

/** One gRPC call. */
export class LeanCall {
  readonly id: number;
  readonly events: LeanCallEvents;
  /** Bytes that the server lets this stream send. */
  window: number;
  readonly queue: Buffer[] = [];
  endsAfterQueue = false;
  sentEnd = false;
  received: Buffer = Buffer.alloc(0);

  constructor(id: number, window: number, events: LeanCallEvents) {
    this.id = id;
    this.window = window;
    this.events = events;
  }
}

/**
 * One HTTP/2 connection that carries gRPC calls of one method, for load: no retries, no deadlines, prepared bytes go out
 * as they are. A generator must cost less than what it measures; a full client costs several times as much.
 */
export class LeanGrpcConnection {
  readonly #socket: Socket;
  readonly #headers: Buffer;
  readonly #calls = new Map<number, LeanCall>();
  #nextId = 1;
  #sendWindow = 65_535;
  #peerStreamWindow = 65_535;
  #frameBytesMax = 16_384;
  #unread: Buffer = Buffer.alloc(0);
  #consumed = 0;
  #corked = false;

  private constructor(socket: Socket, method: string, authority: string) {
    this.#socket = socket;
    this.#headers = headerBlock([
      [":method", "POST"],
      [":scheme", "http"],
      [":path", method],
      [":authority", authority],
      ["te", "trailers"],
      ["content-type", "application/grpc"],
    ]);
    socket.setNoDelay(true);
    socket.on("data", (chunk: Buffer) => {
      this.#read(chunk);
    });
    socket.on("close", () => {
      for (const call of this.#calls.values()) call.events.onEnd("the connection closed");
      this.#calls.clear();
    });
    socket.on("error", () => undefined);
    this.#write(Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    // No header table, so that answers need no state here.
    const own = settings([
      [1, 0],
      [initialWindowSetting, streamWindowBytes],
    ]);
    this.#write(frame(frameTypes.settings, 0, 0, own));
    this.#grant(connectionWindowBytes - 65_535);
  }

  /** Connects to `host:port`; all calls are of `method` (`/package.Service/Method`). */
  static async open(target: string, method: string): Promise<LeanGrpcConnection> {
    const at = target.lastIndexOf(":");
    const socket = connect(Number(target.slice(at + 1)), target.slice(0, at));
    await once(socket, "connect");
    return new LeanGrpcConnection(socket, method, target);
  }

  /** Begins a call. */
  call(events: LeanCallEvents): LeanCall {
    const call = new LeanCall(this.#nextId, this.#peerStreamWindow, events);
    this.#nextId += 2;
    this.#calls.set(call.id, call);
    this.#write(frame(frameTypes.headers, endHeadersFlag, call.id, this.#headers));
    return call;
  }

  /** Sends bytes that already carry gRPC's length prefix, in parts. */
  send(call: LeanCall, parts: readonly Buffer[], end: boolean): void {
    call.queue.push(...parts);
    call.endsAfterQueue ||= end;
    this.#pump(call);
  }

  close(): void {
    this.#socket.destroy();
  }

  #write(bytes: Buffer): void {
    if (!this.#corked) {
      this.#corked = true;
      this.#socket.cork();
      setImmediate(() => {
        this.#corked = false;
        this.#socket.uncork();
      });
    }
    this.#socket.write(bytes);
  }

  #grant(bytes: number): void {
    const payload = Buffer.alloc(4);
    payload.writeUInt32BE(bytes);
    this.#write(frame(frameTypes.windowUpdate, 0, 0, payload));
  }

  #pump(call: LeanCall): void {
    const { queue } = call;
    while (queue.length > 0) {
      const room = Math.min(this.#frameBytesMax, this.#sendWindow, call.window);
      if (room <= 0) return;
      const slices: Buffer[] = [];
      let bytes = 0;
      for (let part = queue[0]; part !== undefined && bytes < room; part = queue[0]) {
        const slice = part.subarray(0, room - bytes);
        slices.push(slice);
        bytes += slice.length;
        if (slice.length === part.length) queue.shift();
        else queue[0] = part.subarray(slice.length);
      }
      call.window -= bytes;
      this.#sendWindow -= bytes;
      const ends = queue.length === 0 && call.endsAfterQueue;
      const header = Buffer.alloc(frameHeaderBytes);
      header.writeUIntBE(bytes, 0, 3);
      header[3] = frameTypes.data;
      header[4] = ends ? endStreamFlag : 0;
      header.writeUInt32BE(call.id, 5);
      this.#write(header);
      for (const slice of slices) this.#write(slice);
      if (ends) call.sentEnd = true;
    }
    if (call.endsAfterQueue && !call.sentEnd) {
      call.sentEnd = true;
      this.#write(frame(frameTypes.data, endStreamFlag, call.id));
    }
  }

  #read(chunk: Buffer): void {
    const bytes = this.#unread.length === 0 ? chunk : Buffer.concat([this.#unread, chunk]);
    let at = 0;
    while (bytes.length - at >= frameHeaderBytes) {
      const length = bytes.readUIntBE(at, 3);
      const end = at + frameHeaderBytes + length;
      if (bytes.length < end) break;
      this.#frame(
        bytes[at + 3] as number,
        bytes[at + 4] as number,
        bytes.readUInt32BE(at + 5) & 0x7fffffff,
        bytes.subarray(at + frameHeaderBytes, end),
      );
      at = end;
    }
    this.#unread = bytes.subarray(at);
  }

  #frame(type: number, flags: number, streamId: number, payload: Buffer): void {
    const call = this.#calls.get(streamId);
    switch (type) {
      case frameTypes.data:
        this.#consumed += payload.length;
        if (this.#consumed >= updateAfterBytes) {
          this.#grant(this.#consumed);
          this.#consumed = 0;
        }
        if (call === undefined) return;
        this.#messages(call, payload);
        if ((flags & endStreamFlag) !== 0) this.#end(call, "the stream ended without trailers");
        return;
      case frameTypes.headers:
        if (call !== undefined && (flags & endStreamFlag) !== 0) this.#end(call, undefined);
        return;
      case frameTypes.rstStream:
        if (call !== undefined) this.#end(call, `reset with code ${payload.readUInt32BE(0)}`);
        return;
      case frameTypes.settings:
        if ((flags & ackFlag) !== 0) return;
        this.#settings(payload);
        this.#write(frame(frameTypes.settings, ackFlag, 0));
        return;
      case frameTypes.ping:
        if ((flags & ackFlag) === 0) this.#write(frame(frameTypes.ping, ackFlag, 0, payload));
        return;
      case frameTypes.windowUpdate: {
        const bytes = payload.readUInt32BE(0);
        if (streamId !== 0) {
          if (call === undefined) return;
          call.window += bytes;
          this.#pump(call);
          return;
        }
        this.#sendWindow += bytes;
        for (const open of this.#calls.values()) if (open.queue.length > 0) this.#pump(open);
        return;
      }
      case frameTypes.goAway:
        if (payload.readUInt32BE(4) !== 0) {
          this.#socket.destroy(new Error(`GOAWAY with code ${payload.readUInt32BE(4)}`));
        }
        return;
    }
  }

  #settings(payload: Buffer): void {
    for (let at = 0; at + 6 <= payload.length; at += 6) {
      const value = payload.readUInt32BE(at + 2);
      const id = payload.readUInt16BE(at);
      if (id === frameSizeSetting) this.#frameBytesMax = value;
      if (id !== initialWindowSetting) continue;
      for (const call of this.#calls.values()) call.window += value - this.#peerStreamWindow;
      this.#peerStreamWindow = value;
    }
  }

  #messages(call: LeanCall, payload: Buffer): void {
    let bytes = call.received.length === 0 ? payload : Buffer.concat([call.received, payload]);
    while (bytes.length >= 5) {
      const end = 5 + bytes.readUInt32BE(1);
      if (bytes.length < end) break;
      call.events.onMessage(bytes.subarray(5, end));
      bytes = bytes.subarray(end);
    }
    // The chunk of the socket is not kept alive for a few bytes.
    call.received = bytes.length === 0 ? bytes : Buffer.from(bytes);
  }

  #end(call: LeanCall, error: string | undefined): void {
    this.#calls.delete(call.id);
    call.events.onEnd(error);
  }
}
