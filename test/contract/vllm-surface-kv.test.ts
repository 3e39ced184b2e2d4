import { readFileSync } from "node:fs";
import { decode } from "@msgpack/msgpack";
import { pino } from "pino";
import { afterEach, describe, expect, test } from "vitest";
import { Dealer, Subscriber } from "zeromq";
import type {
  BlockEvent,
  EngineRequest,
} from "../../services/simulator/core/engine/engine-types.ts";
import { garbageFrames } from "../../services/simulator/edge/faults.ts";
import { encodeEventBatch } from "../../services/simulator/edge/kv-event-encoding.ts";
import {
  KvEventPublisher,
  type KvEventPublisherOptions,
} from "../../services/simulator/edge/kv-event-publisher.ts";
import { VllmBlockHasher } from "../../services/simulator/edge/vllm-block-hasher.ts";

const fixtures = new URL("../fixtures/vllm/", import.meta.url);

interface HashVectors {
  readonly token_ids: readonly number[];
  readonly vectors: readonly {
    readonly algo: string;
    readonly seed: string;
    readonly case: string;
    readonly block_size: number;
    readonly digests: readonly string[];
    readonly u64: readonly string[];
  }[];
}

describe("block hashes", () => {
  const file = JSON.parse(
    readFileSync(new URL("block-hash-vectors.json", fixtures), "utf8"),
  ) as HashVectors;
  const vectors = file.vectors.filter((vector) => vector.algo === "sha256_cbor");

  test("there are golden vectors with salt, LoRA and another seed", () => {
    expect(vectors.length).toBeGreaterThanOrEqual(12);
    expect(new Set(vectors.map((v) => v.case))).toEqual(new Set(["plain", "cache_salt", "lora"]));
    expect(new Set(vectors.map((v) => v.seed)).size).toBeGreaterThan(1);
  });

  for (const vector of vectors) {
    test(`equal vLLM's: ${vector.case}, seed ${vector.seed}, block size ${String(vector.block_size)}`, () => {
      const hasher = new VllmBlockHasher(vector.block_size, vector.seed);
      const scope = {
        ...(vector.case === "cache_salt" ? { cacheSalt: "tenant-1" } : {}),
        ...(vector.case === "lora" ? { loraName: "my-lora" } : {}),
      };
      const chain = hasher.startChain(scope);
      const tokens = Uint32Array.from(file.token_ids);
      const out = new Uint32Array(vector.u64.length * 2);
      let parent: Buffer | undefined;
      vector.u64.forEach((expected, i) => {
        chain.next(tokens, i * vector.block_size, out, i * 2);
        const got = (BigInt(out[i * 2 + 1] as number) << 32n) | BigInt(out[i * 2] as number);
        expect(String(got)).toBe(expected);
        parent = hasher.digest(parent, tokens, i * vector.block_size, scope);
        expect(parent.toString("hex")).toBe(vector.digests[i]);
      });
    });
  }
});

const request: EngineRequest = {
  id: "r",
  promptTokens: Uint32Array.of(1, 2, 3, 4),
  outputTokensMax: 1,
};
const stored: BlockEvent = {
  kind: "stored",
  // 15760518052499183552
  hashes: Uint32Array.of(0x7b5857c0, 0xdab89baa),
  parent: undefined,
  tokens: Uint32Array.of(1, 2, 3, 4),
  firstBlock: 0,
  request,
};
const removed: BlockEvent = { kind: "removed", low: 42, high: 0 };
const cleared: BlockEvent = { kind: "cleared" };

function batch(
  events: readonly BlockEvent[],
  format: "map" | "array",
  timestampS = 1_700_000_000.5,
): Buffer {
  return encodeEventBatch({ events, timestampS, blockSizeTokens: 4, format });
}

