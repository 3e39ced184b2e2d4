import { readFileSync } from "node:fs";
import { decode as msgpackDecode, encode } from "@msgpack/msgpack";
import { describe, expect, test } from "vitest";
import { decodeKvEventBatch } from "../../services/worker/core/kv-events/decode.ts";
import type {
  KvEvent,
  KvEventBatch,
  StoredEvent,
} from "../../services/worker/core/kv-events/kv-event.ts";
import { readRecordedMessages } from "../support/recorded-messages.ts";

const fixture = (name: string): URL => new URL(`../fixtures/vllm-events/${name}`, import.meta.url);
const hex = (text: string): Uint8Array => Buffer.from(text.replaceAll(/\s/g, ""), "hex");

function decoded(payload: Uint8Array): KvEventBatch {
  const result = decodeKvEventBatch(payload);
  if (!result.ok)
    throw new Error(`refused: ${result.failure.code} at ${String(result.failure.offset)}`);
  return result.batch;
}

function onlyEvent(payload: Uint8Array): KvEvent {
  const [event] = decoded(payload).events;
  if (event === undefined) throw new Error("no event");
  return event;
}

function stored(payload: Uint8Array): StoredEvent {
  const event = onlyEvent(payload);
  if (event.kind !== "stored") throw new Error(`a ${event.kind} event`);
  return event;
}

function bigHashes(pairs: Uint32Array): bigint[] {
  const out: bigint[] = [];
  for (let i = 0; i < pairs.length; i += 2) {
    out.push((BigInt(pairs[i + 1] ?? 0) << 32n) | BigInt(pairs[i] ?? 0));
  }
  return out;
}

/** Byte-exact examples of each form, envelope times 1700000000.5. */
const golden = {
  oldestArray: hex(
    "92 cb41d954fc40200000 91 96 ab426c6f636b53746f726564 91cf0000011f71fb04cb c0 9401020304 04 c0",
  ),
  longArray: hex(`93 cb41d954fc40200000 93
    9b ab426c6f636b53746f726564 91cfdab89baa7b5857c0 c0 9401020304 04 c0 a3475055 c0 91c0 00 ae66756c6c5f617474656e74696f6e
    94 ac426c6f636b52656d6f766564 912a a3475055 00
    91 b0416c6c426c6f636b73436c6561726564
    00`),
  map: hex(`93 cb41d954fc40200000 91 8b
    a474797065 ab426c6f636b53746f726564
    ac626c6f636b5f686173686573 91cfdab89baa7b5857c0
    b1706172656e745f626c6f636b5f68617368 c0
    a9746f6b656e5f696473 9401020304
    aa626c6f636b5f73697a65 04
    a76c6f72615f6964 c0
    a66d656469756d a3475055
    a96c6f72615f6e616d65 c0
    aa65787472615f6b657973 91c0
    a967726f75705f696478 00
    b26b765f63616368655f737065635f6b696e64 ae66756c6c5f617474656e74696f6e
    00`),
  mapRemoved: hex(`93 cb41d954fc40400000 92
    84 a474797065 ac426c6f636b52656d6f766564 ac626c6f636b5f686173686573 91cfdab89baa7b5857c0 a66d656469756d a3475055 a967726f75705f696478 00
    81 a474797065 b0416c6c426c6f636b73436c6561726564
    00`),
  signed: hex(`93 cb41d954fc40200000 92
    97 ab426c6f636b53746f726564 91d39c00000000000000 cf1000000000000001 9401020304 04 c0 a3475055
    93 ac426c6f636b52656d6f766564 91d39c00000000000000 aa4350555f50494e4e4544
    00`),
};

