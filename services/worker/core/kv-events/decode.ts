import { invariant } from "../../../shared/core/invariant.ts";
import type {
  DecodeFailure,
  ExtraKey,
  KvEvent,
  KvEventBatch,
  RemovedEvent,
  StoredEvent,
} from "./kv-event.ts";
import { DecodeReject, MsgpackReader } from "./msgpack-reader.ts";

/**
 * Largest payload, bytes. A step of 65,536 new tokens takes about 0.4 MiB; the limit leaves room for
 * full re-announcements of a long context.
 */
export const payloadSizeMax = 32 * 1024 * 1024;
const eventCountMax = 262_144;
const hashCountMax = 1_048_576;
const tokenCountMax = 8_388_608;
const fieldCountMax = 64;
const extraKeysPerBlockMax = 4_096;

/** A decoded batch, or why there is none. */
export type DecodeResult =
  | { readonly ok: true; readonly batch: KvEventBatch }
  | { readonly ok: false; readonly failure: DecodeFailure };

/**
 * Reads one batch as vLLM and SGLang publish it: envelope array `[ts, events, rank?]`, events as tagged
 * arrays of any known length or as maps, hashes as integers or bytes. Unknown trailing elements, map keys
 * and event types are skipped. Never throws for any input; a refused payload has no partial result.
 */
export function decodeKvEventBatch(payload: Uint8Array): DecodeResult {
  if (payload.length > payloadSizeMax) {
    return { ok: false, failure: { code: "too_large", offset: 0 } };
  }
  try {
    return { ok: true, batch: readBatch(new MsgpackReader(payload)) };
  } catch (error) {
    if (error instanceof DecodeReject) {
      return { ok: false, failure: { code: error.code, offset: error.offset } };
    }
    throw error;
  }
}

function readBatch(reader: MsgpackReader): KvEventBatch {
  const length = reader.arrayHeader(fieldCountMax);
  if (length < 2) throw new DecodeReject("missing_field", 0);
  const publishedSeconds = reader.number();
  const eventCount = reader.arrayHeader(eventCountMax);
  const events: KvEvent[] = [];
  let unknownEventCount = 0;
  for (let i = 0; i < eventCount; i++) {
    const event = reader.atMap() ? readMapEvent(reader) : readArrayEvent(reader);
    if (event === undefined) unknownEventCount++;
    else events.push(event);
  }
  const dpRank = length > 2 ? reader.integerOrNil() : undefined;
  for (let i = 3; i < length; i++) reader.skip();
  if (!reader.atEnd) throw new DecodeReject("trailing_bytes", reader.offset);
  return { publishedSeconds, dpRank, events, unknownEventCount };
}

const stored = 1;
const removed = 2;
const cleared = 3;
const typeNames: readonly (readonly [string, number])[] = [
  ["BlockStored", stored],
  ["BlockRemoved", removed],
  ["AllBlocksCleared", cleared],
];

const fieldNames = [
  "type",
  "block_hashes",
  "parent_block_hash",
  "token_ids",
  "block_size",
  "lora_id",
  "medium",
  "lora_name",
  "extra_keys",
  "group_idx",
  "kv_cache_spec_kind",
  "locality",
  "cache_salt",
] as const;
type FieldName = (typeof fieldNames)[number];

/** Names by length, then compared byte by byte: no text is made for a map key. */
function byLength<V>(
  names: readonly (readonly [string, V])[],
): readonly (readonly [Uint8Array, V][])[] {
  const encoder = new TextEncoder();
  const table: [Uint8Array, V][][] = Array.from({ length: 32 }, () => []);
  for (const [name, value] of names) {
    const bytes = encoder.encode(name);
    const row = table[bytes.length];
    invariant(row !== undefined, "a name is longer than the table");
    row.push([bytes, value]);
  }
  return table;
}

const typesByLength = byLength(typeNames);
const fieldsByLength = byLength(fieldNames.map((name) => [name, name] as const));

function lookUp<V>(
  reader: MsgpackReader,
  table: readonly (readonly [Uint8Array, V][])[],
): V | undefined {
  const from = reader.textRange();
  const row = table[reader.lo];
  if (row === undefined) return undefined;
  for (const [name, value] of row) {
    let i = 0;
    while (i < name.length && name[i] === reader.bytes[from + i]) i++;
    if (i === name.length) return value;
  }
  return undefined;
}

