import { execFile } from "node:child_process";
import { connect } from "node:net";
import { promisify } from "node:util";
import { request } from "undici";
import { relaysCluster } from "../../../envoy/headers.ts";
import { MeshError } from "../../shared/core/errors.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { loadKeys } from "../../shared/edge/keys.ts";
import type { WatchTopologyResponse } from "../../shared/gen/kvmesh/router/v1/router.ts";
import type {
  DoctorFacts,
  EngineFacts,
  EnvoyFacts,
  HealthFacts,
  MemberNotes,
  RelayNotes,
  RouterFacts,
} from "../core/doctor-report.ts";
import { envoyVersion, sumStats } from "../core/envoy-state.ts";
import { readSamples, type MetricSample } from "../core/metrics-text.ts";
import { callFailureText } from "./engine-check.ts";
import { EnvoyAdmin } from "./envoy-admin.ts";
import { RouterClient } from "./router-client.ts";
import { runText, stateOf, type MeshAddress } from "./running-mesh.ts";
import { findEnvoy } from "./up/envoy-process.ts";
import { packageRoot, serviceNode } from "./up/mesh.ts";
import { checkPorts, portProblemText, type WantedPort } from "./up/port-check.ts";
import type { MeshRun } from "./up/state-folder.ts";

const run = promisify(execFile);
/** Longest wait for one answer, ms. */
const answerMsMax = 2_000;

/** What `doctor` is told. */
export interface ProbeInput extends MeshAddress {
  /** Ports that `up` would use, looked at when no mesh runs. */
  readonly wantedPorts: readonly WantedPort[];
  /** Tokens per mesh block, from the settings. */
  readonly blockSizeTokens: number;
  readonly hostNodeVersion: string | undefined;
}

/** Looks at everything at once; what cannot be asked is a fact too. Never throws for a sick mesh. */
export async function probe(input: ProbeInput): Promise<DoctorFacts> {
  const folder = stateOf(input);
  const state = folder.readRun();
  const mesh = state.kind === "running" ? state.run : undefined;
  const given = input.router !== undefined && input.router.length > 0;
  const addresses = given ? input.router : (mesh?.routers.map((router) => router.control) ?? []);
  const [nodeVersion, envoyBinary, ports, envoy, routers, health, engines, members, relays] =
    await Promise.all([
      versionOf(serviceNode),
      probeEnvoyBinary(),
      mesh === undefined && !given ? portFacts(input.wantedPorts) : [],
      mesh === undefined ? undefined : probeEnvoy(mesh),
      probeRouters(addresses),
      probeHealth(mesh),
      Promise.all((mesh?.members ?? []).map(probeEngine)),
      Promise.all((mesh?.members ?? []).map(probeMember)),
      Promise.all((mesh?.relays ?? []).map((one) => probeRelay(one, mesh?.routers.length ?? 0))),
    ]);
  return {
    nodeVersion,
    hostNodeVersion: input.hostNodeVersion,
    envoyBinary,
    run: given
      ? { kind: "given", text: `asking the routers at ${addresses.join(", ")}` }
      : { kind: state.kind, text: runText(state, folder) },
    keysFile: keysFacts(mesh?.keysFile ?? (given ? undefined : folder.file("mesh.keys")), mesh),
    ports,
    envoy,
    routers,
    health,
    engines,
    members: members.filter((member) => member !== undefined),
    relays: relays.filter((relay) => relay !== undefined),
    restarts: (mesh?.processes ?? []).flatMap(({ name, logFile, died }) =>
      died === undefined
        ? []
        : [
            {
              name,
              logFile,
              deaths: died.deaths,
              lastDeath: died.how,
              agoMs: Math.max(0, realClock.wallUnixUs() / 1_000 - died.atUnixMs),
            },
          ],
    ),
    meshBlockSizeTokens: mesh?.blockSizeTokens ?? (given ? undefined : input.blockSizeTokens),
  };
}

