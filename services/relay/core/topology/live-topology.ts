import type { PlacementLeg } from "../../../shared/core/placement-token/placement.ts";

/** An engine as a router tells it. */
export interface LiveEngine {
  readonly workerId: string;
  readonly address: string;
  readonly workerStartMs: number;
  readonly engineLife: number;
  readonly engine: string;
  readonly ready: boolean;
}

/** Another relay as a router tells it. */
export interface LiveRelay {
  readonly instance: string;
  readonly h2Address: string;
  readonly epoch: number;
}

/** Whether a leg can go to its engine: `stale` is another life or address of the worker, `unknown` is no member. */
export type LegStanding = "live" | "unknown" | "stale" | "unjudged";

/** What one router has said; replaced by its snapshots, changed by its deltas. */
export interface RouterView {
  readonly engines: Map<string, LiveEngine>;
  readonly relays: Map<string, LiveRelay>;
}

/** An empty view. */
export function createView(): RouterView {
  return { engines: new Map(), relays: new Map() };
}

function isNewer(a: LiveEngine, b: LiveEngine): boolean {
  if (a.workerStartMs !== b.workerStartMs) return a.workerStartMs > b.workerStartMs;
  return a.engineLife > b.engineLife;
}

/**
 * What all attached routers know of engines and relays, put together: a member of one router is a member, and the newest
 * life counts. Without any router's snapshot nothing is judged: the router that signed a placement has judged already.
 */
export class LiveTopology {
  readonly #views = new Map<string, RouterView>();
  /** Routers that are gone and whose view is used until another one's comes. */
  readonly #dropped = new Set<string>();

  /** Takes what a router says now, as a whole. */
  set(router: string, view: RouterView): void {
    this.#views.set(router, view);
    this.#dropped.delete(router);
    for (const gone of this.#dropped) this.#views.delete(gone);
    this.#dropped.clear();
  }

  /** Forgets a router that is gone. The last one's view stays until another one's comes: members do not go with it. */
  drop(router: string): void {
    if (this.#views.size > 1) this.#views.delete(router);
    else if (this.#views.has(router)) this.#dropped.add(router);
  }

  /** Routers whose view is used. */
  get routerCount(): number {
    return this.#views.size;
  }

  /** The newest life of an engine. */
  engine(workerId: string): LiveEngine | undefined {
    let newest: LiveEngine | undefined;
    for (const { engines } of this.#views.values()) {
      const engine = engines.get(workerId);
      if (engine === undefined) continue;
      if (newest === undefined || isNewer(engine, newest)) newest = engine;
    }
    return newest;
  }

  /** How a leg stands. A leg of a newer life than was heard of is live: its router heard first. */
  judge(leg: PlacementLeg): LegStanding {
    if (this.#views.size === 0) return "unjudged";
    const engine = this.engine(leg.workerId);
    if (engine === undefined) return "unknown";
    const { workerStartMs, engineLife } = leg;
    if (workerStartMs !== engine.workerStartMs) {
      return workerStartMs > engine.workerStartMs ? "live" : "stale";
    }
    if (engineLife !== engine.engineLife) return engineLife > engine.engineLife ? "live" : "stale";
    return leg.address === engine.address ? "live" : "stale";
  }

  /** Every relay, by instance. */
  relays(): readonly LiveRelay[] {
    const found = new Map<string, LiveRelay>();
    for (const { relays } of this.#views.values()) {
      for (const relay of relays.values()) {
        const other = found.get(relay.instance);
        if (other === undefined || relay.epoch > other.epoch) found.set(relay.instance, relay);
      }
    }
    return [...found.values()].sort((a, b) => (a.instance < b.instance ? -1 : 1));
  }
}
