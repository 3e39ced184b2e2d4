import { createHmac } from "node:crypto";
import type { Logger } from "pino";
import { inCidrs, parseCidr, type Cidr } from "../../shared/core/cidr.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { JsonScanner } from "../../shared/core/json-scan/json-scanner.ts";
import type { Placement } from "../../shared/core/placement-token/placement.ts";
import { isPlacedBody, type TokenKey } from "../../shared/core/placement-token/placement-token.ts";
import type { SeededRandom } from "../../shared/core/random.ts";
import { GrpcHealth, servingStatus } from "../../shared/edge/h2/grpc-health.ts";
import type { H2GrpcServer } from "../../shared/edge/h2/h2-grpc-server.ts";
import { operationsRoutes, startHttp, type HttpServer } from "../../shared/edge/http-server.ts";
import { loadKeys, type NamedKey } from "../../shared/edge/keys.ts";
import { createMetrics } from "../../shared/edge/metrics.ts";
import { toMeshError } from "../../shared/edge/wire.ts";
import type { RelayConfig } from "../config.ts";
import type { RelayedBody } from "../core/body/relayed-body.ts";
import { createAdapters } from "../core/engines/adapters.ts";
import type { ResumedFrom } from "../core/guard/guarded-stream.ts";
import { HandoffBook } from "../core/request/handoff-book.ts";
import { restoreStream } from "../core/resume/mirror-state.ts";
import { MirrorStore } from "../core/resume/mirror-store.ts";
import { readResume, resumeHeader, resumeLifeMs } from "../core/resume/resume-token.ts";
import type { LegNotice } from "../core/topology/leg-notices.ts";
import { LiveTopology } from "../core/topology/live-topology.ts";
import { relayMetrics } from "../metrics.ts";
import { abandon } from "./abandon.ts";
import { BodyMemory } from "./body-memory.ts";
import type { ClientAnswer, ClientRequest } from "./client-exchange.ts";
import { EnginePools } from "./engine-pools.ts";
import { admit, Exchange, sendError } from "./exchange.ts";
import { startH2Server } from "./h2-server.ts";
import { startHttp1Server, type ClientServer, type RequestTaker } from "./http1-server.ts";
import { createInferenceMethods } from "./inference-service.ts";
import { MirrorLinks, mirrorBytesMax } from "./mirror-links.ts";
import { createMirrorMethods } from "./mirror-service.ts";
import type { Placer } from "./placer.ts";
import type { RelayParts } from "./relay-parts.ts";
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

/** A request that may begin. */
interface Admitted {
  readonly placement: Placement;
  readonly body: RelayedBody;
  readonly arrivedAt: number;
  readonly resumed?: ResumedFrom;
}

class Relay implements RunningRelay, RequestTaker {
  readonly #config: RelayConfig;
  readonly #parts: RelayParts;
  readonly #registry: ReturnType<typeof createMetrics>["registry"];
  readonly #memory: BodyMemory;
  readonly #open = new Set<Exchange>();
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
  #isDraining = false;
  #utilisation = performance.eventLoopUtilization();
  #onEmpty: (() => void) | undefined;

