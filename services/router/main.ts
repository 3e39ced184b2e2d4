import type { z } from "zod";
import { parseCidr, type Cidr } from "../shared/core/cidr.ts";
import { realClock } from "../shared/edge/clock.ts";
import { loadConfig } from "../shared/edge/config.ts";
import { createGrpcServer, listen, type GrpcServer } from "../shared/edge/grpc-server.ts";
import { operationsRoutes, startHttp } from "../shared/edge/http-server.ts";
import { loadKeys, requirePeerKey } from "../shared/edge/keys.ts";
import { announceReady, runMain, type RunningService } from "../shared/edge/lifecycle.ts";
import { createLogger } from "../shared/edge/log.ts";
import { createMetrics } from "../shared/edge/metrics.ts";
import { startTracing } from "../shared/edge/tracing.ts";
import { AggregatedDiscoveryServiceService } from "../shared/gen/envoy/service/discovery/v3/ads.ts";
import { EndpointDiscoveryServiceService } from "../shared/gen/envoy/service/endpoint/v3/eds.ts";
import {
  PeerService as PeerDefinition,
  RouterService,
} from "../shared/gen/kvmesh/router/v1/router.ts";
import { RelaysService } from "../shared/gen/kvmesh/relay/v1/relay.ts";
import { MembershipService } from "../shared/gen/kvmesh/worker/v1/worker.ts";
import { admissionFromConfig } from "./admission-config.ts";
import { RouterConfig } from "./config.ts";
import { Discovery } from "./core/discovery/discovery.ts";
import { planProcesses } from "./core/processes/process-plan.ts";
import { RouterCore } from "./core/router-core.ts";
import { AccessOutcomes } from "./edge/access-outcomes.ts";
import { createAdsService } from "./edge/ads-server.ts";
import { admissionGauges, AdmissionTimer } from "./edge/admission-timer.ts";
import { Decider } from "./edge/decider.ts";
import { DemandExchange } from "./edge/demand-exchange.ts";
import { EffectRunner } from "./edge/effect-runner.ts";
import { GuardAsks } from "./edge/guard-asks.ts";
import { createHotServer, extProcName } from "./edge/hot-server.ts";
import { createMembershipService } from "./edge/membership-server.ts";
import { ModelRuntimes } from "./edge/model-runtimes.ts";
import { TokenCacheMetrics } from "./edge/token-cache-metrics.ts";
import { pairsFromConfig } from "./pair-config.ts";
import { guardsFromConfig } from "./stream-config.ts";
import { PlacementSigner } from "./edge/relay-placement.ts";
import { RelayService } from "./edge/relay-server.ts";
import { PeerLinks } from "./edge/peer-links.ts";
import { PeerService } from "./edge/peer-server.ts";
import { ProxyPresence } from "./edge/proxy-presence.ts";
import { ProcessGroup } from "./edge/process-group.ts";
import { Readiness } from "./edge/readiness.ts";
import { createRouterService } from "./edge/router-server.ts";
import { topologyToWire } from "./edge/topology-wire.ts";
import { PlacementWatchers, TopologyWatchers } from "./edge/watchers.ts";
import { routerMetrics } from "./metrics.ts";

/** gRPC messages beside bodies are far smaller; a snapshot chunk or an artifact chunk is at most 1 MiB. */
const controlMessageBytesMax = 16 * 1024 * 1024;
const tickMs = 100;

type Config = z.infer<typeof RouterConfig>;
/** How long open calls may take to end once the servers stop. */
const closeMs = 300;
/** What was said to workers and peers at the end needs a moment to leave the process, ms. */
const farewellMs = 50;

function cidrs(texts: readonly string[]): Cidr[] {
  return texts.flatMap((text) => parseCidr(text) ?? []);
}

async function start(): Promise<RunningService> {
  const { config } = loadConfig({
    service: "router",
    schema: RouterConfig,
    argv: process.argv.slice(2),
    env: process.env,
    cwd: process.cwd(),
  });
  return config.processes > 1 ? startGroup(config) : startRouter(config);
}

