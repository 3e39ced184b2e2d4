import type { Clock } from "../../shared/core/clock.ts";
import type { MonoMs } from "../../shared/core/ids.ts";
import type { PeerDemand, TenantDemand } from "../../shared/gen/kvmesh/router/v1/router.ts";
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

/** Pools of one message at most, and tenants of one pool: 256 that wait and 256 that were served. */
const poolsMax = 256;
const tenantsMax = 512;
/** Longest name of a class, a tenant or a pool, characters. */
const nameCharsMax = 128;
/** Largest number of ms that is believed: thirty years. */
const msMax = 1e12;

/** Whether a peer's demand of one tenant may be believed; what it was served may fall a little below nothing. */
export function isDemand({ className, tenant, queuedMs, servedMs }: TenantDemand): boolean {
  return (
    className.length > 0 &&
    className.length <= nameCharsMax &&
    tenant.length <= nameCharsMax &&
    queuedMs >= 0 &&
    queuedMs <= msMax &&
    servedMs >= -msMax &&
    servedMs <= msMax
  );
}

/**
 * Takes a peer's demand, as far as it is of pools known here and may be believed. Returns the number of entries (pools or
 * tenants) that were refused; a pool that is not known here yet is none of them.
 */
export function takeDemand(
  core: RouterCore,
  router: string,
  { pools }: PeerDemand,
  now: MonoMs,
): number {
  let refused = Math.max(0, pools.length - poolsMax);
  for (const { pool, tenants } of pools.slice(0, poolsMax)) {
    if (pool.length > nameCharsMax) {
      refused++;
      continue;
    }
    if (!core.gates.has(pool) && core.poolMembers(pool).length === 0) continue;
    const believed = tenants.slice(0, tenantsMax).filter(isDemand);
    refused += tenants.length - believed.length;
    core.takePeerDemand(router, pool, believed, now);
  }
  return refused;
}
