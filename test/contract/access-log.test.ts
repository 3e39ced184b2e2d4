import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { parseCidr } from "../../services/shared/core/cidr.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import {
  createGrpcServer,
  listen,
  type GrpcServer,
} from "../../services/shared/edge/grpc-server.ts";
import { createKeysFile, loadKeys, type MeshKeys } from "../../services/shared/edge/keys.ts";
import { createMetrics } from "../../services/shared/edge/metrics.ts";
import { noTracing } from "../../services/shared/edge/tracing.ts";
import { HTTPAccessLogEntry } from "../../services/shared/gen/envoy/data/accesslog/v3/accesslog.ts";
import { StreamAccessLogsMessage } from "../../services/shared/gen/envoy/service/accesslog/v3/als.ts";
import { PeerService as PeerDefinition } from "../../services/shared/gen/kvmesh/router/v1/router.ts";
import type { RouterCore } from "../../services/router/core/router-core.ts";
import {
  readAccessRecord,
  type AccessRecord,
} from "../../services/router/edge/access-log/access-record.ts";
import { AccessOutcomes } from "../../services/router/edge/access-outcomes.ts";
import { PeerLinks } from "../../services/router/edge/peer-links.ts";
import { PeerService } from "../../services/router/edge/peer-server.ts";
import { routerMetrics } from "../../services/router/metrics.ts";
import { memberFacts, placeInput, routerCore, servedRecord } from "../support/router-builders.ts";

const log = pino({ level: "silent" });

describe("a record captured from Envoy", () => {
  const bytes = readFileSync(
    join(import.meta.dirname, "..", "fixtures", "envoy", "access-log.bin"),
  );
  const entry = StreamAccessLogsMessage.decode(bytes).logEntries?.value.logEntry[0];
  if (entry === undefined || !("protocolVersion" in entry))
    throw new Error("the capture holds no record");

  test("is read completely", () => {
    const record = readAccessRecord(entry);
    expect(record).toMatchObject({
      decisionId: "r.1.1",
      requestId: "0a7fbbd5-5b51-4ab1-a9d5-8d0b6a4b9d11",
      traceparent: "",
      predictedTtftMs: 0,
      workerId: "",
      cluster: "pool-other",
      codeDetails: "via_upstream",
      status: 200,
      responseFlags: "",
      attempts: 1,
    });
    expect(record.servedEndpoint).toMatch(/^127\.0\.0\.1:\d+$/);
    expect(record.picked).toEqual([record.servedEndpoint]);
    expect(record.responseBytes).toBeGreaterThan(0);
    expect(new Date(record.startUnixUs / 1_000).getFullYear()).toBeGreaterThan(2024);
  });

  test("times come in the order in which they happened", () => {
    const record = readAccessRecord(entry);
    const { uploadMs, upstreamStartMs, responseHeadersMs, ttftMs, durationMs } = record;
    expect(uploadMs).toBeGreaterThan(0);
    expect(responseHeadersMs).toBeGreaterThanOrEqual(upstreamStartMs);
    expect(ttftMs).toBeGreaterThanOrEqual(responseHeadersMs);
    expect(durationMs).toBeGreaterThanOrEqual(ttftMs - 1);
    expect(durationMs).toBeLessThan(10_000);
  });

  test("one whose request reached nobody is read as far as it goes", () => {
    const common = entry.commonProperties;
    if (common === undefined) throw new Error("no common properties");
    const refused: HTTPAccessLogEntry = {
      ...entry,
      commonProperties: {
        ...common,
        metadata: undefined,
        upstreamRemoteAddress: undefined,
        upstreamCluster: "",
        upstreamRequestAttemptCount: 0,
        timeToFirstUpstreamTxByte: undefined,
        timeToFirstUpstreamRxByte: undefined,
        customTags: { ttft_us: "-" },
      },
      response: undefined,
    };
    expect(readAccessRecord(refused)).toMatchObject({
      decisionId: "",
      picked: [],
      servedEndpoint: "",
      cluster: "",
      status: 0,
      ttftMs: 0,
      upstreamStartMs: 0,
      responseHeadersMs: 0,
      responseBytes: 0,
    });
  });

  test("an empty record is read as nothing", () => {
    const empty = HTTPAccessLogEntry.decode(new Uint8Array(0));
    expect(readAccessRecord(empty)).toMatchObject({
      decisionId: "",
      status: 0,
      durationMs: 0,
      startUnixUs: 0,
    });
  });

  test("an IPv6 endpoint is written as the router names it", () => {
    const common = entry.commonProperties;
    const address = common?.upstreamRemoteAddress?.address;
    if (common === undefined || address?.$case !== "socketAddress") throw new Error("no address");
    const v6: HTTPAccessLogEntry = {
      ...entry,
      commonProperties: {
        ...common,
        upstreamRemoteAddress: {
          address: { $case: "socketAddress", value: { ...address.value, address: "fd00::7" } },
        },
      },
    };
    expect(readAccessRecord(v6).servedEndpoint).toMatch(/^\[fd00::7\]:\d+$/);
  });
});

