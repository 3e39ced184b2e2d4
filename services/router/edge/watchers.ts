import type { ServerWritableStream } from "@grpc/grpc-js";
import type { Clock } from "../../shared/core/clock.ts";
import type {
  WatchPlacementsRequest,
  WatchPlacementsResponse,
  WatchTopologyRequest,
  WatchTopologyResponse,
} from "../../shared/gen/kvmesh/router/v1/router.ts";
import type { Decision } from "../core/decisions/decision.ts";
import { decisionToWire } from "./decision-wire.ts";

/** Watch streams at once, of each kind; more are refused. */
export const watchersMax = 64;

interface PlacementWatch {
  readonly call: ServerWritableStream<WatchPlacementsRequest, WatchPlacementsResponse>;
  readonly perSecondMax: number;
  windowStartMs: number;
  sent: number;
  skipped: number;
  blocked: boolean;
}

/** Streams of live decisions. A slow or modest reader misses some and is told how many. */
export class PlacementWatchers {
  readonly #watches = new Set<PlacementWatch>();
  readonly #clock: Clock;
  readonly #onSkipped: () => void;

  constructor(options: { readonly clock: Clock; readonly onSkipped: () => void }) {
    this.#clock = options.clock;
    this.#onSkipped = options.onSkipped;
  }

  /** Whether another stream may be added. */
  get full(): boolean {
    return this.#watches.size >= watchersMax;
  }

  /** Adds a stream. */
  add(call: ServerWritableStream<WatchPlacementsRequest, WatchPlacementsResponse>): void {
    const watch: PlacementWatch = {
      call,
      perSecondMax: call.request.maxPerSecond === 0 ? 100 : call.request.maxPerSecond,
      windowStartMs: this.#clock.now(),
      sent: 0,
      skipped: 0,
      blocked: false,
    };
    this.#watches.add(watch);
    call.on("drain", () => {
      watch.blocked = false;
    });
    const remove = (): void => {
      this.#watches.delete(watch);
    };
    call.on("cancelled", remove);
    call.on("error", remove);
    call.on("close", remove);
  }

  /** Shows a decision to every stream that has room for it. */
  publish(decision: Decision): void {
    if (this.#watches.size === 0) return;
    const now = this.#clock.now();
    let wire: ReturnType<typeof decisionToWire> | undefined;
    for (const watch of this.#watches) {
      if (now - watch.windowStartMs >= 1_000) {
        watch.windowStartMs = now;
        watch.sent = 0;
      }
      if (watch.blocked || watch.sent >= watch.perSecondMax) {
        watch.skipped++;
        this.#onSkipped();
        continue;
      }
      watch.sent++;
      wire ??= decisionToWire(decision);
      watch.blocked = !watch.call.write({ decision: wire, skipped: BigInt(watch.skipped) });
      watch.skipped = 0;
    }
  }

  /** Ends every stream. */
  close(): void {
    for (const watch of this.#watches) watch.call.end();
    this.#watches.clear();
  }
}

/** Streams of the topology: at once, then after changes and at least every 2 s, never faster than asked. */
export class TopologyWatchers {
  readonly #calls = new Map<
    ServerWritableStream<WatchTopologyRequest, WatchTopologyResponse>,
    { sentAt: number; blocked: boolean; changed: boolean }
  >();
  readonly #clock: Clock;
  readonly #read: () => WatchTopologyResponse;

  constructor(options: { readonly clock: Clock; readonly read: () => WatchTopologyResponse }) {
    this.#clock = options.clock;
    this.#read = options.read;
  }

  /** Whether another stream may be added. */
  get full(): boolean {
    return this.#calls.size >= watchersMax;
  }

  /** Adds a stream and sends it the topology. */
  add(call: ServerWritableStream<WatchTopologyRequest, WatchTopologyResponse>): void {
    const state = { sentAt: this.#clock.now(), blocked: false, changed: false };
    this.#calls.set(call, state);
    call.on("drain", () => {
      state.blocked = false;
    });
    const remove = (): void => {
      this.#calls.delete(call);
    };
    call.on("cancelled", remove);
    call.on("error", remove);
    call.on("close", remove);
    call.write(this.#read());
  }

  /** Something changed; each stream gets it with the next tick at which it may be sent to. */
  changed(): void {
    for (const state of this.#calls.values()) state.changed = true;
  }

  /** Sends what is due. Call about every 250 ms. */
  tick(): void {
    if (this.#calls.size === 0) return;
    const now = this.#clock.now();
    let topology: WatchTopologyResponse | undefined;
    for (const [call, state] of this.#calls) {
      const age = now - state.sentAt;
      const interval = call.request.intervalMsMin === 0 ? 250 : call.request.intervalMsMin;
      if (state.blocked || age < interval || (!state.changed && age < 2_000)) continue;
      topology ??= this.#read();
      state.sentAt = now;
      state.changed = false;
      state.blocked = !call.write(topology);
    }
  }

  /** Ends every stream. */
  close(): void {
    for (const call of this.#calls.keys()) call.end();
    this.#calls.clear();
  }
}
