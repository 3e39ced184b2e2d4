import { lookup } from "node:dns/promises";
import type { Logger } from "pino";
import { Backoff } from "../../shared/core/backoff.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { parseEndpoint } from "../../shared/core/endpoint.ts";
import type { SeededRandom } from "../../shared/core/random.ts";
import type { NamedKey } from "../../shared/edge/keys.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import type { DrainOrder } from "../../shared/gen/kvmesh/relay/v1/relay.ts";
import type { LegNotice } from "../core/topology/leg-notices.ts";
import type { LiveTopology } from "../core/topology/live-topology.ts";
import type { relayMetrics } from "../metrics.ts";
import type { RelayFacts } from "./attach-wire.ts";
import { RouterAttachment, type AttachmentState } from "./router-attachment.ts";

const resolveEveryMs = 5_000;
const targetsMax = 64;

/** What the links to routers need. */
export interface RouterLinksOptions {
  readonly list: readonly string[];
  readonly dns: string | undefined;
  readonly joinKey: NamedKey;
  readonly topology: LiveTopology;
  facts(): RelayFacts;
  onDrain(order: DrainOrder): void;
  onKeep(decisionIds: readonly string[], reason: string): void;
  readonly random: SeededRandom;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics<typeof relayMetrics>;
}

/** Keeps a relay attached to every router, and gives each notice to the router that owns its decision. */
export class RouterLinks {
  readonly #options: RouterLinksOptions;
  readonly #links = new Map<string, RouterAttachment>();
  readonly #stop = new AbortController();
  #found: readonly string[] = [];
  #lastError = "";
  #dropped = 0;

  constructor(options: RouterLinksOptions) {
    this.#options = options;
  }

  /** Begins to dial. */
  start(): void {
    this.#sync();
    if (this.#options.dns !== undefined) void this.#resolveForEver(this.#options.dns);
  }

  /** Control ports of routers, attached ones first. */
  targets(): readonly string[] {
    const links = [...this.#links.values()];
    const rank = (link: RouterAttachment): number => (link.state === "attached" ? 0 : 1);
    return links.sort((a, b) => rank(a) - rank(b)).map(({ target }) => target);
  }

  /** Routers by state of the stream. */
  counts(): Readonly<Record<AttachmentState, number>> {
    const counts = { attached: 0, attaching: 0, refused: 0, disconnected: 0 };
    for (const { state } of this.#links.values()) counts[state]++;
    return counts;
  }

  /**
   * Tells a router. The owner of the decision where it is attached, else any that is, which passes it on; without one it
   * waits for the first that comes.
   */
  notify(notice: LegNotice): void {
    let link: RouterAttachment | undefined;
    for (const one of this.#links.values()) {
      const isOwner = one.stream.router === notice.router;
      if (isOwner && one.state === "attached") {
        link = one;
        break;
      }
      if (link === undefined || (link.state !== "attached" && one.state === "attached")) link = one;
    }
    if (link === undefined) return;
    link.stream.notices.add(notice);
    link.pump();
  }

  /** Notices that made room for newer ones since this was asked last. */
  takeDropped(): number {
    let dropped = 0;
    for (const { stream } of this.#links.values()) dropped += stream.notices.dropped;
    const more = dropped - this.#dropped;
    this.#dropped = dropped;
    return Math.max(0, more);
  }

  /** Sends what is due everywhere, such as a change of load. */
  pump(): void {
    for (const link of this.#links.values()) link.pump();
  }

  /** Says goodbye everywhere. */
  async stop(reason: string): Promise<void> {
    this.#stop.abort();
    await Promise.all([...this.#links.values()].map((link) => link.leave(reason)));
  }

  #sync(): void {
    if (this.#stop.signal.aborted) return;
    const targets = [...new Set([...this.#options.list, ...this.#found])].slice(0, targetsMax);
    for (const target of targets) if (!this.#links.has(target)) this.#add(target);
    for (const [target, link] of this.#links) {
      if (targets.includes(target) || link.state === "attached") continue;
      this.#links.delete(target);
      void link.leave("the router's name is gone");
    }
  }

  #add(target: string): void {
    const { topology, random, joinKey, clock, log, metrics } = this.#options;
    const backoff = (name: string, baseMs: number, maxMs: number): Backoff =>
      new Backoff({ baseMs, maxMs, jitterRatio: 0.5, random: random.fork(`${name} ${target}`) });
    const link = new RouterAttachment({
      target,
      joinKey,
      facts: () => this.#options.facts(),
      onView: (router, view) => {
        topology.set(router, view);
      },
      onLost: (router) => {
        topology.drop(router);
      },
      onDrain: (order) => {
        this.#options.onDrain(order);
      },
      onKeep: (ids, reason) => {
        this.#options.onKeep(ids, reason);
      },
      backoff: backoff("attach", 100, 2_000),
      refusedBackoff: backoff("refused", 2_000, 30_000),
      clock,
      log,
      metrics,
    });
    this.#links.set(target, link);
    link.run().catch((error: unknown) => {
      // A loop that is to run for ever ended: a bug, left to the process's handler of bugs.
      queueMicrotask(() => {
        throw error;
      });
    });
  }

  async #resolveForEver(name: string): Promise<void> {
    const { clock, log } = this.#options;
    const endpoint = parseEndpoint(name);
    while (endpoint !== undefined && !this.#stop.signal.aborted) {
      try {
        const addresses = await lookup(endpoint.host, { all: true });
        this.#found = addresses
          .map(({ address, family }) => (family === 6 ? `[${address}]` : address))
          .map((address) => `${address}:${String(endpoint.port)}`)
          .sort();
        this.#lastError = "";
        this.#sync();
      } catch (error) {
        // What was known stays.
        const message = error instanceof Error ? error.message : String(error);
        if (message !== this.#lastError) {
          this.#lastError = message;
          log.warn({ event: "routers_unresolved", name, reason: message }, "DNS failed");
        }
      }
      await clock.sleep(resolveEveryMs, this.#stop.signal).catch(() => undefined);
    }
  }
}
