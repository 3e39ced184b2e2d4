import { encode } from "@msgpack/msgpack";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { hashBlocks, hashRoot } from "../../services/shared/core/block-hash.ts";
import { BlockMap } from "../../services/worker/core/block-map.ts";
import { EventStream, type StreamInput } from "../../services/worker/core/event-stream.ts";

const seed = new Uint8Array(32).fill(9);
const root = hashRoot(seed, { model: "tiny" });
const engineBlock = 2;
const k = 2;
/** Chains that the engine may hold: block i of chain c; one engine hash per place. */
const chainCount = 3;
const chainLength = 6;

const place = (chain: number, index: number): number => chain * chainLength + index;
const engineHash = (at: number): bigint => (BigInt(at + 1) << 40n) | 0x8000_0000n | BigInt(at);
const tokensOf = (at: number): number[] => [at, at + 100];
const keyOf = (lo: number, hi: number): string => `${String(hi)}:${String(lo)}`;

function truthOf(present: ReadonlySet<number>): Set<string> {
  const out = new Set<string>();
  for (let chain = 0; chain < chainCount; chain++) {
    const ids = Array.from({ length: chainLength }, (_, i) => tokensOf(place(chain, i))).flat();
    const hashes = hashBlocks(root, ids, engineBlock * k);
    for (let run = 0; run < chainLength / k; run++) {
      const places = Array.from({ length: k }, (_, i) => place(chain, run * k + i));
      if (places.every((at) => present.has(at))) {
        out.add(keyOf(hashes[2 * run] ?? 0, hashes[2 * run + 1] ?? 0));
      }
    }
  }
  return out;
}

interface Batch {
  readonly seq: number;
  readonly payload: Uint8Array;
}

/** An engine with a replay buffer, and the truth after each batch of each of its lives. */
class Engine {
  readonly truths: Set<string>[][] = [[]];
  buffer: Batch[] = [];
  readonly #bufferMax: number;
  #present = new Set<number>();
  #seq = 0;
  #clock = 1_000;

  constructor(bufferMax: number) {
    this.#bufferMax = bufferMax;
  }

  get life(): number {
    return this.truths.length - 1;
  }

  restart(): void {
    this.#present = new Set();
    this.#seq = 0;
    this.buffer = [];
    this.truths.push([]);
    this.#clock += 10;
  }

