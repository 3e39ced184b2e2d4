import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "pino";
import type { Cidr } from "../../shared/core/cidr.ts";
import type { Clock } from "../../shared/core/clock.ts";
import type { MeshKeys } from "../../shared/edge/keys.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import type {
  AttachRequest,
  AttachResponse,
  RelaysServer,
} from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import { prefillKeyOf } from "../core/placement/pairs/pair-legs.ts";
import type { LegNotice } from "../core/relays/leg-notice.ts";
import { RelayTopology } from "../core/relays/relay-topology.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { routerMetrics } from "../metrics.ts";
import type { AdsService } from "./ads-server.ts";
import { AttachStream } from "./attach-stream.ts";
import { LeaseStreams } from "./lease-streams.ts";
import type { PeerLinks } from "./peer-links.ts";
import { relayToWire } from "./relay-peer-wire.ts";
import { changeToWire, toldEngine, toldRelay } from "./relay-wire.ts";

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

/** Serves `Relays/Attach`: keeps the roster of relays, tells them the topology, takes what they say of legs. */
export class RelayService {
  readonly topology = new RelayTopology();
  readonly #d: RelayServiceDependencies;
  readonly #streams: LeaseStreams<AttachRequest, AttachResponse, AttachStream>;
  /** Version of the roster that was told last. */
  #toldVersion = 0;

  constructor(dependencies: RelayServiceDependencies) {
    this.#d = dependencies;
    const { core, log, metrics, settle } = dependencies;
    this.#streams = new LeaseStreams<AttachRequest, AttachResponse, AttachStream>(
      {
        streamsMax,
        ofWhom: "relays",
        settle,
        onRefused: ({ code, message }, stream) => {
          metrics.relayRefused.inc({ code });
          const event = { event: "relay_refused", relay: stream?.relay, code, reason: message };
          log.warn(event, "stream of a relay refused");
        },
      },
      (lease) =>
        new AttachStream(lease, {
          ...dependencies,
          relays: core.relays,
          topology: () => this.topology.snapshot,
          refresh: () => {
            this.refresh();
          },
          tellPeers: (instance, goodbye) => {
            this.#tellPeers(instance, goodbye);
          },
          take: (notice) => {
            this.#take(notice);
          },
          replace: (id) => {
            this.#streams.replace(id, "relay");
          },
        }),
    );
  }

  /** The grpc-js implementation. */
  get service(): RelaysServer {
    return {
      attach: (call: ServerDuplexStream<AttachRequest, AttachResponse>) => {
        this.#streams.accept(call);
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
    for (const stream of this.#streams.holders()) stream.sendChange(message);
  }

  /** Asks attached relays to move their streams off an engine that is to go. */
  drain(workerId: string, reason: string): void {
    const order = { workerId, deadlineMs: engineDrainMs, reason };
    for (const stream of this.#streams.holders()) stream.order({ $case: "drain", value: order });
  }

  /** Finds silent relays. Call about every 250 ms. */
  tick(): void {
    const { core, clock, metrics } = this.#d;
    const now = clock.now();
    for (const stream of this.#streams.holders()) stream.tick(now);
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
    this.#streams.close();
  }

  /** Tells peers of one relay. */
  #tellPeers(instance: string, goodbye = false): void {
    const relay = this.#d.core.relays.get(instance);
    if (relay === undefined || this.#d.peers.isAlone) return;
    this.#d.peers.broadcast({ $case: "relay", value: relayToWire(relay, goodbye) });
  }

  /** Takes a notice: of an own decision, or of one whose router the relay does not reach. */
  #take(notice: LegNotice): void {
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
}
