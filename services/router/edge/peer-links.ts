import { randomBytes } from "node:crypto";
import { Metadata, status, type ClientDuplexStream, type ServiceError } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { Backoff } from "../../shared/core/backoff.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { SeededRandom } from "../../shared/core/random.ts";
import { createChannelCredentials, createChannelOptions } from "../../shared/edge/grpc-client.ts";
import { peerProof, verifyProof, type MeshKeys } from "../../shared/edge/keys.ts";
import {
  PeerClient,
  RouterClient,
  type ExplainRequest,
  type ExplainResponse,
  type PeerChallenge,
  type PeerSnapshot,
  type PeerWelcome,
  type SetPolicyRequest,
  type SyncRequest,
  type SyncResponse,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import { welcomeProof } from "./peer-proof.ts";

type Message = NonNullable<SyncRequest["message"]>;
type PeerEvent = Extract<Message, { $case: "reserved" | "closed" | "observed" }>;

/** Messages that may wait for a slow peer; past it they are dropped and a snapshot follows. */
const waitingMax = 10_000;
/** How long an event waits for others to share its message, ms: much less than a request takes, and a message is dear. */
const batchMs = 10;
/** Events of one message at most. */
const batchEventsMax = 256;
/** A link that has sent nothing for so long sends a heartbeat, ms. */
const heartbeatMs = 500;
/** How long another router may take to answer a question, ms. */
const askMsMax = 1_000;

function isEvent(message: Message | undefined): message is PeerEvent {
  return (
    message?.$case === "reserved" || message?.$case === "closed" || message?.$case === "observed"
  );
}

/** What the links need. */
export interface PeerLinksDependencies {
  readonly addresses: readonly string[];
  readonly instance: string;
  readonly epoch: number;
  readonly keys: MeshKeys;
  readonly clock: Clock;
  readonly log: Logger;
  readonly blockSizeTokens: number;
  readonly controlAddress: () => string;
  /** This router's whole state, for a new or resynchronised link. */
  readonly snapshot: () => PeerSnapshot;
  readonly onDropped: (count: number) => void;
  /** A router that was dialled could not prove that it belongs to the mesh. */
  readonly onUnproven: () => void;
}

/** This router's outgoing stream to one peer. */
class PeerLink {
  readonly address: string;
  readonly #d: PeerLinksDependencies;
  readonly #client: PeerClient;
  readonly router: RouterClient;
  readonly #backoff: Backoff;
  readonly #waiting: Message[] = [];
  #call: ClientDuplexStream<SyncRequest, SyncResponse> | undefined;
  #welcomed = false;
  /** Of this stream's hello. */
  #nonce = randomBytes(16);
  #blocked = false;
  #needsSnapshot = true;
  #seq = 0;
  #sentAt = 0;
  #timer: NodeJS.Timeout | undefined;
  #batchTimer: NodeJS.Timeout | undefined;
  #stopped = false;
  /** Why the peer refused last; told once until it welcomes or says something else. */
  #refusal: string | undefined;
  /** Instance of the peer, once it has welcomed this router. */
  instance: string | undefined;

  constructor(address: string, dependencies: PeerLinksDependencies) {
    this.address = address;
    this.#d = dependencies;
    const options = createChannelOptions();
    this.#client = new PeerClient(address, createChannelCredentials(), options);
    this.router = new RouterClient(address, createChannelCredentials(), options);
    this.#backoff = new Backoff({
      baseMs: 100,
      maxMs: 2_000,
      jitterRatio: 0.5,
      random: new SeededRandom(dependencies.epoch).fork(address),
    });
  }

  get connected(): boolean {
    return this.#welcomed;
  }

  start(): void {
    this.#connect();
  }

  /** Events share a message with those of the next milliseconds; everything else goes at once, after them. */
  send(message: Message): void {
    if (this.#call === undefined || this.#needsSnapshot) return;
    if (this.#waiting.length >= waitingMax) {
      this.#d.onDropped(this.#waiting.length);
      this.#waiting.length = 0;
      this.#needsSnapshot = true;
      return;
    }
    this.#waiting.push(message);
    if (!isEvent(message) || this.#waiting.length >= batchEventsMax) this.#flush();
    else {
      this.#batchTimer ??= setTimeout(() => {
        this.#batchTimer = undefined;
        this.#flush();
      }, batchMs);
    }
  }

  tick(): void {
    if (!this.#welcomed || this.#blocked) return;
    if (this.#needsSnapshot) this.#sendSnapshot();
    else if (this.#d.clock.now() - this.#sentAt >= heartbeatMs) {
      this.#write({ $case: "heartbeat", value: {} });
    }
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    clearTimeout(this.#batchTimer);
    this.#flush();
    if (this.#welcomed) this.#write({ $case: "goodbye", value: {} });
    this.#call?.end();
    // The goodbye needs a moment to leave the process.
    const client = this.#client;
    const { router } = this;
    setTimeout(() => {
      client.close();
      router.close();
    }, 200).unref();
  }

  #connect(): void {
    if (this.#stopped) return;
    const call = this.#client.sync();
    this.#call = call;
    this.#seq = 0;
    this.#needsSnapshot = true;
    this.#blocked = false;
    this.#waiting.length = 0;
    call.on("data", (response: SyncResponse) => {
      this.#receive(response);
    });
    call.on("drain", () => {
      this.#blocked = false;
      this.#flush();
    });
    call.on("error", (error: ServiceError) => {
      const { log } = this.#d;
      const { code, details } = error;
      // A peer that is not there is dialled quietly; one that refuses needs somebody to mend it, told once a reason.
      if (code === status.UNAVAILABLE || code === status.CANCELLED || details === this.#refusal) {
        log.debug({ event: "peer_link_lost", peer: this.address, err: error }, "peer link lost");
      } else {
        this.#refusal = details;
        log.warn(
          { event: "peer_refuses", peer: this.address, code, reason: details },
          "peer refuses this router",
        );
      }
      this.#lost(call);
    });
    call.on("end", () => {
      this.#lost(call);
    });
  }

  /** Proves this router to the one that it dialled. */
  #hello({ instance: challenger, nonce }: PeerChallenge): void {
    const { keys, instance, epoch, blockSizeTokens } = this.#d;
    const [key] = keys.peer;
    if (key === undefined) return;
    this.#nonce = randomBytes(16);
    this.#call?.write({
      seq: 0n,
      message: {
        $case: "hello",
        value: {
          protocolVersion: 1,
          instance,
          epoch: BigInt(epoch),
          proof: peerProof(key.key, { instance, epoch: BigInt(epoch), challenger, nonce }),
          keyId: key.id,
          controlAddress: this.#d.controlAddress(),
          blockSizeTokens,
          nonce: this.#nonce,
        },
      },
    });
  }

  /** Begins to tell this router's state, to one that has proved itself; nobody else is to know it. */
  #welcome(welcome: PeerWelcome): void {
    const { keys, log, instance: caller, onUnproven } = this.#d;
    const { instance, epoch, proof, keyId } = welcome;
    const isProven = verifyProof(
      keys.peer.filter(({ id }) => id === keyId),
      proof,
      (key) => welcomeProof(key, { instance, epoch, caller, nonce: this.#nonce }),
    );
    if (!isProven) {
      onUnproven();
      const reason = `router ${instance.slice(0, 64)} has no valid proof; give all routers the same peer key (keys file, "peer")`;
      // A peer may be dialled again and again; the reason is told once.
      if (reason !== this.#refusal) {
        log.warn({ event: "peer_unproven", peer: this.address, reason }, "peer is not proven");
      }
      this.#refusal = reason;
      this.#call?.cancel();
      return;
    }
    this.instance = instance;
    this.#welcomed = true;
    this.#refusal = undefined;
    this.#backoff.reset();
    this.#sendSnapshot();
  }

  #receive(response: SyncResponse): void {
    switch (response.message?.$case) {
      case "challenge":
        this.#hello(response.message.value);
        break;
      case "welcome":
        this.#welcome(response.message.value);
        break;
      case "resync":
        this.#needsSnapshot = true;
        break;
      case "ack":
      case undefined:
        break;
    }
  }

  #flush(): void {
    const waiting = this.#waiting;
    let from = 0;
    while (from < waiting.length && !this.#blocked) {
      let end = from;
      while (end - from < batchEventsMax && isEvent(waiting[end])) end++;
      const message = waiting[from];
      if (end - from > 1) {
        const events = (waiting.slice(from, end) as PeerEvent[]).map((event) => ({ event }));
        this.#write({ $case: "batch", value: { events } });
      } else if (message !== undefined) this.#write(message);
      from = Math.max(end, from + 1);
    }
    waiting.splice(0, from);
  }

  #sendSnapshot(): void {
    this.#needsSnapshot = false;
    this.#waiting.length = 0;
    this.#write({ $case: "snapshot", value: this.#d.snapshot() });
  }

  #write(message: Message): void {
    if (this.#call === undefined) return;
    this.#seq++;
    this.#sentAt = this.#d.clock.now();
    this.#blocked = !this.#call.write({ seq: BigInt(this.#seq), message });
  }

  #lost(call: ClientDuplexStream<SyncRequest, SyncResponse>): void {
    if (this.#call !== call) return;
    this.#call = undefined;
    this.#welcomed = false;
    if (this.#stopped) return;
    this.#timer = setTimeout(() => {
      this.#connect();
    }, this.#backoff.next());
  }
}