  /** One scheduler step: a store (extending what is held), a removal or a clear. */
  publish(choice: number): Batch {
    const chain = choice % chainCount;
    const what = Math.floor(choice / chainCount) % 8;
    const events: unknown[] = [];
    if (what === 7) {
      this.#present.clear();
      events.push({ type: "AllBlocksCleared" });
    } else if (what >= 5) {
      const at = place(chain, Math.floor(choice / 24) % chainLength);
      this.#present.delete(at);
      events.push({
        type: "BlockRemoved",
        block_hashes: [engineHash(at)],
        medium: "GPU",
        group_idx: 0,
      });
    } else {
      let from = 0;
      while (from < chainLength && this.#present.has(place(chain, from))) from++;
      const until = Math.min(chainLength, from + 1 + (Math.floor(choice / 24) % 3));
      const places = Array.from({ length: until - from }, (_, i) => place(chain, from + i));
      for (const at of places) this.#present.add(at);
      events.push({
        type: "BlockStored",
        block_hashes: places.map(engineHash),
        parent_block_hash: from === 0 ? null : engineHash(place(chain, from - 1)),
        token_ids: places.flatMap(tokensOf),
        block_size: engineBlock,
      });
    }
    const payload = encode([this.#clock++, events, 0], { useBigInt64: true });
    const batch = { seq: this.#seq++, payload };
    this.truths.at(-1)?.push(truthOf(this.#present));
    this.buffer.push(batch);
    if (this.buffer.length > this.#bufferMax) this.buffer.shift();
    return batch;
  }
}

/** Engine, wire, stream and map, driven one small step at a time. */
class World {
  readonly engine: Engine;
  readonly stream = new EventStream({
    bufferedBatchesMax: 50,
    bufferedBytesMax: 1 << 20,
    replayAttemptsMax: 2,
  });
  readonly held = new Set<string>();
  readonly map: BlockMap;
  readonly wire: Batch[] = [];
  readonly replays: { readonly replayId: number; readonly fromSeq: number }[] = [];
  readonly delivered: Batch[] = [];
  /** The engine's life that the stream believes in. */
  life = 0;
  connected = false;
  forgets = 0;

  constructor(bufferMax: number) {
    this.engine = new Engine(bufferMax);
    this.map = new BlockMap({
      engineBlockSizeTokens: engineBlock,
      meshBlockSizeTokens: engineBlock * k,
      engineBlocksMax: 1_000,
      hashSeed: seed,
      model: "tiny",
      sink: {
        stored: (lo, hi) => this.held.add(keyOf(lo, hi)),
        removed: (lo, hi) => this.held.delete(keyOf(lo, hi)),
        cleared: () => {
          this.held.clear();
        },
      },
    });
  }

  input(input: StreamInput): void {
    if (input.kind === "reset") this.life = this.engine.life;
    for (const effect of this.stream.step(input)) {
      if (effect.kind === "apply") for (const event of effect.batch.events) this.map.apply(event);
      else if (effect.kind === "forget") {
        this.forgets++;
        this.map.forget();
      } else if (effect.kind === "request_replay") this.replays.push(effect);
      else if (effect.kind === "engine_restarted") this.life = this.engine.life;
    }
    this.check();
  }

  /** Nothing is ever held that the engine did not hold after the batch last applied. */
  check(): void {
    const truth = this.engine.truths[this.life]?.[this.stream.lastSeq] ?? new Set<string>();
    for (const hash of this.held) expect(truth.has(hash)).toBe(true);
  }

  deliver(batch: Batch | undefined): void {
    if (batch === undefined || !this.connected) return;
    this.delivered.push(batch);
    this.input({ kind: "live", seq: batch.seq, payload: batch.payload });
  }

  serveReplay(ok: boolean): void {
    const request = this.replays.shift();
    if (request === undefined) return;
    const { replayId } = request;
    if (ok) {
      for (const { seq, payload } of [...this.engine.buffer]) {
        if (seq >= request.fromSeq) this.input({ kind: "replayed", replayId, seq, payload });
      }
    }
    this.input({ kind: ok ? "replay_ended" : "replay_failed", replayId });
  }

  connect(): void {
    if (this.connected) return;
    this.connected = true;
    if (this.life !== this.engine.life) this.input({ kind: "reset" });
    this.input({ kind: "connected" });
  }

  disconnect(): void {
    this.connected = false;
    this.wire.length = 0;
    this.input({ kind: "disconnected" });
  }

  /** Everything arrives and every replay is served. */
  settle(): void {
    this.connect();
    while (this.wire.length > 0) this.deliver(this.wire.shift());
    this.input({ kind: "connected" });
    while (this.replays.length > 0) this.serveReplay(true);
  }
}

type Step =
  | { readonly do: "publish"; readonly choice: number }
  | {
      readonly do:
        | "deliver"
        | "lose"
        | "repeat"
        | "swap"
        | "garble"
        | "serve"
        | "fail"
        | "connect"
        | "disconnect"
        | "restart"
        | "begin_again";
      readonly choice: number;
    };

const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ do: fc.constant("publish" as const), choice: fc.nat(999) }) },
  { weight: 8, arbitrary: fc.record({ do: fc.constant("deliver" as const), choice: fc.nat(9) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant("serve" as const), choice: fc.nat(9) }) },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constantFrom(
        "lose",
        "repeat",
        "swap",
        "garble",
        "connect",
        "disconnect",
        "restart",
        "begin_again",
        "fail",
      ),
      choice: fc.nat(99),
    }),
  },
);

function run(world: World, script: readonly Step[]): void {
  for (const { do: what, choice } of script) {
    switch (what) {
      case "publish":
        world.wire.push(world.engine.publish(choice));
        break;
      case "deliver":
        world.deliver(world.wire.shift());
        break;
      case "lose":
        world.wire.shift();
        break;
      case "repeat":
        // Only of this life: a connection does not bring back what an earlier process sent.
        world.deliver(world.delivered.at(-1 - (choice % 5)));
        break;
      case "swap": {
        const [first, second] = [world.wire[0], world.wire[1]];
        if (first !== undefined && second !== undefined) world.wire.splice(0, 2, second, first);
        break;
      }
      case "garble": {
        const batch = world.wire.shift();
        if (batch !== undefined) {
          world.deliver({ seq: batch.seq, payload: batch.payload.slice(0, -1 - (choice % 9)) });
          world.delivered.pop();
        }
        break;
      }
      case "serve":
        world.serveReplay(true);
        break;
      case "fail":
        world.serveReplay(false);
        break;
      case "connect":
        world.connect();
        break;
      case "disconnect":
        world.disconnect();
        break;
      case "restart":
        world.disconnect();
        world.replays.length = 0;
        world.delivered.length = 0;
        world.engine.restart();
        break;
      case "begin_again":
        // Without a lost connection, in order, nothing in flight: the sequence alone tells.
        while (world.replays.length > 0) world.serveReplay(true);
        if (!world.connected || world.wire.length > 0 || world.stream.phase !== "live") break;
        if (world.stream.lastSeq < 0) break;
        world.delivered.length = 0;
        world.engine.restart();
        world.deliver(world.engine.publish(choice));
        break;
    }
  }
}

