import type { MonoMs, WorkerId } from "../../../shared/core/ids.ts";

/** Load that one placed request puts on a worker until it is closed. Times are this process's. */
export interface Reservation {
  /** Decision that made it. */
  readonly decisionId: string;
  readonly workerId: WorkerId;
  /** Whether this router made it; others arrive from peers. */
  readonly own: boolean;
  readonly openedAt: MonoMs;
  readonly promptTokens: number;
  /** Prompt tokens that the worker is expected to compute. */
  readonly uncachedTokens: number;
  /** Answer length assumed, tokens. */
  readonly expectedOutputTokens: number;
  /** Time to compute the uncached tokens, ms, as predicted when placed. */
  readonly prefillMs: number;
  /** When its prefill is believed to end. Moves forward when work before it disappears. */
  prefillEndsAt: MonoMs;
  /** When its last token is believed to come. */
  endsAt: MonoMs;
  /** When the book gives it up unless the worker's counts say that it must still run. */
  hardEndAt: MonoMs;
  /** Which leg of a pair it is; absent for a request that runs whole. */
  readonly leg?: "prefill" | "decode";
  /** Of a decode leg: how long after `openedAt` its decode is expected to begin, ms. */
  readonly beginsInMs?: number;
  /** Of a decode leg: since when its engine may have it; Infinity while its prompt is computed elsewhere. */
  arrivesAt?: number;
}

/** How a reservation ended. */
export type CloseReason =
  "access_log" | "relay" | "released" | "reconciled" | "expired" | "worker_gone" | "peer_gone";

/** What an engine said of itself last. */
export interface LoadReport {
  readonly running: number;
  readonly waiting: number;
  /** 0 to 1. */
  readonly kvUsageRatio: number;
  /** What it has done since its start, see `workDone`; absent when its counters are not known. */
  readonly workDone?: number;
  /** When the engine was in that state, this process's clock. */
  readonly at: MonoMs;
}