/** A router reduced to its core, its accounting of the access log and its peer service. */
interface TestRouter {
  readonly core: RouterCore;
  readonly outcomes: AccessOutcomes;
  readonly peers: PeerLinks;
  readonly server: GrpcServer;
  readonly port: number;
  metric(
    key: keyof typeof routerMetrics,
    labels?: Readonly<Record<string, string>>,
  ): Promise<number>;
}

async function startRouter(
  instance: string,
  options: { readonly keys: MeshKeys; readonly peers: readonly string[] },
): Promise<TestRouter> {
  const decisionPrefix = `${instance}.5`;
  const core = routerCore({ decisionPrefix });
  for (const i of [0, 1]) core.admit(memberFacts(i), i + 1, realClock.now());
  const { metrics } = createMetrics(routerMetrics);
  const shared = {
    keys: options.keys,
    clock: realClock,
    log,
    instance,
    epoch: 5,
    blockSizeTokens: 16,
  };
  const settle = (): void => {
    core.takeEffects();
  };
  let port = 0;
  const peers = new PeerLinks({
    ...shared,
    addresses: options.peers,
    controlAddress: () => `127.0.0.1:${port}`,
    snapshot: () => ({ members: [], reservations: [], relays: [] }),
    onDropped: () => undefined,
    onUnproven: () => undefined,
  });
  const outcomes = new AccessOutcomes({
    core,
    clock: realClock,
    tracing: noTracing,
    metrics,
    peers,
    decisionPrefix,
    settle,
  });
  const loopback = parseCidr("127.0.0.0/8");
  const server = createGrpcServer({
    callers: [
      { service: "kvmesh.router.v1.Peer", allowed: loopback === undefined ? [] : [loopback] },
    ],
    messageBytesMax: 1_048_576,
    reflection: false,
  });
  const peerService = new PeerService({
    ...shared,
    core,
    outcomes,
    settle,
    allowedCidrs: loopback === undefined ? [] : [loopback],
    onRefused: (what) => {
      metrics.peerRefused.inc({ what });
    },
  });
  server.add(PeerDefinition, peerService.service);
  port = await listen(server.server, "127.0.0.1", 0);
  return {
    core,
    outcomes,
    peers,
    server,
    port,
    metric: async (key, labels = {}) => {
      const { values } = await metrics[key].get();
      return values
        .filter((v) =>
          Object.entries(labels).every(
            ([name, value]) => String(v.labels[name as never]) === value,
          ),
        )
        .filter((v) => !("metricName" in v) || v.metricName.endsWith("_count"))
        .reduce((sum, v) => sum + v.value, 0);
    },
  };
}

const accessRecord = (over: Partial<AccessRecord> = {}): AccessRecord => ({
  ...servedRecord(0),
  decisionId: "",
  requestId: "req-1",
  traceparent: "",
  predictedTtftMs: 30,
  workerId: "w0",
  picked: ["127.0.0.1:8100", "127.0.0.1:8101"],
  cluster: "pool-default",
  codeDetails: "via_upstream",
  startUnixUs: 1_790_000_000_000_000,
  uploadMs: 1,
  upstreamStartMs: 2,
  responseHeadersMs: 30,
  ...over,
});