  constructor(config: RelayConfig, dependencies: RelayDependencies) {
    const { log, clock, random } = dependencies;
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
      onKeep: () => undefined,
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
      notify: (notice) => {
        this.#links.notify(notice);
        dependencies.onNotice?.(notice);
      },
    };
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
    return this.#open.size;
  }

  async start(): Promise<void> {
    const { host, h2Port, httpPort, metricsPort, deadlines, limits } = this.#config;
    const common = {
      host,
      taker: this,
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
        ...createMirrorMethods({
          store: this.#store,
          joinKeys: this.#joinKeys,
          clock: this.#parts.clock,
        }),
        ...createInferenceMethods({
          taker: this,
          placer: () => this.#parts.placer,
          placeMs: deadlines.placeMs,
          placementKeys: this.#parts.placementKeys,
          resumeKeys: this.#parts.resumeKeys,
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
    const routes = operationsRoutes(this.#registry, () => !this.#isDraining);
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

  take(request: ClientRequest, answer: ClientAnswer): void {
    const { clock } = this.#parts;
    const arrivedAt = clock.now();
    try {
      this.requireRoom();
      const admitted = admit(this.#parts, request);
      const resume = request.header(resumeHeader);
      if (resume === undefined) this.#begin(request, answer, { ...admitted, arrivedAt });
      else void this.#resume(request, answer, { ...admitted, arrivedAt }, resume);
    } catch (error) {
      this.#refuse(answer, error);
      request.over(false);
    }
  }

  #begin(request: ClientRequest, answer: ClientAnswer, what: Admitted): void {
    const exchange = new Exchange({
      parts: this.#parts,
      request,
      answer,
      ...what,
      onOver: (over) => {
        this.#over(over);
        request.over(true);
      },
    });
    this.#open.add(exchange);
    exchange.begin();
  }

  /** Goes on with a stream that another relay lost, once its buddy has handed it over. */
  async #resume(
    request: ClientRequest,
    answer: ClientAnswer,
    what: Admitted,
    token: string,
  ): Promise<void> {
    const { metrics, clock, resumeKeys, mirrors } = this.#parts;
    // What the exchange needs of the body may be gone when the buddy has answered.
    const body = request.body;
    const client = { isGone: false };
    answer.listener = {
      onDrain: () => undefined,
      onGone: () => {
        client.isGone = true;
      },
    };
    let putBack = (): void => undefined;
    try {
      const resume = readResume(token, resumeKeys, clock.wallUnixUs() / 1_000);
      if (typeof resume === "string") {
        throw resume === "expired"
          ? new MeshError("resume_lost", "the resume token is older than its stream is kept")
          : new MeshError("unauthenticated", `the resume token is not valid (${resume})`);
      }
      if (!isPlacedBody(what.placement, resume.bodySha256)) {
        throw new MeshError("invalid_request", "the resume token belongs to another body");
      }
      // The buddy hands a stream over once: nothing is asked for that could not be gone on with.
      this.#requireLive(what.placement);
      const kept = await mirrors.take(resume);
      putBack = () => {
        mirrors.putBack(resume, kept);
      };
      const resumed = restoreStream(kept, resume);
      if (resumed === undefined) {
        throw new MeshError("resume_lost", "tokens of the stream are missing; send it anew");
      }
      if (client.isGone) {
        putBack();
        request.over(false);
        return;
      }
      const again: ClientRequest = {
        method: request.method,
        path: request.path,
        body,
        header: (name) => request.header(name),
        fields: () => request.fields(),
        over: (hasBegun) => {
          request.over(hasBegun);
        },
      };
      this.#begin(again, answer, { ...what, resumed });
      metrics.resumes.inc({ outcome: "continued" });
    } catch (error) {
      putBack();
      const { code } = toMeshError(error);
      metrics.resumes.inc({ outcome: code === "resume_lost" ? "lost" : "refused" });
      this.#refuse(answer, error);
      request.over(false);
    }
  }

  /** Throws `stale_epoch` when the engine that is to answer is gone, or in another life. */
  #requireLive({ legs }: Placement): void {
    const leg = legs[legs.length - 1];
    if (leg === undefined) return;
    const standing = this.#parts.topology.judge(leg);
    if (standing !== "stale" && standing !== "unknown") return;
    throw new MeshError(
      "stale_epoch",
      `${leg.workerId} at ${leg.address} is ${standing}; ask for a new placement`,
    );
  }

  /** Answers a request that no leg is started for. A bug is not answered but stops the process. */
  #refuse(answer: ClientAnswer, error: unknown): void {
    const { metrics, log } = this.#parts;
    const mesh = toMeshError(error);
    if (mesh.code === "invariant_violated") throw error;
    metrics.requests.inc({ mode: "none", outcome: "refused" });
    if (mesh.code !== "unauthenticated") metrics.refusals.inc({ reason: mesh.code });
    log.debug({ event: "request_refused", code: mesh.code, reason: mesh.message }, "refused");
    sendError(answer, mesh);
  }

  /** Who may call a gRPC method; health is for everybody. */
  #isAllowed(path: string, peer: string): boolean {
    if (path.startsWith("/kvmesh.relay.v1.Mirror/")) return inCidrs(this.#mirrorCallers, peer);
    if (path.startsWith("/kvmesh.inference.v1.")) return inCidrs(this.#inferenceCallers, peer);
    return true;
  }

  refuse(answer: ClientAnswer, reason: "body_too_large" | "body_memory"): void {
    const { metrics } = this.#parts;
    metrics.requests.inc({ mode: "none", outcome: "refused" });
    metrics.refusals.inc({ reason });
    const { bodyBytesMax } = this.#memory;
    sendError(
      answer,
      reason === "body_too_large"
        ? new MeshError(
            "request_too_large",
            `the body is longer than ${String(bodyBytesMax)} bytes (relay.limits.bodyBytesMax)`,
          )
        : new MeshError("overloaded", "no memory for the body now", { retryAfterMs: 1_000 }),
    );
  }

  async stop(reason: string): Promise<void> {
    const { log, clock, pools } = this.#parts;
    this.#isDraining = true;
    this.#http1?.stopListening();
    this.#setServing(false);
    this.#links.pump();
    log.info({ event: "draining", reason, open: this.#open.size }, "draining");
    if (this.#open.size > 0) {
      const empty = new Promise<void>((resolve) => {
        this.#onEmpty = resolve;
      });
      await Promise.race([empty, clock.sleep(Math.max(0, this.#config.drainMsMax - 1_000))]);
    }
    for (const exchange of [...this.#open]) exchange.onGone();
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

  requireRoom(): void {
    const { requestsMax } = this.#config.limits;
    if (this.#isDraining) {
      throw new MeshError("no_ready_worker", "this relay is going away", { retryAfterMs: 100 });
    }
    if (this.#open.size >= requestsMax) {
      throw new MeshError(
        "overloaded",
        `${String(requestsMax)} requests are open (relay.limits.requestsMax)`,
        { retryAfterMs: 1_000 },
      );
    }
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
        openRequests: this.#open.size,
        guardedStreams: this.#guardedCount(),
        busyRatio: busy.utilization,
        bufferedBytes: this.#memory.bytes,
        draining: this.#isDraining,
      },
    };
  }

  #guardedCount(): number {
    let count = 0;
    for (const { isGuarded } of this.#open) if (isGuarded) count++;
    return count;
  }

  /** A router wants streams off an engine, or this relay out of the way. */
  #drainOrder(workerId: string, reason: string): void {
    const { log } = this.#parts;
    log.info({ event: "drain_ordered", worker: workerId, reason }, "a router orders a drain");
    if (workerId !== "") {
      for (const exchange of [...this.#open]) exchange.leaveWorker(workerId);
      return;
    }
    this.#isDraining = true;
    this.#setServing(false);
    this.#links.pump();
  }

  #over(exchange: Exchange): void {
    this.#open.delete(exchange);
    if (this.#open.size === 0) this.#onEmpty?.();
  }

  #tick(): void {
    const { clock, handoffs } = this.#parts;
    const now = clock.now();
    for (const exchange of this.#open) exchange.tick(now);
    handoffs.expire(now);
    this.#store.expire(now);
  }

  #observe(): void {
    const { metrics, pools, handoffs } = this.#parts;
    for (const [state, count] of Object.entries(this.#links.counts())) {
      metrics.routers.set({ state }, count);
    }
    metrics.noticesDropped.inc(this.#links.takeDropped());
    metrics.openRequests.set(this.#open.size);
    metrics.openLegs.set(pools.legCount);
    metrics.handoffTokens.set(handoffs.tokens);
    metrics.bodyMemory.set(this.#memory.bytes);
    metrics.mirrorBytes.set(this.#store.bytes);
  }
}