async function versionOf(program: string): Promise<string> {
  const { stdout } = await run(program, ["--version"], { timeout: answerMsMax });
  return stdout.trim();
}

async function probeEnvoyBinary(): Promise<DoctorFacts["envoyBinary"]> {
  try {
    const path = findEnvoy(packageRoot);
    const version = envoyVersion(await versionOf(path));
    return { path, ...(version === undefined ? {} : { version }) };
  } catch (error) {
    return { path: "", problem: textOf(error) };
  }
}

async function portFacts(wanted: readonly WantedPort[]): Promise<DoctorFacts["ports"]> {
  return (await checkPorts(wanted)).map((one) => ({ problem: portProblemText(one) }));
}

function keysFacts(path: string | undefined, mesh: MeshRun | undefined): DoctorFacts["keysFile"] {
  if (path === undefined) return undefined;
  try {
    loadKeys(path);
    return { path };
  } catch (error) {
    // Before the first start there is no file, and nothing is wrong.
    const isMissing = error instanceof MeshError && error.message.includes("ENOENT");
    return isMissing && mesh === undefined ? undefined : { path, problem: textOf(error) };
  }
}

async function probeEnvoy(mesh: MeshRun): Promise<EnvoyFacts | undefined> {
  const url = new URL(mesh.urls.envoyAdmin);
  if (!mesh.processes.some((one) => one.name === "envoy")) return undefined;
  const admin = new EnvoyAdmin({ host: url.hostname, port: Number(url.port) });
  const nothing = {
    url: admin.url,
    live: false,
    failureModeAllowed: 0,
    streamsFailed: 0,
    messageTimeouts: 0,
    streamsStarted: 0,
    controlConnected: false,
    cdsRejected: 0,
    edsRejected: 0,
    clusters: [],
  };
  try {
    const [live, text, stats, clusters] = await Promise.all([
      admin.isLive(),
      admin.versionText(),
      admin.stats("(ext_proc|control_plane|update_rejected)"),
      admin.clusters(),
    ]);
    const version = envoyVersion(text);
    const counts = placementCounts(stats);
    const recent = await recentCounts(admin, counts);
    return {
      url: admin.url,
      live,
      ...(version === undefined ? {} : { version }),
      ...counts,
      ...(recent === undefined ? {} : { recent }),
      controlConnected: (stats.get("control_plane.connected_state") ?? 0) === 1,
      cdsRejected: sumStats(stats, "cluster_manager.cds.update_rejected"),
      edsRejected: [...stats]
        .filter(([name]) => /^cluster\.pool-.*\.update_rejected$/.test(name))
        .reduce((sum, [, value]) => sum + value, 0),
      clusters: [...clusters]
        .filter(([name]) => isLookedAt(name, mesh))
        .map(([name, hosts]) => ({
          name,
          hosts: hosts.length,
          healthy: hosts.filter((host) => host.healthy).length,
        })),
    };
  } catch (error) {
    return { ...nothing, problem: textOf(error) };
  }
}

/** Clusters whose endpoints should be healthy; that of relays has some only where the mesh runs relays. */
function isLookedAt(cluster: string, mesh: MeshRun): boolean {
  if (cluster === relaysCluster) return mesh.relays.length > 0;
  return cluster === "router" || cluster === "control" || cluster.startsWith("pool-");
}

/** Time between the two looks that tell what happens now from what happened once, ms. */
const recentMs = 2_000;

function placementCounts(stats: ReadonlyMap<string, number>) {
  return {
    failureModeAllowed: sumStats(stats, ".ext_proc.failure_mode_allowed"),
    streamsFailed: sumStats(stats, ".ext_proc.streams_failed"),
    messageTimeouts: sumStats(stats, ".ext_proc.message_timeouts"),
    streamsStarted: sumStats(stats, ".ext_proc.streams_started"),
  };
}