describe("accounting", () => {
  let folder: string;
  let owner: TestRouter;
  let other: TestRouter;

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), "kvmesh-access-log-"));
    createKeysFile(join(folder, "mesh.keys"));
    const keys = loadKeys(join(folder, "mesh.keys"));
    owner = await startRouter("r1", { keys, peers: [] });
    other = await startRouter("r2", { keys, peers: [`127.0.0.1:${owner.port}`] });
    other.peers.start();
  });

  afterEach(() => {
    other.peers.stop();
    for (const router of [owner, other]) router.server.server.forceShutdown();
    rmSync(folder, { recursive: true });
  });

  const outcomesOf = async (router: TestRouter): Promise<Record<string, number>> => {
    const names = ["own", "forwarded", "without_decision", "unknown_owner"];
    const counts = await Promise.all(
      names.map((outcome) => router.metric("accessLogRecords", { outcome })),
    );
    return Object.fromEntries(
      names.map((name, i): [string, number] => [name, counts[i] ?? 0]).filter(([, n]) => n !== 0),
    );
  };

  test("an own decision is closed here", async () => {
    const { id } = owner.core.place(placeInput(), realClock.now());
    owner.outcomes.record(accessRecord({ decisionId: id }));
    expect(await outcomesOf(owner)).toEqual({ own: 1 });
    expect(owner.core.book.openCount).toBe(0);
    expect(owner.core.decisions.byId(id)?.observed).toMatchObject({
      ttftMs: 40,
      servedAsPicked: true,
    });
    expect(await owner.metric("ttftErrorRatio")).toBe(1);
    expect(await owner.metric("unpicked")).toBe(0);
    expect(await owner.metric("requestsServed", { worker_id: "w0", status_class: "2xx" })).toBe(1);
  });

  test("the decision of another router is closed in this book and sent to its owner", async () => {
    const decision = owner.core.place(placeInput(), realClock.now());
    const reservation = {
      decisionId: decision.id,
      promptTokens: 10,
      uncachedTokens: 10,
      expectedOutputTokens: 1,
    };
    other.core.peerReserved(
      { ...reservation, workerId: memberFacts(0).workerId as never, ageMs: 1 },
      realClock.now(),
    );
    await vi.waitFor(async () => {
      other.peers.tick();
      other.outcomes.record(accessRecord({ decisionId: decision.id }));
      expect(await outcomesOf(other)).toMatchObject({ forwarded: 1 });
    });
    expect(other.core.book.openCount).toBe(0);
    await vi.waitFor(() => {
      expect(owner.core.book.openCount).toBe(0);
    });
    expect(decision.observed).toMatchObject({
      ttftMs: 40,
      closedBy: "access_log",
      servedAsPicked: true,
    });
    expect(await outcomesOf(owner)).toEqual({});
    // The router that got the record counts the request; the owner counts how good its prediction was.
    expect(await owner.metric("requestSeconds")).toBe(0);
    expect(await owner.metric("ttftErrorRatio")).toBe(1);
  });

  test.each(["r9.5.1", "r2.4.1", "nonsense", "."])(
    "a decision %s that no router here made",
    async (decisionId) => {
      other.outcomes.record(accessRecord({ decisionId }));
      expect(await outcomesOf(other)).toEqual({ unknown_owner: 1 });
    },
  );

  test("an own decision that is forgotten is counted as own and changes nothing", async () => {
    owner.outcomes.record(accessRecord({ decisionId: "r1.5.999" }));
    expect(await outcomesOf(owner)).toEqual({ own: 1 });
    expect(await owner.metric("ttftErrorRatio")).toBe(0);
  });

  test.each<[string, Partial<AccessRecord>, Record<string, number>]>([
    ["served by the first choice", { decisionId: "r1.5.9" }, {}],
    [
      "served by a fallback",
      { decisionId: "r1.5.9", servedEndpoint: "127.0.0.1:8101", attempts: 2 },
      { served_elsewhere: 1 },
    ],
    ["served without a decision", { picked: [] }, { no_decision: 1 }],
    [
      "a refusal by the router, which reached no engine",
      { servedEndpoint: "", cluster: "", status: 400 },
      {},
    ],
    ["a request that is not for engines", { cluster: "metrics" }, {}],
  ])("unpicked: %s", async (_name, over, expected) => {
    owner.outcomes.record(accessRecord(over));
    const reasons = ["served_elsewhere", "no_decision"];
    const counts = await Promise.all(reasons.map((reason) => owner.metric("unpicked", { reason })));
    expect(
      Object.fromEntries(reasons.map((r, i) => [r, counts[i]]).filter(([, n]) => n !== 0)),
    ).toEqual(expected);
  });

  test("an engine that is no member counts under one name", async () => {
    owner.outcomes.record(accessRecord({ servedEndpoint: "127.0.0.1:9", status: 502 }));
    expect(await owner.metric("requestsServed", { worker_id: "other", status_class: "5xx" })).toBe(
      1,
    );
  });

  test("times to first token count for streamed successes only", async () => {
    const placed = (answer: "stream" | "whole" | ""): string =>
      owner.core.place(placeInput({ answer }), realClock.now()).id;
    owner.outcomes.record(accessRecord({ decisionId: placed("stream") }));
    owner.outcomes.record(accessRecord({ decisionId: placed("stream"), status: 500 }));
    owner.outcomes.record(accessRecord({ decisionId: placed("stream"), ttftMs: 0 }));
    owner.outcomes.record(accessRecord({ decisionId: placed("whole") }));
    owner.outcomes.record(accessRecord({ decisionId: placed("") }));
    owner.outcomes.record(accessRecord());
    expect([await owner.metric("ttftSeconds"), await owner.metric("requestSeconds")]).toEqual([
      1, 6,
    ]);
  });
});
