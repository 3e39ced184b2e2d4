import { createHmac, randomBytes } from "node:crypto";
import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "pino";
import { inCidrs, type Cidr } from "../../shared/core/cidr.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { relayProofMessage } from "../../shared/core/placement-token/relay-proof.ts";
import { toServiceError } from "../../shared/edge/grpc-server.ts";
import { verifyProof, type MeshKeys } from "../../shared/edge/keys.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import { toMeshError } from "../../shared/edge/wire.ts";
import type {
  AttachRequest,
  AttachResponse,
  LegNotices,
  RelayHello,
  RelayLoad,
  RelaysServer,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import type { LegNotice } from "../core/relays/leg-notice.ts";
import type { RelayFacts } from "../core/relays/relay-roster.ts";
import { RelayTopology } from "../core/relays/relay-topology.ts";
import { prefillKeyOf } from "../core/placement/pairs/pair-legs.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { routerMetrics } from "../metrics.ts";
import type { AdsService } from "./ads-server.ts";
import type { PeerLinks } from "./peer-links.ts";
import { relayToWire } from "./relay-peer-wire.ts";
import {
  changeToWire,
  readLegNotice,
  readRelayHello,
  snapshotToWire,
  toldEngine,
  toldRelay,
} from "./relay-wire.ts";

type Call = ServerDuplexStream<AttachRequest, AttachResponse>;
type Reply = NonNullable<AttachResponse["message"]>;

const protocolVersion = 1;
/** A stream that has not said hello by then is ended, ms. */
const helloMsMax = 5_000;
/** Silence after which the lease is over, ms; relays say something every second. */
const silenceMsMax = 3_000;
/** How long streams that cannot run elsewhere may stay on an engine that drains, ms. */
const engineDrainMs = 30_000;
/** Streams at once: a mesh has fewer relays. */
const streamsMax = 512;

/** What the Relays service needs. */
export interface RelayServiceDependencies {
  readonly core: RouterCore;
  readonly keys: MeshKeys;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof routerMetrics>;
  readonly peers: PeerLinks;
  readonly ads: Pick<AdsService, "setRelays">;
  readonly instance: string;
  readonly epoch: number;
  /** `<instance>.<epoch>` of this router. */
  readonly decisionPrefix: string;
  /** Where relays may be. */
  readonly allowedCidrs: readonly Cidr[];
  /** Carries out what the core wants done after a change. */
  readonly settle: () => void;
}

/** One relay's stream. */
class AttachStream {
  readonly id: number;
  readonly #call: Call;
  readonly #d: RelayServiceDependencies;
  readonly #service: RelayService;
  readonly #nonce = randomBytes(16);
  readonly #deadline: NodeJS.Timeout;
  #facts: RelayFacts | undefined;
  #heardAt: number;
  #isBlocked = false;
  /** Changes mean nothing before the first snapshot, nor once one was dropped that could not be sent. */
  #needsSnapshot = true;
  #isOver = false;

  constructor(id: number, call: Call, service: RelayService, d: RelayServiceDependencies) {
    this.id = id;
    this.#call = call;
    this.#service = service;
    this.#d = d;
    this.#heardAt = d.clock.now();
    this.#deadline = setTimeout(() => {
      this.fail(new MeshError("deadline_exceeded", `no hello within ${helloMsMax} ms`));
    }, helloMsMax);
    this.#send({
      $case: "challenge",
      value: {
        protocolVersion,
        routerInstance: d.instance,
        routerEpoch: BigInt(d.epoch),
        nonce: this.#nonce,
      },
    });
  }

  /** Whether its hello was accepted. */
  get isAttached(): boolean {
    return this.#facts !== undefined && !this.#isOver;
  }

  receive({ message }: AttachRequest): void {
    if (this.#isOver || message === undefined) return;
    this.#heardAt = this.#d.clock.now();
    try {
      if (message.$case === "hello") this.#hello(message.value);
      else {
        const facts = this.#facts;
        if (facts === undefined) {
          throw new MeshError("invalid_request", `${message.$case} came before hello`);
        }
        switch (message.$case) {
          case "load":
            this.#load(facts, message.value);
            break;
          case "legs":
            this.#legs(facts, message.value);
            break;
          case "resync":
            this.sendSnapshot();
            break;
          case "goodbye":
            this.#goodbye(facts, message.value.reason);
            break;
        }
      }
    } catch (error) {
      this.fail(toMeshError(error));
    }
    this.#d.settle();
  }

  /** Tells of a change of the topology, or remembers that it could not. */
  sendChange(change: Reply): void {
    if (!this.isAttached || this.#needsSnapshot) return;
    if (this.#isBlocked) this.#needsSnapshot = true;
    else this.#send(change);
  }

  /** Sends what no later message replaces; rare enough to wait for a slow relay in the stream's own buffer. */
  order(message: Reply): void {
    if (this.isAttached) this.#send(message);
  }

  sendSnapshot(): void {
    if (this.#isBlocked) {
      this.#needsSnapshot = true;
      return;
    }
    this.#needsSnapshot = false;
    for (const chunk of snapshotToWire(this.#service.topology.snapshot)) this.#send(chunk);
  }

  /** The relay reads again. */
  drained(): void {
    this.#isBlocked = false;
    if (this.#needsSnapshot && this.isAttached) this.sendSnapshot();
  }

  /** Ends the stream of a relay that is silent. */
  tick(now: number): void {
    if (this.isAttached && now - this.#heardAt > silenceMsMax) {
      this.fail(new MeshError("deadline_exceeded", `nothing heard for ${silenceMsMax} ms`));
      this.#d.settle();
    }
  }

  /** Ends the stream with a named refusal. */
  fail(error: MeshError): void {
    if (this.#isOver) return;
    const { metrics, log } = this.#d;
    metrics.relayRefused.inc({ code: error.code });
    log.warn(
      {
        event: "relay_refused",
        relay: this.#facts?.instance,
        code: error.code,
        reason: error.message,
      },
      "stream of a relay refused",
    );
    this.#end();
    this.#call.emit("error", toServiceError(error));
  }

  /** The stream is gone. */
  lost(): void {
    if (this.#isOver) return;
    this.#end();
    this.#d.settle();
  }

  /** Ends the stream without an error. */
  close(): void {
    if (this.#isOver) return;
    this.#end();
    this.#call.end();
  }

  #end(): void {
    this.#isOver = true;
    clearTimeout(this.#deadline);
    const { core, clock, log } = this.#d;
    const relay = core.relays.streamLost(this.id, clock.now());
    if (relay === undefined) return;
    log.info({ event: "relay_lost", relay: relay.facts.instance }, "stream of a relay ended");
    this.#service.tellPeers(relay.facts.instance);
  }

  #hello(hello: RelayHello): void {
    const { core, log } = this.#d;
    if (hello.protocolVersion !== protocolVersion) {
      throw new MeshError(
        "invalid_request",
        `relay speaks protocol ${hello.protocolVersion}, this router ${protocolVersion}; run one version of kvmesh`,
      );
    }
    if (this.#facts !== undefined) {
      throw new MeshError("invalid_request", "a relay says hello once");
    }
    const facts = readRelayHello(hello);
    this.#checkProof(hello, facts);
    this.#checkAddresses(facts);
    const { replacedStream } = core.relays.attach(facts, this.id);
    clearTimeout(this.#deadline);
    this.#facts = facts;
    if (replacedStream !== undefined) this.#service.replace(replacedStream);
    this.#send({ $case: "accepted", value: {} });
    // The relay itself is in its first snapshot, not in a change before it.
    this.#service.refresh();
    this.sendSnapshot();
    this.#service.tellPeers(facts.instance);
    log.info(
      { event: "relay_attached", relay: facts.instance, address: facts.h2Address },
      "relay attached",
    );
  }

  #checkProof(hello: RelayHello, facts: RelayFacts): void {
    const { keys } = this.#d;
    const message = relayProofMessage({
      relay: facts.instance,
      epoch: facts.epoch,
      h2Address: facts.h2Address,
      httpAddress: facts.httpAddress,
      nonce: this.#nonce,
    });
    const isProven = verifyProof(
      keys.join.filter(({ id }) => id === hello.joinKeyId),
      hello.proof,
      (key) => createHmac("sha256", key).update(message).digest(),
    );
    if (isProven) return;
    throw new MeshError(
      "unauthenticated",
      `relay ${facts.instance} has no valid proof; give it the mesh's keys file (key ${hello.joinKeyId.slice(0, 64)} was used)`,
    );
  }

  #checkAddresses(facts: RelayFacts): void {
    for (const [field, address] of [
      ["h2_address", facts.h2Address],
      ["http_address", facts.httpAddress],
    ] as const) {
      const problem = relayAddressProblem(address, this.#d.allowedCidrs);
      if (problem === undefined) continue;
      const code = problem.kind === "form" ? "invalid_request" : "permission_denied";
      throw new MeshError(code, `${field}: ${problem.text}`, { field });
    }
  }

  #load(facts: RelayFacts, load: RelayLoad): void {
    const { core } = this.#d;
    const before = core.relays.get(facts.instance)?.draining;
    core.relays.load(facts.instance, {
      openRequests: load.openRequests,
      draining: load.draining,
    });
    if (before !== load.draining) this.#service.tellPeers(facts.instance);
  }

  #legs(facts: RelayFacts, { notices }: LegNotices): void {
    const { core } = this.#d;
    const relay = core.relays.get(facts.instance);
    if (relay?.facts.epoch !== facts.epoch) return;
    for (const wire of notices) {
      const seq = Number(wire.seq);
      // What was not acknowledged before a stream broke comes again.
      if (seq <= relay.appliedSeq) continue;
      relay.appliedSeq = seq;
      const notice = readLegNotice(wire);
      if (notice !== undefined) this.#service.take(notice);
    }
    this.#send({ $case: "ack", value: { appliedSeq: BigInt(relay.appliedSeq) } });
  }

  #goodbye({ instance }: RelayFacts, reason: string): void {
    const { core, log } = this.#d;
    this.#isOver = true;
    clearTimeout(this.#deadline);
    if (core.relays.get(instance)?.streamId === this.id) {
      this.#service.tellPeers(instance, true);
      core.relays.goodbye(instance);
    }
    log.info({ event: "relay_left", relay: instance, reason: reason.slice(0, 200) }, "relay left");
    this.#call.end();
  }

  #send(message: Reply): void {
    this.#isBlocked = !this.#call.write({ message });
  }
}

/** What is wrong with the address of a relay, or `undefined`: Envoy dials it with the requests of users. */
export function relayAddressProblem(
  address: string,
  allowed: readonly Cidr[],
): { readonly kind: "form" | "range"; readonly text: string } | undefined {
  const endpoint = parseEndpoint(address);
  if (endpoint === undefined) return { kind: "form", text: "is not ip:port" };
  if (inCidrs(allowed, endpoint.host)) return undefined;
  const ranges = allowed.map(({ text }) => text).join(", ");
  const text = `${address} lies outside relays.allowedCidrs (${ranges}); add its range to the router's settings`;
  return { kind: "range", text };
}

/** Serves `Relays/Attach`: keeps the roster of relays, tells them the topology, takes what they say of legs. */
export class RelayService {
  readonly topology = new RelayTopology();
  readonly #d: RelayServiceDependencies;
  readonly #streams = new Map<number, AttachStream>();
  #nextId = 1;
  /** Version of the roster that was told last. */
  #toldVersion = 0;

  constructor(dependencies: RelayServiceDependencies) {
    this.#d = dependencies;
  }

  /** The grpc-js implementation. */
  get service(): RelaysServer {
    return {
      attach: (call: Call) => {
        this.#accept(call);
      },
    };
  }

  /** Tells Envoy and relays what has changed of relays. Cheap when nothing has. */
  settle(): void {
    const { relays } = this.#d.core;
    if (relays.version === this.#toldVersion) return;
    this.#toldVersion = relays.version;
    this.#d.ads.setRelays(relays.endpoints());
    this.refresh();
  }

  /** Tells relays what has changed of engines or relays. O(members). */
  refresh(): void {
    const { core } = this.#d;
    const engines = [...core.members.all()].map(toldEngine);
    const change = this.topology.update(engines, core.relays.all().map(toldRelay));
    if (change === undefined) return;
    const message = changeToWire(change);
    for (const stream of this.#streams.values()) stream.sendChange(message);
  }

  /** Tells peers of one relay. */
  tellPeers(instance: string, goodbye = false): void {
    const relay = this.#d.core.relays.get(instance);
    if (relay === undefined || this.#d.peers.isAlone) return;
    this.#d.peers.broadcast({ $case: "relay", value: relayToWire(relay, goodbye) });
  }

  /** Takes a notice: of an own decision, or of one whose router the relay does not reach. */
  take(notice: LegNotice): void {
    const { core, clock, peers, metrics, decisionPrefix } = this.#d;
    const { decisionId, leg, ended, outcome, last, workerId } = notice;
    if (ended) metrics.legEnds.inc({ leg, outcome });
    const prefix = decisionId.slice(0, decisionId.lastIndexOf("."));
    if (prefix === decisionPrefix) {
      core.legEnds.take(notice, clock.now());
      return;
    }
    if (!ended) return;
    const keys = leg === "prefill" ? [prefillKeyOf(decisionId)] : [];
    if (leg !== "prefill" || last) keys.push(decisionId);
    for (const key of keys) {
      core.peerClosed(key, clock.now());
      peers.broadcast({
        $case: "closed",
        value: { decisionId: key, workerId, observed: undefined, times: undefined },
      });
    }
  }

  /** Ends a stream that a newer one of the same relay replaces. */
  replace(streamId: number): void {
    this.#streams
      .get(streamId)
      ?.fail(new MeshError("stale_epoch", "a newer stream of this relay took over"));
  }

  /** Asks attached relays to move their streams off an engine that is to go. */
  drain(workerId: string, reason: string): void {
    const order = { workerId, deadlineMs: engineDrainMs, reason };
    for (const stream of this.#streams.values()) stream.order({ $case: "drain", value: order });
  }

  /** Finds silent relays. Call about every 250 ms. */
  tick(): void {
    const { core, clock, metrics } = this.#d;
    const now = clock.now();
    for (const stream of this.#streams.values()) stream.tick(now);
    const counts = { attached: 0, peers_only: 0, away: 0, draining: 0 };
    for (const relay of core.relays.all()) {
      if (relay.draining) counts.draining++;
      else if (relay.streamId !== undefined) counts.attached++;
      else if (relay.heldBy.size > 0) counts.peers_only++;
      else counts.away++;
    }
    for (const [state, count] of Object.entries(counts)) metrics.relays.set({ state }, count);
  }

  /** Ends every stream. */
  close(): void {
    for (const stream of this.#streams.values()) stream.close();
    this.#streams.clear();
  }

  #accept(call: Call): void {
    call.on("error", () => undefined);
    if (this.#streams.size >= streamsMax) {
      const text = `${streamsMax} streams of relays are open, the maximum`;
      this.#d.metrics.relayRefused.inc({ code: "overloaded" });
      call.emit("error", toServiceError(new MeshError("overloaded", text)));
      return;
    }
    const id = this.#nextId++;
    const stream = new AttachStream(id, call, this, this.#d);
    this.#streams.set(id, stream);
    const gone = (): void => {
      this.#streams.delete(id);
      stream.lost();
    };
    call.on("data", (request: AttachRequest) => {
      stream.receive(request);
    });
    call.on("drain", () => {
      stream.drained();
    });
    call.on("end", () => {
      gone();
      call.end();
    });
    call.on("cancelled", gone);
    call.on("error", gone);
  }
}
