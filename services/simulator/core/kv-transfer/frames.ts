import { MeshError } from "../../../shared/core/errors.ts";

/** Version of this protocol; both sides must have the same. */
export const kvProtocolVersion = 1;
/** Bytes in front of every frame: payload size u32, type u8, three zero bytes, pull id u32; little-endian. */
export const frameHeadBytes = 12;
/** Largest payload. A pull of 131,072 blocks fits. */
export const framePayloadBytesMax = 1_200_000;
/** Content bytes of one chunk at most, and blocks whose checksums stand in front of them. */
export const chunkBytesMax = 256 * 1_024;
export const chunkBlocksMax = 1_024;
/** Longest id, reason or fingerprint, bytes. */
const textBytesMax = 4_096;
/** Hand-offs named by one heartbeat at most; a puller sends several. */
export const heartbeatIdsMax = 256;

/** How a puller names what it wants. */
export type PullMode =
  /** Physical blocks, whatever they hold: one-sided reads, as NIXL does them. */
  | "blocks"
  /** A hand-off that must exist; all of its blocks from the first one asked on. */
  | "handoff"
  /** A rendezvous: waits until the prefill under this key is done. */
  | "room";

/** One message of the KV transfer protocol. Pull ids are the puller's, unique on a connection. */
export type Frame =
  | {
      readonly kind: "hello";
      readonly version: number;
      readonly engineId: string;
      /** Name by which links are configured. */
      readonly instance: string;
      readonly fingerprint: string;
    }
  | {
      readonly kind: "pull";
      readonly id: number;
      readonly mode: PullMode;
      readonly key: string;
      /** First block of the prompt that is wanted. */
      readonly firstBlock: number;
      /** Blocks wanted; 0 in rendezvous with none to move. */
      readonly blockCount: number;
      /** Physical ids, for mode `blocks` alone; otherwise empty. */
      readonly blocks: Uint32Array;
    }
  | {
      readonly kind: "chunk";
      readonly id: number;
      /** Place of the first block in the order of the pull. */
      readonly firstBlock: number;
      readonly blockCount: number;
      /** Where in the block the bytes begin; other than 0 only with one block. */
      readonly offsetBytes: number;
      /** CRC-32 of each block's bytes in this chunk. */
      readonly checksums: Uint32Array;
      /** Views into the frame: valid until the next one. */
      readonly words: Uint32Array;
    }
  | {
      readonly kind: "end";
      readonly id: number;
      readonly cachedTokens: number;
      /** Tokens that the prefill drew. */
      readonly tokens: readonly number[];
    }
  /** The puller has all it needs, or gives up before it began: the hand-off may go. */
  | { readonly kind: "done"; readonly key: string; readonly outcome: "pulled" | "aborted" }
  | { readonly kind: "heartbeat"; readonly keys: readonly string[] }
  /** Either side: this pull ends here. */
  | { readonly kind: "abort"; readonly id: number; readonly reason: string };

const types = {
  hello: 1,
  pull: 2,
  chunk: 3,
  end: 4,
  done: 5,
  heartbeat: 6,
  abort: 7,
} as const satisfies Record<Frame["kind"], number>;
const modes = ["blocks", "handoff", "room"] as const;
const outcomes = ["pulled", "aborted"] as const;

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

/** A frame that breaks the protocol; the connection it came on must be closed. */
function broken(message: string): MeshError {
  return new MeshError("invalid_request", `KV transfer frame: ${message}`);
}

/** Appends to a byte array that grows; every frame but chunks is small. */
class Writer {
  #bytes = new Uint8Array(256);
  #view = new DataView(this.#bytes.buffer);
  #at = frameHeadBytes;

  u8(value: number): this {
    this.#room(1);
    this.#bytes[this.#at++] = value;
    return this;
  }

  u32(value: number): this {
    this.#room(4);
    this.#view.setUint32(this.#at, value, true);
    this.#at += 4;
    return this;
  }

  text(value: string): this {
    const bytes = encoder.encode(value);
    if (bytes.length > textBytesMax) throw broken(`a text of ${bytes.length} bytes is too long`);
    this.u32(bytes.length);
    this.#room(bytes.length);
    this.#bytes.set(bytes, this.#at);
    this.#at += bytes.length;
    return this;
  }

