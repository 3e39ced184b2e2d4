import { BufferPool } from "../../services/shared/core/h2/buffer-pool.ts";
import { H2Connection } from "../../services/shared/core/h2/connection.ts";
import type { StreamFault } from "../../services/shared/core/h2/faults.ts";
import { FrameOutput } from "../../services/shared/core/h2/frame-output.ts";
import { defaultH2Limits, type H2Limits } from "../../services/shared/core/h2/limits.ts";
import type { H2Stream, StreamEnd } from "../../services/shared/core/h2/stream.ts";
import { flags, frame, preface, readFrames, settings, types, type RawFrame } from "./h2-frames.ts";

/** What a stream's listener saw. */
export interface SeenStream {
  readonly stream: H2Stream;
  readonly body: Buffer[];
  hasEnded: boolean;
  drains: number;
  closed: StreamEnd | undefined;
}

/** A connection without a socket, whose clock stands until it is told to go on. */
export class BareConnection {
  readonly pool: BufferPool;
  readonly connection: H2Connection;
  readonly seen = new Map<number, SeenStream>();
  readonly faults: StreamFault[] = [];
  /** What happened, in order. */
  readonly events: string[] = [];
  now = 1_000;
  #sent: Buffer = Buffer.alloc(0);

  constructor(limits: Partial<H2Limits> = {}, poolBytesMax = 64 << 20) {
    this.pool = new BufferPool(poolBytesMax, 0);
    this.connection = new H2Connection({
      limits: { ...defaultH2Limits, ...limits },
      pool: this.pool,
      output: new FrameOutput(64),
      now: this.now,
      listener: {
        onStream: (stream) => {
          this.#watch(stream);
        },
        onStreamFault: (fault) => {
          this.faults.push(fault);
          this.events.push(`fault ${fault}`);
        },
      },
    });
  }

  /** One that has exchanged settings, its output dropped. */
  static open(limits: Partial<H2Limits> = {}, poolBytesMax?: number): BareConnection {
    const bare = new BareConnection(limits, poolBytesMax);
    bare.receive(preface, settings(), frame(types.settings, flags.ack, 0));
    bare.frames();
    bare.events.length = 0;
    return bare;
  }

  #watch(stream: H2Stream): void {
    const seen: SeenStream = { stream, body: [], hasEnded: false, drains: 0, closed: undefined };
    this.seen.set(stream.id, seen);
    this.events.push(`open ${stream.id} ${stream.headers.path}`);
    let isFirstPiece = true;
    stream.listener = {
      onData: (bytes, start, end) => {
        seen.body.push(Buffer.from(bytes.subarray(start, end)));
        if (isFirstPiece) this.events.push(`data ${stream.id}`);
        isFirstPiece = false;
      },
      onEnd: () => {
        seen.hasEnded = true;
        this.events.push(`end ${stream.id} ${Buffer.concat(seen.body).toString("hex")}`);
      },
      onDrain: () => seen.drains++,
      onClose: (how) => {
        seen.closed = how;
        this.events.push(`close ${stream.id} ${how}`);
      },
    };
  }

  receive(...parts: readonly Uint8Array[]): void {
    const bytes = Buffer.concat(parts);
    this.connection.receive(bytes, bytes.length, this.now);
  }

  /** Lets `ms` pass in steps of 100 ms, as a server does. */
  pass(ms: number): void {
    for (let passed = 0; passed < ms; passed += 100) {
      this.now += 100;
      this.connection.tick(this.now);
    }
  }

  /** The frames sent since the last call. */
  frames(): RawFrame[] {
    const { output } = this.connection;
    const { length } = output;
    const sent = Buffer.from(output.swap(new Uint8Array(64)).subarray(0, length));
    const { frames, rest } = readFrames(Buffer.concat([this.#sent, sent]));
    this.#sent = rest;
    return frames;
  }

  /** The stream, which must have been opened. */
  stream(id: number): H2Stream {
    const seen = this.seen.get(id);
    if (seen === undefined) throw new Error(`stream ${id.toString()} was not opened`);
    return seen.stream;
  }
}
