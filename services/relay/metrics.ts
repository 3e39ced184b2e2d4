import { requestBuckets, ttftBuckets, type MetricSpec } from "../shared/edge/metrics.ts";

/** Bounds for gaps in a stream, seconds. */
const gapBuckets: readonly number[] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30];

/** Every metric of the relay. */
export const relayMetrics = {
  requests: {
    name: "kvmesh_relay_requests_total",
    kind: "counter",
    help: "Requests by how they were placed and how they ended.",
    labels: ["mode", "outcome"], // whole | pair | none; see RequestOutcome
  },
  openRequests: {
    name: "kvmesh_relay_open_requests",
    kind: "gauge",
    help: "Requests open now.",
    labels: [],
  },
  refusals: {
    name: "kvmesh_relay_refusals_total",
    kind: "counter",
    help: "Requests that no leg was started for, by reason.",
    labels: ["reason"],
  },
  requestSeconds: {
    name: "kvmesh_relay_request_duration_seconds",
    kind: "histogram",
    help: "Whole time of requests that were answered to their end.",
    labels: ["mode"],
    buckets: requestBuckets,
  },
  ttftSeconds: {
    name: "kvmesh_relay_ttft_seconds",
    kind: "histogram",
    help: "Time from the request's arrival to the first byte of its answer.",
    labels: ["mode"],
    buckets: ttftBuckets,
  },
  legs: {
    name: "kvmesh_relay_legs_total",
    kind: "counter",
    help: "Legs by engine, part and what became of them.",
    labels: ["engine", "leg", "outcome"],
  },
  legSeconds: {
    name: "kvmesh_relay_leg_duration_seconds",
    kind: "histogram",
    help: "Time of legs that did their part.",
    labels: ["engine", "leg"],
    buckets: requestBuckets,
  },
  openLegs: {
    name: "kvmesh_relay_open_legs",
    kind: "gauge",
    help: "Legs open at engines now.",
    labels: [],
  },
  localPrefills: {
    name: "kvmesh_relay_local_prefills_total",
    kind: "counter",
    help: "Pairs whose prompt was computed where it is answered, by reason.",
    labels: ["reason"], // see LocalPrefillReason
  },
  handoffTokens: {
    name: "kvmesh_relay_handoff_tokens",
    kind: "gauge",
    help: "Tokens of hand-offs that wait to be pulled, all prefill engines.",
    labels: [],
  },
  placementsAgain: {
    name: "kvmesh_relay_placements_again_total",
    kind: "counter",
    help: "Placements asked of routers for requests that lost their engine, by outcome.",
    labels: ["outcome"], // placed | refused | no_router | timeout | cancelled
  },
  clientBytes: {
    name: "kvmesh_relay_client_bytes_total",
    kind: "counter",
    help: "Bytes of answers handed on to clients.",
    labels: [],
  },
  pauses: {
    name: "kvmesh_relay_pauses_total",
    kind: "counter",
    help: "Times that an engine was not read because its client was slow.",
    labels: [],
  },
  bodyMemory: {
    name: "kvmesh_relay_body_memory_bytes",
    kind: "gauge",
    help: "Bytes of request bodies held now.",
    labels: [],
  },
  guards: {
    name: "kvmesh_relay_guards_total",
    kind: "counter",
    help: "Streams by whether they are guarded, and why not.",
    labels: ["state", "reason"], // on | off
  },
  guardedTokens: {
    name: "kvmesh_relay_guarded_tokens_total",
    kind: "counter",
    help: "Tokens handed on in guarded streams.",
    labels: [],
  },
  unnamed: {
    name: "kvmesh_relay_unnamed_starts_total",
    kind: "counter",
    help: "Guarded streams whose first tokens went out without a name, since no buddy had confirmed them in time.",
    labels: [],
  },
  migrations: {
    name: "kvmesh_relay_migrations_total",
    kind: "counter",
    help: "Streams that were continued on another engine, by what was wrong with the one before, and by outcome.",
    labels: ["cause", "outcome"], // lost | frozen | drained | engine_error; continued | failed
  },
  migrationSeconds: {
    name: "kvmesh_relay_migration_gap_seconds",
    kind: "histogram",
    help: "Time from the loss of an engine to the next token of the stream.",
    labels: [],
    buckets: gapBuckets,
  },
  resumes: {
    name: "kvmesh_relay_resumes_total",
    kind: "counter",
    help: "Streams that clients asked to resume, by outcome.",
    labels: ["outcome"], // continued | lost | refused
  },
  mirrorBytes: {
    name: "kvmesh_relay_mirror_bytes",
    kind: "gauge",
    help: "Bytes kept of other relays' streams.",
    labels: [],
  },
  tracesKept: {
    name: "kvmesh_relay_traces_kept_total",
    kind: "counter",
    help: "Requests that were not sampled and whose spans were written after all, by reason.",
    labels: ["reason"], // failed | migrated | slow | badly_predicted, or what a router said
  },
  spansDropped: {
    name: "kvmesh_relay_spans_dropped_total",
    kind: "counter",
    help: "Spans that were made and never arrived, because their queue was full or the endpoint did not take them.",
    labels: [],
  },
  routers: {
    name: "kvmesh_relay_routers",
    kind: "gauge",
    help: "Routers by state of the attach stream.",
    labels: ["state"], // attached | attaching | refused | disconnected
  },
  attaches: {
    name: "kvmesh_relay_attaches_total",
    kind: "counter",
    help: "Attach streams ended, by how.",
    labels: ["outcome"],
  },
  noticesDropped: {
    name: "kvmesh_relay_leg_notices_dropped_total",
    kind: "counter",
    help: "Leg notices that no router acknowledged before newer ones needed their room.",
    labels: [],
  },
} as const satisfies Record<string, MetricSpec>;