/** Words that nearly every event carries; found by their bytes, they cost no decoding. */
const wordsByLength = byLength(
  ["GPU", "CPU", "full_attention", "mla_attention", "sliding_window"].map(
    (word) => [word, word] as const,
  ),
);

function readWord(reader: MsgpackReader): string | undefined {
  if (reader.takeNil()) return undefined;
  return lookUp(reader, wordsByLength) ?? reader.lastText();
}

/** Fields of an event before its type says which of them it needs. */
class Fields {
  hashes: Uint32Array | undefined;
  tokens: Uint32Array | undefined;
  hasParent = false;
  parentLo = 0;
  parentHi = 0;
  blockSizeTokens = 0;
  bigram = false;
  loraId: number | undefined;
  loraName: string | undefined;
  medium: string | undefined;
  locality: string | undefined;
  salt: string | undefined;
  extraKeys: (readonly ExtraKey[] | undefined)[] | undefined;
  groupIndex: number | undefined;
  specKind: string | undefined;
}

/** Keys of a map as their bytes, in the order in which vLLM writes them: one comparison finds the next. */
const keys = fieldNames.map((name) =>
  Uint8Array.of(0xa0 | name.length, ...new TextEncoder().encode(name)),
);

function readMapEvent(reader: MsgpackReader): KvEvent | undefined {
  const start = reader.offset;
  const length = reader.mapHeader(fieldCountMax);
  const fields = new Fields();
  let type: number | undefined;
  let sawType = false;
  let expected = 0;
  for (let i = 0; i < length; i++) {
    const key = keys[expected];
    let name: FieldName | undefined;
    if (key !== undefined && reader.take(key)) {
      name = fieldNames[expected++];
    } else if (reader.atText()) {
      name = lookUp(reader, fieldsByLength);
      if (name !== undefined) expected = fieldNames.indexOf(name) + 1;
    } else {
      reader.skip();
      reader.skip();
      continue;
    }
    // Fields of an event type that is not known may mean something else, so they are not read.
    const isForeign = sawType && type === undefined;
    if (name === undefined || isForeign) reader.skip();
    else if (name === "type") {
      type = lookUp(reader, typesByLength);
      sawType = true;
    } else readField(reader, fields, name);
  }
  if (!sawType) throw new DecodeReject("missing_field", start);
  return build(fields, type, start);
}

const storedOrder: readonly FieldName[] = [
  "block_hashes",
  "parent_block_hash",
  "token_ids",
  "block_size",
  "lora_id",
  "medium",
  "lora_name",
  "extra_keys",
  "group_idx",
  "kv_cache_spec_kind",
];
const removedOrder: readonly FieldName[] = ["block_hashes", "medium", "group_idx"];

function readArrayEvent(reader: MsgpackReader): KvEvent | undefined {
  const start = reader.offset;
  const length = reader.arrayHeader(fieldCountMax);
  if (length < 1) throw new DecodeReject("missing_field", start);
  const type = lookUp(reader, typesByLength);
  const order = type === stored ? storedOrder : type === removed ? removedOrder : [];
  const fields = new Fields();
  let field = 0;
  for (let i = 1; i < length; i++) {
    const name = order[field];
    if (name === undefined) reader.skip();
    else if (name === "group_idx" && reader.atArray()) {
      // Some patched builds put a list of media in front of the group; it takes no place of ours.
      reader.skip();
      continue;
    } else readField(reader, fields, name);
    field++;
  }
  return build(fields, type, start);
}

function build(fields: Fields, type: number | undefined, start: number): KvEvent | undefined {
  if (type === undefined) return undefined;
  if (type === cleared) return { kind: "cleared" };
  const { hashes } = fields;
  if (hashes === undefined) throw new DecodeReject("missing_field", start);
  if (type === removed) {
    const { medium, locality, groupIndex } = fields;
    return { kind: "removed", hashes, medium, locality, groupIndex } satisfies RemovedEvent;
  }
  if (fields.tokens === undefined || fields.blockSizeTokens === 0) {
    throw new DecodeReject("missing_field", start);
  }
  return {
    kind: "stored",
    hashes,
    hasParent: fields.hasParent,
    parentLo: fields.parentLo,
    parentHi: fields.parentHi,
    tokens: fields.tokens,
    blockSizeTokens: fields.blockSizeTokens,
    bigram: fields.bigram,
    loraId: fields.loraId,
    loraName: fields.loraName,
    medium: fields.medium,
    locality: fields.locality,
    extraKeys: withSalt(fields),
    groupIndex: fields.groupIndex,
    specKind: fields.specKind,
  } satisfies StoredEvent;
}

