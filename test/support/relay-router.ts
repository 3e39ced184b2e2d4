import {
  Server,
  status,
  type Metadata,
  type sendUnaryData,
  type ServerDuplexStream,
  type ServerUnaryCall,
} from "@grpc/grpc-js";
import { listen } from "../../services/shared/edge/grpc-server.ts";
import {
  RelaysService,
  type AttachRequest,
  type AttachResponse,
  type Engine,
  type LegNotice,
  type RelayPeer,
} from "../../services/shared/gen/kvmesh/relay/v1/relay.ts";
import {
  Decision,
  Outcome,
  RouterService,
  type PlaceRequest,
  type PlaceResponse,
} from "../../services/shared/gen/kvmesh/router/v1/router.ts";

/** An attach stream, from the router. */
export type Stream = ServerDuplexStream<AttachRequest, AttachResponse>;
/** What a relay said. */
export type Said = NonNullable<AttachRequest["message"]>;

/** A router's side of Attach and Place, scripted. */
export class ScriptedRouter {
  readonly streams: Stream[] = [];
  readonly said: Said[] = [];
  readonly asked: PlaceRequest[] = [];
  /** Metadata of the calls of Place. */
  readonly askedWith: Metadata[] = [];
  /** Whether Place leaves its callers waiting, and how many of them went away. */
  holdsPlaces = false;
  placesLeft = 0;
  /** What Place answers; empty refuses. */
  token = "";
  acksLegs = true;
  readonly #server = new Server();
  port = 0;

  async start(): Promise<void> {
    this.#server.addService(RelaysService, {
      attach: (stream: Stream) => {
        this.streams.push(stream);
        this.send(stream, {
          $case: "challenge",
          value: {
            protocolVersion: 1,
            routerInstance: "router-0",
            routerEpoch: 1n,
            nonce: Buffer.alloc(16, 7),
          },
        });
        stream.on("data", (request: AttachRequest) => {
          this.#receive(stream, request);
        });
        stream.on("error", () => undefined);
      },
    });
    const never = (): void => undefined;
    this.#server.addService(RouterService, {
      place: (
        call: ServerUnaryCall<PlaceRequest, PlaceResponse>,
        answer: sendUnaryData<PlaceResponse>,
      ) => {
        this.asked.push(call.request);
        this.askedWith.push(call.metadata);
        call.on("cancelled", () => this.placesLeft++);
        if (this.holdsPlaces) return;
        if (this.token === "") {
          answer({ code: status.UNAVAILABLE, details: "no worker" });
          return;
        }
        const decision = {
          ...Decision.decode(new Uint8Array(0)),
          outcome: Outcome.OUTCOME_PLACED,
        };
        answer(null, { decision, placement: this.token });
      },
      release: never,
      explain: never,
      watchPlacements: never,
      watchTopology: never,
      setPolicy: never,
    });
    this.port = await listen(this.#server, "127.0.0.1", this.port);
  }

  send(stream: Stream, message: NonNullable<AttachResponse["message"]>): void {
    stream.write({ message });
  }

  snapshot(
    stream: Stream,
    engines: Engine[],
    over: {
      engineCount?: number;
      baseSeq?: bigint;
      relays?: RelayPeer[];
      relayCount?: number;
    } = {},
  ): void {
    this.send(stream, {
      $case: "snapshot",
      value: {
        baseSeq: 5n,
        engines,
        relays: [],
        last: true,
        engineCount: engines.length,
        relayCount: 0,
        ...over,
      },
    });
  }

  #receive(stream: Stream, { message }: AttachRequest): void {
    if (message === undefined) return;
    this.said.push(message);
    if (message.$case === "hello") this.send(stream, { $case: "accepted", value: {} });
    if (message.$case === "legs" && this.acksLegs) {
      const last = message.value.notices[message.value.notices.length - 1];
      this.send(stream, { $case: "ack", value: { appliedSeq: last?.seq ?? 0n } });
    }
    if (message.$case === "goodbye") stream.end();
  }

  legs(): LegNotice[] {
    return this.said.flatMap((one) => (one.$case === "legs" ? one.value.notices : []));
  }

  close(): Promise<void> {
    this.#server.forceShutdown();
    return Promise.resolve();
  }
}
