import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { flags, frame, preface, readFrames, settings, types, type RawFrame } from "./h2-frames.ts";

/** How long a test waits for a frame, ms. */
const waitMsMax = 15_000;

/** A client that sends what it is told, right or wrong, and shows what comes back. */
export class RawH2Client {
  readonly #socket: Socket;
  readonly #frames: RawFrame[] = [];
  #rest: Buffer = Buffer.alloc(0);
  #isClosed = false;
  #wake: (() => void) | undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on("data", (chunk: Buffer) => {
      const { frames, rest } = readFrames(Buffer.concat([this.#rest, chunk]));
      this.#rest = rest;
      this.#frames.push(...frames);
      this.#wake?.();
    });
    const closed = (): void => {
      this.#isClosed = true;
      this.#wake?.();
    };
    socket.on("end", closed);
    socket.on("close", closed);
    socket.on("error", closed);
  }

  /** Connects without a word. */
  static async connect(port: number): Promise<RawH2Client> {
    const socket = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
    await once(socket, "connect");
    return new RawH2Client(socket);
  }

  /** Connects and agrees on settings, the given ones of the client's. */
  static async open(
    port: number,
    ...pairs: readonly (readonly [id: number, value: number])[]
  ): Promise<RawH2Client> {
    const client = await RawH2Client.connect(port);
    client.send(preface, settings(...pairs));
    await client.next((f) => f.type === types.settings && (f.flags & flags.ack) === 0);
    client.send(frame(types.settings, flags.ack, 0));
    await client.next((f) => f.type === types.settings && (f.flags & flags.ack) !== 0);
    return client;
  }

  /** Writes all parts at once. */
  send(...parts: readonly Uint8Array[]): void {
    this.#socket.write(Buffer.concat(parts));
  }

  /** Stops reading, so that the server's socket fills up. */
  pause(): void {
    this.#socket.pause();
  }

  resume(): void {
    this.#socket.resume();
  }

  close(): void {
    this.#socket.destroy();
  }

  /** Whether the server has closed its side. */
  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** The next frame that fits; those before it are dropped. Undefined when the server closes first. */
  async next(fits: (frame: RawFrame) => boolean): Promise<RawFrame | undefined> {
    const deadline = performance.now() + waitMsMax;
    for (;;) {
      for (let frame = this.#frames.shift(); frame !== undefined; frame = this.#frames.shift()) {
        if (fits(frame)) return frame;
      }
      if (this.#isClosed) return undefined;
      if (performance.now() > deadline) throw new Error("the frame did not come");
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 50);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** Error code with which the server ends the connection; undefined when it closes without GOAWAY. */
  async goawayCode(): Promise<number | undefined> {
    const goaway = await this.next((f) => f.type === types.goaway);
    if (goaway === undefined) return undefined;
    await this.next(() => false);
    return goaway.payload.readUInt32BE(4);
  }

  /** Error code with which the server resets a stream; undefined when it ends the connection instead. */
  async resetCode(streamId: number): Promise<number | undefined> {
    const end = await this.next(
      (f) => f.type === types.goaway || (f.type === types.rst && f.streamId === streamId),
    );
    return end?.type === types.rst ? end.payload.readUInt32BE(0) : undefined;
  }

  /** Whether the connection still answers. */
  async isAlive(): Promise<boolean> {
    const token = Buffer.from("alive?!?");
    this.send(frame(types.ping, 0, 0, token));
    const answer = await this.next((f) => f.type === types.ping && f.payload.equals(token));
    return answer !== undefined;
  }

  /** The body of a stream's answer until its trailers, which must come. */
  async answer(streamId: number): Promise<{ readonly body: Buffer; readonly trailers: Buffer }> {
    const parts: Buffer[] = [];
    for (;;) {
      const frame = await this.next((f) => f.streamId === streamId);
      if (frame === undefined) throw new Error("closed before the answer's end");
      if (frame.type === types.rst) throw new Error(`reset: ${frame.payload.toString("hex")}`);
      if (frame.type === types.data) parts.push(frame.payload);
      if (frame.type === types.headers && (frame.flags & flags.end) !== 0) {
        return { body: Buffer.concat(parts), trailers: frame.payload };
      }
    }
  }
}