/** What was counted within the next moments; undefined when there is nothing to tell apart. */
async function recentCounts(
  admin: EnvoyAdmin,
  before: ReturnType<typeof placementCounts>,
): Promise<EnvoyFacts["recent"]> {
  if (before.failureModeAllowed + before.streamsFailed + before.messageTimeouts === 0) {
    return undefined;
  }
  await realClock.sleep(recentMs);
  const after = placementCounts(await admin.stats("ext_proc"));
  return {
    seconds: recentMs / 1_000,
    failureModeAllowed: after.failureModeAllowed - before.failureModeAllowed,
    streamsFailed: after.streamsFailed - before.streamsFailed,
    messageTimeouts: after.messageTimeouts - before.messageTimeouts,
    streamsStarted: after.streamsStarted - before.streamsStarted,
  };
}

async function probeRouters(addresses: readonly string[]): Promise<RouterFacts[]> {
  const client = new RouterClient(addresses);
  try {
    const seen = await client.topologies();
    return [...seen].map(([address, topology]) =>
      topology instanceof MeshError
        ? { address, problem: topology.message, peers: [], workers: [] }
        : routerFacts(address, topology),
    );
  } finally {
    client.close();
  }
}

function routerFacts(address: string, topology: WatchTopologyResponse): RouterFacts {
  return {
    address,
    instance: topology.routerInstance,
    peers: topology.routers.map(({ instance, state }) => ({ instance, state })),
    workers: topology.pools
      .flatMap((pool) => pool.workers)
      .map((worker) => ({
        workerId: worker.workerId,
        endpoint: worker.endpoint,
        state: worker.state,
        engineBlockSizeTokens: worker.engineBlockSizeTokens,
        blocks: Number(worker.blocks),
        reportAgeMs: worker.reportAgeMs,
        resyncs: worker.resyncs,
        heldBy: worker.heldBy,
      })),
  };
}

async function probeHealth(mesh: MeshRun | undefined): Promise<HealthFacts[]> {
  if (mesh === undefined) return [];
  const targets = [
    ...mesh.routers.map((router) => ({
      name: router.instance,
      url: `http://${router.http}/healthz`,
    })),
    ...mesh.relays.map((relay) => ({
      name: relay.instance,
      url: `http://${relay.metrics}/healthz`,
    })),
    ...mesh.members.map((member) => ({
      name: `worker ${member.workerId}`,
      url: `http://${member.workerHttp}/healthz`,
    })),
    ...mesh.members.map((member) => ({
      name: `engine of ${member.workerId}`,
      url: `${member.engineUrl.replace(/\/$/, "")}/health`,
    })),
    ...(mesh.urls.console === undefined
      ? []
      : [{ name: "console", url: `${mesh.urls.console}/healthz` }]),
  ];
  return Promise.all(
    targets.map(async ({ name, url }) => {
      try {
        const { status } = await get(url);
        return status === 200 ? { name, url } : { name, url, problem: `HTTP ${status}` };
      } catch (error) {
        return { name, url, problem: callFailureText(error) };
      }
    }),
  );
}

async function probeEngine(member: MeshRun["members"][number]): Promise<EngineFacts> {
  const { workerId, engineUrl: url, kvEvents } = member;
  try {
    const { text, status } = await get(`${url.replace(/\/$/, "")}/metrics`);
    if (status !== 200) return { workerId, url, problem: `GET /metrics answers ${status}` };
    const samples = readSamples(text, ["vllm:cache_config_info", "vllm:prompt_tokens_total"]);
    const cache = samples.find((sample) => sample.name === "vllm:cache_config_info")?.labels;
    const promptTokens = samples
      .filter((sample) => sample.name === "vllm:prompt_tokens_total")
      .reduce((sum, sample) => sum + sample.value, 0);
    const caching = cache?.["enable_prefix_caching"];
    const blockSize = Number(cache?.["block_size"]);
    return {
      workerId,
      url,
      promptTokens,
      ...(caching === undefined ? {} : { prefixCaching: caching === "True" }),
      ...(Number.isInteger(blockSize) ? { blockSizeTokens: blockSize } : {}),
      ...(kvEvents === undefined ? {} : await eventFacts(kvEvents)),
    };
  } catch (error) {
    return { workerId, url, problem: callFailureText(error) };
  }
}

