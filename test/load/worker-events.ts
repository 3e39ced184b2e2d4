import { decode as decodeGeneric } from "@msgpack/msgpack";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { BlockMap } from "../../services/worker/core/block-map.ts";
import { EventStream } from "../../services/worker/core/event-stream.ts";
import { decodeKvEventBatch } from "../../services/worker/core/kv-events/decode.ts";
import { PendingDelta } from "../../services/worker/core/pending-delta.ts";
import { readRecordedMessages } from "../support/recorded-messages.ts";
import { median } from "./figures.ts";

/** Recordings of a vLLM with each kind of hash. */
const recordings = [
  "kv-events-sha256-int.bin",
  "kv-events-sha256_cbor-int.bin",
  "kv-events-xxhash_cbor-bytes.bin",
] as const;
const engineBlockSizeTokens = 32;
const roundCount = 5;

/** Rates for one recording, engine blocks stored and removed per second of CPU. */
export interface WorkerEventRates {
  readonly recording: string;
  readonly batches: number;
  readonly blocks: number;
  /** Our decoder alone. */
  readonly decodeBlocksPerSecond: number;
  /** `@msgpack/msgpack`, for comparison; its result would still have to be read. */
  readonly genericDecodeBlocksPerSecond: number;
  /** Sequence check, decoding, mesh hashes, block map, merged delta taken after each batch. */
  readonly wholeBlocksPerSecond: number;
}

interface Recorded {
  /** Counted from 0, so that the stream sees a sequence without a beginning that it missed. */
  readonly seq: number;
  readonly payload: Uint8Array;
}

function load(name: string): Recorded[] {
  const url = new URL(`../fixtures/vllm-events/${name}`, import.meta.url);
  return readRecordedMessages(url).map((frames, seq) => {
    const payload = frames[2];
    if (payload === undefined) throw new Error(`${name} is not a recording`);
    return { seq, payload };
  });
}

function countBlocks(messages: readonly Recorded[]): number {
  let blocks = 0;
  for (const { payload } of messages) {
    const result = decodeKvEventBatch(payload);
    if (!result.ok) throw new Error(`a recorded batch was refused: ${result.failure.code}`);
    for (const event of result.batch.events) {
      if (event.kind !== "cleared") blocks += event.hashes.length / 2;
    }
  }
  return blocks;
}

/** The whole way of a worker, from bytes to what routers are sent; returns changes taken. */
function applyAll(messages: readonly Recorded[], hashSeed: Uint8Array): number {
  const stream = new EventStream();
  const pending = new PendingDelta(1 << 20);
  const map = new BlockMap({
    engineBlockSizeTokens,
    meshBlockSizeTokens: engineBlockSizeTokens,
    engineBlocksMax: 1_000,
    hashSeed,
    model: "tiny",
    sink: pending,
  });
  let changes = 0;
  const carryOut = (effects: ReturnType<EventStream["step"]>): void => {
    for (const effect of effects) {
      if (effect.kind === "request_replay") {
        carryOut(stream.step({ kind: "replay_ended", replayId: effect.replayId }));
      }
      if (effect.kind !== "apply") continue;
      for (const event of effect.batch.events) map.apply(event);
      const change = pending.take(65_536);
      changes += (change.stored.length + change.removed.length) / 2;
    }
  };
  carryOut(stream.step({ kind: "connected" }));
  for (const { seq, payload } of messages) carryOut(stream.step({ kind: "live", seq, payload }));
  return changes;
}

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

/** Blocks per second of CPU, all threads of the process: what else runs on the machine takes no part. */
function rate(blocks: number, seconds: number, pass: () => void): number {
  const rates: number[] = [];
  for (let round = 0; round <= roundCount; round++) {
    const endAt = performance.now() + (seconds * 1_000) / (roundCount + 1);
    const startedAt = cpuSeconds();
    let passes = 0;
    while (performance.now() < endAt) {
      for (let i = 0; i < 8; i++) pass();
      passes += 8;
    }
    if (round > 0) rates.push((passes * blocks) / (cpuSeconds() - startedAt));
  }
  return median(rates);
}

/** Decodes and applies the recordings again and again, `seconds` for each figure. They fit into the CPU's caches. */
export function measureWorkerEvents(seconds: number): WorkerEventRates[] {
  const random = new SeededRandom(3);
  const hashSeed = Uint8Array.from({ length: 32 }, () => random.int(256));
  return recordings.map((recording) => {
    const messages = load(recording);
    const blocks = countBlocks(messages);
    if (applyAll(messages, hashSeed) === 0) throw new Error(`${recording} changed nothing`);
    return {
      recording,
      batches: messages.length,
      blocks,
      decodeBlocksPerSecond: rate(blocks, seconds, () => {
        for (const { payload } of messages) decodeKvEventBatch(payload);
      }),
      genericDecodeBlocksPerSecond: rate(blocks, seconds, () => {
        for (const { payload } of messages) decodeGeneric(payload, { useBigInt64: true });
      }),
      wholeBlocksPerSecond: rate(blocks, seconds, () => {
        applyAll(messages, hashSeed);
      }),
    };
  });
}
