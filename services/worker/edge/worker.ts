import { lookup } from "node:dns/promises";
import { isIP } from "node:net";
import type { Logger } from "pino";
import { Backoff } from "../../shared/core/backoff.ts";
import type { Clock } from "../../shared/core/clock.ts";
import { MeshError } from "../../shared/core/errors.ts";
import type { SeededRandom } from "../../shared/core/random.ts";
import { stepModels } from "../../shared/core/step-model.ts";
import { operationsRoutes, startHttp, type HttpServer } from "../../shared/edge/http-server.ts";
import { hashSeedFingerprint, loadKeys, type MeshKeys } from "../../shared/edge/keys.ts";
import { createMetrics, type Metrics } from "../../shared/edge/metrics.ts";
import type { WorkerConfig } from "../config.ts";
import { defaultStreamLimits } from "../core/event-stream.ts";
import { defaultJoinLimits } from "../core/join-stream.ts";
import { workerMetrics } from "../metrics.ts";
import { noArtifacts, readArtifacts } from "./artifacts.ts";
import { EngineHttp, type EngineFacts, type EventSource } from "./engine-http.ts";
import { EngineWatch } from "./engine-watch.ts";
import { Member } from "./member.ts";
import { RouterLink, type LinkState } from "./router-link.ts";
import { RouterTargets } from "./router-targets.ts";

/** What the worker is built on. */
export interface WorkerDependencies {
  readonly log: Logger;
  readonly clock: Clock;
  readonly random: SeededRandom;
  /** First part of the epoch: start of this process, ms since 1970. */
  readonly workerStartMs: number;
}

/** A running worker. */
export interface RunningWorker {
  readonly workerId: string;
  readonly httpPort: number;
  /** State of the link to each router, by `rank/target`. */
  linkStates(): ReadonlyMap<string, LinkState>;
  /** Says goodbye everywhere and closes what is open; within two seconds. */
  stop(reason: string): Promise<void>;
}

/** Starts the worker. Throws (`invalid_request`) when keys or model folder cannot be used; a missing engine or router is waited for. */
export async function startWorker(
  config: WorkerConfig,
  dependencies: WorkerDependencies,
): Promise<RunningWorker> {
  if (config.routers.list.length === 0 && config.routers.dns === undefined) {
    throw new MeshError(
      "invalid_request",
      "no routers: set worker.routers.list or worker.routers.dns",
      { field: "routers" },
    );
  }
  const engineAddress = config.engine.advertise ?? (await addressOf(config.engine.url));
  const worker = new Worker(config, engineAddress, loadKeys(config.keysFile), dependencies);
  await worker.start();
  return worker;
}

/** The worker's parts, wired. */
class Worker implements RunningWorker {
  readonly workerId: string;
  readonly #config: WorkerConfig;
  readonly #engineAddress: string;
  readonly #keys: MeshKeys;
  readonly #dependencies: WorkerDependencies;
  readonly #metrics: Metrics<typeof workerMetrics>;
  readonly #registry: ReturnType<typeof createMetrics>["registry"];
  readonly #http: EngineHttp;
  readonly #watch: EngineWatch;
  readonly #routers: RouterTargets;
  readonly #members = new Map<number, Member>();
  readonly #artifacts: ReturnType<typeof readArtifacts>;
  #targets: readonly string[] = [];
  #server: HttpServer | undefined;
  #stopping = false;