describe("event batches", () => {
  test("map form of a store, byte for byte as vLLM 0.24 and later write it", () => {
    expect(batch([stored], "map").toString("hex")).toBe(
      "93cb41d954fc40200000918ba474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657391cfdab89baa7b5857c0" +
        "b1706172656e745f626c6f636b5f68617368c0a9746f6b656e5f6964739401020304aa626c6f636b5f73697a6504a76c6f72615f6964c0" +
        "a66d656469756da3475055a96c6f72615f6e616d65c0aa65787472615f6b65797391c0a967726f75705f69647800" +
        "b26b765f63616368655f737065635f6b696e64ae66756c6c5f617474656e74696f6e00",
    );
  });

  test("map form of a removal and a clear", () => {
    const big: BlockEvent = { kind: "removed", low: 0x7b5857c0, high: 0xdab89baa };
    expect(batch([big, cleared], "map", 1_700_000_001).toString("hex")).toBe(
      "93cb41d954fc404000009284a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391cfdab89baa7b5857c0" +
        "a66d656469756da3475055a967726f75705f6964780081a474797065b0416c6c426c6f636b73436c656172656400",
    );
  });

  test("array form of a store, a removal and a clear, as before 0.24", () => {
    expect(batch([stored, removed, cleared], "array").toString("hex")).toBe(
      "93cb41d954fc40200000939bab426c6f636b53746f72656491cfdab89baa7b5857c0c09401020304" +
        "04c0a3475055c091c000ae66756c6c5f617474656e74696f6e" +
        "94ac426c6f636b52656d6f766564912aa347505500" +
        "91b0416c6c426c6f636b73436c656172656400",
    );
  });

  test("keys stand in the order of the recorded engine", () => {
    const index = JSON.parse(readFileSync(new URL("index.json", fixtures), "utf8")) as {
      files: Record<string, { first_event_keys: string[] }>;
    };
    const [, events] = decode(batch([stored], "map")) as [number, Record<string, unknown>[]];
    expect(Object.keys(events[0] ?? {})).toEqual(
      index.files["kv-events-sha256_cbor-int.bin"]?.first_event_keys,
    );
  });

  test("salt, LoRA, session, large tokens and long lists survive a general decoder", () => {
    const tokens = Uint32Array.from({ length: 400 }, (_, i) => i * 400);
    const event: BlockEvent = {
      kind: "stored",
      hashes: Uint32Array.from({ length: 200 }, (_, i) => i + 1),
      parent: Uint32Array.of(5, 0),
      tokens,
      firstBlock: 0,
      request: { ...request, scope: { cacheSalt: "s", loraName: "l" }, sessionId: "chat-1" },
    };
    const [ts, [got], rank] = decode(batch([event], "map"), { useBigInt64: true }) as [
      number,
      Record<string, unknown>[],
      number,
    ];
    expect([ts, rank]).toEqual([1_700_000_000.5, 0]);
    expect(got).toMatchObject({
      token_ids: [...tokens],
      parent_block_hash: 5,
      lora_name: "l",
      session_id: "chat-1",
      block_size: 4,
    });
    const hashes = got?.["block_hashes"] as (bigint | number)[];
    expect(hashes).toHaveLength(100);
    expect(hashes[99]).toBe((200n << 32n) | 199n);
    const extra = got?.["extra_keys"] as unknown[];
    expect(extra).toHaveLength(100);
    expect(extra.slice(0, 2)).toEqual([["l", "s"], ["l"]]);
  });
});

