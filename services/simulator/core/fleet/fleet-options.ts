import type { AdmissionOptions } from "../../../router/core/admission/options.ts";
import type { RoomOptions } from "../../../router/core/admission/worker-rooms.ts";
import type { StepModel } from "../../../shared/core/step-model.ts";
import type { Preference } from "../../../router/core/placement/estimate.ts";
import type { PolicyName } from "../../../router/core/placement/policy.ts";

/** How long things take between processes, ms. Pairs are the least and the most, drawn evenly. */
export interface FleetDelays {
  /** From a client's request to its decision. */
  readonly placeMs: number;
  /** From the decision until the engine has the request. */
  readonly dispatchMs: number;
  /** From an engine's step to its block events at the worker. */
  readonly eventMs: readonly [number, number];
  /** One message between worker and router. */
  readonly joinMs: number;
  /** From the end of an answer to its access-log record at a router. */
  readonly accessLogMs: number;
  /** Time between two readings of an engine's counters. */
  readonly reportEveryMs: number;
  /** One message between two routers. */
  readonly peerMs: readonly [number, number];
}

/** Delays of one machine as measured: event batches, 20 ms of access-log buffering, ten readings a second. */
export const defaultDelays: FleetDelays = {
  placeMs: 1,
  dispatchMs: 1,
  eventMs: [5, 10],
  joinMs: 0.5,
  accessLogMs: 20,
  reportEveryMs: 100,
  peerMs: [1, 3],
};

/** Faults that go on while they are set; ratios 0 to 1. */
export interface FleetFaults {
  /** Share of block deltas that never reach a router. */
  readonly deltaLossRatio: number;
  /** Share of block deltas that come twice. */
  readonly deltaRepeatRatio: number;
  /** Share of block deltas that come up to `deltaDelayMs` late, past later ones. */
  readonly deltaReorderRatio: number;
  readonly deltaDelayMs: number;
  /** Share of access-log records that never reach a router. */
  readonly accessLogLossRatio: number;
}

/** No faults. */
export const noFaults: FleetFaults = {
  deltaLossRatio: 0,
  deltaRepeatRatio: 0,
  deltaReorderRatio: 0,
  deltaDelayMs: 0,
  accessLogLossRatio: 0,
};

/** One kind of engine. */
export interface FleetEngineOptions {
  readonly model: StepModel;
  readonly blockSizeTokens: number;
  readonly kvTokens: number;
  readonly contextTokensMax: number;
  readonly stepTokensMax: number;
  readonly runningMax: number;
}

/** A whole fleet. */
export interface FleetOptions {
  readonly seed: number;
  readonly engines: number;
  readonly routers: number;
  readonly engine: FleetEngineOptions;
  /** Coefficients that workers announce to routers; `undefined` leaves routers to learn from nothing. */
  readonly announcedModel: StepModel | undefined;
  /** Tokens per block of the mesh, a multiple of the engine's. */
  readonly meshBlockSizeTokens: number;
  readonly policy: PolicyName;
  /** What our own cost favours; `balanced` when absent. */
  readonly preference?: Preference;
  readonly delays: FleetDelays;
  /** `exact` gives routers every block change at the moment it happens. */
  readonly view: "live" | "exact";
  /** Whether routers see how long an answer may become (`max_tokens`). */
  readonly tellsTokensMax: boolean;
  readonly graceMs: number;
  /** How routers let requests wait and refuse them; absent, every request is placed at once. */
  readonly admission?: AdmissionOptions;
  /** When a worker has room, for admission. */
  readonly rooms?: RoomOptions;
}

/** Name of the one model and pool of a virtual fleet. */
export const fleetModel = "virtual";
/** Pool that every engine belongs to. */
export const fleetPool = "default";
/** Secret seed of block hashes in a virtual fleet, where nothing is secret. */
export const fleetHashSeed = new Uint8Array(32).fill(7);
