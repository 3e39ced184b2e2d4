/**
 * Mutated conversations of real clients against the HTTP/2 server's core and its gRPC layer. Runs for
 * `KVMESH_FUZZ_SECONDS` (5) from seed `KVMESH_FUZZ_SEED` (1); a failure names the case's seed, which repeats it alone
 * as `KVMESH_FUZZ_CASE`.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { BufferPool } from "../../services/shared/core/h2/buffer-pool.ts";
import { H2Connection } from "../../services/shared/core/h2/connection.ts";
import { FrameOutput } from "../../services/shared/core/h2/frame-output.ts";
import { defaultH2Limits } from "../../services/shared/core/h2/limits.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { GrpcCall } from "../../services/shared/edge/h2/grpc-call.ts";
import { readFrames } from "../support/h2-frames.ts";

const seconds = Number(process.env["KVMESH_FUZZ_SECONDS"] ?? 5);
const firstSeed = Number(process.env["KVMESH_FUZZ_SEED"] ?? 1);
const onlyCase = process.env["KVMESH_FUZZ_CASE"];

const poolBytesMax = 4 << 20;
/** A case is a few hundred frames; the slowest takes some ms on a busy machine. */
const caseMsMax = 2_000;
/** Answers are echoes, so they are bounded by what was sent and the limits. */
const outputBytesMax = 16 << 20;
/** What the runtime may keep of the garbage; a leak of some KB for each case would pass it. */
const residentGrowthMax = 400 << 20;
const prefaceBytes = 24;

const recordings = ["grpc-js.bin", "node-http2.bin", "envoy.bin"].map((name) =>
  readFileSync(join(import.meta.dirname, "../fixtures/h2", name)),
);
/** How the cases ended, over all. */
const ends = new Map<string, number>();

/** The recording as frames, so that whole ones can be moved about; the preface is left out. */
function cut(recording: Buffer): Buffer[] {
  return readFrames(recording.subarray(prefaceBytes)).frames.map((f) => {
    const header = Buffer.alloc(9);
    header.writeUIntBE(f.payload.length, 0, 3);
    header[3] = f.type;
    header[4] = f.flags;
    header.writeUInt32BE(f.streamId, 5);
    return Buffer.concat([header, f.payload]);
  });
}

const interesting = [0, 1, 2, 4, 5, 8, 9, 0x20, 0x3f, 0x40, 0x7f, 0x80, 0xbe, 0xff];

function mutateFrames(frames: Buffer[], random: SeededRandom): void {
  const at = random.int(frames.length);
  const one = Buffer.from(frames[at]!);
  switch (random.int(9)) {
    case 0:
      frames.splice(at, 1);
      return;
    case 1:
      frames.splice(random.int(frames.length), 0, one);
      return;
    case 2:
      frames.splice(random.int(frames.length), 0, ...frames.splice(at, 1 + random.int(3)));
      return;
    case 3:
      one[3] = random.int(11);
      break;
    case 4:
      one[4] = interesting[random.int(interesting.length)]!;
      break;
    case 5:
      one.writeUInt32BE(random.int(16), 5);
      break;
    case 6:
      one.writeUIntBE(random.int(4) === 0 ? random.int(1 << 24) : random.int(40), 0, 3);
      break;
    case 7:
      if (one.length > 9) one[9 + random.int(one.length - 9)] = random.int(256);
      break;
    case 8:
      if (one.length > 9)
        one[9 + random.int(Math.min(8, one.length - 9))] =
          interesting[random.int(interesting.length)]!;
      break;
  }
  frames[at] = one;
}

function mutateBytes(bytes: Buffer, random: SeededRandom): Buffer {
  const at = random.int(bytes.length);
  switch (random.int(4)) {
    case 0:
      bytes[at] = (bytes[at] ?? 0) ^ (1 << random.int(8));
      return bytes;
    case 1:
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + 1 + random.int(20))]);
    case 2: {
      const junk = Buffer.from(Array.from({ length: 1 + random.int(12) }, () => random.int(256)));
      return Buffer.concat([bytes.subarray(0, at), junk, bytes.subarray(at)]);
    }
    default:
      return bytes.subarray(0, at);
  }
}