describe("event publisher", () => {
  const open: { close(): void }[] = [];
  afterEach(() => {
    for (const socket of open.splice(0)) socket.close();
  });

  async function publisher(
    overrides: Partial<KvEventPublisherOptions> = {},
  ): Promise<KvEventPublisher> {
    const made = new KvEventPublisher(
      {
        host: "127.0.0.1",
        port: 0,
        replayPort: 0,
        bufferSteps: 100,
        hwm: 1_000,
        queueMax: 1_000,
        replayTopic: true,
        ...overrides,
      },
      pino({ level: "silent" }),
    );
    open.push(made);
    await made.start();
    made.setTopic("kv@x@m");
    return made;
  }

  async function replay(from: KvEventPublisher, start: bigint): Promise<Buffer[][]> {
    const dealer = new Dealer({ linger: 0, receiveTimeout: 5_000 });
    open.push(dealer);
    dealer.connect(`tcp://127.0.0.1:${String(from.replayPort)}`);
    const frame = Buffer.alloc(8);
    frame.writeBigUInt64BE(start);
    await dealer.send([Buffer.alloc(0), frame]);
    const out: Buffer[][] = [];
    for (;;) {
      const frames = await dealer.receive();
      out.push(frames);
      if (frames.at(-2)?.equals(Buffer.alloc(8, 0xff)) === true) return out;
    }
  }

  const sequenceOf = (frames: Buffer[]): number => Number(frames.at(-2)?.readBigUInt64BE());

  test("numbers batches from 0 and sends topic, sequence, payload", async () => {
    const source = await publisher();
    const subscriber = new Subscriber({ linger: 0, receiveTimeout: 5_000 });
    open.push(subscriber);
    subscriber.connect(`tcp://127.0.0.1:${String(source.port)}`);
    subscriber.subscribe("");
    // A publisher drops what comes before it knows the subscription: publish until one arrives.
    const first = subscriber.receive();
    const state = { arrived: false };
    void first.then(() => (state.arrived = true));
    const arrived = (): boolean => state.arrived;
    while (!arrived()) {
      source.publish(Buffer.from([source.nextSequence]));
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    const frames = await first;
    expect(frames).toHaveLength(3);
    expect(frames[0]?.toString()).toBe("kv@x@m");
    expect(frames[2]?.[0]).toBe(sequenceOf(frames));
    source.publish(Buffer.from("gone"), "drop");
    source.publish(Buffer.from("next"));
    let last = frames;
    while (last[2]?.toString() !== "next") last = await subscriber.receive();
    expect(sequenceOf(last)).toBe(source.nextSequence - 1);
    expect(source.droppedBatches).toBe(1);
  });

  test("replays from the asked batch in five frames and ends with the marker", async () => {
    const source = await publisher();
    for (let i = 0; i < 5; i++) source.publish(Buffer.from([i]), i === 3 ? "drop" : "send");
    const answer = await replay(source, 2n);
    // The identity is consumed by the socket: empty, topic, sequence, payload are left of the five.
    expect(answer.map((frames) => frames.length)).toEqual([4, 4, 4, 4]);
    expect(answer.slice(0, 3).map(sequenceOf)).toEqual([2, 3, 4]);
    expect(answer.slice(0, 3).map((frames) => frames[3]?.[0])).toEqual([2, 3, 4]);
    expect(answer[0]?.[0]).toHaveLength(0);
    expect(answer[0]?.[1]?.toString()).toBe("kv@x@m");
    expect(answer[3]?.map((frame) => frame.toString("hex"))).toEqual(["", "", "f".repeat(16), ""]);
  });

  test("replays in the older form of four frames when set", async () => {
    const source = await publisher({ replayTopic: false });
    source.publish(Buffer.from([9]));
    const answer = await replay(source, 0n);
    expect(answer.map((frames) => frames.length)).toEqual([3, 3]);
    expect(answer[1]?.map((frame) => frame.toString("hex"))).toEqual(["", "f".repeat(16), ""]);
  });

  test("keeps the last bufferSteps batches only; asking beyond the end gives the marker alone", async () => {
    const source = await publisher({ bufferSteps: 3 });
    for (let i = 0; i < 10; i++) source.publish(Buffer.from([i]));
    const answer = await replay(source, 0n);
    expect(answer.slice(0, -1).map(sequenceOf)).toEqual([7, 8, 9]);
    expect(await replay(source, 10n)).toHaveLength(1);
    expect(await replay(source, 2n ** 63n)).toHaveLength(1);
  });

  test("garbage comes in five kinds that no decoder takes for an event", () => {
    const kinds = [0, 1, 2, 3, 4].map((at) => garbageFrames(at, Buffer.from("t"), Buffer.alloc(8)));
    expect(new Set(kinds.map((frames) => JSON.stringify(frames))).size).toBe(5);
    expect(kinds.map((frames) => frames.length)).toEqual([3, 3, 3, 3, 2]);
  });
});
