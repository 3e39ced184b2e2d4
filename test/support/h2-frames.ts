/** Frames written by hand, independent of the server's own writer. */

/** One frame as a client wrote or a server sent it. */
export interface RawFrame {
  readonly type: number;
  readonly flags: number;
  readonly streamId: number;
  readonly payload: Buffer;
}

/** Frame types by number, as the RFC names them. */
export const types = {
  data: 0,
  headers: 1,
  priority: 2,
  rst: 3,
  settings: 4,
  push: 5,
  ping: 6,
  goaway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;

/** Flags. */
export const flags = { end: 1, ack: 1, endHeaders: 4, padded: 8, priority: 0x20 } as const;

/** The client's preface. */
export const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");

/** Any frame. */
export function frame(
  type: number,
  frameFlags: number,
  streamId: number,
  payload: Uint8Array | readonly number[] = [],
  claimedLength = payload.length,
): Buffer {
  const header = Buffer.alloc(9);
  header.writeUIntBE(claimedLength, 0, 3);
  header[3] = type;
  header[4] = frameFlags;
  header.writeUInt32BE(streamId, 5);
  return Buffer.concat([header, Uint8Array.from(payload)]);
}

/** A number in four octets. */
export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/** SETTINGS. */
export function settings(...pairs: readonly (readonly [id: number, value: number])[]): Buffer {
  const payload = pairs.map(([id, value]) =>
    Buffer.concat([Buffer.from([id >> 8, id]), uint32(value)]),
  );
  return frame(types.settings, 0, 0, Buffer.concat(payload));
}

/** A literal without indexing, without Huffman code, lengths below 127. */
export function literal(name: string, value: string, first = 0): Buffer {
  return Buffer.concat([
    Buffer.from([first, name.length]),
    Buffer.from(name, "latin1"),
    Buffer.from([value.length]),
    Buffer.from(value, "latin1"),
  ]);
}

/** A header block of literals. */
export function block(fields: readonly (readonly [name: string, value: string])[]): Buffer {
  return Buffer.concat(fields.map(([name, value]) => literal(name, value)));
}

/** The fields of a gRPC request. */
export function requestFields(path: string): [name: string, value: string][] {
  return [
    [":method", "POST"],
    [":scheme", "http"],
    [":path", path],
    [":authority", "test"],
    ["te", "trailers"],
    ["content-type", "application/grpc"],
  ];
}

/** HEADERS with a whole block. */
export function headers(streamId: number, headerBlock: Uint8Array, more = 0): Buffer {
  return frame(types.headers, flags.endHeaders | more, streamId, headerBlock);
}

/** A message with gRPC's prefix. */
export function grpcMessage(message: Uint8Array): Buffer {
  return Buffer.concat([Buffer.from([0]), uint32(message.length), message]);
}

/** DATA. */
export function data(streamId: number, payload: Uint8Array | readonly number[], more = 0): Buffer {
  return frame(types.data, more, streamId, payload);
}

/** WINDOW_UPDATE. */
export function windowUpdate(streamId: number, increment: number): Buffer {
  return frame(types.windowUpdate, 0, streamId, uint32(increment));
}

/** RST_STREAM. */
export function rst(streamId: number, code: number): Buffer {
  return frame(types.rst, 0, streamId, uint32(code));
}

/** Cuts whole frames off `bytes`; the rest is left over. */
export function readFrames(bytes: Buffer): { readonly frames: RawFrame[]; readonly rest: Buffer } {
  const frames: RawFrame[] = [];
  let at = 0;
  while (bytes.length - at >= 9) {
    const end = at + 9 + bytes.readUIntBE(at, 3);
    if (bytes.length < end) break;
    frames.push({
      type: bytes[at + 3]!,
      flags: bytes[at + 4]!,
      streamId: bytes.readUInt32BE(at + 5) & 0x7fff_ffff,
      payload: Buffer.from(bytes.subarray(at + 9, end)),
    });
    at = end;
  }
  return { frames, rest: bytes.subarray(at) };
}