function startGroup(config: Config): Promise<RunningService> {
  const { instance, logLevel, drainMsMax, hotPort, controlPort, httpPort } = config;
  const log = createLogger({ service: "router", instance, level: logLevel });
  if ([hotPort, controlPort, httpPort].includes(0)) {
    throw new Error(
      "processes above 1 need ports of their own: set hotPort, controlPort and httpPort",
    );
  }
  const plans = planProcesses(config);
  return new Promise((resolve, reject) => {
    const group = new ProcessGroup({
      plans,
      main: import.meta.filename,
      flags: process.argv.slice(2),
      clock: realClock,
      log,
      drainMsMax,
      onReady: () => {
        const hot = plans.map((plan) => [`hot-${plan.instance}`, plan.hotPort] as const);
        announceReady(log, "router", Object.fromEntries(hot));
        resolve(group);
      },
      onGivenUp: (name) => {
        reject(new Error(`process ${name} does not run`));
        log.fatal({ event: "stopping", reason: "process_given_up" }, "stopping");
        void group.stop().then(() => process.exit(1));
      },
    });
  });
}

async function startRouter(config: Config): Promise<RunningService> {
  const clock = realClock;
  const { instance, blockSizeTokens } = config;
  const log = createLogger({ service: "router", instance, level: config.logLevel });
  const keys = loadKeys(config.keysFile);
  if (config.peers.length > 0) requirePeerKey(keys, config.keysFile);
  const epoch = Math.floor(clock.wallUnixUs() / 1_000);
  const decisionPrefix = `${instance}.${epoch}`;
  const tracing = startTracing({ service: "router", instance, endpoint: config.otlpEndpoint });
  const { registry, metrics } = createMetrics(routerMetrics);
  const startedAt = clock.now();

  const core = new RouterCore({
    decisionPrefix,
    blockSizeTokens,
    policy: config.policy,
    graceMs: config.workers.graceMs,
    membersMax: config.workers.max,
    blocksMax: config.limits.blocksMax,
    reservationsMax: config.limits.reservationsMax,
    decisionsMax: config.limits.decisionsMax,
    outputTokensDefault: config.placement.outputTokensDefault,
    fallbacksMax: config.placement.fallbacksMax,
    affinityMs: config.placement.affinityMs,
    preference: config.placement.preference,
    sessionsMax: config.placement.sessionsMax,
    pairs: pairsFromConfig(config.placement),
    ...admissionFromConfig(config.admission),
  });
  const runtimes = new ModelRuntimes({
    hashSeed: keys.hashSeed,
    log,
    cacheFolder: config.cacheFolder,
    tokenCacheBytesMax: config.limits.tokenCacheBytesMax,
  });
  const tokenCache = new TokenCacheMetrics(runtimes, metrics);
  const guards = guardsFromConfig(config.stream);
  let controlPort = config.controlPort;
  const admissionTimer = new AdmissionTimer(core, clock);
  const settle = (): void => {
    admissionTimer.run();
    effects.run();
    relays.settle();
  };
  const peers: PeerLinks = new PeerLinks({
    addresses: config.peers,
    instance,
    epoch,
    keys,
    clock,
    log,
    blockSizeTokens,
    controlAddress: () => `${config.host}:${controlPort}`,
    snapshot: () => effects.peerSnapshot(),
    onDropped: (count) => {
      metrics.peerMessagesDropped.inc(count);
    },
    onUnproven: () => {
      metrics.peerRefused.inc({ what: "welcome" });
    },
  });
  const outcomes = new AccessOutcomes({
    core,
    clock,
    tracing,
    metrics,
    peers,
    decisionPrefix,
    settle,
  });
  const peerService = new PeerService({
    core,
    outcomes,
    keys,
    clock,
    log,
    instance,
    epoch,
    blockSizeTokens,
    allowedCidrs: cidrs(config.workers.allowedCidrs),
    relayCidrs: cidrs(config.relays.allowedCidrs),
    onRefused: (what) => {
      metrics.peerRefused.inc({ what });
    },
    settle,
  });
  const membership = createMembershipService({
    core,
    runtimes,
    keys,
    clock,
    log,
    metrics,
    instance,
    epoch,
    blockSizeTokens,
    allowedCidrs: cidrs(config.workers.allowedCidrs),
    onDraining: ({ key }) => {
      relays.drain(key, "its engine drains");
    },
    settle,
  });
  const placements = new PlacementWatchers({
    clock,
    onSkipped: () => {
      metrics.decisionsSkipped.inc();
    },
  });
  const topology = new TopologyWatchers({
    clock,
    read: () =>
      topologyToWire({
        core,
        clock,
        countersOf: membership.countersOf,
        instance,
        routers: [
          { instance, epoch: BigInt(epoch), state: readiness.state, heardAgeMs: 0 },
          ...peerService.states(),
        ],
      }),
  });
  const discovery = new Discovery({
    epoch: epoch.toString(),
    startedAt,
    graceMs: config.workers.graceMs,
    pools: [...new Set([config.pools.default, ...config.pools.known])],
    poolsMax: 256,
  });
  const envoys = new ProxyPresence(config.drainServeMs);
  const ads = createAdsService({
    discovery,
    clock,
    log,
    identifier: instance,
    metrics: {
      streams: (count) => {
        metrics.discoveryStreams.set(count);
        envoys.discovery(count);
      },
      request: (outcome) => {
        metrics.discoveryRequests.inc({ outcome });
      },
      pushed: (type) => {
        metrics.discoveryPushes.inc({ type });
      },
      held: (count) => {
        metrics.discoveryHeld.set(count);
      },
    },
  });
  const effects: EffectRunner = new EffectRunner({
    core,
    clock,
    log,
    metrics,
    peers,
    ads,
    topology,
    onMembers: () => {
      relays.refresh();
    },
  });
  const relays: RelayService = new RelayService({
    core,
    keys,
    clock,
    log,
    metrics,
    peers,
    ads,
    instance,
    epoch,
    decisionPrefix,
    allowedCidrs: cidrs(config.relays.allowedCidrs),
    settle,
  });
  const decider = new Decider({
    core,
    runtimes,
    clock,
    tracing,
    metrics,
    defaultPool: config.pools.default,
    blockSizeTokens,
    duplexFallbacks: config.placement.duplexFallbacks,
    signer: new PlacementSigner({
      core,
      clock,
      router: instance,
      keys: keys.placement,
      guard: guards.settings,
    }),
    guards: new GuardAsks(guards),
    admissionWaitMsMax: Math.max(0, ...config.admission.classes.map((c) => c.waitMsMax)),
    onDecision: (decision) => {
      placements.publish(decision);
      settle();
    },
    onWaiting: () => {
      admissionTimer.run();
    },
  });

  const refused = (service: string): void => {
    metrics.callersRefused.inc({ service });
  };
  const { bodyBytesMax, bodyMemoryBytesMax } = config.limits;
  const hot = createHotServer(config.extProc.server, {
    extProc: { decider, clock, log, metrics, limits: { bodyBytesMax, bodyMemoryBytesMax } },
    onRecord: (record) => {
      outcomes.record(record);
    },
    allowed: cidrs(config.callers.proxy),
    onCall: () => {
      envoys.heard(clock.now());
    },
    onRefused: refused,
    onCallEnded: (reason) => {
      metrics.hotCallsEnded.inc({ reason });
    },
    onConnectionClosed: (reason) => {
      metrics.hotConnectionsClosed.inc({ reason });
    },
  });
  const control = createGrpcServer({
    callers: [
      { service: "kvmesh.router.v1.Router", allowed: cidrs(config.callers.router) },
      { service: "kvmesh.router.v1.Peer", allowed: cidrs(config.callers.peer) },
      { service: "kvmesh.relay.v1.Relays", allowed: cidrs(config.callers.relays) },
      { service: "kvmesh.worker.v1.Membership", allowed: cidrs(config.callers.membership) },
      {
        service: "envoy.service.discovery.v3.AggregatedDiscoveryService",
        allowed: cidrs(config.callers.discovery),
      },
      {
        service: "envoy.service.endpoint.v3.EndpointDiscoveryService",
        allowed: cidrs(config.callers.discovery),
      },
    ],
    onRefused: refused,
    messageBytesMax: Math.max(controlMessageBytesMax, config.limits.bodyBytesMax + 1_048_576),
  });
  control.add(
    RouterService,
    createRouterService({
      core,
      decider,
      clock,
      peers,
      placements,
      topology,
      instance,
      defaultPool: config.pools.default,
      settle,
    }),
  );
  control.add(PeerDefinition, peerService.service);
  control.add(MembershipService, membership.service);
  control.add(RelaysService, relays.service);
  control.add(AggregatedDiscoveryServiceService, ads.service);
  control.add(EndpointDiscoveryServiceService, ads.endpointService);

  const setHealth = (serving: boolean): void => {
    const state = serving ? "SERVING" : "NOT_SERVING";
    for (const name of ["", extProcName, "readiness"]) hot.setServing(name, serving);
    for (const name of ["", "kvmesh.router.v1.Router", "readiness"])
      control.health.setStatus(name, state);
    hot.setServing("liveness", true);
    control.health.setStatus("liveness", "SERVING");
  };
  const readiness = new Readiness({
    peersExpected: config.peers.length,
    peerWaitMs: config.peerWaitMs,
    startedAt,
    onKnowledge: (knowledge) => {
      ads.setKnowledge(knowledge);
    },
    onServing: (serving) => {
      setHealth(serving);
      log.info({ event: serving ? "serving" : "not_serving" }, serving ? "serving" : "not serving");
    },
  });
  setHealth(false);

  const hotPort = await hot.listen(config.host, config.hotPort);
  controlPort = await listen(control.server, config.host, config.controlPort);
  const http = await startHttp({
    host: config.host,
    port: config.httpPort,
    routes: operationsRoutes(registry, () => readiness.state === "serving"),
  });
  peers.start();
  const demand = new DemandExchange({ core, peers, clock });
  if (config.peers.length > 0) demand.start();

  const ticker = setInterval(() => {
    const now = clock.now();
    core.tick(now);
    peers.tick();
    peerService.tick();
    relays.tick();
    topology.tick();
    readiness.tick(now, {
      peersSynced: peerService.syncedCount,
      isToldByElder: peerService.hasPeerOlderBy(config.workers.graceMs),
      members: core.members.size,
      runtimesSettled: runtimes.settled,
    });
    metrics.bodyMemoryBytes.set(hot.bodyMemoryBytes());
    tokenCache.update();
    const connections = hot.connections();
    if (connections >= 0) metrics.hotConnections.set(connections);
    metrics.peers.set({ state: "synced" }, peerService.syncedCount);
    const missing = Math.max(0, config.peers.length - peerService.syncedCount);
    metrics.peers.set({ state: "lost" }, missing);
    core.setWallOffset(clock.wallUnixUs() / 1_000 - now);
    settle();
    effects.gauges();
    admissionGauges(core, metrics);
  }, tickMs);

  announceReady(log, "router", { hot: hotPort, control: controlPort, http: http.port });

  return {
    log,
    drainMsMax: config.drainMsMax,
    stop: async () => {
      readiness.drain();
      // An Envoy needs two failed health checks before it stops asking; requests are answered until then.
      const serveMs = Math.min(envoys.serveMs(clock.now()), Math.max(0, config.drainMsMax - 1_000));
      membership.drain(serveMs);
      // Peers hear of every placement until the last one, and of the goodbye after it.
      await clock.sleep(serveMs);
      peers.stop();
      await clock.sleep(farewellMs);
      clearInterval(ticker);
      admissionTimer.stop();
      demand.stop();
      core.stopWaiting(clock.now());
      runtimes.close();
      placements.close();
      topology.close();
      membership.close();
      relays.close();
      ads.close();
      await Promise.all([hot.stop(closeMs), close(control), http.close()]);
      await tracing.stop();
    },
  };
}

/** Ends a server: open calls get a moment, then are cut. */
function close(server: GrpcServer): Promise<void> {
  return new Promise((resolve) => {
    const cut = setTimeout(() => {
      server.server.forceShutdown();
      resolve();
    }, closeMs);
    server.server.tryShutdown(() => {
      clearTimeout(cut);
      resolve();
    });
  });
}

await runMain(start);
