import { z } from "zod";
import { guardModes } from "./core/relays/decision-guard.ts";
import type { GuardOptions } from "./core/relays/stream-guards.ts";

/** Which streams go on when their engine dies, and when one counts as dead. */
export const StreamConfig = z
  .strictObject({
    /** Which are guarded: none, those that pass a relay anyway, or all that can be, which then pass one. */
    guard: z.enum(guardModes).default("pairs"),
    /** The same for single pools, by id. */
    pools: z.record(z.string().regex(/^[A-Za-z0-9._-]{1,64}$/), z.enum(guardModes)).default({}),
    /** A stream is frozen when no token came for so many expected gaps between tokens, */
    freezeItlMultiple: z.number().min(1).max(10_000).default(20),
    /** and at least for so long, ms. */
    freezeMsMin: z.number().int().min(50).max(600_000).default(400),
    /** Engines on which one stream may be continued. */
    migrationsMax: z.number().int().min(0).max(64).default(3),
  })
  .prefault({});

/** The same as the core takes it. */
export function guardsFromConfig(config: z.infer<typeof StreamConfig>): GuardOptions {
  const { guard, pools, freezeItlMultiple, freezeMsMin, migrationsMax } = config;
  return {
    mode: guard,
    pools: new Map(Object.entries(pools)),
    settings: { freezeItlMultiple, freezeMsMin, migrationsMax },
  };
}
