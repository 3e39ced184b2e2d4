import { decode as decodeGeneric, encode } from "@msgpack/msgpack";
import { describe, expect, test } from "vitest";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { decodeKvEventBatch } from "../../services/worker/core/kv-events/decode.ts";
import type { KvEventBatch, StoredEvent } from "../../services/worker/core/kv-events/kv-event.ts";
import { readRecordedMessages } from "../support/recorded-messages.ts";

/** How long each fuzz runs, s; a nightly run sets more. */
const seconds = Number(process.env["KVMESH_FUZZ_SECONDS"] ?? "5") / 2;
const seed = Number(process.env["KVMESH_FUZZ_SEED"] ?? "1");

const recorded = [
  "kv-events-sha256-int.bin",
  "kv-events-sha256_cbor-int.bin",
  "kv-events-xxhash_cbor-bytes.bin",
].flatMap((name) =>
  readRecordedMessages(new URL(`../fixtures/vllm-events/${name}`, import.meta.url)).map(
    (frames) => new Uint8Array(frames[2] ?? new Uint8Array(0)),
  ),
);

/** Runs `once` with numbered cases until the time is over; returns how many. */
function forSeconds(once: (random: SeededRandom, index: number) => void): number {
  const endAt = performance.now() + seconds * 1_000;
  let index = 0;
  for (; performance.now() < endAt; index++) {
    try {
      once(new SeededRandom(seed * 1_000_003 + index), index);
    } catch (cause) {
      throw new Error(`case ${String(index)} of seed ${String(seed)}`, { cause });
    }
  }
  return index;
}

type Value = unknown;

/**
 * What the generic library reads. Undefined when it refuses a value that means nothing to it, such as a
 * map key that is a list: we skip those unread. Throws when bytes are missing or left over.
 */
function generic(payload: Uint8Array): Value {
  try {
    return decodeGeneric(payload, { useBigInt64: true });
  } catch (error) {
    if (error instanceof RangeError) throw error;
    return undefined;
  }
}

function hashOf(value: Value): readonly [number, number] {
  const bits =
    value instanceof Uint8Array
      ? new DataView(value.buffer, value.byteOffset, value.length).getBigUint64(value.length - 8)
      : BigInt.asUintN(64, BigInt(value as number | bigint));
  return [Number(bits & 0xffff_ffffn), Number(bits >> 32n)];
}

const storedFields = [
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
] as const;
const removedFields = ["type", "block_hashes", "medium", "group_idx"] as const;

/** Fields of an event by name, from either form. */
function fieldsOf(event: Value): Readonly<Record<string, Value>> {
  if (!Array.isArray(event)) return event as Record<string, Value>;
  const values = event as readonly Value[];
  const names = values[0] === "BlockRemoved" ? removedFields : storedFields;
  return Object.fromEntries(names.map((name, i) => [name, values[i]]));
}

/** Compares a decoded batch with what the generic library read from the same bytes. */
function expectSame(batch: KvEventBatch, value: Value): void {
  const [seconds, events, rank] = value as [number | bigint, Value[], (number | null)?];
  expect(batch.publishedSeconds).toBe(Number(seconds));
  expect(batch.dpRank ?? null).toBe(rank ?? null);
  const known = events.map(fieldsOf).filter((event) => isKnown(event["type"]));
  expect(batch.unknownEventCount).toBe(events.length - known.length);
  expect(batch.events.length).toBe(known.length);
  for (const [i, event] of batch.events.entries()) {
    const fields = known[i] ?? {};
    if (event.kind === "cleared") {
      expect(fields["type"]).toBe("AllBlocksCleared");
      continue;
    }
    expect(fields["type"]).toBe(event.kind === "stored" ? "BlockStored" : "BlockRemoved");
    expect([...event.hashes]).toEqual((fields["block_hashes"] as Value[]).flatMap(hashOf));
    expect(event.medium ?? null).toBe(fields["medium"] ?? null);
    if (event.kind === "stored") expectSameStored(event, fields);
  }
}

function isKnown(type: Value): boolean {
  return type === "BlockStored" || type === "BlockRemoved" || type === "AllBlocksCleared";
}

function expectSameStored(event: StoredEvent, fields: Readonly<Record<string, Value>>): void {
  const parent = fields["parent_block_hash"] ?? undefined;
  expect(event.hasParent).toBe(parent !== undefined);
  expect([event.parentLo, event.parentHi]).toEqual(parent === undefined ? [0, 0] : hashOf(parent));
  const tokens = (fields["token_ids"] as Value[]).map((token) =>
    Number(Array.isArray(token) ? (token as Value[])[0] : token),
  );
  expect([...event.tokens]).toEqual(tokens);
  expect(event.blockSizeTokens).toBe(Number(fields["block_size"]));
  expect(event.loraId).toBe(fields["lora_id"] ?? undefined);
  expect(event.loraName).toBe(fields["lora_name"] ?? undefined);
}

