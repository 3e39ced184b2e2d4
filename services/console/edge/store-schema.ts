/** Version of the tables; a file with another one is moved aside, since traces are soft state. */
export const schemaVersion = 1;

/**
 * Tables of the trace store. `traces` holds what the list shows; times are nanoseconds since 1970. `updates` numbers
 * the writes, so that the trace that was not updated for longest is dropped first. Spans are appended in the order of
 * arrival and found by the trace's small key: clustered by their random ids they would take four times the space.
 */
export const schema = `
CREATE TABLE IF NOT EXISTS traces (
  trace_key INTEGER PRIMARY KEY,
  trace_id TEXT NOT NULL UNIQUE,
  updated_seq INTEGER NOT NULL,
  updated_unix_ms INTEGER NOT NULL,
  start_ns INTEGER NOT NULL,
  end_ns INTEGER NOT NULL,
  route_start_ns INTEGER,
  spans INTEGER NOT NULL,
  dropped_spans INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  root_name TEXT,
  decision_id TEXT,
  model TEXT,
  outcome TEXT,
  worker_id TEXT,
  ttft_ms REAL,
  predicted_ttft_ms REAL,
  duration_ms REAL
);
CREATE INDEX IF NOT EXISTS traces_updated ON traces (updated_seq);
CREATE INDEX IF NOT EXISTS traces_start ON traces (start_ns);
CREATE INDEX IF NOT EXISTS traces_route ON traces (route_start_ns) WHERE route_start_ns IS NOT NULL;
CREATE TABLE IF NOT EXISTS spans (
  trace_key INTEGER NOT NULL,
  span_id TEXT NOT NULL,
  start_ns INTEGER NOT NULL,
  json TEXT NOT NULL,
  UNIQUE (trace_key, span_id)
);
CREATE TABLE IF NOT EXISTS ids (
  kind TEXT NOT NULL,
  id TEXT NOT NULL,
  trace_key INTEGER NOT NULL,
  PRIMARY KEY (kind, id, trace_key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS ids_trace ON ids (trace_key);
`;

/** Adds one batch's changes to a trace's row; facts that the batch does not know stay. */
export const upsertTrace = `
INSERT INTO traces VALUES (
  :traceKey, :traceId, :seq, :unixMs, :startNs, :endNs, :routeStartNs, :spans, :dropped, :bytes, :failed,
  :rootName, :decisionId, :model, :outcome, :workerId, :ttftMs, :predictedTtftMs, :durationMs)
ON CONFLICT (trace_key) DO UPDATE SET
  updated_seq = excluded.updated_seq,
  updated_unix_ms = excluded.updated_unix_ms,
  start_ns = min(start_ns, excluded.start_ns),
  end_ns = max(end_ns, excluded.end_ns),
  route_start_ns = coalesce(excluded.route_start_ns, route_start_ns),
  spans = spans + excluded.spans,
  dropped_spans = dropped_spans + excluded.dropped_spans,
  bytes = bytes + excluded.bytes,
  failed = max(failed, excluded.failed),
  root_name = coalesce(excluded.root_name, root_name),
  decision_id = coalesce(excluded.decision_id, decision_id),
  model = coalesce(excluded.model, model),
  outcome = coalesce(excluded.outcome, outcome),
  worker_id = coalesce(excluded.worker_id, worker_id),
  ttft_ms = coalesce(excluded.ttft_ms, ttft_ms),
  predicted_ttft_ms = coalesce(excluded.predicted_ttft_ms, predicted_ttft_ms),
  duration_ms = coalesce(excluded.duration_ms, duration_ms)`;
