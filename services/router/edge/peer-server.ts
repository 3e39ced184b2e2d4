import { takeDemand } from "./demand-exchange.ts";
import { randomBytes } from "node:crypto";
import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "pino";
import type { Cidr } from "../../shared/core/cidr.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import type { MonoMs } from "../../shared/core/ids.ts";
import { toServiceError } from "../../shared/edge/grpc-server.ts";
import { peerProof, verifyProof, type MeshKeys } from "../../shared/edge/keys.ts";
import { toMeshError } from "../../shared/edge/wire.ts";
import type {
  PeerDemand,
  PeerEvent,
  PeerHello,
  PeerServer,
  PeerSnapshot,
  MemberNotice as WireNotice,
  Reservation as WireReservation,
  RelayNotice as WireRelay,
  RouterState,
  SyncRequest,
  SyncResponse,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import type { MemberNotice } from "../core/membership/member.ts";
import { SequenceCheck } from "../core/peers/peer-link.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { AccessOutcomes } from "./access-outcomes.ts";
import { relayFromWire } from "./relay-peer-wire.ts";
import { noticeProblem, relayNoticeProblem, reservationProblem } from "./peer-notice-check.ts";
import { welcomeProof } from "./peer-proof.ts";
import {
  noticeFromWire,
  recordFromWire,
  reservationFromWire,
  tracedFromWire,
} from "./peer-wire.ts";

type Call = ServerDuplexStream<SyncRequest, SyncResponse>;

/** Silence after which a peer counts as lost, ms; heartbeats come every 500 ms. */
const silenceMsMax = 2_500;
/** How long a peer whose stream ended may take to come back before its members count as not held, ms. */
const returnMsMax = 1_000;

/** A stream that has not said hello by then is ended, ms. */
const helloMsMax = 5_000;
/** Least size of a caller's nonce, bytes. */
const nonceSizeMin = 16;
/** Streams at once: a mesh has fewer routers. */
const streamsMax = 64;
/** A lost router is forgotten by then, ms: one restarted after its clock went back may join again. */
const forgetMsMax = 60_000;

interface KnownPeer {
  readonly instance: string;
  epoch: bigint;
  call: Call | undefined;
  heardAt: number;
  lostAt: number | undefined;
  synced: boolean;
  /** Whether something that it told of demand was refused on this stream. */
  demandRefused: boolean;
}

/** What the Peer service needs. */
export interface PeerServiceDependencies {
  readonly core: RouterCore;
  readonly outcomes: AccessOutcomes;
  readonly keys: MeshKeys;
  readonly clock: Clock;
  readonly log: Logger;
  readonly instance: string;
  readonly epoch: number;
  readonly blockSizeTokens: number;
  /** Where engines may be that peers tell of. */
  readonly allowedCidrs: readonly Cidr[];
  /** Where relays may be that peers tell of; as for engines when absent. */
  readonly relayCidrs?: readonly Cidr[];
  /** Something that a peer said was not taken. */
  readonly onRefused: (what: "hello" | "notice" | "message" | "demand") => void;
  readonly settle: () => void;
}

/** Serves `Peer/Sync`: what other routers tell of themselves. */
export class PeerService {
  readonly #d: PeerServiceDependencies;
  readonly #peers = new Map<string, KnownPeer>();
  #streams = 0;

  constructor(dependencies: PeerServiceDependencies) {
    this.#d = dependencies;
  }

  /** Peers whose snapshot has been applied and whose stream is up. */
  get syncedCount(): number {
    return [...this.#peers.values()].filter((p) => p.synced && p.call !== undefined).length;
  }

  /** Whether a synced peer had run for `ms` when this router started. By the clocks of both. */
  hasPeerOlderBy(ms: number): boolean {
    const { epoch } = this.#d;
    return [...this.#peers.values()].some(
      (p) => p.synced && p.call !== undefined && Number(p.epoch) + ms <= epoch,
    );
  }

  /** Peers that were known and are lost. */
  get lostCount(): number {
    return [...this.#peers.values()].filter((p) => p.call === undefined).length;
  }

  /** States for people. */
  states(): RouterState[] {
    const now = this.#d.clock.now();
    return [...this.#peers.values()].map((peer) => ({
      instance: peer.instance,
      epoch: peer.epoch,
      state: peer.call === undefined ? "lost" : peer.synced ? "serving" : "syncing",
      heardAgeMs: now - peer.heardAt,
    }));
  }

  /** The grpc-js implementation. */
  get service(): PeerServer {
    return {
      sync: (call: Call) => {
        this.#accept(call);
      },
    };
  }

  /** Finds silent and departed peers. Call about every 250 ms. */
  tick(): void {
    const now = this.#d.clock.now();
    for (const peer of this.#peers.values()) {
      if (peer.call !== undefined && now - peer.heardAt > silenceMsMax) {
        this.#d.log.warn({ event: "peer_silent", peer: peer.instance }, "peer is silent");
        const { call } = peer;
        this.#streamEnded(peer, call);
        call.emit("error", toServiceError(new MeshError("deadline_exceeded", "peer is silent")));
      }
      if (peer.lostAt !== undefined && now - peer.lostAt > returnMsMax) {
        peer.lostAt = undefined;
        this.#d.core.routerLost(peer.instance, now);
        this.#d.log.warn({ event: "peer_lost", peer: peer.instance }, "peer lost");
        this.#d.settle();
      }
      if (peer.call === undefined && now - peer.heardAt > forgetMsMax) {
        this.#peers.delete(peer.instance);
      }
    }
  }

  #accept(call: Call): void {
    const { log, onRefused } = this.#d;
    const refuse = (code: "deadline_exceeded" | "overloaded", reason: string): void => {
      onRefused("hello");
      log.warn({ event: "peer_refused", code, reason }, "peer refused");
      call.emit("error", toServiceError(new MeshError(code, reason)));
    };
    if (this.#streams >= streamsMax) {
      call.on("error", () => undefined);
      refuse("overloaded", `${streamsMax} streams of peers are open, the maximum`);
      return;
    }
    this.#streams++;
    const deadline = setTimeout(() => {
      refuse("deadline_exceeded", `no hello within ${helloMsMax} ms`);
    }, helloMsMax);
    let isOpen = true;
    let peer: KnownPeer | undefined;
    const sequence = new SequenceCheck();
    const nonce = randomBytes(16);
    call.write({ message: { $case: "challenge", value: { instance: this.#d.instance, nonce } } });
    call.on("data", (request: SyncRequest) => {
      try {
        if (request.message?.$case === "hello") {
          if (peer !== undefined) throw new MeshError("invalid_request", "hello was said already");
          peer = this.#hello(call, request.message.value, nonce);
          clearTimeout(deadline);
        } else if (peer === undefined) {
          throw new MeshError("invalid_request", "the first message must be hello");
        } else this.#receive(peer, call, request, sequence);
      } catch (error) {
        const mesh = toMeshError(error);
        onRefused(peer === undefined ? "hello" : "message");
        log.warn({ event: "peer_refused", code: mesh.code, reason: mesh.message }, "peer refused");
        call.emit("error", toServiceError(mesh));
      }
      this.#d.settle();
    });
    const ended = (): void => {
      clearTimeout(deadline);
      if (isOpen) this.#streams--;
      isOpen = false;
      if (peer !== undefined) this.#streamEnded(peer, call);
    };
    call.on("end", () => {
      ended();
      call.end();
    });
    call.on("cancelled", ended);
    call.on("error", ended);
  }

  #hello(call: Call, hello: PeerHello, nonce: Uint8Array): KnownPeer {
    const { keys, clock, instance, blockSizeTokens, log } = this.#d;
    const proven = verifyProof(
      keys.peer.filter(({ id }) => id === hello.keyId),
      hello.proof,
      (key) => peerProof(key, { ...hello, challenger: instance, nonce }),
    );
    if (!proven) {
      throw new MeshError(
        "unauthenticated",
        `router ${hello.instance} has no valid proof; give all routers the same peer key (keys file, "peer")`,
      );
    }
    if (hello.nonce.length < nonceSizeMin) {
      const text = `nonce: must be at least ${nonceSizeMin} bytes; run one version of kvmesh`;
      throw new MeshError("invalid_request", text, { field: "nonce" });
    }
    if (hello.instance === instance) {
      throw new MeshError(
        "already_exists",
        `two routers are called ${instance}; set another router.instance`,
      );
    }
    if (hello.blockSizeTokens !== blockSizeTokens) {
      throw new MeshError(
        "invalid_request",
        `router ${hello.instance} uses blocks of ${hello.blockSizeTokens} tokens, this one ${blockSizeTokens}`,
      );
    }
    const now = clock.now();
    let peer = this.#peers.get(hello.instance);
    if (peer === undefined) {
      peer = {
        instance: hello.instance,
        epoch: hello.epoch,
        call,
        heardAt: now,
        lostAt: undefined,
        synced: false,
        demandRefused: false,
      };
      this.#peers.set(hello.instance, peer);
    } else {
      if (hello.epoch < peer.epoch) {
        throw new MeshError("stale_epoch", `router ${hello.instance} was known with a newer epoch`);
      }
      const older = peer.call;
      peer.epoch = hello.epoch;
      peer.call = call;
      if (older !== undefined) {
        const text = `a newer stream of router ${hello.instance} took over`;
        older.emit("error", toServiceError(new MeshError("stale_epoch", text)));
      }
      peer.heardAt = now;
      peer.lostAt = undefined;
      peer.synced = false;
      peer.demandRefused = false;
    }
    this.#welcome(call, hello);
    log.info(
      { event: "peer_joined", peer: hello.instance, epoch: Number(hello.epoch) },
      "peer joined",
    );
    return peer;
  }

  /** Shows the caller in turn that it has reached a router of its mesh: it tells its whole state next. */
  #welcome(call: Call, { instance: caller, nonce }: PeerHello): void {
    const { keys, instance } = this.#d;
    const [key] = keys.peer;
    if (key === undefined) return;
    const epoch = BigInt(this.#d.epoch);
    const proof = welcomeProof(key.key, { instance, epoch, caller, nonce });
    const value = { instance, epoch, proof, keyId: key.id };
    call.write({ message: { $case: "welcome", value } });
  }

  #receive(peer: KnownPeer, call: Call, request: SyncRequest, sequence: SequenceCheck): void {
    const { core, clock } = this.#d;
    if (peer.call !== call) return;
    const now = clock.now();
    peer.heardAt = now;
    const { message } = request;
    if (message === undefined) return;
    const verdict = sequence.receive(Number(request.seq), message.$case === "snapshot");
    if (verdict === "resync") {
      call.write({
        message: { $case: "resync", value: { expectedSeq: BigInt(sequence.expected) } },
      });
      return;
    }
    if (verdict === "ignore") return;
    switch (message.$case) {
      case "snapshot":
        this.#snapshot(peer, message.value);
        call.write({ message: { $case: "ack", value: { appliedSeq: request.seq } } });
        break;
      case "member": {
        const notice = this.#notice(peer, message.value);
        if (notice !== undefined) core.notice(peer.instance, notice, now);
        break;
      }
      case "relay":
        this.#relay(peer, message.value, now);
        break;
      case "reserved":
      case "closed":
      case "observed":
        this.#event(message, now);
        break;
      case "batch":
        for (const { event } of message.value.events) this.#event(event, now);
        break;
      case "demand":
        this.#demand(peer, message.value, now);
        break;
      case "goodbye":
        core.routerLost(peer.instance, now);
        break;
      case "heartbeat":
      case "hello":
        break;
    }
  }

  /** A notice that may be believed; a bad one is counted and left out, since the peer's others are of use. */
  #notice(peer: KnownPeer, wire: WireNotice): MemberNotice | undefined {
    const { allowedCidrs, log, onRefused } = this.#d;
    const notice = noticeFromWire(wire);
    const problem = noticeProblem(notice, allowedCidrs);
    if (problem === undefined) return notice;
    onRefused("notice");
    log.warn(
      {
        event: "peer_notice_refused",
        peer: peer.instance,
        workerId: notice.workerId.slice(0, 128),
        endpoint: notice.endpoint.slice(0, 64),
        reason: problem,
      },
      "peer's notice of a member refused",
    );
    return undefined;
  }

  /** Takes what a peer says of a relay, unless its addresses may not be used. */
  #relay(peer: KnownPeer, wire: WireRelay, now: MonoMs): boolean {
    const { core, log, onRefused } = this.#d;
    const notice = relayFromWire(wire);
    const allowed = this.#d.relayCidrs ?? this.#d.allowedCidrs;
    const problem = relayNoticeProblem(notice, allowed);
    if (problem === undefined) {
      core.relays.notice(peer.instance, notice, now);
      return true;
    }
    onRefused("notice");
    log.warn(
      {
        event: "peer_notice_refused",
        peer: peer.instance,
        relay: notice.instance.slice(0, 64),
        reason: problem,
      },
      "peer's notice of a relay refused",
    );
    return false;
  }

  /** What may be believed of a peer's demand; the rest is counted, and told once of each stream. */
  #demand(peer: KnownPeer, demand: PeerDemand, now: MonoMs): void {
    const { core, log, onRefused } = this.#d;
    const refused = takeDemand(core, peer.instance, demand, now);
    if (refused === 0) return;
    onRefused("demand");
    if (peer.demandRefused) return;
    peer.demandRefused = true;
    log.warn(
      { event: "peer_demand_refused", peer: peer.instance, entries: refused },
      "part of a peer's demand refused",
    );
  }

  #event(event: PeerEvent["event"], now: MonoMs): void {
    const { core, outcomes } = this.#d;
    switch (event?.$case) {
      case "reserved":
        this.#reserved(event.value, now);
        break;
      case "closed":
        core.peerClosed(event.value.decisionId, now);
        break;
      case "observed":
        if (event.value.observed !== undefined) {
          const record = recordFromWire(event.value.observed);
          outcomes.observed(event.value.decisionId, record, tracedFromWire(event.value));
        }
        break;
      case undefined:
        break;
    }
  }

  /** A bad one is counted and left out. */
  #reserved(wire: WireReservation, now: MonoMs): void {
    const { core, log, onRefused } = this.#d;
    const reservation = reservationFromWire(wire);
    const problem = reservationProblem(reservation);
    if (problem === undefined) {
      core.peerReserved(reservation, now);
      return;
    }
    onRefused("notice");
    log.warn({ event: "peer_reservation_refused", reason: problem }, "peer's reservation refused");
  }

  #snapshot(peer: KnownPeer, snapshot: PeerSnapshot): void {
    const { core, clock } = this.#d;
    const now = clock.now();
    const named = new Set<string>();
    for (const wire of snapshot.members) {
      const notice = this.#notice(peer, wire);
      if (notice === undefined) continue;
      named.add(`${notice.workerId}/${notice.dpRank}`);
      core.notice(peer.instance, notice, now);
    }
    core.peerHoldsOnly(peer.instance, named, now);
    const relays = snapshot.relays.filter((wire) => this.#relay(peer, wire, now));
    core.relays.heldOnly(peer.instance, new Set(relays.map((r) => r.instance)), now);
    const open = new Set(snapshot.reservations.map((r) => r.decisionId));
    core.peerOpenOnly(peer.instance, peer.epoch, open, now);
    for (const wire of snapshot.reservations) this.#reserved(wire, now);
    peer.synced = true;
  }

  #streamEnded(peer: KnownPeer, call: Call): void {
    if (peer.call !== call) return;
    peer.call = undefined;
    peer.lostAt = this.#d.clock.now();
  }
}
