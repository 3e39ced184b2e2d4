import {
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
  closeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Logger } from "pino";
import { createMetrics } from "../../shared/edge/metrics.ts";
import { SpanQueue } from "../core/span-queue.ts";
import type { QueuedSpan, SpanFacts } from "../core/span-record.ts";
import { consoleMetrics } from "../metrics.ts";
import { openStoreFile } from "./store-file.ts";
import { startStoreWriter } from "./store-writer.ts";
import { TraceStore, type StoreLimits } from "./trace-store.ts";

const noFacts: SpanFacts = {
  decisionId: undefined,
  requestIds: [],
  model: undefined,
  outcome: undefined,
  workerId: undefined,
  ttftMs: undefined,
  predictedTtftMs: undefined,
  durationMs: undefined,
  isRoute: false,
  failed: false,
  rootName: undefined,
};

function queued(trace: number, span: number, facts: Partial<SpanFacts> = {}): QueuedSpan {
  const traceId = trace.toString(16).padStart(32, "0");
  const spanId = span.toString(16).padStart(16, "0");
  const startUnixNs = BigInt(trace) * 1_000_000_000n + BigInt(span);
  return {
    traceId,
    spanId,
    startUnixNs,
    endUnixNs: startUnixNs + 1_000_000n,
    json: JSON.stringify({ traceId, spanId }),
    facts: { ...noFacts, ...facts },
  };
}
const idOf = (trace: number): string => queued(trace, 1).traceId;
const limits: StoreLimits = { tracesMax: 100, bytesMax: 1_000_000, spansPerTraceMax: 50 };

let stateDir: string;
let logged: Record<string, unknown>[];
let log: Logger;

beforeEach(() => {
  stateDir = mkdtempSync(join(tmpdir(), "kvmesh-console-"));
  logged = [];
  log = pino(
    {},
    { write: (line: string) => logged.push(JSON.parse(line) as Record<string, unknown>) },
  );
});
afterEach(() => {
  rmSync(stateDir, { recursive: true, force: true });
});

function openStore(bounds: StoreLimits = limits, onReset = (): void => undefined): TraceStore {
  return new TraceStore(openStoreFile({ stateDir, log, unixMs: () => 0, onReset }), bounds);
}

function spansOf(store: TraceStore, trace: number): unknown[] | undefined {
  const json = store.traceJson(idOf(trace));
  return json === undefined ? undefined : (JSON.parse(json) as { spans: unknown[] }).spans;
}

describe("bounds", () => {
  test("drop the trace that was not updated for longest, with all that belongs to it", () => {
    const store = openStore({ ...limits, tracesMax: 3 });
    for (const trace of [1, 2, 3]) {
      store.write([queued(trace, 1, { decisionId: `d${String(trace)}`, requestIds: ["same"] })], 0);
    }
    store.write([queued(1, 2)], 0);
    expect(store.write([queued(4, 1)], 0)).toMatchObject({ evictedByTraces: 1, evictedByBytes: 0 });
    expect(spansOf(store, 2)).toBeUndefined();
    expect(store.findById("decision", "d2")).toEqual([]);
    expect(store.findById("request", "same")).toEqual([idOf(3), idOf(1)]);
    expect(spansOf(store, 1)).toHaveLength(2);
    expect(store.traces).toBe(3);
    store.close();
  });

  test("hold bytes as well, also after ten times as many spans", () => {
    const size = queued(1, 1).json.length;
    const store = openStore({ ...limits, bytesMax: 10 * size });
    let evicted = 0;
    for (let trace = 1; trace <= 100; trace++) {
      evicted += store.write([queued(trace, 1)], 0).evictedByBytes;
    }
    expect({ evicted, traces: store.traces, bytes: store.bytes }).toEqual({
      evicted: 90,
      traces: 10,
      bytes: 10 * size,
    });
    store.close();
  });

  test("count spans past a trace's limit and tell them with the trace", () => {
    const store = openStore({ ...limits, spansPerTraceMax: 2 });
    expect(
      store.write(
        [1, 2, 3, 4].map((span) => queued(1, span)),
        0,
      ),
    ).toMatchObject({
      stored: 2,
      overfull: 2,
    });
    store.write([queued(1, 5)], 0);
    expect(JSON.parse(store.traceJson(idOf(1)) ?? "")).toMatchObject({ droppedSpans: 3 });
    store.close();
  });

  test("keep a span that was sent twice once", () => {
    const store = openStore();
    const batch = [queued(1, 1), queued(1, 1), queued(1, 2)];
    expect(store.write(batch, 0)).toMatchObject({ stored: 2, duplicates: 1 });
    expect(store.write(batch, 0)).toMatchObject({ stored: 0, duplicates: 3 });
    expect(spansOf(store, 1)).toHaveLength(2);
    store.close();
  });
});

