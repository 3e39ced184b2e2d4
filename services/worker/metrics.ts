import { decisionBuckets, type MetricSpec } from "../shared/edge/metrics.ts";

/** Every metric of the worker. */
export const workerMetrics = {
  engineReady: {
    name: "kvmesh_worker_engine_ready",
    kind: "gauge",
    help: "1 while the engine can take requests, else 0.",
    labels: [],
  },
  engineLife: {
    name: "kvmesh_worker_engine_life",
    kind: "gauge",
    help: "Lives of the engine seen by this process, from 1.",
    labels: [],
  },
  engineRestarts: {
    name: "kvmesh_worker_engine_restarts_total",
    kind: "counter",
    help: "Engine restarts by the first sign of them.",
    labels: ["cause"], // process_start | sequence | connection
  },
  engineProbes: {
    name: "kvmesh_worker_engine_probes_total",
    kind: "counter",
    help: "Health and metrics probes of the engine by outcome.",
    labels: ["outcome"], // answered | refused | failed
  },
  eventBatches: {
    name: "kvmesh_worker_event_batches_total",
    kind: "counter",
    help: "KV event batches by what became of them.",
    labels: ["rank", "outcome"], // applied | undecodable | duplicate | not_connected | buffer_full
  },
  events: {
    name: "kvmesh_worker_events_total",
    kind: "counter",
    help: "KV events applied by kind; unknown kinds were skipped.",
    labels: ["rank", "kind"], // stored | removed | cleared | unknown
  },
  eventSeconds: {
    name: "kvmesh_worker_event_batch_duration_seconds",
    kind: "histogram",
    help: "Time to decode and apply the batches of one input.",
    labels: [],
    buckets: decisionBuckets,
  },
  eventGaps: {
    name: "kvmesh_worker_event_gaps_total",
    kind: "counter",
    help: "Gaps found in the engine's event sequence.",
    labels: ["rank"],
  },
  eventReplays: {
    name: "kvmesh_worker_event_replays_total",
    kind: "counter",
    help: "Replays asked of the engine by outcome.",
    labels: ["rank", "outcome"], // ended | failed
  },
  forgets: {
    name: "kvmesh_worker_forgets_total",
    kind: "counter",
    help: "Times that all blocks were given up, by reason.",
    labels: ["rank", "reason"], // engine_restarted | reset | replay_truncated | gap | garbage | overflow
  },
  blocks: {
    name: "kvmesh_worker_blocks",
    kind: "gauge",
    help: "Blocks held in the engine's and in the mesh's block size.",
    labels: ["rank", "kind"], // engine | mesh
  },
  skippedBlocks: {
    name: "kvmesh_worker_skipped_blocks_total",
    kind: "counter",
    help: "Engine blocks of events that changed nothing, by reason.",
    labels: ["rank", "reason"],
  },
  routers: {
    name: "kvmesh_worker_routers",
    kind: "gauge",
    help: "Routers by state of the join stream.",
    labels: ["state"], // member | joining | refused | disconnected
  },
  joins: {
    name: "kvmesh_worker_joins_total",
    kind: "counter",
    help: "Join streams ended, by how.",
    labels: ["outcome"],
  },
  messages: {
    name: "kvmesh_worker_join_messages_total",
    kind: "counter",
    help: "Messages sent to routers by kind.",
    labels: ["kind"],
  },
  snapshots: {
    name: "kvmesh_worker_snapshots_total",
    kind: "counter",
    help: "Snapshots begun by what asked for them.",
    labels: ["cause"], // join_or_overflow | resync
  },
  unackedDeltas: {
    name: "kvmesh_worker_unacked_deltas",
    kind: "gauge",
    help: "Deltas sent that a router has not acknowledged.",
    labels: ["router"],
  },
  pendingBlocks: {
    name: "kvmesh_worker_pending_blocks",
    kind: "gauge",
    help: "Changed blocks that wait for a router.",
    labels: ["router"],
  },
  clockOffset: {
    name: "kvmesh_worker_router_clock_offset_seconds",
    kind: "gauge",
    help: "How far a router's wall clock is ahead of this host's, from the shortest round trip.",
    labels: ["router"],
  },
} as const satisfies Record<string, MetricSpec>;
