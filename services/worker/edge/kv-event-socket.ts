import { Dealer, Subscriber } from "zeromq";
import type { EventSource } from "./engine-http.ts";

const reconnectMsMin = 100;
const reconnectMsMax = 2_000;
/** Batches that ZeroMQ holds for us before it drops; the engine's publisher has the same number by default. */
const receiveBatchesMax = 100_000;
const replayMessageMsMax = 5_000;
const replayMsMax = 30_000;

/** What the subscription tells its owner. */
export interface KvEventListener {
  /** The subscription is up; batches may have been missed before. */
  connected(): void;
  disconnected(): void;
  batch(seq: number, payload: Uint8Array): void;
  /** A message that has not the frames of a batch. */
  malformed(): void;
}

/** The SUB socket on an engine's KV events, and replays from its ROUTER socket. */
export class KvEventSocket {
  readonly #source: EventSource;
  readonly #listener: KvEventListener;
  readonly #subscriber: Subscriber;
  readonly #replays = new Set<Dealer>();
  #closed = false;

  constructor(source: EventSource, listener: KvEventListener) {
    this.#source = source;
    this.#listener = listener;
    this.#subscriber = new Subscriber({
      linger: 0,
      receiveHighWaterMark: receiveBatchesMax,
      reconnectInterval: reconnectMsMin,
      reconnectMaxInterval: reconnectMsMax,
    });
  }

  /** Connects and receives until `close`; ZeroMQ reconnects by itself. */
  async run(): Promise<void> {
    const { events } = this.#subscriber;
    events.on("handshake", () => {
      if (!this.#closed) this.#listener.connected();
    });
    events.on("disconnect", () => {
      if (!this.#closed) this.#listener.disconnected();
    });
    this.#subscriber.connect(this.#source.endpoint);
    this.#subscriber.subscribe(this.#source.topic);
    for await (const frames of this.#subscriber) {
      const batch = batchOf(frames);
      if (batch === undefined) this.#listener.malformed();
      else this.#listener.batch(batch.seq, batch.payload);
    }
  }

  /** Whether old batches can be had. */
  get canReplay(): boolean {
    return this.#source.replayEndpoint !== undefined;
  }

  /**
   * Fetches the batches from `fromSeq` on and says whether the end was reached within its deadlines (5 s
   * per message, 30 s in all). Accepts replies with and without topic.
   */
  async replay(
    fromSeq: number,
    onBatch: (seq: number, payload: Uint8Array) => void,
    now: () => number,
  ): Promise<boolean> {
    const { replayEndpoint } = this.#source;
    if (replayEndpoint === undefined || this.#closed) return false;
    const dealer = new Dealer({
      linger: 0,
      receiveTimeout: replayMessageMsMax,
      sendTimeout: replayMessageMsMax,
      reconnectInterval: reconnectMsMin,
      reconnectMaxInterval: reconnectMsMax,
    });
    this.#replays.add(dealer);
    try {
      const deadline = now() + replayMsMax;
      dealer.connect(replayEndpoint);
      const start = Buffer.alloc(8);
      start.writeBigUInt64BE(BigInt(fromSeq));
      await dealer.send([Buffer.alloc(0), start]);
      while (now() < deadline) {
        const frames = await dealer.receive();
        if (isEnd(frames)) return true;
        const batch = batchOf(frames);
        if (batch === undefined) this.#listener.malformed();
        else onBatch(batch.seq, batch.payload);
      }
      return false;
    } catch {
      // A timeout or a closed socket; the caller treats both as a replay that cannot be had.
      return false;
    } finally {
      this.#replays.delete(dealer);
      dealer.close();
    }
  }

  /** Ends the subscription and the replays under way. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#subscriber.close();
    for (const dealer of this.#replays) dealer.close();
  }
}

/** `[…, seq, payload]`; `undefined` when there is no sequence number that JavaScript can count with. */
function batchOf(
  frames: readonly Buffer[],
): { readonly seq: number; readonly payload: Uint8Array } | undefined {
  const payload = frames.at(-1);
  const seq = frames.at(-2);
  if (payload?.length === undefined || seq?.length !== 8) return undefined;
  const high = seq.readUInt32BE(0);
  if (high > 0x1f_ffff) return undefined;
  return { seq: high * 0x1_0000_0000 + seq.readUInt32BE(4), payload };
}

/** The end of a replay: all ones as sequence number, in the last frame (newer) or the last but one (older). */
function isEnd(frames: readonly Buffer[]): boolean {
  return frames
    .slice(-2)
    .some((frame) => frame.length === 8 && frame.every((byte) => byte === 0xff));
}
