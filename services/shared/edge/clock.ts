import { setTimeout as sleepFor } from "node:timers/promises";
import type { Clock } from "../core/clock.ts";
import { monoMs } from "../core/ids.ts";

/** How far wall time reckoned from the monotonic clock may be off before it is set anew, ms. Millisecond time is off by up to 1. */
const wallErrorMsMax = 2;

/** Wall time at zero of the monotonic clock, Unix ms. Moves with corrections of the machine's clock and time asleep. */
let wallOffsetMs = performance.timeOrigin;

/** The machine's clocks. */
export const realClock: Clock = {
  now: () => monoMs(performance.now()),
  wallUnixUs: () => {
    const now = performance.now();
    const wallMs = Date.now();
    if (Math.abs(wallMs - wallOffsetMs - now) > wallErrorMsMax) wallOffsetMs = wallMs - now;
    return Math.round((wallOffsetMs + now) * 1_000);
  },
  sleep: (ms, signal) => sleepFor(ms, undefined, signal === undefined ? {} : { signal }),
};