/** Streams to every other router; state flows out on them, answers to questions come back through `Router`. */
export class PeerLinks {
  readonly #links: readonly PeerLink[];

  constructor(dependencies: PeerLinksDependencies) {
    this.#links = dependencies.addresses.map((address) => new PeerLink(address, dependencies));
  }

  /** Whether there is no other router to tell anything. */
  get isAlone(): boolean {
    return this.#links.length === 0;
  }

  /** Starts dialling. */
  start(): void {
    for (const link of this.#links) link.start();
  }

  /** Sends to every connected peer. */
  broadcast(message: Message): void {
    for (const link of this.#links) link.send(message);
  }

  /** Sends to one peer by instance; false when there is no link to it. */
  sendTo(instance: string, message: Message): boolean {
    const link = this.#links.find((l) => l.instance === instance && l.connected);
    link?.send(message);
    return link !== undefined;
  }

  /** Heartbeats and due snapshots. Call about every 100 ms. */
  tick(): void {
    for (const link of this.#links) link.tick();
  }

  /** What the other routers know of a decision; those that do not know it or do not answer in time are left out. */
  async explain(request: ExplainRequest, signal: AbortSignal): Promise<ExplainResponse[]> {
    const question = { ...request, localOnly: true };
    const answers = await Promise.all(
      this.#proven().map(
        (link) =>
          new Promise<ExplainResponse | undefined>((resolve) => {
            const call = link.router.explain(
              question,
              new Metadata(),
              { deadline: Date.now() + askMsMax },
              (error, response) => {
                resolve(error === null ? response : undefined);
              },
            );
            signal.addEventListener("abort", () => {
              call.cancel();
            });
          }),
      ),
    );
    return answers.filter((answer) => answer !== undefined);
  }

  /** Passes a policy on; returns the instances that took it. */
  async setPolicy(request: SetPolicyRequest): Promise<string[]> {
    const answers = await Promise.all(
      this.#proven().map(
        (link) =>
          new Promise<readonly string[]>((resolve) => {
            link.router.setPolicy(
              request,
              new Metadata(),
              { deadline: Date.now() + askMsMax },
              (error, response) => {
                resolve(error === null ? response.appliedBy : []);
              },
            );
          }),
      ),
    );
    return answers.flat();
  }

  /** Says goodbye and closes. */
  stop(): void {
    for (const link of this.#links) link.stop();
  }

  /** Links to routers that have proved themselves: nobody else is asked anything. */
  #proven(): PeerLink[] {
    return this.#links.filter(({ connected }) => connected);
  }
}