describe("KV event batches, byte for byte", () => {
  test("reads the oldest array form, two elements in the envelope", () => {
    expect(decoded(golden.oldestArray)).toMatchObject({
      publishedSeconds: 1_700_000_000.5,
      dpRank: undefined,
    });
    const event = stored(golden.oldestArray);
    expect(bigHashes(event.hashes)).toEqual([1_234_567_890_123n]);
    expect([...event.tokens]).toEqual([1, 2, 3, 4]);
    expect(event).toMatchObject({ blockSizeTokens: 4, hasParent: false, medium: undefined });
  });

  test("reads the long array form with a removal and a clear", () => {
    const batch = decoded(golden.longArray);
    expect(batch.dpRank).toBe(0);
    expect(batch.events.map((event) => event.kind)).toEqual(["stored", "removed", "cleared"]);
    expect(batch.events[0]).toMatchObject({
      medium: "GPU",
      groupIndex: 0,
      specKind: "full_attention",
      extraKeys: undefined,
    });
    expect(batch.events[1]).toMatchObject({ medium: "GPU", groupIndex: 0 });
  });

  test("reads the map form to the same event as the array form", () => {
    expect(onlyEvent(golden.map)).toEqual(decoded(golden.longArray).events[0]);
    const removed = decoded(golden.mapRemoved).events;
    expect(removed.map((event) => event.kind)).toEqual(["removed", "cleared"]);
    expect(bigHashes((removed[0] as { hashes: Uint32Array }).hashes)).toEqual([
      15_760_518_052_499_183_552n,
    ]);
  });

  test("reads negative hashes as their two's complement and keeps a parent above 2^53 exact", () => {
    const event = decoded(golden.signed).events[0] as StoredEvent;
    expect(bigHashes(event.hashes)).toEqual([BigInt.asUintN(64, -7_205_759_403_792_793_600n)]);
    expect(event).toMatchObject({ hasParent: true, parentLo: 1, parentHi: 0x1000_0000 });
  });

  test("takes the last 8 bytes of hashes given as bytes", () => {
    const digest = Buffer.from("00".repeat(24) + "dab89baa7b5857c0", "hex");
    const payload = encode([1.5, [["BlockStored", [digest], digest, [1, 2], 2]]]);
    const event = stored(payload);
    expect(bigHashes(event.hashes)).toEqual([0xdab8_9baa_7b58_57c0n]);
    expect(event).toMatchObject({ parentLo: 0x7b58_57c0, parentHi: 0xdab8_9baa });
  });

  test("reads token pairs of a bigram cache as the first of each pair", () => {
    const pairs = [[1, 2], [2, 3], [3, 4], [4, 5]]; // prettier-ignore
    const event = stored(encode([1.5, [["BlockStored", [7], null, pairs, 4]]]));
    expect([...event.tokens]).toEqual([1, 2, 3, 4]);
    expect(event.bigram).toBe(true);
  });

  test("skips unknown keys, trailing elements, event types and a list before the group", () => {
    const batch = decoded(
      encode([
        1.5,
        [
          {
            type: "BlockStored",
            x: { y: [1, new Uint8Array(3)] },
            5: 6,
            block_hashes: [1],
            token_ids: [9],
            block_size: 1,
          },
          { type: "BlockWarmed", block_hashes: "what" },
          ["BlockMoved", 1, 2],
          [
            "BlockStored",
            [2],
            null,
            [9],
            1,
            null,
            "GPU",
            null,
            null,
            [["m"]],
            3,
            "full_attention",
            7,
            "new",
          ],
        ],
        2,
        "more",
      ]),
    );
    expect(batch.unknownEventCount).toBe(2);
    expect(batch.dpRank).toBe(2);
    expect(batch.events[1]).toMatchObject({ groupIndex: 3, specKind: "full_attention" });
  });

  test("tells texts, media and other extra keys apart", () => {
    const extra = [["salt"], null, [["mm", 3], "bare"], [[1, 2, 3]], [new Uint8Array([1])]];
    const event = stored(
      encode([
        1.5,
        [
          {
            type: "BlockStored",
            block_hashes: [1, 2, 3, 4, 5],
            token_ids: [1, 2, 3, 4, 5],
            block_size: 1,
            extra_keys: extra,
          },
        ],
      ]),
    );
    expect(event.extraKeys).toEqual([
      [{ kind: "text", text: "salt" }],
      undefined,
      [
        { kind: "media", id: "mm" },
        { kind: "text", text: "bare" },
      ],
      [{ kind: "other" }],
      [{ kind: "other" }],
    ]);
  });

  test.each([
    ["an empty payload", hex(""), "truncated"],
    ["a cut payload", golden.map.subarray(0, 60), "truncated"],
    ["bytes after the batch", Buffer.concat([golden.map, hex("c0")]), "trailing_bytes"],
    ["a map as envelope", hex("81a161c0"), "wrong_type"],
    ["an envelope of one", hex("91cb41d954fc40200000"), "missing_field"],
    ["a time that is no number", encode(["now", []]), "wrong_type"],
    ["a time that is not finite", encode([Infinity, []]), "bad_number"],
    ["a length far beyond the payload", hex("92cb41d954fc40200000ddffffffff"), "too_large"],
    ["more hashes than bytes", encodeWithHugeArray(), "truncated"],
    ["a hash of 4 bytes", encode([1.5, [["BlockRemoved", [new Uint8Array(4)]]]]), "bad_number"],
    ["a hash as text", encode([1.5, [["BlockRemoved", ["abc"]]]]), "wrong_type"],
    ["a negative token", encode([1.5, [["BlockStored", [1], null, [-1], 1]]]), "bad_number"],
    [
      "a token above 32 bits",
      encode([1.5, [["BlockStored", [1], null, [2 ** 33], 1]]]),
      "bad_number",
    ],
    ["a block size of 0", encode([1.5, [["BlockStored", [1], null, [1], 0]]]), "bad_number"],
    ["a store without tokens", encode([1.5, [["BlockStored", [1], null]]]), "missing_field"],
    ["a map event without a type", encode([1.5, [{ block_hashes: [1] }]]), "missing_field"],
    [
      "a text that is not UTF-8",
      hex("92cb41d954fc402000009193ac426c6f636b52656d6f76656491 01 a2ff fe"),
      "bad_text",
    ],
    [
      "nesting without end",
      Buffer.concat([hex("92cb41d954fc402000009192a158"), Buffer.alloc(100_000, 0x91), hex("c0")]),
      "too_deep",
    ],
  ])("refuses %s", (_what, payload, code) => {
    expect(decodeKvEventBatch(payload)).toMatchObject({ ok: false, failure: { code } });
  });
});