describe("EventStream with BlockMap against an engine that loses, repeats, reorders, garbles and restarts", () => {
  test("never holds what the engine does not, and equals it once all is served", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 150, size: "max" }), (script) => {
        const world = new World(Infinity);
        run(world, script);
        world.settle();
        const truth = world.engine.truths.at(-1)?.at(-1) ?? new Set<string>();
        expect(world.life).toBe(world.engine.life);
        expect(world.stream.phase).toBe("live");
        // A gap given up after failed replays leaves holes that only later events fill.
        if (script.every(({ do: what }) => what !== "fail")) expect(world.held).toEqual(truth);
      }),
      { numRuns: 1_500 },
    );
  });

  test("never holds what the engine does not when its replay buffer is short", () => {
    fc.assert(
      fc.property(
        fc.nat(4),
        fc.array(step, { maxLength: 150, size: "max" }),
        (bufferMax, script) => {
          const world = new World(bufferMax);
          run(world, script);
          world.settle();
          world.check();
          expect(world.stream.phase).toBe("live");
        },
      ),
      { numRuns: 1_000 },
    );
  });
});

describe("EventStream", () => {
  const empty = (ts: number): Uint8Array => encode([ts, [], 0]);
  const kinds = (stream: EventStream, input: StreamInput): string[] =>
    stream.step(input).map((effect) => effect.kind);

  test("asks for everything when first connected and for what it missed when connected again", () => {
    const stream = new EventStream();
    expect(stream.step({ kind: "connected" })).toEqual([
      { kind: "request_replay", replayId: 1, fromSeq: 0 },
    ]);
    expect(kinds(stream, { kind: "replayed", replayId: 1, seq: 0, payload: empty(1) })).toEqual([
      "apply",
    ]);
    expect(kinds(stream, { kind: "replay_ended", replayId: 1 })).toEqual([]);
    expect(stream.step({ kind: "connected" })).toEqual([
      { kind: "request_replay", replayId: 2, fromSeq: 1 },
    ]);
  });

  test("drops a batch that came by both sockets and takes an old number with a later time as a restart", () => {
    const stream = new EventStream();
    stream.step({ kind: "connected" });
    for (const seq of [0, 1, 2]) {
      stream.step({ kind: "replayed", replayId: 1, seq, payload: empty(10 + seq) });
    }
    stream.step({ kind: "replay_ended", replayId: 1 });
    expect(stream.step({ kind: "live", seq: 2, payload: empty(12) })).toEqual([
      { kind: "dropped", reason: "duplicate" },
    ]);
    expect(kinds(stream, { kind: "live", seq: 0, payload: empty(13) })).toEqual([
      "engine_restarted",
      "forget",
      "request_replay",
    ]);
  });

  test("fetches an unreadable batch again and gives everything up when that does not help", () => {
    const stream = new EventStream();
    stream.step({ kind: "connected" });
    stream.step({ kind: "replayed", replayId: 1, seq: 0, payload: empty(1) });
    stream.step({ kind: "replay_ended", replayId: 1 });
    const broken = Uint8Array.of(0xc1, 0x00);
    expect(kinds(stream, { kind: "live", seq: 1, payload: broken })).toEqual([
      "undecodable",
      "request_replay",
    ]);
    expect(kinds(stream, { kind: "replayed", replayId: 2, seq: 1, payload: broken })).toEqual([
      "undecodable",
      "forget",
    ]);
    stream.step({ kind: "replay_ended", replayId: 2 });
    expect(kinds(stream, { kind: "live", seq: 2, payload: empty(3) })).toEqual(["apply"]);
  });

  test("keeps the batches that wait behind a second gap", () => {
    const stream = new EventStream();
    stream.step({ kind: "connected" });
    for (const seq of [1, 2, 4, 5]) stream.step({ kind: "live", seq, payload: empty(seq) });
    stream.step({ kind: "replayed", replayId: 1, seq: 0, payload: empty(0) });
    expect(kinds(stream, { kind: "replay_ended", replayId: 1 })).toEqual([
      "apply",
      "apply",
      "gap",
      "request_replay",
    ]);
    expect(stream.waitingCount).toBe(2);
    stream.step({ kind: "replayed", replayId: 2, seq: 3, payload: empty(3) });
    expect(kinds(stream, { kind: "replay_ended", replayId: 2 })).toEqual(["apply", "apply"]);
    expect(stream.lastSeq).toBe(5);
  });

  test("goes on without the gap when nothing can be replayed", () => {
    const stream = new EventStream();
    stream.step({ kind: "connected" });
    stream.step({ kind: "replay_failed", replayId: 1 });
    stream.step({ kind: "live", seq: 0, payload: empty(1) });
    expect(kinds(stream, { kind: "live", seq: 3, payload: empty(2) })).toEqual([
      "gap",
      "request_replay",
    ]);
    expect(kinds(stream, { kind: "replay_failed", replayId: 2 })).toEqual([
      "gap",
      "request_replay",
    ]);
    expect(kinds(stream, { kind: "replay_failed", replayId: 3 })).toEqual([
      "gap",
      "forget",
      "apply",
    ]);
    expect(stream.lastSeq).toBe(3);
  });
});