  constructor(
    config: WorkerConfig,
    engineAddress: string,
    keys: MeshKeys,
    dependencies: WorkerDependencies,
  ) {
    const { log, clock } = dependencies;
    this.#config = config;
    this.#engineAddress = engineAddress;
    this.#keys = keys;
    this.#dependencies = dependencies;
    this.workerId = config.workerId ?? engineAddress.replace(/[[\]]/g, "");
    const { registry, metrics } = createMetrics(workerMetrics);
    this.#registry = registry;
    this.#metrics = metrics;
    const { modelDir } = config.engine;
    this.#artifacts = modelDir === undefined ? noArtifacts : readArtifacts(modelDir);
    this.#http = new EngineHttp(config.engine.url);
    this.#watch = new EngineWatch({
      http: this.#http,
      intervalMs: config.scrapeIntervalMs,
      backoff: this.#backoff("facts", 100, 2_000),
      clock,
      log,
      metrics,
      listener: {
        started: (facts) => {
          this.#started(facts);
        },
        newLife: (facts, cause) => {
          for (const member of this.#members.values()) member.newLife(facts, cause === "sequence");
        },
        readiness: () => {
          for (const member of this.#members.values()) member.pump();
        },
        reading: (dpRank, reading) => {
          this.#members.get(dpRank)?.sampled(reading.load);
        },
      },
    });
    this.#routers = new RouterTargets(
      { list: config.routers.list, dns: config.routers.dns },
      { clock, log },
    );
  }

  get httpPort(): number {
    return this.#server?.port ?? 0;
  }

  async start(): Promise<void> {
    const routes = operationsRoutes(this.#registry, () => this.#isHealthy());
    const metricsRoute = routes["/metrics"];
    this.#server = await startHttp({
      host: this.#config.host,
      port: this.#config.httpPort,
      routes: {
        ...routes,
        "/metrics": (request, response) => {
          this.#observe();
          return metricsRoute?.(request, response);
        },
      },
    });
    this.#watch.run().catch((error: unknown) => {
      this.#bug(error);
    });
    this.#routers
      .run((targets) => {
        this.#targets = targets;
        this.#syncLinks();
      })
      .catch((error: unknown) => {
        this.#bug(error);
      });
  }

  linkStates(): ReadonlyMap<string, LinkState> {
    const states = new Map<string, LinkState>();
    for (const member of this.#members.values()) {
      for (const link of member.links.values()) {
        states.set(`${String(member.dpRank)}/${link.target}`, link.state);
      }
    }
    return states;
  }

  async stop(reason: string): Promise<void> {
    this.#stopping = true;
    this.#routers.close();
    this.#watch.close();
    const members = [...this.#members.values()];
    for (const member of members) member.close();
    const links = members.flatMap((member) => [...member.links.values()]);
    await Promise.all(links.map((link) => link.leave(reason)));
    await this.#server?.close();
    await this.#http.close();
  }

  #isHealthy(): boolean {
    return this.#watch.state().ready && [...this.linkStates().values()].includes("member");
  }

  /** One member per data-parallel rank that publishes events; rank 0 alone when none does. */
  #started(facts: EngineFacts): void {
    const { log, clock, workerStartMs } = this.#dependencies;
    const { engine, pool, bounds } = this.#config;
    const ranks = facts.eventSources.size === 0 ? [0] : [...facts.eventSources.keys()];
    log.info(
      { event: "engine_found", ranks, models: facts.modelNames, engineVersion: facts.version },
      "the engine answers",
    );
    for (const dpRank of ranks) {
      const member = new Member(facts, {
        dpRank,
        identity: {
          workerId: this.workerId,
          workerStartMs: BigInt(workerStartMs),
          pool,
          engineAddress: this.#engineAddress,
          role: engine.role,
          engineName: engine.kind,
          stepTokensMax: engine.stepTokensMax,
          runningRequestsMax: engine.runningRequestsMax,
          stepModel: engine.stepModel === undefined ? undefined : stepModels[engine.stepModel],
          kvTransfer: engine.kvTransfer,
          kvBootstrap: engine.kvBootstrap ?? "",
          kvBytesPerToken: engine.kvBytesPerToken,
          artifacts: this.#artifacts,
          hashSeedFingerprint: hashSeedFingerprint(this.#keys),
        },
        hashSeed: this.#keys.hashSeed,
        blockSizeTokens: this.#config.blockSizeTokens,
        blocksFactor: bounds.blocksFactor,
        blocksUnknownMax: bounds.blocksUnknownMax,
        streamLimits: {
          ...defaultStreamLimits,
          bufferedBatchesMax: bounds.bufferedBatchesMax,
          bufferedBytesMax: bounds.bufferedBytesMax,
        },
        eventSource: (now, rank) => this.#eventSource(now, rank),
        engineState: () => this.#watch.state(),
        probeEngine: () => this.#watch.look(),
        onSequenceRestart: () => {
          this.#watch.sequenceRestarted();
        },
        clock,
        log,
        metrics: this.#metrics,
      });
      this.#members.set(dpRank, member);
    }
    this.#syncLinks();
  }

  #eventSource(facts: EngineFacts, dpRank: number): EventSource | undefined {
    const { eventsEndpoint, replayEndpoint, eventsTopic } = this.#config.engine;
    const found = facts.eventSources.get(dpRank);
    if (eventsEndpoint === undefined) return found;
    return {
      endpoint: eventsEndpoint,
      replayEndpoint: replayEndpoint ?? found?.replayEndpoint,
      topic: eventsTopic,
    };
  }

  /** Adds links to routers that appeared; drops those to routers that vanished once they hold no stream. */
  #syncLinks(): void {
    if (this.#stopping) return;
    for (const member of this.#members.values()) {
      for (const target of this.#targets) {
        if (!member.links.has(target)) this.#addLink(member, target);
      }
      for (const link of member.links.values()) {
        if (this.#targets.includes(link.target) || link.state === "member") continue;
        link.close();
        member.links.delete(link.target);
      }
    }
  }

  #addLink(member: Member, target: string): void {
    const { log, clock } = this.#dependencies;
    const [joinKey] = this.#keys.join;
    if (joinKey === undefined) return;
    const link = new RouterLink({
      target,
      member,
      joinKey,
      limits: {
        ...defaultJoinLimits,
        pendingBlocksMax: this.#config.bounds.pendingBlocksMax,
        hashesPerMessage: this.#config.bounds.snapshotChunkHashes,
      },
      backoff: this.#backoff(`link ${target}`, 100, 2_000),
      refusedBackoff: this.#backoff(`refused ${target}`, 5_000, 60_000),
      clock,
      log,
      metrics: this.#metrics,
    });
    member.links.set(target, link);
    link.run().catch((error: unknown) => {
      this.#bug(error);
    });
  }

  #observe(): void {
    const counts: Record<LinkState, number> = {
      member: 0,
      joining: 0,
      refused: 0,
      disconnected: 0,
    };
    for (const state of this.linkStates().values()) counts[state]++;
    for (const [state, count] of Object.entries(counts))
      this.#metrics.routers.set({ state }, count);
    for (const member of this.#members.values()) member.observe();
  }

  #backoff(name: string, baseMs: number, maxMs: number): Backoff {
    return new Backoff({
      baseMs,
      maxMs,
      jitterRatio: 0.5,
      random: this.#dependencies.random.fork(name),
    });
  }

  /** A loop that is to run for ever ended: leaves it to the process's handler of bugs. */
  #bug(error: unknown): void {
    if (this.#stopping) return;
    queueMicrotask(() => {
      throw error;
    });
  }
}

/** The engine's address as Envoy needs it: ip:port. */
async function addressOf(url: string): Promise<string> {
  const { hostname, port, protocol } = new URL(url);
  const bare = hostname.replace(/^\[|\]$/g, "");
  const ip = isIP(bare) === 0 ? (await lookup(bare)).address : bare;
  const usedPort = port === "" ? (protocol === "https:" ? "443" : "80") : port;
  return ip.includes(":") ? `[${ip}]:${usedPort}` : `${ip}:${usedPort}`;
}
