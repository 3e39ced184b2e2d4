import type { DatabaseSync, StatementSync } from "node:sqlite";
import type { QueuedSpan } from "../core/span-record.ts";
import { upsertTrace } from "./store-schema.ts";

/** Bounds of the store. */
export interface StoreLimits {
  readonly tracesMax: number;
  readonly bytesMax: number;
  readonly spansPerTraceMax: number;
}

/** What a batch did. */
export interface WriteResult {
  readonly stored: number;
  readonly duplicates: number;
  /** Spans past `spansPerTraceMax`. */
  readonly overfull: number;
  readonly evictedByTraces: number;
  readonly evictedByBytes: number;
}

/** A trace in the list; facts are null until a span says them. */
export interface TraceSummary {
  readonly traceId: string;
  readonly startUnixMs: number;
  readonly elapsedMs: number;
  readonly spans: number;
  readonly droppedSpans: number;
  readonly failed: boolean;
  readonly rootName: string | null;
  readonly decisionId: string | null;
  readonly model: string | null;
  readonly outcome: string | null;
  readonly workerId: string | null;
  readonly ttftMs: number | null;
  readonly predictedTtftMs: number | null;
  readonly durationMs: number | null;
}

/** What a batch changes in one trace's row. */
interface TraceChange {
  readonly traceKey: number;
  /** Spans held before. */
  readonly held: number;
  startNs: bigint;
  endNs: bigint;
  routeStartNs: bigint | null;
  spans: number;
  dropped: number;
  bytes: number;
  failed: 0 | 1;
  readonly facts: Record<FactKey, string | number | null>;
}

const factKeys = [
  "rootName",
  "decisionId",
  "model",
  "outcome",
  "workerId",
  "ttftMs",
  "predictedTtftMs",
  "durationMs",
] as const;
type FactKey = (typeof factKeys)[number];

function emptyChange(span: QueuedSpan, traceKey: number, held: number): TraceChange {
  return {
    traceKey,
    held,
    startNs: span.startUnixNs,
    endNs: span.endUnixNs,
    routeStartNs: null,
    spans: 0,
    dropped: 0,
    bytes: 0,
    failed: 0,
    facts: Object.fromEntries(factKeys.map((key) => [key, null])) as Record<FactKey, null>,
  };
}

function addFacts(change: TraceChange, span: QueuedSpan): void {
  if (span.startUnixNs < change.startNs) change.startNs = span.startUnixNs;
  if (span.endUnixNs > change.endNs) change.endNs = span.endUnixNs;
  if (span.facts.isRoute) change.routeStartNs = span.startUnixNs;
  if (span.facts.failed) change.failed = 1;
  for (const key of factKeys) {
    const fact = span.facts[key];
    if (fact !== undefined) change.facts[key] = fact;
  }
}

const summaryColumns = `trace_id AS traceId, start_ns / 1000 AS startUnixUs, (end_ns - start_ns) / 1000 AS elapsedUs,
  spans, dropped_spans AS droppedSpans, failed, root_name AS rootName, decision_id AS decisionId, model, outcome,
  worker_id AS workerId, ttft_ms AS ttftMs, predicted_ttft_ms AS predictedTtftMs, duration_ms AS durationMs`;

/**
 * Bounded store of traces in SQLite. All calls are synchronous and cost: a write about 15 µs a span, a read of one
 * trace about 5 µs a span. When a bound is passed, the traces not updated for longest are dropped within the same
 * transaction. Errors are SQLite's; `isDamage` tells whether the file is at fault.
 */
export class TraceStore {
  readonly #database: DatabaseSync;
  readonly #limits: StoreLimits;
  readonly #statements: Readonly<Record<StatementName, StatementSync>>;
  #traces: number;
  #bytes: number;
  #seq: number;
  #lastKey: number;

