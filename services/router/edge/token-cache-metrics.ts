import type { Metrics } from "../../shared/edge/metrics.ts";
import type { routerMetrics } from "../metrics.ts";
import type { ModelRuntimes } from "./model-runtimes.ts";

/** Tells what prompts seen before have saved, whenever the metrics are read. */
export class TokenCacheMetrics {
  readonly #runtimes: ModelRuntimes;
  readonly #metrics: Metrics<typeof routerMetrics>;
  #told = { hits: 0, misses: 0, evicted: 0, read: 0, left: 0 };

  constructor(runtimes: ModelRuntimes, metrics: Metrics<typeof routerMetrics>) {
    this.#runtimes = runtimes;
    this.#metrics = metrics;
  }

  /** Brings the metrics up to date. */
  update(): void {
    const now = this.#runtimes.tokenCacheFigures;
    const before = this.#told;
    const { tokenCacheBytes, tokenCacheTexts, chatsRead } = this.#metrics;
    tokenCacheBytes.set(now.bytes);
    tokenCacheTexts.inc({ outcome: "hit" }, now.hits - before.hits);
    tokenCacheTexts.inc({ outcome: "miss" }, now.misses - before.misses);
    tokenCacheTexts.inc({ outcome: "evicted" }, now.evicted - before.evicted);
    chatsRead.inc({ how: "pieces" }, now.read - before.read);
    chatsRead.inc({ how: "rendered" }, now.left - before.left);
    this.#told = now;
  }
}
