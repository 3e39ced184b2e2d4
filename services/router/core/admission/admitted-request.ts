import type { MonoMs } from "../../../shared/core/ids.ts";
import type { Decision } from "../decisions/decision.ts";
import type { PlaceInput } from "../placement/place-input.ts";
import type { Attempt } from "./admission.ts";
import type { PoolGate } from "./pool-gate.ts";
import type { RequestHints } from "./request-hints.ts";
import type { Waiter } from "./waiter.ts";

/** A request to place as soon as its turn comes. */
export interface AdmittedRequest {
  readonly input: PlaceInput;
  readonly hints: RequestHints;
  /** Memory that it holds while it waits, bytes. */
  readonly bytes: number;
  /** Takes the decision, whatever it is; called once, unless the request is cancelled before. */
  readonly decided: (decision: Decision) => void;
}

/** A request that waits. */
export interface WaitingRequest {
  /** By then it is decided, ms. */
  readonly waitMsMax: number;
  /** Forgets it; `decided` is not called afterwards. */
  cancel(now: MonoMs): void;
}

/** The gate of a pool's requests. */
export type RequestGate = PoolGate<AdmittedRequest>;

/** An attempt of a request on its gate. */
export interface GatePass {
  readonly gate: RequestGate;
  readonly request: AdmittedRequest;
  /** Present when it has waited. */
  readonly waiter: Waiter<AdmittedRequest> | undefined;
}

/** No worker that may serve a request has room for it now. */
export type NoRoom = Extract<Attempt, { kind: "no_room" }>;