function encodeWithHugeArray(): Uint8Array {
  return hex("92cb41d954fc402000009192ac426c6f636b52656d6f766564 dd000fffff 01");
}

interface Index {
  readonly files: Record<
    string,
    {
      readonly messages: number;
      readonly events: Record<string, number>;
      readonly distinct_blocks_at_end: number;
      readonly max_distinct_blocks: number;
    }
  >;
}

describe("recorded vLLM 0.32.0 streams", () => {
  const index = JSON.parse(readFileSync(fixture("index.json"), "utf8")) as Index;

  test.each(Object.keys(index.files))("%s has the events and block counts of its index", (name) => {
    const expected = index.files[name];
    const counts: Record<string, number> = {};
    const held = new Set<bigint>();
    let most = 0;
    const names = { stored: "BlockStored", removed: "BlockRemoved", cleared: "AllBlocksCleared" };
    for (const frames of readRecordedMessages(fixture(name))) {
      const payload = frames.at(-1);
      if (payload === undefined || payload.length === 0 || payload.every((b) => b === 0xff))
        continue;
      for (const event of decoded(payload).events) {
        counts[names[event.kind]] = (counts[names[event.kind]] ?? 0) + 1;
        if (event.kind === "cleared") held.clear();
        else {
          for (const hash of bigHashes(event.hashes)) {
            if (event.kind === "stored") held.add(hash);
            else held.delete(hash);
          }
        }
        most = Math.max(most, held.size);
      }
    }
    expect(counts).toEqual(expected?.events);
    expect(held.size).toBe(expected?.distinct_blocks_at_end);
    expect(most).toBe(expected?.max_distinct_blocks);
  });

  test.each(Object.keys(index.files))("%s reads as the reference decoder reads it", (name) => {
    for (const frames of readRecordedMessages(fixture(name))) {
      const payload = frames.at(-1);
      if (payload === undefined || payload.length === 0 || payload.every((b) => b === 0xff))
        continue;
      const [ts, events, rank] = msgpackDecode(payload, { useBigInt64: true }) as [
        number,
        Record<string, unknown>[],
        number | bigint,
      ];
      const batch = decoded(payload);
      expect(batch.publishedSeconds).toBe(ts);
      expect(batch.dpRank).toBe(Number(rank));
      batch.events.forEach((event, i) => {
        const reference = events[i] ?? {};
        if (event.kind === "cleared") return;
        const hashes = (reference["block_hashes"] as (bigint | number | Uint8Array)[]).map(
          (hash) =>
            hash instanceof Uint8Array
              ? Buffer.from(hash).readBigUInt64BE(hash.length - 8)
              : BigInt(hash),
        );
        expect(bigHashes(event.hashes)).toEqual(hashes);
        expect(event.medium).toBe(reference["medium"]);
        if (event.kind === "stored") {
          expect([...event.tokens]).toEqual(
            (reference["token_ids"] as (number | bigint)[]).map(Number),
          );
          expect(event.blockSizeTokens).toBe(Number(reference["block_size"]));
          expect(event.specKind).toBe(reference["kv_cache_spec_kind"]);
          const salts = (reference["extra_keys"] as (unknown[] | null)[]).map((keys) => keys?.[0]);
          const ours = event.extraKeys?.map((keys) => keys?.[0]);
          expect(
            ours?.map((key) => (key?.kind === "text" ? key.text : undefined)) ??
              salts.map(() => undefined),
          ).toEqual(salts);
        }
      });
    }
  });
});
