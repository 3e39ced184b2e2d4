import { createHmac } from "node:crypto";
import type { Logger } from "pino";
import { inCidrs, parseCidr, type Cidr } from "../../shared/core/cidr.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { JsonScanner } from "../../shared/core/json-scan/json-scanner.ts";
import type { TokenKey } from "../../shared/core/placement-token/placement-token.ts";
import type { SeededRandom } from "../../shared/core/random.ts";
import { GrpcHealth, servingStatus } from "../../shared/edge/h2/grpc-health.ts";
import type { H2GrpcServer } from "../../shared/edge/h2/h2-grpc-server.ts";
import { operationsRoutes, startHttp, type HttpServer } from "../../shared/edge/http-server.ts";
import { loadKeys, type NamedKey } from "../../shared/edge/keys.ts";
import { createMetrics } from "../../shared/edge/metrics.ts";
import { noTracing, type Tracing } from "../../shared/edge/tracing.ts";
import type { RelayConfig } from "../config.ts";
import { createAdapters } from "../core/engines/adapters.ts";
import { HandoffBook } from "../core/request/handoff-book.ts";
import { MirrorStore } from "../core/resume/mirror-store.ts";
import { resumeLifeMs } from "../core/resume/resume-token.ts";
import type { LegNotice } from "../core/topology/leg-notices.ts";
import { LiveTopology } from "../core/topology/live-topology.ts";
import { relayMetrics } from "../metrics.ts";
import { abandon } from "./abandon.ts";
import { BodyMemory } from "./body-memory.ts";
import { EnginePools } from "./engine-pools.ts";
import { startH2Server } from "./h2-server.ts";
import { startHttp1Server, type ClientServer } from "./http1-server.ts";
import { createInferenceMethods } from "./inference-service.ts";
import { LateTraces } from "./late-traces.ts";
import { MirrorLinks, mirrorBytesMax } from "./mirror-links.ts";
import { createMirrorMethods } from "./mirror-service.ts";
import type { Placer } from "./placer.ts";
import { createReflectionMethods } from "./reflection-methods.ts";
import type { RelayParts } from "./relay-parts.ts";
import { RequestIntake } from "./request-intake.ts";
import { RouterLinks } from "./router-links.ts";
import { RouterPlacer } from "./router-placer.ts";
import type { RelayFacts } from "./attach-wire.ts";

/** How often deadlines are looked at, ms. */
const tickMs = 50;

/** What a relay is built on. */
export interface RelayDependencies {
  readonly log: Logger;
  readonly clock: Clock;
  readonly random: SeededRandom;
  /** Asks routers for placements; the relay's own links to them when absent. */
  readonly placer?: Placer;
  /** Spans of requests; none when absent. */
  readonly tracing?: Tracing;
  /** Hears of legs beside the routers. */
  readonly onNotice?: (notice: LegNotice) => void;
}

/** A running relay. */
export interface RunningRelay {
  readonly h2Port: number;
  readonly httpPort: number;
  readonly metricsPort: number;
  /** Requests open now. */
  readonly openRequests: number;
  /** Takes no more, lets open requests end for at most `drainMsMax`, and ends. */
  stop(reason: string): Promise<void>;
}

/** The keys as functions, which is how cores take them. */
export function tokenKeys(keys: readonly NamedKey[]): TokenKey[] {
  return keys.map(({ id, key }) => ({
    id,
    mac: (message) => createHmac("sha256", key).update(message).digest(),
  }));
}

function cidrs(texts: readonly string[]): Cidr[] {
  return texts.flatMap((text) => parseCidr(text) ?? []);
}

/** Starts a relay. Throws (`invalid_request`) when its keys cannot be used; missing routers are waited for. */
export async function startRelay(
  config: RelayConfig,
  dependencies: RelayDependencies,
): Promise<RunningRelay> {
  const relay = new Relay(config, dependencies);
  await relay.start();
  return relay;
}

class Relay implements RunningRelay {
  readonly #config: RelayConfig;
  readonly #parts: RelayParts;
  readonly #registry: ReturnType<typeof createMetrics>["registry"];
  readonly #memory: BodyMemory;
  readonly #intake: RequestIntake;
  readonly #links: RouterLinks;
  readonly #placer: RouterPlacer;
  readonly #mirrors: MirrorLinks;
  readonly #store: MirrorStore;
  readonly #joinKeys: readonly TokenKey[];
  readonly #mirrorCallers: readonly Cidr[];
  readonly #inferenceCallers: readonly Cidr[];
  readonly #epoch: number;
  readonly #health = new GrpcHealth();
  #http1: ClientServer | undefined;
  #h2: { readonly server: H2GrpcServer; readonly port: number } | undefined;
  #operations: HttpServer | undefined;
  #ticker: NodeJS.Timeout | undefined;
  /** Dropped spans that are counted already. */
  #spansDropped = 0;
  #utilisation = performance.eventLoopUtilization();