/** SGLang names the salt in a field of its own; it becomes an extra key of the first block, as vLLM has it. */
function withSalt(fields: Fields): StoredEvent["extraKeys"] {
  const { salt, extraKeys } = fields;
  if (salt === undefined || fields.hasParent) return extraKeys;
  const first: readonly ExtraKey[] = [{ kind: "text", text: salt }, ...(extraKeys?.[0] ?? [])];
  return [first, ...(extraKeys?.slice(1) ?? [])];
}

function readField(reader: MsgpackReader, fields: Fields, name: FieldName): void {
  switch (name) {
    case "type":
      return;
    case "block_hashes":
      fields.hashes = reader.hashes(hashCountMax);
      return;
    case "parent_block_hash":
      fields.hasParent = !reader.takeNil();
      if (!fields.hasParent) return;
      reader.hash();
      fields.parentLo = reader.lo;
      fields.parentHi = reader.hi;
      return;
    case "token_ids":
      readTokens(reader, fields);
      return;
    case "block_size": {
      const start = reader.offset;
      fields.blockSizeTokens = reader.uint32();
      if (fields.blockSizeTokens === 0) throw new DecodeReject("bad_number", start);
      return;
    }
    case "lora_id":
      fields.loraId = reader.integerOrNil();
      return;
    case "lora_name":
      fields.loraName = reader.textOrNil();
      return;
    case "medium":
      fields.medium = readWord(reader);
      return;
    case "locality":
      fields.locality = reader.textOrNil();
      return;
    case "cache_salt":
      fields.salt = reader.textOrNil();
      return;
    case "extra_keys":
      fields.extraKeys = readExtraKeys(reader);
      return;
    case "group_idx":
      fields.groupIndex = reader.integerOrNil();
      return;
    case "kv_cache_spec_kind":
      fields.specKind = readWord(reader);
      return;
  }
}

function readTokens(reader: MsgpackReader, fields: Fields): void {
  fields.bigram = reader.holdsArrays();
  if (!fields.bigram) {
    fields.tokens = reader.tokens(tokenCountMax);
    return;
  }
  const length = reader.arrayHeader(tokenCountMax);
  const firsts = new Uint32Array(length);
  for (let i = 0; i < length; i++) {
    const start = reader.offset;
    if (reader.arrayHeader(2) !== 2) throw new DecodeReject("wrong_type", start);
    firsts[i] = reader.uint32();
    reader.uint32();
  }
  fields.tokens = firsts;
}

function readExtraKeys(reader: MsgpackReader): Fields["extraKeys"] {
  if (reader.takeNil()) return undefined;
  const count = reader.arrayHeader(hashCountMax);
  let keys: (readonly ExtraKey[] | undefined)[] | undefined;
  for (let i = 0; i < count; i++) {
    if (reader.takeNil()) continue;
    const length = reader.arrayHeader(extraKeysPerBlockMax);
    if (length === 0) continue;
    const block: ExtraKey[] = [];
    for (let k = 0; k < length; k++) block.push(readExtraKey(reader));
    keys ??= new Array<readonly ExtraKey[] | undefined>(count).fill(undefined);
    keys[i] = block;
  }
  return keys;
}

function readExtraKey(reader: MsgpackReader): ExtraKey {
  if (reader.atText()) return { kind: "text", text: reader.text() };
  if (!reader.atArray()) {
    reader.skip();
    return { kind: "other" };
  }
  const length = reader.arrayHeader(extraKeysPerBlockMax);
  if (length === 2 && reader.atText()) {
    const id = reader.text();
    reader.skip(1);
    return { kind: "media", id };
  }
  for (let i = 0; i < length; i++) reader.skip(1);
  return { kind: "other" };
}