  constructor(database: DatabaseSync, limits: StoreLimits) {
    this.#database = database;
    this.#limits = limits;
    this.#statements = prepareAll(database);
    const totals = database
      .prepare(
        `SELECT count(*) AS n, coalesce(sum(bytes), 0) AS b, coalesce(max(updated_seq), 0) AS s,
          coalesce(max(trace_key), 0) AS k FROM traces`,
      )
      .get();
    this.#traces = Number(totals?.["n"]);
    this.#bytes = Number(totals?.["b"]);
    this.#seq = Number(totals?.["s"]);
    this.#lastKey = Number(totals?.["k"]);
  }

  /** Traces held. */
  get traces(): number {
    return this.#traces;
  }

  /** UTF-16 units of span JSON held. */
  get bytes(): number {
    return this.#bytes;
  }

  /** Writes a batch in one transaction; on an error nothing of it is kept and the totals stay as they were. */
  write(batch: readonly QueuedSpan[], unixMs: number): WriteResult {
    const before = { traces: this.#traces, bytes: this.#bytes };
    this.#database.exec("BEGIN");
    try {
      const written = this.#writeSpans(batch, unixMs);
      const evicted = this.#evict();
      this.#database.exec("COMMIT");
      return { ...written, ...evicted };
    } catch (error) {
      this.#traces = before.traces;
      this.#bytes = before.bytes;
      // After a full disk or a damaged page SQLite may have rolled back by itself.
      if (this.#database.isTransaction) this.#database.exec("ROLLBACK");
      throw error;
    }
  }

  #writeSpans(
    batch: readonly QueuedSpan[],
    unixMs: number,
  ): Pick<WriteResult, "stored" | "duplicates" | "overfull"> {
    const { insertSpan, insertId, traceOf, upsert } = this.#statements;
    const changes = new Map<string, TraceChange>();
    let stored = 0;
    let duplicates = 0;
    let overfull = 0;
    for (const span of batch) {
      let change = changes.get(span.traceId);
      if (change === undefined) {
        const row = traceOf.get(span.traceId);
        if (row === undefined) {
          this.#traces += 1;
          this.#lastKey += 1;
          change = emptyChange(span, this.#lastKey, 0);
        } else change = emptyChange(span, Number(row["trace_key"]), Number(row["spans"]));
        changes.set(span.traceId, change);
      }
      if (change.held + change.spans >= this.#limits.spansPerTraceMax) {
        change.dropped += 1;
        overfull += 1;
        continue;
      }
      const row = insertSpan.run(change.traceKey, span.spanId, span.startUnixNs, span.json);
      if (Number(row.changes) === 0) {
        duplicates += 1;
        continue;
      }
      stored += 1;
      change.spans += 1;
      change.bytes += span.json.length;
      addFacts(change, span);
      if (span.facts.decisionId !== undefined) {
        insertId.run("decision", span.facts.decisionId, change.traceKey);
      }
      for (const id of span.facts.requestIds) insertId.run("request", id, change.traceKey);
    }
    for (const [traceId, change] of changes) {
      const { traceKey, startNs, endNs, routeStartNs, spans, dropped, bytes, failed, facts } =
        change;
      this.#seq += 1;
      this.#bytes += bytes;
      const row = { traceKey, startNs, endNs, routeStartNs, spans, dropped, bytes, failed };
      upsert.run({ ...row, ...facts, traceId, seq: this.#seq, unixMs });
    }
    return { stored, duplicates, overfull };
  }

  #evict(): Pick<WriteResult, "evictedByTraces" | "evictedByBytes"> {
    const { oldest, deleteSpans, deleteIds, deleteTrace } = this.#statements;
    let evictedByTraces = 0;
    let evictedByBytes = 0;
    while (this.#traces > this.#limits.tracesMax || this.#bytes > this.#limits.bytesMax) {
      const row = oldest.get();
      if (row === undefined) break;
      const traceKey = Number(row["trace_key"]);
      if (this.#traces > this.#limits.tracesMax) evictedByTraces += 1;
      else evictedByBytes += 1;
      this.#traces -= 1;
      this.#bytes -= Number(row["bytes"]);
      for (const statement of [deleteSpans, deleteIds, deleteTrace]) statement.run(traceKey);
    }
    return { evictedByTraces, evictedByBytes };
  }

  /**
   * Newest traces first, at most `limit`. With `slowMs` only those whose time to first token, or whose whole time
   * where no first token is known, is at least that.
   */
  list(limit: number, slowMs: number | undefined): TraceSummary[] {
    const { list, listSlow } = this.#statements;
    const rows = slowMs === undefined ? list.all(limit) : listSlow.all(slowMs, limit);
    return rows.map((row) => {
      const { startUnixUs, elapsedUs, failed, ...rest } = row;
      return {
        ...rest,
        startUnixMs: Number(startUnixUs) / 1_000,
        elapsedMs: Number(elapsedUs) / 1_000,
        failed: failed === 1,
      } as unknown as TraceSummary;
    });
  }

  /** The newest trace with a routing decision. */
  lastRouted(): string | undefined {
    return this.#statements.lastRouted.get()?.["trace_id"] as string | undefined;
  }

  /** Traces in which an id occurs, newest first, at most 16: callers may use a request id again. */
  findById(kind: "request" | "decision", id: string): string[] {
    return this.#statements.findById.all(kind, id).map((row) => row["trace_id"] as string);
  }

  /** A trace as the API's JSON text, spans by start; `undefined` when it is not held. */
  traceJson(traceId: string): string | undefined {
    const trace = this.#statements.trace.get(traceId);
    if (trace === undefined) return undefined;
    const spans = this.#statements.spansOf
      .all(Number(trace["trace_key"]))
      .map((row) => row["json"] as string);
    const head = JSON.stringify({
      traceId,
      updatedUnixMs: Number(trace["updated_unix_ms"]),
      droppedSpans: Number(trace["dropped_spans"]),
    });
    return `${head.slice(0, -1)},"spans":[${spans.join(",")}]}`;
  }

  /** Closes the file; nothing may be called afterwards. */
  close(): void {
    this.#database.close();
  }
}

const statementTexts = {
  insertSpan: "INSERT OR IGNORE INTO spans VALUES (?, ?, ?, ?)",
  insertId: "INSERT OR IGNORE INTO ids VALUES (?, ?, ?)",
  traceOf: "SELECT trace_key, spans FROM traces WHERE trace_id = ?",
  upsert: upsertTrace,
  oldest: "SELECT trace_key, bytes FROM traces ORDER BY updated_seq LIMIT 1",
  deleteSpans: "DELETE FROM spans WHERE trace_key = ?",
  deleteIds: "DELETE FROM ids WHERE trace_key = ?",
  deleteTrace: "DELETE FROM traces WHERE trace_key = ?",
  list: `SELECT ${summaryColumns} FROM traces ORDER BY start_ns DESC LIMIT ?`,
  listSlow: `SELECT ${summaryColumns} FROM traces
    WHERE coalesce(ttft_ms, duration_ms, (end_ns - start_ns) / 1e6) >= ? ORDER BY start_ns DESC LIMIT ?`,
  lastRouted: `SELECT trace_id FROM traces WHERE route_start_ns IS NOT NULL ORDER BY route_start_ns DESC LIMIT 1`,
  findById: `SELECT trace_id FROM ids JOIN traces USING (trace_key) WHERE kind = ? AND id = ?
    ORDER BY start_ns DESC LIMIT 16`,
  trace: "SELECT trace_key, updated_unix_ms, dropped_spans FROM traces WHERE trace_id = ?",
  spansOf: "SELECT json FROM spans WHERE trace_key = ? ORDER BY start_ns, span_id",
} as const;
type StatementName = keyof typeof statementTexts;

function prepareAll(database: DatabaseSync): Record<StatementName, StatementSync> {
  const entries = Object.entries(statementTexts).map(([name, sql]) => [
    name,
    database.prepare(sql),
  ]);
  return Object.fromEntries(entries) as Record<StatementName, StatementSync>;
}