  constructor(config: RelayConfig, dependencies: RelayDependencies) {
    const { log, clock, random, tracing = noTracing } = dependencies;
    this.#config = config;
    const keys = loadKeys(config.keysFile);
    const [joinKey] = keys.join;
    if (joinKey === undefined) throw new MeshError("invalid_request", "mesh.keys has no join key");
    this.#epoch = Math.round(clock.wallUnixUs() / 1_000);
    const { registry, metrics } = createMetrics(relayMetrics);
    this.#registry = registry;
    const { engines, limits, deadlines, callers } = config;
    this.#mirrorCallers = cidrs(callers.mirror);
    this.#inferenceCallers = cidrs(callers.inference);
    this.#memory = new BodyMemory(limits.bodyBytesMax, limits.bodyMemoryBytesMax);
    // The scanner's hash is not used, so that its key need not be secret, nor texts be copied for it.
    const json = new JsonScanner(new Int32Array(8), 0);
    const topology = new LiveTopology();
    this.#links = new RouterLinks({
      ...config.routers,
      dns: config.routers.dns,
      joinKey,
      topology,
      facts: () => this.#facts(),
      onDrain: (order) => {
        this.#drainOrder(order.workerId, order.reason);
      },
      onKeep: (decisionIds, reason) => {
        this.#parts.late?.keep(decisionIds, reason);
      },
      random: random.fork("routers"),
      clock,
      log,
      metrics,
    });
    this.#placer = new RouterPlacer(() => this.#links.targets());
    this.#store = new MirrorStore({
      streamBytesMax: mirrorBytesMax,
      bytesMax: limits.mirrorBytesMax,
      keepMs: resumeLifeMs,
    });
    this.#joinKeys = tokenKeys(keys.join);
    const resumeKeys = tokenKeys(keys.resume);
    const [newestJoin] = this.#joinKeys;
    const [newestResume] = resumeKeys;
    if (newestJoin === undefined || newestResume === undefined) {
      throw new MeshError("invalid_request", "mesh.keys has no join or no resume key");
    }
    this.#mirrors = new MirrorLinks({
      instance: config.instance,
      epoch: this.#epoch,
      joinKey: newestJoin,
      resumeKey: newestResume,
      topology,
      store: this.#store,
      clock,
    });
    this.#parts = {
      config,
      log,
      clock,
      random,
      metrics,
      json,
      adapters: createAdapters(json),
      placementKeys: tokenKeys(keys.placement),
      pools: new EnginePools({
        allowed: cidrs(engines.allowedCidrs),
        enginesMax: engines.max,
        legsMax: engines.legsMax,
        connectMs: deadlines.connectMs,
      }),
      topology,
      handoffs: new HandoffBook(engines.handoffTokensMax, engines.handoffLeaseMs),
      placer: dependencies.placer ?? this.#placer,
      resumeKeys,
      mirrors: this.#mirrors,
      tracing,
      late:
        tracing === noTracing
          ? undefined
          : new LateTraces(tracing, (reason) => {
              metrics.tracesKept.inc({ reason });
            }),
      notify: (notice) => {
        this.#links.notify(notice);
        dependencies.onNotice?.(notice);
      },
    };
    this.#intake = new RequestIntake(this.#parts);
  }

  get h2Port(): number {
    return this.#h2?.port ?? 0;
  }

  get httpPort(): number {
    return this.#http1?.port ?? 0;
  }

  get metricsPort(): number {
    return this.#operations?.port ?? 0;
  }

  get openRequests(): number {
    return this.#intake.size;
  }

  async start(): Promise<void> {
    const { host, h2Port, httpPort, metricsPort, deadlines, limits } = this.#config;
    const common = {
      host,
      taker: this.#intake,
      memory: this.#memory,
      bodyMs: deadlines.bodyMs,
      clientBufferBytesMax: limits.clientBufferBytesMax,
    };
    this.#http1 = await startHttp1Server({ ...common, port: httpPort });
    this.#h2 = await startH2Server({
      ...common,
      port: h2Port,
      streamsMax: limits.requestsMax,
      methods: new Map([
        ...this.#health.methods(),
        ...createReflectionMethods(),
        ...createMirrorMethods({
          store: this.#store,
          joinKeys: this.#joinKeys,
          clock: this.#parts.clock,
        }),
        ...createInferenceMethods({
          taker: this.#intake,
          placer: () => this.#parts.placer,
          placeMs: deadlines.placeMs,
          placementKeys: this.#parts.placementKeys,
          resumeKeys: this.#parts.resumeKeys,
          memory: this.#memory,
          bufferBytesMax: limits.clientBufferBytesMax,
          clock: this.#parts.clock,
          abandon: (placement) => {
            abandon(this.#parts, placement);
          },
        }),
      ]),
      allow: (path, peer) => this.#isAllowed(path, peer),
    });
    this.#setServing(true);
    const routes = operationsRoutes(this.#registry, () => !this.#intake.isDraining);
    const metricsRoute = routes["/metrics"];
    this.#operations = await startHttp({
      host,
      port: metricsPort,
      routes: {
        ...routes,
        "/metrics": (request, response) => {
          this.#observe();
          return metricsRoute?.(request, response);
        },
      },
    });
    this.#ticker = setInterval(() => {
      this.#tick();
    }, tickMs);
    this.#links.start();
    this.#mirrors.start();
  }

  /** Who may call a gRPC method; health is for everybody. */
  #isAllowed(path: string, peer: string): boolean {
    if (path.startsWith("/kvmesh.relay.v1.Mirror/")) return inCidrs(this.#mirrorCallers, peer);
    if (path.startsWith("/kvmesh.inference.v1.") || path.startsWith("/grpc.reflection.")) {
      return inCidrs(this.#inferenceCallers, peer);
    }
    return true;
  }

  async stop(reason: string): Promise<void> {
    const { log, clock, pools } = this.#parts;
    this.#intake.drain();
    this.#http1?.stopListening();
    this.#setServing(false);
    this.#links.pump();
    log.info({ event: "draining", reason, open: this.#intake.size }, "draining");
    if (this.#intake.size > 0) {
      const waited = new AbortController();
      const waitMs = Math.max(0, this.#config.drainMsMax - 1_000);
      const overdue = clock.sleep(waitMs, waited.signal).catch(() => undefined);
      await Promise.race([this.#intake.empty(), overdue]);
      waited.abort();
    }
    this.#intake.endAll();
    clearInterval(this.#ticker);
    await this.#links.stop(reason);
    this.#placer.close();
    this.#mirrors.stop();
    this.#health.endWatches();
    await Promise.all([
      this.#http1?.close(),
      this.#h2?.server.drain(500),
      this.#operations?.close(),
      pools.close(),
    ]);
  }

  #setServing(isServing: boolean): void {
    const status = isServing ? servingStatus.serving : servingStatus.notServing;
    for (const name of ["", "readiness", "kvmesh.inference.v1.Inference"])
      this.#health.set(name, status);
  }

  #facts(): RelayFacts {
    const { instance, host, advertise, limits } = this.#config;
    const at = advertise ?? host;
    const address = at.includes(":") ? `[${at}]` : at;
    const utilisation = performance.eventLoopUtilization();
    const busy = performance.eventLoopUtilization(utilisation, this.#utilisation);
    if (busy.idle + busy.active > 1_000) this.#utilisation = utilisation;
    return {
      instance,
      epoch: this.#epoch,
      h2Address: `${address}:${String(this.h2Port)}`,
      httpAddress: `${address}:${String(this.httpPort)}`,
      streamsMax: limits.requestsMax,
      load: {
        openRequests: this.#intake.size,
        guardedStreams: this.#intake.guardedCount,
        busyRatio: busy.utilization,
        bufferedBytes: this.#memory.bytes,
        draining: this.#intake.isDraining,
      },
    };
  }

  /** A router wants streams off an engine, or this relay out of the way. */
  #drainOrder(workerId: string, reason: string): void {
    const { log } = this.#parts;
    log.info({ event: "drain_ordered", worker: workerId, reason }, "a router orders a drain");
    if (workerId !== "") {
      this.#intake.leaveWorker(workerId);
      return;
    }
    this.#intake.drain();
    this.#setServing(false);
    this.#links.pump();
  }

  #tick(): void {
    const { clock, handoffs } = this.#parts;
    const now = clock.now();
    this.#intake.tick(now);
    handoffs.expire(now);
    this.#store.expire(now);
  }

  #observe(): void {
    const { metrics, pools, handoffs, tracing } = this.#parts;
    for (const [state, count] of Object.entries(this.#links.counts())) {
      metrics.routers.set({ state }, count);
    }
    metrics.noticesDropped.inc(this.#links.takeDropped());
    const spansDropped = tracing.droppedSpans?.() ?? 0;
    metrics.spansDropped.inc(spansDropped - this.#spansDropped);
    this.#spansDropped = spansDropped;
    metrics.openRequests.set(this.#intake.size);
    metrics.openLegs.set(pools.legCount);
    metrics.handoffTokens.set(handoffs.tokens);
    metrics.bodyMemory.set(this.#memory.bytes);
    metrics.mirrorBytes.set(this.#store.bytes);
  }
}