async function eventFacts(
  address: string,
): Promise<Pick<EngineFacts, "kvEventsOpen" | "kvEventsAddress">> {
  const match = /^tcp:\/\/(.+):(\d+)$/.exec(address);
  if (match?.[1] === undefined) return {};
  const open = await accepts(match[1], Number(match[2]));
  return { kvEventsOpen: open, kvEventsAddress: address };
}

async function accepts(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, timeout: answerMsMax });
    const done = (open: boolean): void => {
      socket.destroy();
      resolve(open);
    };
    socket.once("connect", () => {
      done(true);
    });
    socket.once("timeout", () => {
      done(false);
    });
    socket.once("error", () => {
      done(false);
    });
  });
}

/** Outcomes of ended join streams that need a person. */
const refusalOutcomes = [
  "bad_proof",
  "address_not_allowed",
  "caller_not_allowed",
  "incompatible",
  "id_taken",
  "stale_epoch",
  "protocol_version",
  "hash_seed",
  "block_size",
];

async function probeMember(member: MeshRun["members"][number]): Promise<MemberNotes | undefined> {
  try {
    const { text } = await get(`http://${member.workerHttp}/metrics`);
    const samples = readSamples(text, [
      "kvmesh_worker_routers",
      "kvmesh_worker_joins_total",
      "kvmesh_worker_router_clock_offset_seconds",
      "kvmesh_worker_events_total",
    ]);
    const of = (name: string): MetricSample[] => samples.filter((sample) => sample.name === name);
    const offsets = of("kvmesh_worker_router_clock_offset_seconds").map((one) => one.value * 1_000);
    const furthest = offsets.toSorted((a, b) => Math.abs(b) - Math.abs(a))[0];
    return {
      workerId: member.workerId,
      refusedBy: of("kvmesh_worker_routers")
        .filter((sample) => sample.labels["state"] === "refused")
        .reduce((sum, sample) => sum + sample.value, 0),
      refusals: of("kvmesh_worker_joins_total")
        .filter((sample) => sample.value > 0)
        .map((sample) => sample.labels["outcome"] ?? "")
        .filter((outcome) => refusalOutcomes.includes(outcome)),
      kvEvents: of("kvmesh_worker_events_total")
        .filter((sample) => sample.labels["kind"] !== "unknown")
        .reduce((sum, one) => sum + one.value, 0),
      ...(furthest === undefined ? {} : { clockOffsetMs: furthest }),
    };
  } catch {
    // That it does not answer is among the health facts.
    return undefined;
  }
}

/** Ends of attach streams that are a router's refusal. */
const attachRefusals = [
  "unauthenticated",
  "permission_denied",
  "already_exists",
  "aborted",
  "invalid_argument",
  "unimplemented",
];

async function probeRelay(
  { instance, metrics }: MeshRun["relays"][number],
  routers: number,
): Promise<RelayNotes | undefined> {
  try {
    const { text } = await get(`http://${metrics}/metrics`);
    const samples = readSamples(text, ["kvmesh_relay_routers", "kvmesh_relay_attaches_total"]);
    return {
      instance,
      routers,
      attached: samples
        .filter((one) => one.labels["state"] === "attached")
        .reduce((sum, one) => sum + one.value, 0),
      refusals: samples
        .filter((one) => one.name === "kvmesh_relay_attaches_total" && one.value > 0)
        .map((one) => one.labels["outcome"] ?? "")
        .filter((outcome) => attachRefusals.includes(outcome)),
    };
  } catch {
    // That it does not answer is among the health facts.
    return undefined;
  }
}

async function get(url: string): Promise<{ readonly status: number; readonly text: string }> {
  const { statusCode, body } = await request(url, { signal: AbortSignal.timeout(answerMsMax) });
  return { status: statusCode, text: await body.text() };
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
