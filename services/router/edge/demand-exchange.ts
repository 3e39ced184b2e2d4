import type { Clock } from "../../shared/core/clock.ts";
import type { MonoMs } from "../../shared/core/ids.ts";
import type { PeerDemand } from "../../shared/gen/kvmesh/router/v1/router.ts";
import type { RouterCore } from "../core/router-core.ts";
import type { PeerLinks } from "./peer-links.ts";

/** How often demand is told while somebody waits, here or at a peer, ms. */
const busyEveryMs = 50;
/** How often otherwise: what was served meanwhile is still charged when somebody waits again, ms. */
const idleEveryMs = 1_000;

/** Tells the other routers what waits here and what was served, so that all divide the workers' room alike. */
export class DemandExchange {
  readonly #core: RouterCore;
  readonly #peers: PeerLinks;
  readonly #clock: Clock;
  #timer: NodeJS.Timeout | undefined;
  #toldAt = -Infinity;

  constructor(dependencies: {
    readonly core: RouterCore;
    readonly peers: PeerLinks;
    readonly clock: Clock;
  }) {
    this.#core = dependencies.core;
    this.#peers = dependencies.peers;
    this.#clock = dependencies.clock;
  }

  /** Starts telling. */
  start(): void {
    this.#timer = setInterval(() => {
      this.#tell(this.#clock.now());
    }, busyEveryMs);
  }

  /** Ends it. */
  stop(): void {
    clearInterval(this.#timer);
  }

  #tell(now: MonoMs): void {
    if (!this.#core.isShort(now) && now - this.#toldAt < idleEveryMs) return;
    this.#toldAt = now;
    const pools = this.#core.demand(now).filter(({ tenants }) => tenants.length > 0);
    if (pools.length === 0) return;
    const value: PeerDemand = {
      pools: pools.map(({ pool, tenants }) => ({ pool, tenants: [...tenants] })),
    };
    this.#peers.broadcast({ $case: "demand", value });
  }
}

/** Takes a peer's demand. */
export function takeDemand(
  core: RouterCore,
  router: string,
  { pools }: PeerDemand,
  now: MonoMs,
): void {
  for (const { pool, tenants } of pools) core.takePeerDemand(router, pool, tenants, now);
}
