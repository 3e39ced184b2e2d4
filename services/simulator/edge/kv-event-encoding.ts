import type { BlockEvent } from "../core/engine/engine-types.ts";

/** Which of vLLM's two event encodings is written: maps since 0.24, tagged arrays before. */
export type KvEventFormat = "map" | "array";

/**
 * Growing msgpack writer for event batches. Hand-written because a batch is mostly token ids: about 20 ns a
 * token, against 100 ns and a copy into plain arrays with a general encoder.
 */
class Writer {
  #buffer = Buffer.alloc(64 * 1024);
  #at = 0;

  take(): Buffer {
    const out = Buffer.from(this.#buffer.subarray(0, this.#at));
    this.#at = 0;
    // A long prompt's batch must not pin its size for ever.
    if (this.#buffer.length > 4 * 1024 * 1024) this.#buffer = Buffer.alloc(64 * 1024);
    return out;
  }

  room(bytes: number): void {
    if (this.#at + bytes <= this.#buffer.length) return;
    const grown = Buffer.alloc(Math.max(this.#buffer.length * 2, this.#at + bytes));
    this.#buffer.copy(grown, 0, 0, this.#at);
    this.#buffer = grown;
  }

  nil(): void {
    this.room(1);
    this.#buffer[this.#at++] = 0xc0;
  }

  float(value: number): void {
    this.room(9);
    this.#buffer[this.#at++] = 0xcb;
    this.#at = this.#buffer.writeDoubleBE(value, this.#at);
  }

  uint(value: number): void {
    this.room(5);
    const buffer = this.#buffer;
    if (value < 0x80) {
      buffer[this.#at++] = value;
    } else if (value < 0x100) {
      buffer[this.#at++] = 0xcc;
      buffer[this.#at++] = value;
    } else if (value < 0x10000) {
      buffer[this.#at++] = 0xcd;
      buffer[this.#at++] = value >>> 8;
      buffer[this.#at++] = value & 0xff;
    } else {
      buffer[this.#at++] = 0xce;
      this.#at = buffer.writeUInt32BE(value, this.#at);
    }
  }

  /** Unsigned 64-bit integer in its shortest form, from two words. */
  hash(low: number, high: number): void {
    if (high === 0) {
      this.uint(low);
      return;
    }
    this.room(9);
    this.#buffer[this.#at++] = 0xcf;
    this.#at = this.#buffer.writeUInt32BE(high, this.#at);
    this.#at = this.#buffer.writeUInt32BE(low, this.#at);
  }

  text(value: string): void {
    const size = Buffer.byteLength(value);
    this.room(size + 5);
    if (size < 32) {
      this.#buffer[this.#at++] = 0xa0 | size;
    } else if (size < 0x100) {
      this.#buffer[this.#at++] = 0xd9;
      this.#buffer[this.#at++] = size;
    } else {
      this.#buffer[this.#at++] = 0xda;
      this.#at = this.#buffer.writeUInt16BE(size, this.#at);
    }
    this.#at += this.#buffer.write(value, this.#at);
  }

  array(length: number): void {
    this.head(length, 0x90, 0xdc);
  }

  map(length: number): void {
    this.head(length, 0x80, 0xde);
  }

  head(length: number, short: number, long: number): void {
    this.room(5);
    if (length < 16) {
      this.#buffer[this.#at++] = short | length;
    } else if (length < 0x10000) {
      this.#buffer[this.#at++] = long;
      this.#at = this.#buffer.writeUInt16BE(length, this.#at);
    } else {
      this.#buffer[this.#at++] = long + 1;
      this.#at = this.#buffer.writeUInt32BE(length, this.#at);
    }
  }
}

const writer = new Writer();

/**
 * One batch as vLLM publishes it: `[ts, [event…], data-parallel rank]`. `timestampS` is wall time in seconds.
 * Key order and presence are those of vLLM 0.32.0; the array form has its eleven positions.
 */
export function encodeEventBatch(options: {
  events: readonly BlockEvent[];
  timestampS: number;
  blockSizeTokens: number;
  format: KvEventFormat;
}): Buffer {
  writer.array(3);
  writer.float(options.timestampS);
  writer.array(options.events.length);
  for (const event of options.events) {
    if (options.format === "map") writeMap(event, options.blockSizeTokens);
    else writeArray(event, options.blockSizeTokens);
  }
  writer.uint(0);
  return writer.take();
}

type Stored = Extract<BlockEvent, { kind: "stored" }>;

function writeMap(event: BlockEvent, blockSizeTokens: number): void {
  switch (event.kind) {
    case "stored": {
      const session = event.request.sessionId;
      writer.map(session === undefined ? 11 : 12);
      writer.text("type");
      writer.text("BlockStored");
      writer.text("block_hashes");
      writeHashes(event.hashes);
      writer.text("parent_block_hash");
      writeParent(event);
      writer.text("token_ids");
      writeTokens(event.tokens);
      writer.text("block_size");
      writer.uint(blockSizeTokens);
      writer.text("lora_id");
      writer.nil();
      writer.text("medium");
      writer.text("GPU");
      writer.text("lora_name");
      writeLora(event);
      writer.text("extra_keys");
      writeExtraKeys(event);
      writer.text("group_idx");
      writer.uint(0);
      writer.text("kv_cache_spec_kind");
      writer.text("full_attention");
      if (session !== undefined) {
        writer.text("session_id");
        writer.text(session);
      }
      return;
    }
    case "removed":
      writer.map(4);
      writer.text("type");
      writer.text("BlockRemoved");
      writer.text("block_hashes");
      writer.array(1);
      writer.hash(event.low, event.high);
      writer.text("medium");
      writer.text("GPU");
      writer.text("group_idx");
      writer.uint(0);
      return;
    case "cleared":
      writer.map(1);
      writer.text("type");
      writer.text("AllBlocksCleared");
      return;
  }
}

function writeArray(event: BlockEvent, blockSizeTokens: number): void {
  switch (event.kind) {
    case "stored":
      writer.array(11);
      writer.text("BlockStored");
      writeHashes(event.hashes);
      writeParent(event);
      writeTokens(event.tokens);
      writer.uint(blockSizeTokens);
      writer.nil();
      writer.text("GPU");
      writeLora(event);
      writeExtraKeys(event);
      writer.uint(0);
      writer.text("full_attention");
      return;
    case "removed":
      writer.array(4);
      writer.text("BlockRemoved");
      writer.array(1);
      writer.hash(event.low, event.high);
      writer.text("GPU");
      writer.uint(0);
      return;
    case "cleared":
      writer.array(1);
      writer.text("AllBlocksCleared");
      return;
  }
}

function writeHashes(hashes: Uint32Array): void {
  writer.array(hashes.length / 2);
  for (let i = 0; i < hashes.length; i += 2) {
    writer.hash(hashes[i] as number, hashes[i + 1] as number);
  }
}

function writeParent(event: Stored): void {
  if (event.parent === undefined) writer.nil();
  else writer.hash(event.parent[0] as number, event.parent[1] as number);
}

function writeTokens(tokens: Uint32Array): void {
  writer.array(tokens.length);
  writer.room(tokens.length * 5);
  for (const token of tokens) writer.uint(token);
}

function writeLora(event: Stored): void {
  const lora = event.request.scope?.loraName;
  if (lora === undefined) writer.nil();
  else writer.text(lora);
}

/** One entry per block: what beside the tokens is part of its hash, untagged, or nil. */
function writeExtraKeys(event: Stored): void {
  const blocks = event.hashes.length / 2;
  const lora = event.request.scope?.loraName;
  writer.array(blocks);
  for (let i = 0; i < blocks; i++) {
    const salt = event.firstBlock + i === 0 ? event.request.scope?.cacheSalt : undefined;
    const keys = [lora, salt].filter((key) => key !== undefined);
    if (keys.length === 0) {
      writer.nil();
      continue;
    }
    writer.array(keys.length);
    for (const key of keys) writer.text(key);
  }
}
