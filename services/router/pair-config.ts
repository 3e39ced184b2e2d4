import type { RouterConfig } from "./config.ts";
import { pairDefaults, type PairOptions } from "./core/placement/pairs/pair-placer.ts";

/** Settings of pairs as the core takes them. */
export function pairsFromConfig(placement: RouterConfig["placement"]): PairOptions {
  const { disaggregation, pairBiasMs, kvBytesPerTokenDefault, links } = placement;
  return {
    ...pairDefaults,
    mode: disaggregation,
    biasMs: pairBiasMs,
    kvBytesPerTokenDefault,
    sameHost: { latencyMs: links.sameHostMs, bytesPerMs: links.sameHostBytesPerS / 1_000 },
    acrossHosts: { latencyMs: links.acrossHostsMs, bytesPerMs: links.acrossHostsBytesPerS / 1_000 },
  };
}
