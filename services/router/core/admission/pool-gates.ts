import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";
import type { LoadBook } from "../load/load-book.ts";
import type { Members } from "../membership/members.ts";
import type { PlacementTable } from "../placement/placement-table.ts";
import type { Attempt } from "./admission.ts";
import type { AdmittedRequest, GatePass, RequestGate } from "./admitted-request.ts";
import type { AdmissionOptions } from "./options.ts";
import { PoolGate } from "./pool-gate.ts";
import type { TenantDemand } from "./router-shares.ts";
import type { AskEstimate } from "./waiter.ts";
import type { RoomOptions } from "./worker-rooms.ts";

/** Pools that may have a gate of their own. */
const gatesMax = 256;

/** Who places what gates let through. */
export interface PoolGatesPort {
  /** See `AdmissionPort.place`. */
  place(pass: GatePass, now: MonoMs): Attempt;
  /** See `AdmissionPort.estimate`. */
  estimate(request: AdmittedRequest, now: MonoMs): AskEstimate;
}

/** The gate of each pool through which requests pass in their turn, made when the first comes. */
export class PoolGates {
  readonly #options: {
    readonly admission: AdmissionOptions;
    readonly rooms: RoomOptions;
    /** This router as its peers know it: by instance, without the epoch. */
    readonly self: string;
  };
  readonly #members: Members;
  readonly #book: LoadBook;
  readonly #table: PlacementTable;
  readonly #port: PoolGatesPort;
  readonly #gates = new Map<string, RequestGate>();
  /** Pools whose requests are placed when they arrive. */
  readonly #onArrival = new Set<string>();
  #wallOffsetMs = 0;

  constructor(
    options: {
      readonly admission: AdmissionOptions;
      readonly rooms: RoomOptions;
      readonly self: string;
    },
    of: {
      readonly members: Members;
      readonly book: LoadBook;
      readonly table: PlacementTable;
      readonly port: PoolGatesPort;
    },
  ) {
    this.#options = options;
    this.#members = of.members;
    this.#book = of.book;
    this.#table = of.table;
    this.#port = of.port;
  }

  /** Gates by pool. */
  get all(): ReadonlyMap<string, RequestGate> {
    return this.#gates;
  }

  /** A pool's gate, if it has one yet. */
  get(pool: string): RequestGate | undefined {
    return this.#gates.get(pool);
  }

  /** A pool's gate. */
  of(pool: string): RequestGate {
    const known = this.#gates.get(pool);
    if (known !== undefined) return known;
    if (this.#gates.size >= gatesMax) this.#forgetIdle();
    const created = this.#create(pool);
    this.#gates.set(pool, created);
    return created;
  }

  /** Whether a pool's requests are placed when they arrive, whatever room its workers have. */
  setPlaceOnArrival(pool: string, placesOnArrival: boolean): void {
    if (placesOnArrival) this.#onArrival.add(pool);
    else this.#onArrival.delete(pool);
    const gate = this.#gates.get(pool);
    if (gate === undefined) return;
    gate.placesOnArrival = placesOnArrival;
    gate.admission.freed();
  }

  /** A worker may have room that it had not. */
  freed(worker: WorkerId): void {
    const pool = this.#members.get(worker)?.pool;
    if (pool !== undefined) this.#gates.get(pool)?.admission.freed();
  }

  /** When somebody who waits is to be looked at again; `undefined` while nobody waits. */
  wakeAt(now: MonoMs): number | undefined {
    let soonest: number | undefined;
    for (const gate of this.#gates.values()) {
      const at = gate.admission.wakeAt(now);
      if (at !== undefined && (soonest === undefined || at < soonest)) soonest = at;
    }
    return soonest;
  }

  /** Waiting demand and service of each pool, for the other routers. */
  demand(now: MonoMs): { readonly pool: string; readonly tenants: readonly TenantDemand[] }[] {
    return [...this.#gates].map(([pool, gate]) => ({ pool, tenants: gate.demand(now) }));
  }

  /** Whether requests wait here or at another router. */
  isShort(now: MonoMs): boolean {
    for (const { admission, shares } of this.#gates.values()) {
      if (admission.waitingCount > 0 || shares.isDivided(now)) return true;
    }
    return false;
  }

  /** What to add to monotonic time to get wall time, ms: routers take turns by it. */
  setWallOffset(ms: number): void {
    this.#wallOffsetMs = ms;
    for (const gate of this.#gates.values()) gate.shares.setWallOffset(ms);
  }

  /** A peer router is gone, and what waited there with it. */
  routerLost(router: string): void {
    for (const gate of this.#gates.values()) gate.shares.routerLost(router);
  }

  /** A pool without members has nobody waiting: its requests are refused at once. */
  #forgetIdle(): void {
    for (const [name, gate] of this.#gates) {
      const hasMembers = [...this.#members.ofPool(name)].length > 0;
      if (gate.admission.waitingCount === 0 && !hasMembers) this.#gates.delete(name);
    }
  }

  #create(pool: string): RequestGate {
    const { admission, rooms, self } = this.#options;
    const port = this.#port;
    const created: RequestGate = new PoolGate<AdmittedRequest>(
      {
        admission,
        rooms,
        self,
        lastReport: (worker) => this.#book.lastReport(worker),
        runningMaxOf: (worker) => this.#members.get(worker)?.facts?.runningRequestsMax ?? 0,
      },
      {
        place: (request, now, waiter) => port.place({ gate: created, request, waiter }, now),
        estimate: (request, now) => port.estimate(request, now),
        workerCount: () => this.#table.readyCount(pool),
      },
    );
    created.shares.setWallOffset(this.#wallOffsetMs);
    created.placesOnArrival = this.#onArrival.has(pool);
    return created;
  }
}
