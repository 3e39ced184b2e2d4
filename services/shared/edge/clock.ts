import { setTimeout as sleepFor } from "node:timers/promises";
import type { Clock } from "../core/clock.ts";
import { monoMs } from "../core/ids.ts";

/** The machine's clocks. */
export const realClock: Clock = {
  now: () => monoMs(performance.now()),
  wallUnixUs: () => Math.round((performance.timeOrigin + performance.now()) * 1_000),
  sleep: (ms, signal) => sleepFor(ms, undefined, signal === undefined ? {} : { signal }),
};
