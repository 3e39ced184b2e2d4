import { Publisher, Router } from "zeromq";
import type { Logger } from "pino";

/** Settings of the publisher; the meaning of each is in `config.ts`. */
export interface KvEventPublisherOptions {
  readonly host: string;
  readonly port: number;
  readonly replayPort: number;
  readonly bufferSteps: number;
  readonly hwm: number;
  readonly queueMax: number;
  readonly replayTopic: boolean;
}

const endMarker = Buffer.alloc(8, 0xff);
const nothing = Buffer.alloc(0);

function sequenceFrame(sequence: number): Buffer {
  const frame = Buffer.alloc(8);
  frame.writeBigUInt64BE(BigInt(sequence));
  return frame;
}

/** What a fault does to one batch on its way out. */
export type BatchFate =
  | "send"
  /** Only the replay buffer gets it: what a full socket does to a slow subscriber. */
  | "drop";

/**
 * Publishes event batches as vLLM's ZMQ publisher does (`vllm/distributed/kv_events.py`, 0.32.0): PUB frames
 * `[topic, seq u64 BE from 0, payload]`, and a ROUTER that answers `["", start u64 BE]` with the buffered batches
 * from `start` on and an end marker. The buffer keeps the last `bufferSteps` batches; the queue in front of the
 * socket holds `queueMax`, and drops what comes on top.
 */
export class KvEventPublisher {
  readonly #options: KvEventPublisherOptions;
  readonly #log: Logger;
  readonly #publisher: Publisher;
  readonly #router: Router;
  #topic = nothing;
  /** Ring of the last batches; the batch of sequence s lies at s mod bufferSteps. */
  readonly #buffer: Buffer[] = [];
  #nextSequence = 0;
  readonly #queue: Buffer[][] = [];
  /** Entries of `#queue` before this one are sent. */
  #sent = 0;
  #sending = false;
  #closed = false;
  #dropped = 0;
  port = 0;
  replayPort = 0;

  constructor(options: KvEventPublisherOptions, log: Logger) {
    this.#options = options;
    this.#log = log;
    this.#publisher = new Publisher({ sendHighWaterMark: options.hwm, linger: 0 });
    this.#router = new Router({ linger: 0, sendHighWaterMark: options.bufferSteps + 1 });
  }

  /** Binds both sockets. Rejects when a port is taken. */
  async start(): Promise<void> {
    this.port = await bind(this.#publisher, this.#options.host, this.#options.port);
    this.replayPort = await bind(this.#router, this.#options.host, this.#options.replayPort);
    void this.#serveReplay();
  }

  setTopic(topic: string): void {
    this.#topic = Buffer.from(topic);
  }

  /** Batches that never reached the socket. */
  get droppedBatches(): number {
    return this.#dropped;
  }

  get nextSequence(): number {
    return this.#nextSequence;
  }

  /** Numbers, buffers and sends one batch. */
  publish(payload: Buffer, fate: BatchFate = "send"): void {
    const sequence = this.#nextSequence++;
    this.#buffer[sequence % this.#options.bufferSteps] = payload;
    if (fate === "drop") {
      this.#dropped++;
      return;
    }
    this.publishRaw([this.#topic, sequenceFrame(sequence), payload]);
  }

  /** Sends frames as they are, unbuffered and unnumbered; garbage for tests. */
  publishRaw(frames: Buffer[]): void {
    if (this.#closed) return;
    if (this.#queue.length - this.#sent >= this.#options.queueMax) {
      this.#dropped++;
      return;
    }
    this.#queue.push(frames);
    if (!this.#sending) void this.#drain();
  }

  /** Sends `count` malformed messages, each made by `frames` from the next sequence number, which is not used up. */
  publishGarbage(
    count: number,
    frames: (at: number, topic: Buffer, sequence: Buffer) => Buffer[],
  ): void {
    for (let i = 0; i < count; i++) {
      this.publishRaw(frames(i, this.#topic, sequenceFrame(this.#nextSequence)));
    }
  }

  close(): void {
    this.#closed = true;
    this.#publisher.close();
    this.#router.close();
  }

  async #drain(): Promise<void> {
    this.#sending = true;
    try {
      // A cursor instead of shift(): a burst of thousands of batches stays linear.
      while (this.#sent < this.#queue.length) {
        await this.#publisher.send(this.#queue[this.#sent] as Buffer[]);
        this.#sent++;
        if (this.#sent >= 1_024) {
          this.#queue.splice(0, this.#sent);
          this.#sent = 0;
        }
      }
    } catch (error) {
      if (!this.#closed) {
        this.#log.error({ event: "kv_publish_failed", err: error }, "cannot publish");
      }
      this.#dropped += this.#queue.length - this.#sent;
    }
    this.#queue.length = 0;
    this.#sent = 0;
    this.#sending = false;
  }

  async #serveReplay(): Promise<void> {
    try {
      for await (const frames of this.#router) await this.#replay(frames);
    } catch (error) {
      if (!this.#closed) this.#log.error({ event: "kv_replay_failed", err: error }, "replay ended");
    }
  }

  async #replay(frames: readonly Buffer[]): Promise<void> {
    const [identity, empty, start] = frames;
    if (
      frames.length !== 3 ||
      identity === undefined ||
      empty?.length !== 0 ||
      start?.length !== 8
    ) {
      this.#log.warn(
        { event: "kv_replay_refused", frames: frames.length },
        "malformed replay request",
      );
      return;
    }
    const asked = start.readBigUInt64BE();
    const oldest = Math.max(0, this.#nextSequence - this.#options.bufferSteps);
    const end = this.#nextSequence;
    const first = asked > BigInt(end) ? end : Math.max(oldest, Number(asked));
    const middle = this.#options.replayTopic ? [nothing, this.#topic] : [nothing];
    for (let sequence = first; sequence < end; sequence++) {
      // Batches published while this answer goes out may have taken the slot.
      if (sequence < this.#nextSequence - this.#options.bufferSteps) continue;
      const payload = this.#buffer[sequence % this.#options.bufferSteps] as Buffer;
      await this.#router.send([identity, ...middle, sequenceFrame(sequence), payload]);
    }
    const tail = this.#options.replayTopic ? [nothing, nothing] : [nothing];
    await this.#router.send([identity, ...tail, endMarker, nothing]);
  }
}

async function bind(socket: Publisher | Router, host: string, port: number): Promise<number> {
  await socket.bind(`tcp://${host}:${port === 0 ? "*" : String(port)}`);
  const bound = /:(\d+)$/.exec(socket.lastEndpoint ?? "")?.[1];
  return Number(bound ?? port);
}