function makeCase(random: SeededRandom): Buffer {
  const recording = recordings[random.int(recordings.length)]!;
  const frames = cut(recording);
  if (random.int(8) === 0) frames.push(...cut(recordings[random.int(recordings.length)]!));
  const changes = random.int(12);
  for (let i = 0; i < changes; i++) mutateFrames(frames, random);
  let bytes: Buffer = Buffer.concat([recording.subarray(0, prefaceBytes), ...frames]);
  if (random.int(3) === 0) {
    const flips = 1 + random.int(4);
    for (let i = 0; i < flips && bytes.length > 0; i++) bytes = mutateBytes(bytes, random);
  }
  return bytes;
}

/** Feeds one case and checks what must always hold. */
function runCase(seed: number): void {
  const random = new SeededRandom(seed);
  const bytes = makeCase(random);
  const pool = new BufferPool(poolBytesMax, 0);
  let opened = 0;
  let closed = 0;
  let sent = 0;
  let now = 0;
  const output = new FrameOutput(64);
  const connection = new H2Connection({
    limits: { ...defaultH2Limits, concurrentStreamsMax: 4, streamQueueBytesMax: 200_000 },
    pool,
    output,
    now,
    listener: {
      onStreamFault: () => undefined,
      onStream: (stream) => {
        if (stream.headers.isOverLimit) return;
        opened++;
        const host = {
          pool,
          messageBytesMax: 1 << 20,
          touched: () => undefined,
          onCallFault: () => undefined,
          onHandlerError: (error: unknown) => {
            throw error;
          },
        };
        new GrpcCall({
          host,
          connection,
          stream,
          deadlineAt: undefined,
          method: (call) => ({
            onMessage: (message) => {
              call.send(message);
            },
            onHalfClose: () => {
              call.end();
            },
            onClose: () => {
              closed++;
            },
          }),
        });
      },
    },
  });
  for (let at = 0; at < bytes.length;) {
    const size = 1 + random.int(random.int(4) === 0 ? 20 : 20_000);
    const piece = bytes.subarray(at, at + size);
    connection.receive(piece, piece.length, now);
    at += size;
    now += random.int(50);
    connection.tick(now);
    sent += output.length;
    output.swap(new Uint8Array(64));
    connection.pump(now);
    // The announced limit holds once the client has acknowledged it.
    expect(connection.streamCount).toBeLessThanOrEqual(1_024);
  }
  for (let i = 0; i < 10; i++) connection.tick((now += 30_000));
  connection.socketEnded("socket_closed");
  const end = connection.end ?? "none";
  ends.set(end, (ends.get(end) ?? 0) + 1);
  expect({ streams: connection.streamCount, closed, held: pool.outBytes }).toEqual({
    streams: 0,
    closed: opened,
    held: 0,
  });
  expect(sent).toBeLessThan(outputBytesMax);
}

test(
  "no mutation of a conversation crashes, hangs, leaks or forgets a call",
  () => {
    if (onlyCase !== undefined) {
      runCase(Number(onlyCase));
      return;
    }
    const endsAt = performance.now() + seconds * 1_000;
    const residentBefore = process.memoryUsage.rss();
    let cases = 0;
    for (let seed = firstSeed * 1_000_003; performance.now() < endsAt; seed++) {
      const startedAt = performance.now();
      try {
        runCase(seed);
      } catch (error) {
        throw new Error(`KVMESH_FUZZ_CASE=${seed.toString()}`, { cause: error });
      }
      expect(performance.now() - startedAt, `case ${seed.toString()} took too long`).toBeLessThan(
        caseMsMax,
      );
      cases++;
    }
    const kinds = [...ends].map(([end, count]) => `${end} ${count.toString()}`).join(", ");
    console.log(`h2: ${cases.toString()} cases from seed ${firstSeed.toString()}: ${kinds}`);
    expect(process.memoryUsage.rss() - residentBefore).toBeLessThan(residentGrowthMax);
    expect(cases).toBeGreaterThan(100);
    // The mutations must reach more than the first check.
    expect(ends.size).toBeGreaterThan(5);
  },
  seconds * 1_000 + 60_000,
);