/** A batch of either form, with values of every width. */
function randomBatch(random: SeededRandom): Uint8Array {
  const wide = (): bigint =>
    (BigInt(random.int(0x1_0000_0000)) << 32n) | BigInt(random.int(0x1_0000_0000));
  const bytes = (size: number): Uint8Array =>
    Uint8Array.from({ length: size }, () => random.int(256));
  const asBytes = random.int(4) === 0;
  const hash = (): Value => {
    if (asBytes) return bytes(random.int(2) === 0 ? 16 : 32);
    return random.int(3) === 0 ? random.int(1 << random.int(31)) : BigInt.asIntN(64, wide());
  };
  const list = (max: number, make: () => Value): Value[] =>
    Array.from({ length: random.int(max) }, make);
  const orNil = (make: () => Value): Value => (random.int(2) === 0 ? null : make());
  const token = (): number => random.int(2 ** random.int(32));
  const event = (): Value => {
    const asMap = random.int(2) === 0;
    const kind = random.int(8);
    const medium = orNil(() => ["GPU", "CPU", "DISK é", "x".repeat(40)][random.int(4)]);
    if (kind === 0) return asMap ? { type: "AllBlocksCleared" } : ["AllBlocksCleared"];
    if (kind === 1) return asMap ? { type: "Other", x: [1, { y: 2 }] } : ["Other", 7, ["a"]];
    if (kind <= 3) {
      const hashes = list(4, hash);
      if (!asMap) return ["BlockRemoved", hashes, medium, orNil(() => random.int(9))];
      return { type: "BlockRemoved", block_hashes: hashes, medium, group_idx: random.int(9) };
    }
    const values: Value[] = [
      "BlockStored",
      list(20, hash),
      orNil(hash),
      random.int(5) === 0 ? list(70, () => [token(), token()]) : list(70, token),
      1 + random.int(1 << random.int(17)),
      orNil(() => random.int(100)),
      medium,
      orNil(() => "adapter"),
      orNil(() => list(5, () => orNil(() => ["salt", ["image", 3]]))),
      orNil(() => random.int(9)),
    ];
    if (!asMap) return values.slice(0, 5 + random.int(6));
    const pairs = storedFields.map((name, i) => [name, values[i]] as const);
    const order = random.int(3) === 0 ? pairs.toReversed() : pairs;
    return Object.fromEntries([...order, ["session_id", "new field"]]);
  };
  const envelope: Value[] = [
    random.int(2) === 0 ? 1.7e9 + random.next() : random.int(1 << 30),
    list(6, event),
  ];
  if (random.int(3) > 0) envelope.push(orNil(() => random.int(16)));
  return encode(envelope, { useBigInt64: true });
}

/** A campaign of any length, on a machine that is busy. */
const timeout = seconds * 2_000 + 60_000;

describe("batches of KV events", () => {
  test("recorded ones are read as the generic library reads them", () => {
    expect(recorded.length).toBeGreaterThan(100);
    for (const payload of recorded) {
      const result = decodeKvEventBatch(payload);
      if (!result.ok) throw new Error(result.failure.code);
      expectSame(result.batch, generic(payload));
    }
  });

  test(
    "made at random are read as the generic library reads them, at any place of a buffer",
    { timeout },
    () => {
      const cases = forSeconds((random) => {
        const payload = randomBatch(random);
        const before = random.int(9);
        const buffer = new Uint8Array(before + payload.length + 3).fill(0xc1);
        buffer.set(payload, before);
        const result = decodeKvEventBatch(buffer.subarray(before, before + payload.length));
        if (!result.ok)
          throw new Error(`${result.failure.code} at ${String(result.failure.offset)}`);
        expectSame(result.batch, generic(payload));
      });
      expect(cases).toBeGreaterThan(100);
    },
  );

  test(
    "damaged at random are refused or read as the generic library reads them, never more",
    { timeout },
    () => {
      let read = 0;
      const cases = forSeconds((random) => {
        const source =
          random.int(2) === 0 ? randomBatch(random) : recorded[random.int(recorded.length)];
        let payload = new Uint8Array(source ?? []);
        for (let changes = 1 + random.int(3); changes > 0; changes--) {
          const at = random.int(Math.max(1, payload.length));
          const kind = random.int(4);
          if (kind === 0) payload = payload.slice(0, at);
          else if (kind === 1) payload[at] = random.int(256);
          else if (kind === 2)
            payload[at] = [0xc1, 0xdd, 0xdf, 0xc6, 0xdb, 0x9f, 0x8f, 0xff][random.int(8)] ?? 0;
          else payload.copyWithin(at, random.int(Math.max(1, payload.length)));
        }
        const result = decodeKvEventBatch(payload);
        if (!result.ok) {
          expect(result.failure.offset).toBeLessThanOrEqual(payload.length);
          return;
        }
        // Whatever is accepted is sound MessagePack, and its blocks are those that are written there.
        const value = generic(payload);
        if (value === undefined) return;
        const [, events] = value as [unknown, unknown[]];
        expect(result.batch.events.length + result.batch.unknownEventCount).toBe(events.length);
        read++;
      });
      expect(cases).toBeGreaterThan(100);
      expect(read).toBeGreaterThan(0);
    },
  );
});
