import type { Metrics, MetricSpec } from "../../../shared/edge/metrics.ts";
import type { HandoffOutcome } from "../../core/kv-transfer/handoff-table.ts";
import type { KvConnectorCounts } from "./kv-connector.ts";

const vllmLabels = ["model_name", "engine"] as const;

/**
 * Metrics of an engine with a KV connector: vLLM's own names where it has some (their bounds are ours: no recording
 * shows them), and what a test or a person wants to know beyond.
 */
export const kvCatalogue = {
  nixlSeconds: {
    name: "vllm:nixl_xfer_time_seconds",
    kind: "histogram",
    help: "KV transfer time, s.",
    labels: vllmLabels,
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
  },
  nixlBytes: {
    name: "vllm:nixl_bytes_transferred",
    kind: "histogram",
    help: "Bytes of one KV transfer.",
    labels: vllmLabels,
    buckets: [1_024, 16_384, 262_144, 4_194_304, 67_108_864, 1_073_741_824],
  },
  nixlFailed: {
    name: "vllm:nixl_num_failed_transfers_total",
    kind: "counter",
    help: "KV transfers that failed.",
    labels: vllmLabels,
  },
  nixlFailedNotices: {
    name: "vllm:nixl_num_failed_notifications_total",
    kind: "counter",
    help: "Notices to a prefill engine that were not delivered.",
    labels: vllmLabels,
  },
  nixlExpired: {
    name: "vllm:nixl_num_kv_expired_reqs_total",
    kind: "counter",
    help: "Hand-offs whose lease ended.",
    labels: vllmLabels,
  },
  kvPulledBytes: {
    name: "kvmesh_engine_kv_pulled_bytes_total",
    kind: "counter",
    help: "KV bytes pulled from other engines.",
    labels: [],
  },
  kvPulledBlocks: {
    name: "kvmesh_engine_kv_pulled_blocks_total",
    kind: "counter",
    help: "KV blocks pulled from other engines.",
    labels: [],
  },
  kvServedBytes: {
    name: "kvmesh_engine_kv_served_bytes_total",
    kind: "counter",
    help: "KV bytes given to other engines.",
    labels: [],
  },
  kvServedBlocks: {
    name: "kvmesh_engine_kv_served_blocks_total",
    kind: "counter",
    help: "KV blocks given to other engines.",
    labels: [],
  },
  kvBadBlocks: {
    name: "kvmesh_engine_kv_bad_blocks_total",
    kind: "counter",
    help: "Pulled blocks that were damaged on the way or held the KV of other tokens.",
    labels: ["reason"],
  },
  kvRecomputedBlocks: {
    name: "kvmesh_engine_kv_recomputed_blocks_total",
    kind: "counter",
    help: "KV blocks computed here because a pull did not bring them.",
    labels: [],
  },
  kvHandoffsEnded: {
    name: "kvmesh_engine_kv_handoffs_total",
    kind: "counter",
    help: "Hand-offs that ended.",
    labels: ["outcome"],
  },
  kvHandoffs: {
    name: "kvmesh_engine_kv_handoffs",
    kind: "gauge",
    help: "Hand-offs whose lease runs.",
    labels: [],
  },
  kvHandoffBlocks: {
    name: "kvmesh_engine_kv_handoff_blocks",
    kind: "gauge",
    help: "Blocks held for hand-offs.",
    labels: [],
  },
  kvLoads: {
    name: "kvmesh_engine_kv_loads",
    kind: "gauge",
    help: "Requests accepted whose prompt comes from another engine and is not there yet.",
    labels: [],
  },
  kvRooms: {
    name: "kvmesh_engine_kv_rooms",
    kind: "gauge",
    help: "Rendezvous in progress on a prefill engine.",
    labels: [],
  },
} as const satisfies Record<string, MetricSpec>;

/** What a KV connector counts, as of now. */
export interface KvState {
  readonly counts: Readonly<KvConnectorCounts>;
  readonly servedBytes: number;
  readonly servedBlocks: number;
  readonly failedNotices: number;
  readonly heldHandoffs: number;
  readonly heldBlocks: number;
  readonly endedHandoffs: Readonly<Record<HandoffOutcome, number>>;
  readonly openLoads: number;
  readonly openRooms: number;
}

/** Brings the metrics up to `kv`; `grown` gives what a total has grown since the last call under its name. */
export function collectKv(
  metrics: Pick<Metrics<typeof kvCatalogue>, keyof typeof kvCatalogue>,
  own: { readonly model_name: string; readonly engine: string },
  kv: KvState,
  grown: (name: string, total: number) => number,
): void {
  const { counts, endedHandoffs } = kv;
  metrics.nixlFailed.inc(own, grown("failed", counts.failedPulls));
  metrics.nixlFailedNotices.inc(own, grown("notices", kv.failedNotices));
  metrics.nixlExpired.inc(own, grown("expired", endedHandoffs.expired));
  metrics.kvPulledBytes.inc(grown("pulledBytes", counts.pulledBytes));
  metrics.kvPulledBlocks.inc(grown("pulledBlocks", counts.pulledBlocks));
  metrics.kvServedBytes.inc(grown("servedBytes", kv.servedBytes));
  metrics.kvServedBlocks.inc(grown("servedBlocks", kv.servedBlocks));
  metrics.kvBadBlocks.inc({ reason: "damaged" }, grown("damaged", counts.damagedBlocks));
  metrics.kvBadBlocks.inc({ reason: "foreign" }, grown("foreign", counts.foreignBlocks));
  metrics.kvRecomputedBlocks.inc(grown("recomputed", counts.recomputedBlocks));
  for (const outcome of ["pulled", "aborted", "expired"] as const) {
    metrics.kvHandoffsEnded.inc({ outcome }, grown(`handoff_${outcome}`, endedHandoffs[outcome]));
  }
  metrics.kvHandoffs.set(kv.heldHandoffs);
  metrics.kvHandoffBlocks.set(kv.heldBlocks);
  metrics.kvLoads.set(kv.openLoads);
  metrics.kvRooms.set(kv.openRooms);
}
