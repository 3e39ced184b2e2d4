import type { Logger } from "pino";
import type { Clock } from "../../shared/core/clock.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import type {
  PeerSnapshot,
  Reservation as WireReservation,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import type { DiscoveryMember } from "../core/discovery/discovery-view.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { RouterEffect } from "../core/router-effects.ts";
import type { routerMetrics } from "../metrics.ts";
import type { AdsService } from "./ads-server.ts";
import { observationToWire } from "./decision-wire.ts";
import type { PeerLinks } from "./peer-links.ts";
import { noticeToWire } from "./peer-wire.ts";
import { openToWire, relayToWire, reservationsToWire } from "./relay-peer-wire.ts";
import type { TopologyWatchers } from "./watchers.ts";

/** What carrying out effects needs. */
export interface EffectRunnerDependencies {
  readonly core: RouterCore;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof routerMetrics>;
  readonly peers: PeerLinks;
  readonly ads: AdsService;
  readonly topology: TopologyWatchers;
  /** Engines that relays are told of have changed. */
  readonly onMembers?: () => void;
}

/** Carries out what the core wants done: tells peers, Envoy and watchers, and counts. */
export class EffectRunner {
  readonly #d: EffectRunnerDependencies;
  #droppedAtBlocks = 0;
  #droppedAtSets = 0;

  constructor(dependencies: EffectRunnerDependencies) {
    this.#d = dependencies;
  }

  /** Carries out everything pending. */
  run(): void {
    const effects = this.#d.core.takeEffects();
    if (effects.length === 0) return;
    let membersChanged = false;
    for (const effect of effects) {
      if (effect.kind === "member_changed" || effect.kind === "member_left") membersChanged = true;
      this.#carryOut(effect);
    }
    if (!membersChanged) return;
    this.#d.ads.setMembers(this.#discoveryMembers());
    this.#d.topology.changed();
    this.#d.onMembers?.();
  }

  /** This router's whole state for a peer. */
  peerSnapshot(): PeerSnapshot {
    const { core } = this.#d;
    const members = [...core.members.all()].filter((m) => m.streamId !== undefined);
    const reservations: WireReservation[] = [];
    const awaiting: WireReservation[] = [];
    const now = this.#d.clock.now();
    for (const member of core.members.all()) {
      for (const r of core.book.reservationsOf(member.key)) {
        if (!r.own) continue;
        const told = openToWire(r, core.pairs.legs.get(r.decisionId), now);
        // A decode leg is believed only beside its prefill leg.
        if (told.prefillWorkerId === "") reservations.push(told);
        else awaiting.push(told);
      }
    }
    return {
      members: members.map((m) => noticeToWire(m, false)),
      reservations: [...reservations, ...awaiting],
      relays: core.relays
        .all()
        .filter(({ streamId }) => streamId !== undefined)
        .map((relay) => relayToWire(relay)),
    };
  }

  /** Sets the gauges. */
  gauges(): void {
    const { core, metrics } = this.#d;
    const counts = { ready: 0, not_ready: 0, away: 0 };
    for (const member of core.members.all()) {
      if (member.unheldSince !== undefined) counts.away++;
      else if (member.ready) counts.ready++;
      else counts.not_ready++;
    }
    for (const [state, count] of Object.entries(counts)) metrics.members.set({ state }, count);
    metrics.reservationsOpen.set(core.book.openCount);
    metrics.indexBlocks.set(core.index.blockCount);
    metrics.indexPairs.set(core.index.pairCount);
    metrics.indexBytes.set(core.index.bytes);
    const { droppedAtBlocksMax, droppedAtSetsMax } = core.index;
    metrics.indexDropped.inc({ limit: "blocks" }, droppedAtBlocksMax - this.#droppedAtBlocks);
    metrics.indexDropped.inc({ limit: "sets" }, droppedAtSetsMax - this.#droppedAtSets);
    this.#droppedAtBlocks = droppedAtBlocksMax;
    this.#droppedAtSets = droppedAtSetsMax;
  }

  #carryOut(effect: RouterEffect): void {
    const { peers, metrics, log } = this.#d;
    switch (effect.kind) {
      case "reserved": {
        if (peers.isAlone) break;
        const { decision, uncachedTokens, pair } = effect;
        for (const value of reservationsToWire(decision, uncachedTokens, pair)) {
          peers.broadcast({ $case: "reserved", value });
        }
        break;
      }
      case "closed": {
        const { closed, observed } = effect;
        metrics.reservationsClosed.inc({ reason: closed.reason });
        if (peers.isAlone) break;
        peers.broadcast({
          $case: "closed",
          value: {
            decisionId: closed.reservation.decisionId,
            workerId: closed.reservation.workerId,
            observed: observed === undefined ? undefined : observationToWire(observed),
            times: undefined,
          },
        });
        break;
      }
      case "member_changed":
        if (!effect.tellPeers) break;
        peers.broadcast({ $case: "member", value: noticeToWire(effect.member, false) });
        break;
      case "member_left":
        log.info(
          {
            event: "worker_left",
            workerId: effect.member.workerId,
            reason: effect.goodbye ? "goodbye" : "grace_over",
          },
          "worker left",
        );
        if (effect.goodbye) {
          peers.broadcast({ $case: "member", value: noticeToWire(effect.member, true) });
        }
        break;
    }
  }

  #discoveryMembers(): DiscoveryMember[] {
    return [...this.#d.core.members.all()].map((member) => ({
      workerId: member.key,
      pool: member.pool,
      endpoint: member.endpoint,
      state: member.ready ? "ready" : "draining",
    }));
  }
}
