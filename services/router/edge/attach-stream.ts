import { createHmac } from "node:crypto";
import type { Logger } from "pino";
import type { Cidr } from "../../shared/core/cidr.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { relayProofMessage } from "../../shared/core/placement-token/relay-proof.ts";
import { verifyProof, type MeshKeys } from "../../shared/edge/keys.ts";
import type {
  AttachRequest,
  AttachResponse,
  LegNotices,
  RelayHello,
  RelayLoad,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import type { LegNotice } from "../core/relays/leg-notice.ts";
import type { Relay, RelayFacts, RelayRoster } from "../core/relays/relay-roster.ts";
import type { TopologySnapshot } from "../core/relays/relay-topology.ts";
import type { Lease, LeaseHolder } from "./lease-streams.ts";
import { relayAddressProblem } from "./relay-facts.ts";
import { readLegNotice, readRelayHello, snapshotToWire } from "./relay-wire.ts";

type Reply = NonNullable<AttachResponse["message"]>;

const protocolVersion = 1;
/** Silence after which the lease is over, ms; relays say something every second. */
const silenceMsMax = 3_000;

/** What the streams of relays need. */
export interface AttachStreamDependencies {
  readonly relays: RelayRoster;
  readonly keys: MeshKeys;
  readonly clock: Clock;
  readonly log: Logger;
  readonly instance: string;
  readonly epoch: number;
  /** Where relays may be. */
  readonly allowedCidrs: readonly Cidr[];
  /** Engines and relays as of now. */
  readonly topology: () => TopologySnapshot;
  /** The roster has changed in a way that other relays must hear of. */
  readonly refresh: () => void;
  /** A relay attached, was lost, drains or, `goodbye`, leaves: peers are to hear of it. */
  readonly tellPeers: (instance: string, goodbye?: boolean) => void;
  /** Takes what a relay says of a leg. */
  readonly take: (notice: LegNotice) => void;
  /** Ends an older stream of the same relay. */
  readonly replace: (streamId: number) => void;
}

/** One relay's stream: its hello, its load, what it tells of legs, and the topology that it is told. */
export class AttachStream implements LeaseHolder<AttachRequest> {
  readonly #lease: Lease<AttachResponse>;
  readonly #d: AttachStreamDependencies;
  #facts: RelayFacts | undefined;
  #heardAt: number;
  /** Changes mean nothing before the first snapshot, nor once one was dropped that could not be sent. */
  #needsSnapshot = true;

  constructor(lease: Lease<AttachResponse>, dependencies: AttachStreamDependencies) {
    this.#lease = lease;
    this.#d = dependencies;
    this.#heardAt = dependencies.clock.now();
    this.#send({
      $case: "challenge",
      value: {
        protocolVersion,
        routerInstance: dependencies.instance,
        routerEpoch: BigInt(dependencies.epoch),
        nonce: lease.nonce,
      },
    });
  }

  /** Instance of the relay, once its hello was accepted. */
  get relay(): string | undefined {
    return this.#facts?.instance;
  }

  /** Whether its hello was accepted and its stream lives. */
  get isAttached(): boolean {
    return this.#facts !== undefined && !this.#lease.isOver;
  }

  receive({ message }: AttachRequest): void {
    if (message === undefined) return;
    this.#heardAt = this.#d.clock.now();
    if (message.$case === "hello") {
      this.#hello(message.value);
      return;
    }
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
        this.#sendSnapshot();
        break;
      case "goodbye":
        this.#goodbye(facts, message.value.reason);
        break;
    }
  }

  /** Tells of a change of the topology, or remembers that it could not. */
  sendChange(change: Reply): void {
    if (!this.isAttached || this.#needsSnapshot) return;
    if (this.#lease.isBlocked) this.#needsSnapshot = true;
    else this.#send(change);
  }

  /** Sends what no later message replaces; rare enough to wait for a slow relay in the stream's own buffer. */
  order(message: Reply): void {
    if (this.isAttached) this.#send(message);
  }

  drained(): void {
    if (this.#needsSnapshot && this.isAttached) this.#sendSnapshot();
  }

  /** Ends the stream of a relay that is silent. */
  tick(now: number): void {
    if (this.isAttached && now - this.#heardAt > silenceMsMax) {
      const text = `nothing heard for ${silenceMsMax} ms`;
      this.#lease.refuse(new MeshError("deadline_exceeded", text));
    }
  }

  gone(): void {
    const { relays, clock, log, tellPeers } = this.#d;
    const relay = relays.streamLost(this.#lease.id, clock.now());
    if (relay === undefined) return;
    log.info({ event: "relay_lost", relay: relay.facts.instance }, "stream of a relay ended");
    tellPeers(relay.facts.instance);
  }

  #hello(hello: RelayHello): void {
    const { relays, log, replace, refresh, tellPeers } = this.#d;
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
    const { replacedStream } = relays.attach(facts, this.#lease.id);
    this.#lease.accepted();
    this.#facts = facts;
    if (replacedStream !== undefined) replace(replacedStream);
    this.#send({ $case: "accepted", value: {} });
    // The relay itself is in its first snapshot, not in a change before it.
    refresh();
    this.#sendSnapshot();
    tellPeers(facts.instance);
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
      nonce: this.#lease.nonce,
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

  /** Whether what this stream says is of the life that is known. */
  #holds({ streamId, facts }: Relay): boolean {
    return streamId === this.#lease.id && facts.epoch === this.#facts?.epoch;
  }

  #load({ instance }: RelayFacts, { openRequests, draining }: RelayLoad): void {
    const { relays, tellPeers } = this.#d;
    const relay = relays.get(instance);
    // Peers may have told of a newer life of it, which this stream knows nothing of.
    if (relay === undefined || !this.#holds(relay)) return;
    const wasDraining = relay.draining;
    relays.load(instance, { openRequests, draining });
    if (wasDraining !== draining) tellPeers(instance);
  }

  #legs(facts: RelayFacts, { notices }: LegNotices): void {
    const relay = this.#d.relays.get(facts.instance);
    if (relay === undefined || !this.#holds(relay)) return;
    for (const wire of notices) {
      const seq = Number(wire.seq);
      // What was not acknowledged before a stream broke comes again.
      if (seq <= relay.appliedSeq) continue;
      relay.appliedSeq = seq;
      const notice = readLegNotice(wire);
      if (notice !== undefined) this.#d.take(notice);
    }
    this.#send({ $case: "ack", value: { appliedSeq: BigInt(relay.appliedSeq) } });
  }

  #goodbye({ instance }: RelayFacts, reason: string): void {
    const { relays, log, tellPeers } = this.#d;
    const relay = relays.get(instance);
    if (relay !== undefined && this.#holds(relay)) {
      tellPeers(instance, true);
      relays.goodbye(instance);
    }
    log.info({ event: "relay_left", relay: instance, reason: reason.slice(0, 200) }, "relay left");
    this.#lease.end();
  }

  #sendSnapshot(): void {
    if (this.#lease.isBlocked) {
      this.#needsSnapshot = true;
      return;
    }
    this.#needsSnapshot = false;
    for (const chunk of snapshotToWire(this.#d.topology())) this.#send(chunk);
  }

  #send(message: Reply): void {
    this.#lease.send({ message });
  }
}
