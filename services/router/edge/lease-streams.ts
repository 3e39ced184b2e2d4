import { randomBytes } from "node:crypto";
import type { ServerDuplexStream } from "@grpc/grpc-js";
import { MeshError } from "../../shared/core/errors.ts";
import { toServiceError } from "../../shared/edge/grpc-server.ts";
import { toMeshError } from "../../shared/edge/wire.ts";

/** A stream that has not said hello by then is ended, ms. */
const helloMsMax = 5_000;

/** Who holds a place in the mesh by a stream: what is done with what it says. */
export interface LeaseHolder<Request> {
  /** Takes a message. What it throws ends the stream as a refusal. */
  receive(request: Request): void;
  /** The stream is over, whatever ended it. Called once. */
  gone(): void;
  /** The other side reads again after `send` found it slow. */
  drained?(): void;
}

/** The router's end of one stream, as its holder uses it. */
export interface Lease<Response> {
  /** Number of the stream, unique in its service. */
  readonly id: number;
  /** Random bytes that the hello's proof has to cover. */
  readonly nonce: Buffer;
  readonly isOver: boolean;
  /** Whether the other side is slow: what is sent now waits in memory. */
  readonly isBlocked: boolean;
  /** Its hello was accepted; nothing is due any more. */
  accepted(): void;
  /** Sends; ignored once the stream is over. */
  send(response: Response): void;
  /** Ends the stream with a named refusal. */
  refuse(error: MeshError): void;
  /** Ends the stream without an error. */
  end(): void;
}

/** Settings of `LeaseStreams`. */
export interface LeaseStreamsOptions<Holder> {
  /** Streams at once. */
  readonly streamsMax: number;
  /** Whose streams they are, for people: workers, relays. */
  readonly ofWhom: string;
  /** A stream is ended with an error; `holder` is absent when it never got one. */
  readonly onRefused: (error: MeshError, holder: Holder | undefined) => void;
  /** Carries out what the core wants done after each message and each end. */
  readonly settle: () => void;
}

class OpenLease<Request, Response> implements Lease<Response> {
  readonly id: number;
  readonly nonce = randomBytes(16);
  readonly #call: ServerDuplexStream<Request, Response>;
  readonly #onOver: (error: MeshError | undefined) => void;
  readonly #deadline: NodeJS.Timeout;
  isOver = false;
  isBlocked = false;

  constructor(
    id: number,
    call: ServerDuplexStream<Request, Response>,
    onOver: (error: MeshError | undefined) => void,
  ) {
    this.id = id;
    this.#call = call;
    this.#onOver = onOver;
    this.#deadline = setTimeout(() => {
      this.refuse(new MeshError("deadline_exceeded", `no hello within ${helloMsMax} ms`));
    }, helloMsMax);
  }

  accepted(): void {
    clearTimeout(this.#deadline);
  }

  send(response: Response): void {
    if (!this.isOver) this.isBlocked = !this.#call.write(response);
  }

  refuse(error: MeshError): void {
    if (this.#isLast(error)) this.#call.emit("error", toServiceError(error));
  }

  end(): void {
    if (this.#isLast(undefined)) this.#call.end();
  }

  /** The other side, or the connection, has ended it. */
  lost(): void {
    this.#isLast(undefined);
  }

  #isLast(error: MeshError | undefined): boolean {
    if (this.isOver) return false;
    this.isOver = true;
    clearTimeout(this.#deadline);
    this.#onOver(error);
    return true;
  }
}

/**
 * The streams of one service by which others hold their places in the mesh: at most so many, each with a hello in time, each
 * over exactly once.
 */
export class LeaseStreams<Request, Response, Holder extends LeaseHolder<Request>> {
  readonly #options: LeaseStreamsOptions<Holder>;
  readonly #create: (lease: Lease<Response>) => Holder;
  readonly #open = new Map<number, { readonly lease: Lease<Response>; readonly holder: Holder }>();
  #nextId = 1;

  /** `create` makes the holder of a new stream; its challenge is sent there. */
  constructor(options: LeaseStreamsOptions<Holder>, create: (lease: Lease<Response>) => Holder) {
    this.#options = options;
    this.#create = create;
  }

  /** Holders of the open streams, oldest first. */
  *holders(): Iterable<Holder> {
    for (const { holder } of this.#open.values()) yield holder;
  }

  /** Takes a new stream. */
  accept(call: ServerDuplexStream<Request, Response>): void {
    const { streamsMax, ofWhom, onRefused, settle } = this.#options;
    call.on("error", () => undefined);
    if (this.#open.size >= streamsMax) {
      const text = `${streamsMax} streams of ${ofWhom} are open, the maximum`;
      const error = new MeshError("overloaded", text);
      onRefused(error, undefined);
      call.emit("error", toServiceError(error));
      return;
    }
    const id = this.#nextId++;
    const lease = new OpenLease(id, call, (error) => {
      this.#open.delete(id);
      if (error !== undefined) onRefused(error, holder);
      holder.gone();
      settle();
    });
    const holder = this.#create(lease);
    this.#open.set(id, { lease, holder });
    call.on("data", (request: Request) => {
      if (lease.isOver) return;
      try {
        holder.receive(request);
      } catch (error) {
        lease.refuse(toMeshError(error));
      }
      settle();
    });
    call.on("drain", () => {
      lease.isBlocked = false;
      if (!lease.isOver) holder.drained?.();
    });
    call.on("end", () => {
      lease.lost();
      call.end();
    });
    call.on("cancelled", () => {
      lease.lost();
    });
    call.on("error", () => {
      lease.lost();
    });
  }

  /** Ends a stream that a newer one of the same holder replaces. */
  replace(id: number, of: string): void {
    const text = `a newer stream of this ${of} took over`;
    this.#open.get(id)?.lease.refuse(new MeshError("stale_epoch", text));
  }

  /** Ends every stream. */
  close(): void {
    for (const { lease } of [...this.#open.values()]) lease.end();
  }
}