  finish(kind: Frame["kind"], id: number): Uint8Array {
    const payload = this.#at - frameHeadBytes;
    if (payload > framePayloadBytesMax) throw broken(`a payload of ${payload} bytes is too long`);
    writeHead(this.#view, kind, id, payload);
    return this.#bytes.slice(0, this.#at);
  }

  #room(bytes: number): void {
    if (this.#at + bytes <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(this.#bytes.length * 2, this.#at + bytes));
    grown.set(this.#bytes);
    this.#bytes = grown;
    this.#view = new DataView(grown.buffer);
  }
}

function writeHead(view: DataView, kind: Frame["kind"], id: number, payload: number): void {
  view.setUint32(0, payload, true);
  view.setUint32(4, types[kind], true);
  view.setUint32(8, id, true);
}

/** Bytes of a frame other than a chunk. Throws `invalid_request` for what exceeds the limits. */
export function encodeFrame(frame: Exclude<Frame, { kind: "chunk" }>): Uint8Array {
  const out = new Writer();
  switch (frame.kind) {
    case "hello":
      out.u32(frame.version).text(frame.engineId).text(frame.instance).text(frame.fingerprint);
      return out.finish(frame.kind, 0);
    case "pull":
      out.u8(modes.indexOf(frame.mode)).text(frame.key);
      out.u32(frame.firstBlock).u32(frame.blockCount).u32(frame.blocks.length);
      for (const block of frame.blocks) out.u32(block);
      return out.finish(frame.kind, frame.id);
    case "end":
      out.u32(frame.cachedTokens).u32(frame.tokens.length);
      for (const token of frame.tokens) out.u32(token);
      return out.finish(frame.kind, frame.id);
    case "done":
      out.u8(outcomes.indexOf(frame.outcome)).text(frame.key);
      return out.finish(frame.kind, 0);
    case "heartbeat":
      out.u32(frame.keys.length);
      for (const key of frame.keys) out.text(key);
      return out.finish(frame.kind, 0);
    case "abort":
      return out.text(frame.reason).finish(frame.kind, frame.id);
  }
}

/** Room for one chunk: the caller fills `words`, then `checksums`, and sends `bytes`. */
export interface ChunkRoom {
  readonly bytes: Uint8Array;
  readonly checksums: Uint32Array;
  readonly words: Uint32Array;
}

/** Lays out a chunk of `blockCount` blocks with `contentBytes` in all; its head is written, its content is not. */
export function layOutChunk(chunk: {
  readonly id: number;
  readonly firstBlock: number;
  readonly blockCount: number;
  readonly offsetBytes: number;
  readonly contentBytes: number;
}): ChunkRoom {
  const { blockCount, contentBytes } = chunk;
  const fixed = frameHeadBytes + 12;
  const contentAt = fixed + 4 * blockCount;
  const bytes = new Uint8Array(contentAt + contentBytes);
  const view = new DataView(bytes.buffer);
  writeHead(view, "chunk", chunk.id, bytes.length - frameHeadBytes);
  view.setUint32(frameHeadBytes, chunk.firstBlock, true);
  view.setUint32(frameHeadBytes + 4, blockCount, true);
  view.setUint32(frameHeadBytes + 8, chunk.offsetBytes, true);
  return {
    bytes,
    checksums: new Uint32Array(bytes.buffer, fixed, blockCount),
    words: new Uint32Array(bytes.buffer, contentAt, contentBytes / 4),
  };
}

/**
 * Cuts a byte stream into frames. Feed it what the socket gave, in any pieces; the buffer fed may be reused at
 * once. Chunks are handed out as views into one buffer of its own. Memory: the largest frame so far, at most
 * `framePayloadBytesMax`.
 */
export class FrameReader {
  readonly #onFrame: (frame: Frame) => void;
  readonly #head = new Uint8Array(frameHeadBytes);
  readonly #headView = new DataView(this.#head.buffer);
  #headFilled = 0;
  #payload = new Uint8Array(4_096);
  #payloadFilled = 0;
  #payloadSize = 0;

  constructor(onFrame: (frame: Frame) => void) {
    this.#onFrame = onFrame;
  }

  /** Throws `invalid_request` at the first frame that breaks the protocol; feed nothing after that. */
  feed(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) {
      if (this.#headFilled < frameHeadBytes) {
        const take = Math.min(frameHeadBytes - this.#headFilled, bytes.length - at);
        this.#head.set(bytes.subarray(at, at + take), this.#headFilled);
        this.#headFilled += take;
        at += take;
        if (this.#headFilled < frameHeadBytes) return;
        this.#payloadSize = this.#headView.getUint32(0, true);
        this.#payloadFilled = 0;
        if (this.#payloadSize > framePayloadBytesMax) {
          throw broken(`a payload of ${this.#payloadSize} bytes exceeds ${framePayloadBytesMax}`);
        }
        if (this.#payload.length < this.#payloadSize) {
          this.#payload = new Uint8Array(
            Math.min(framePayloadBytesMax, Math.max(this.#payloadSize, this.#payload.length * 2)),
          );
        }
      }
      const take = Math.min(this.#payloadSize - this.#payloadFilled, bytes.length - at);
      this.#payload.set(bytes.subarray(at, at + take), this.#payloadFilled);
      this.#payloadFilled += take;
      at += take;
      if (this.#payloadFilled < this.#payloadSize) return;
      this.#headFilled = 0;
      this.#onFrame(
        decodeFrame(
          this.#headView.getUint32(4, true),
          this.#headView.getUint32(8, true),
          this.#payload.subarray(0, this.#payloadSize),
        ),
      );
    }
  }
}

/** Reads a payload with bounds checked by `DataView`, whose RangeError means a frame cut short. */
class Reader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  get at(): number {
    return this.#at;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  u8(): number {
    if (this.left < 1) throw broken("cut short");
    return this.#bytes[this.#at++] as number;
  }

  u32(): number {
    if (this.left < 4) throw broken("cut short");
    const value = this.#view.getUint32(this.#at, true);
    this.#at += 4;
    return value;
  }

  text(): string {
    const size = this.u32();
    if (size > textBytesMax || size > this.left) throw broken(`a text of ${size} bytes`);
    this.#at += size;
    try {
      return decoder.decode(this.#bytes.subarray(this.#at - size, this.#at));
    } catch {
      throw broken("a text that is not UTF-8");
    }
  }

  words(count: number): Uint32Array {
    if (count * 4 > this.left) throw broken("cut short");
    const out = new Uint32Array(count);
    for (let i = 0; i < count; i++) out[i] = this.u32();
    return out;
  }

  close<T>(value: T): T {
    if (this.left > 0) throw broken(`${this.left} bytes too many`);
    return value;
  }
}

function decodeFrame(type: number, id: number, payload: Uint8Array): Frame {
  if (type === types.chunk) return decodeChunk(id, payload);
  const reader = new Reader(payload);
  switch (type) {
    case types.hello:
      return reader.close({
        kind: "hello",
        version: reader.u32(),
        engineId: reader.text(),
        instance: reader.text(),
        fingerprint: reader.text(),
      });
    case types.pull: {
      const mode = modes[reader.u8()];
      if (mode === undefined) throw broken("unknown pull mode");
      const key = reader.text();
      const firstBlock = reader.u32();
      const blockCount = reader.u32();
      const blocks = reader.words(reader.u32());
      if (mode === "blocks" && blocks.length !== blockCount) {
        throw broken("block count and list differ");
      }
      return reader.close({ kind: "pull", id, mode, key, firstBlock, blockCount, blocks });
    }
    case types.end: {
      const cachedTokens = reader.u32();
      const tokens = [...reader.words(reader.u32())];
      return reader.close({ kind: "end", id, cachedTokens, tokens });
    }
    case types.done: {
      const outcome = outcomes[reader.u8()];
      if (outcome === undefined) throw broken("unknown outcome");
      return reader.close({ kind: "done", outcome, key: reader.text() });
    }
    case types.heartbeat: {
      const count = reader.u32();
      if (count > heartbeatIdsMax) throw broken(`a heartbeat for ${count} hand-offs`);
      return reader.close({
        kind: "heartbeat",
        keys: Array.from({ length: count }, () => reader.text()),
      });
    }
    case types.abort:
      return reader.close({ kind: "abort", id, reason: reader.text() });
    default:
      throw broken(`type ${type} is unknown`);
  }
}

function decodeChunk(id: number, payload: Uint8Array): Frame {
  const reader = new Reader(payload);
  const firstBlock = reader.u32();
  const blockCount = reader.u32();
  const offsetBytes = reader.u32();
  const contentAt = 12 + 4 * blockCount;
  const contentBytes = payload.length - contentAt;
  const whole = blockCount >= 1 && blockCount <= chunkBlocksMax && contentBytes > 0;
  if (!whole || contentBytes > chunkBytesMax || contentBytes % (16 * blockCount) !== 0) {
    throw broken(`a chunk of ${blockCount} blocks in ${payload.length} bytes`);
  }
  return {
    kind: "chunk",
    id,
    firstBlock,
    blockCount,
    offsetBytes,
    checksums: new Uint32Array(payload.buffer, payload.byteOffset + 12, blockCount),
    words: new Uint32Array(payload.buffer, payload.byteOffset + contentAt, contentBytes / 4),
  };
}
