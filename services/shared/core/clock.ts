import type { MonoMs } from "./ids.ts";

/**
 * Source of time for edges; cores receive `now` as an argument instead.
 * `now` is for intervals, `wallUnixUs` only for what people or other processes read.
 */
export interface Clock {
  /** Monotonic milliseconds, fractional. */
  now(): MonoMs;
  /** Wall clock, microseconds since 1970. */
  wallUnixUs(): number;
  /** Resolves after `ms`, or rejects with the signal's reason when it aborts first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}