describe("restart", () => {
  test("finds every trace again and goes on counting", () => {
    const before = openStore({ ...limits, tracesMax: 3 });
    before.write([queued(1, 1), queued(2, 1, { isRoute: true }), queued(3, 1)], 0);
    const bytes = before.bytes;
    before.close();
    const after = openStore({ ...limits, tracesMax: 3 });
    expect({ traces: after.traces, bytes: after.bytes, last: after.lastRouted() }).toEqual({
      traces: 3,
      bytes,
      last: idOf(2),
    });
    expect(after.write([queued(4, 1)], 0).evictedByTraces).toBe(1);
    expect(spansOf(after, 1)).toBeUndefined();
    after.close();
  });

  test("refuses a file that another process holds, and says what to do", () => {
    const first = openStore();
    first.write([queued(1, 1)], 0);
    expect(() => openStore()).toThrow(/in use by another process: stop that console, or set/);
    expect(spansOf(first, 1)).toHaveLength(1);
    first.close();
  });
});

describe("a damaged file", () => {
  const cases: [string, (path: string) => void][] = [
    ["garbage", (path) => writeFileSync(path, "not a database at all".repeat(1_000))],
    [
      "overwritten pages",
      (path) => {
        const file = openSync(path, "r+");
        for (let page = 1; page < 12; page++)
          writeSync(file, Buffer.alloc(4_096, 0x5a), 0, 4_096, page * 4_096);
        closeSync(file);
      },
    ],
    ["a cut end", (path) => writeFileSync(path, readFileSync(path).subarray(0, 9_000))],
  ];
  test.each(cases)(
    "with %s is moved aside with one clear line, and a new one is used",
    (_, harm) => {
      const store = openStore();
      for (let trace = 1; trace <= 50; trace++) store.write([queued(trace, 1)], 0);
      store.close();
      harm(join(stateDir, "traces.sqlite"));
      let resets = 0;
      const fresh = openStore(limits, () => (resets += 1));
      expect(fresh.traces).toBe(0);
      fresh.write([queued(7, 1)], 0);
      expect(spansOf(fresh, 7)).toHaveLength(1);
      fresh.close();
      expect(resets).toBe(1);
      expect(logged).toMatchObject([{ event: "store_moved_aside", reason: expect.any(String) }]);
      expect(readdirSync(stateDir).filter((name) => name.includes("damaged"))).not.toEqual([]);
    },
  );

  test("of another version is moved aside too", () => {
    const database = openStoreFile({ stateDir, log, unixMs: () => 0, onReset: () => undefined });
    database.exec("PRAGMA user_version = 99");
    database.close();
    openStore().close();
    expect(logged[0]?.["reason"]).toBe("schema version 99, expected 1");
  });
});

test("a batch that cannot be written is dropped and counted, and the writer goes on", async () => {
  const { metrics, registry } = createMetrics(consoleMetrics);
  const queue = new SpanQueue({ spansMax: 100, bytesMax: 1_000_000 });
  const database = openStoreFile({ stateDir, log, unixMs: () => 0, onReset: () => undefined });
  const writer = startStoreWriter({
    queue,
    openStore: () => new TraceStore(database, limits),
    batchSpansMax: 10,
    flushIntervalMs: 10_000,
    metrics,
    log,
    unixMs: () => 0,
  });
  const pages = Number(database.prepare("PRAGMA page_count").get()?.["page_count"]);
  database.exec(`PRAGMA max_page_count = ${String(pages)}`);
  const large = { ...queued(1, 1), json: `"${"x".repeat(100_000)}"` };
  queue.offer(large);
  writer.flush();
  expect(writer.healthy).toBe(false);
  expect(writer.store.traces).toBe(0);
  database.exec("PRAGMA max_page_count = 100000");
  queue.offer(queued(2, 1));
  writer.flush();
  expect(writer.healthy).toBe(true);
  expect(spansOf(writer.store, 2)).toHaveLength(1);
  expect(await registry.metrics()).toContain(
    'kvmesh_console_spans_dropped_total{reason="write_failed"} 1',
  );
  expect(logged.map((line) => line["event"])).toEqual([
    "store_write_failed",
    "store_write_recovered",
  ]);
  writer.stop();
});

describe("queue", () => {
  test("gives back what it took in order, and never holds more than its bounds", () => {
    const queue = new SpanQueue({ spansMax: 5, bytesMax: 1_000_000 });
    const seen: string[] = [];
    let offered = 0;
    let accepted = 0;
    for (let round = 0; round < 50; round++) {
      for (let i = 0; i < 3; i++) if (queue.offer(queued(++offered, 1))) accepted += 1;
      expect(queue.size).toBeLessThanOrEqual(5);
      seen.push(...queue.take(2).map((span) => span.traceId));
    }
    seen.push(...queue.take(100).map((span) => span.traceId));
    expect(seen).toHaveLength(accepted);
    expect(seen).toEqual([...seen].sort());
    expect({ size: queue.size, bytes: queue.bytes }).toEqual({ size: 0, bytes: 0 });
  });

  test("refuses by bytes", () => {
    const size = queued(1, 1).json.length;
    const queue = new SpanQueue({ spansMax: 100, bytesMax: size * 2 });
    expect([1, 2, 3].map((trace) => queue.offer(queued(trace, 1)))).toEqual([true, true, false]);
  });
});
