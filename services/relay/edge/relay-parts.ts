import type { Logger } from "pino";
import type { Clock } from "../../shared/core/clock.ts";
import type { JsonScanner } from "../../shared/core/json-scan/json-scanner.ts";
import type { RelayEngine } from "../../shared/core/placement-token/placement.ts";
import type { TokenKey } from "../../shared/core/placement-token/placement-token.ts";
import type { SeededRandom } from "../../shared/core/random.ts";
import type { Metrics } from "../../shared/edge/metrics.ts";
import type { Tracing } from "../../shared/edge/tracing.ts";
import type { RelayConfig } from "../config.ts";
import type { EngineAdapter } from "../core/engines/engine-adapter.ts";
import type { HandoffBook } from "../core/request/handoff-book.ts";
import type { LegNotice } from "../core/topology/leg-notices.ts";
import type { LiveTopology } from "../core/topology/live-topology.ts";
import type { relayMetrics } from "../metrics.ts";
import type { EnginePools } from "./engine-pools.ts";
import type { LateTraces } from "./late-traces.ts";
import type { MirrorLinks } from "./mirror-links.ts";
import type { Placer } from "./placer.ts";

/** What every request of a relay works with. */
export interface RelayParts {
  readonly config: RelayConfig;
  readonly log: Logger;
  readonly clock: Clock;
  readonly random: SeededRandom;
  readonly metrics: Metrics<typeof relayMetrics>;
  readonly json: JsonScanner;
  readonly adapters: Readonly<Record<RelayEngine, EngineAdapter>>;
  readonly placementKeys: readonly TokenKey[];
  readonly pools: EnginePools;
  readonly topology: LiveTopology;
  readonly handoffs: HandoffBook;
  readonly placer: Placer;
  readonly resumeKeys: readonly TokenKey[];
  readonly mirrors: MirrorLinks;
  readonly tracing: Tracing;
  /** Records of requests that were not sampled; absent without tracing. */
  readonly late: LateTraces | undefined;
  /** Tells routers what happened to a leg. */
  notify(notice: LegNotice): void;
}
