import type { MetricSpec } from "../shared/edge/metrics.ts";

/** Every metric of the console. */
export const consoleMetrics = {
  spansReceived: {
    name: "kvmesh_console_spans_received_total",
    kind: "counter",
    help: "Spans that arrived, kept or not, by transport.",
    labels: ["transport"], // grpc | http
  },
  spansDropped: {
    name: "kvmesh_console_spans_dropped_total",
    kind: "counter",
    help: "Spans that were not kept, by reason.",
    labels: ["reason"], // queue_full | invalid | duplicate | trace_full | write_failed
  },
  spansStored: {
    name: "kvmesh_console_spans_stored_total",
    kind: "counter",
    help: "Spans written to the store.",
    labels: [],
  },
  requestsRefused: {
    name: "kvmesh_console_requests_refused_total",
    kind: "counter",
    help: "Export requests and queries refused as a whole, by reason.",
    labels: ["reason"], // malformed | too_large | unsupported | busy | caller
  },
  queueSpans: {
    name: "kvmesh_console_queue_spans",
    kind: "gauge",
    help: "Spans waiting to be written.",
    labels: [],
  },
  queueBytes: {
    name: "kvmesh_console_queue_bytes",
    kind: "gauge",
    help: "Bytes of spans waiting to be written.",
    labels: [],
  },
  writeSeconds: {
    name: "kvmesh_console_write_duration_seconds",
    kind: "histogram",
    help: "Time to write one batch; the receivers wait that long.",
    labels: [],
    buckets: [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1],
  },
  storeTraces: {
    name: "kvmesh_console_store_traces",
    kind: "gauge",
    help: "Traces in the store.",
    labels: [],
  },
  storeBytes: {
    name: "kvmesh_console_store_bytes",
    kind: "gauge",
    help: "Bytes of spans in the store, indexes excluded.",
    labels: [],
  },
  tracesEvicted: {
    name: "kvmesh_console_traces_evicted_total",
    kind: "counter",
    help: "Traces dropped to make room, longest not updated first, by the bound that was reached.",
    labels: ["bound"], // traces | bytes
  },
  storeResets: {
    name: "kvmesh_console_store_resets_total",
    kind: "counter",
    help: "Damaged store files that were moved aside.",
    labels: [],
  },
  queries: {
    name: "kvmesh_console_queries_total",
    kind: "counter",
    help: "Answers of the query API, by route and HTTP status.",
    labels: ["route", "status"],
  },
} as const satisfies Record<string, MetricSpec>;
