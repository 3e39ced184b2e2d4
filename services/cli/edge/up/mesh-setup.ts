import { randomInt } from "node:crypto";
import { request } from "undici";
import { buildBootstrap } from "../../../../envoy/bootstrap.ts";
import { defaultLimits, defaultTimeouts } from "../../../../envoy/options.ts";
import { MeshError } from "../../../shared/core/errors.ts";
import type { EnvoyConfig, MeshConfig } from "../../config.ts";
import {
  mergeSettings,
  planMesh,
  type MeshPlan,
  type PlannedMember,
  type PlannedService,
  type Settings,
} from "../../core/mesh-plan.ts";
import {
  layoutFrom,
  layOutPorts,
  portCount,
  takePorts,
  type MeshCounts,
  type MeshPorts,
} from "../../core/mesh-ports.ts";
import { relaysWanted } from "../../core/relay-count.ts";
import { findEnvoy } from "./envoy-process.ts";
import { packageRoot, type MeshOptions } from "./mesh.ts";
import { checkPorts, freePorts, portProblemsText, type WantedPort } from "./port-check.ts";
import type { StateFolder } from "./state-folder.ts";

/** Where the ports come from: the settings, a base given on the command line, or whatever is free. */
export type PortChoice = number | "all-free" | undefined;

/** What a mesh is prepared from. */
export interface MeshRequest {
  readonly mesh: MeshConfig;
  readonly envoy: EnvoyConfig;
  /** Sections of kvmesh.yaml for the services. */
  readonly sections: Readonly<Record<PlannedService, Settings>>;
  readonly state: StateFolder;
  readonly ports: PortChoice;
  /** Simulated engines, each with its settings; a worker is put beside each. Empty: `mesh.workers` are used. */
  readonly engines: readonly Settings[];
  /** Settings of every worker, laid under a member's own. */
  readonly workerSettings: Settings;
  /** Of simulated engines: what lies over that for the worker of each. */
  readonly memberSettings?: readonly Settings[];
  /** Where processes keep tokenizer tables; a folder of the state's when absent. Meshes may share it. */
  readonly cacheFolder?: string;
  /** Added to the environment of every process. */
  readonly env?: Readonly<Record<string, string>>;
}

/** A mesh that can be started. */
export interface PreparedMesh {
  readonly options: MeshOptions;
  readonly members: readonly PlannedMember[];
  readonly keysFile: string;
  readonly models: readonly string[];
  readonly blockSizeTokens: number;
}

/**
 * Decides ports, writes keys, and plans every process; nothing is started. Fails with `already_exists` that lists
 * every port that cannot be had.
 */
export async function prepareMesh(input: MeshRequest): Promise<PreparedMesh> {
  const { mesh, state } = input;
  const counts: MeshCounts = {
    routers: mesh.routers,
    relays: relaysWanted({
      configured: mesh.relays,
      router: input.sections.router,
      worker: input.sections.worker,
      members: workerSettingsOf(input),
    }),
    engines: input.engines.length,
    workers: input.engines.length === 0 ? mesh.workers.length : input.engines.length,
  };
  const keysFile = state.prepare(mesh.keysFile);
  const ports = await choosePorts(input, counts);
  const members =
    input.engines.length === 0 ? externalMembers(input) : simulatedMembers(input, ports);
  const otlpEndpoint =
    mesh.otlpEndpoint === "" && mesh.console
      ? `http://${mesh.host}:${ports.otlpGrpc}`
      : mesh.otlpEndpoint;
  const plan = planMesh({
    host: mesh.host,
    keysFile,
    blockSizeTokens: mesh.blockSizeTokens,
    policy: mesh.policy,
    defaultPool: mesh.defaultPool,
    ports,
    console: mesh.console,
    otlpEndpoint,
    consoleStore: state.file("console"),
    cacheFolder: input.cacheFolder ?? state.file("cache"),
    members,
    engines: input.engines,
    sections: input.sections,
  });
  await requirePorts(input, plan, ports);
  const models = await modelsOf(mesh, members, input.engines);
  return {
    keysFile,
    members,
    models,
    blockSizeTokens: mesh.blockSizeTokens,
    options: {
      state,
      plan,
      ports,
      host: mesh.host,
      readyMsMax: mesh.readyMsMax,
      needsWorkers: input.engines.length > 0,
      envoy: input.envoy.enabled
        ? planEnvoy(input, { ports, models, otlpEndpoint, members })
        : undefined,
      ...(input.env === undefined ? {} : { env: input.env }),
    },
  };
}

async function choosePorts(input: MeshRequest, counts: MeshCounts): Promise<MeshPorts> {
  if (input.ports === "all-free") {
    const draw = (): number => randomInt(1_000_000) / 1_000_000;
    return takePorts(await freePorts(input.mesh.host, portCount(counts), draw), counts);
  }
  const layout = input.ports === undefined ? input.mesh.ports : layoutFrom(input.ports);
  return layOutPorts(layout, counts);
}

async function requirePorts(input: MeshRequest, plan: MeshPlan, ports: MeshPorts): Promise<void> {
  const { host } = input.mesh;
  const processes = [
    plan.console,
    ...plan.routers,
    ...plan.relays,
    ...plan.engines,
    ...plan.workers,
  ];
  const wanted: WantedPort[] = processes.flatMap((one) =>
    one === undefined
      ? []
      : one.ports.map(({ port, setting }) => ({ host, port, process: one.name, setting })),
  );
  if (input.envoy.enabled) {
    for (const name of ["envoyPublic", "envoyTrusted", "envoyAdmin"] as const) {
      wanted.push({ host, port: ports[name], process: "envoy", setting: `mesh.ports.${name}` });
    }
  }
  const problems = await checkPorts(wanted);
  if (problems.length > 0) {
    throw new MeshError("already_exists", portProblemsText(problems, wanted.length));
  }
}

/** Settings of each worker that lie over the section `worker`. */
function workerSettingsOf(input: MeshRequest): Settings[] {
  const { engines, workerSettings, mesh } = input;
  return engines.length === 0
    ? mesh.workers.map((worker) => mergeSettings(workerSettings, worker.settings))
    : engines.map((_, index) => mergeSettings(workerSettings, input.memberSettings?.[index] ?? {}));
}

function simulatedMembers(input: MeshRequest, ports: MeshPorts): PlannedMember[] {
  const { host } = input.mesh;
  const settings = workerSettingsOf(input);
  return ports.engines.map((engine, index) => ({
    workerId: `w${index}`,
    engineUrl: `http://${host}:${engine.http}`,
    kvEvents: `tcp://${host}:${engine.kvEvents}`,
    kvReplay: `tcp://${host}:${engine.kvReplay}`,
    settings: settings[index] ?? {},
  }));
}

function externalMembers(input: MeshRequest): PlannedMember[] {
  const settings = workerSettingsOf(input);
  return input.mesh.workers.map((worker, index) => ({
    workerId: worker.id,
    engineUrl: worker.engine,
    kvEvents: worker.kvEvents,
    kvReplay: worker.kvReplay,
    settings: settings[index] ?? {},
  }));
}

/** Names that the engines serve: configured, or the simulated engines' own, or asked of the real ones. */
async function modelsOf(
  mesh: MeshConfig,
  members: readonly PlannedMember[],
  engines: readonly Settings[],
): Promise<string[]> {
  if (mesh.models.length > 0) return [...mesh.models];
  const own = engines.map((one) => one["model"]).filter((model) => typeof model === "string");
  if (engines.length > 0) return [...new Set(own)];
  const answers = await Promise.all(members.map((member) => servedModels(member.engineUrl)));
  return [...new Set(answers.flat())].toSorted();
}

/** Model names of an OpenAI endpoint; none when it does not answer within 2 s. */
export async function servedModels(url: string): Promise<string[]> {
  try {
    const { body, statusCode } = await request(`${url.replace(/\/$/, "")}/v1/models`, {
      signal: AbortSignal.timeout(2_000),
    });
    const answer = (await body.json()) as { readonly data?: readonly { readonly id?: unknown }[] };
    if (statusCode !== 200) return [];
    return (answer.data ?? []).map((one) => one.id).filter((id) => typeof id === "string");
  } catch {
    return [];
  }
}

function planEnvoy(
  input: MeshRequest,
  facts: {
    readonly ports: MeshPorts;
    readonly models: readonly string[];
    readonly otlpEndpoint: string;
    readonly members: readonly PlannedMember[];
  },
): MeshOptions["envoy"] {
  const { host, defaultPool, failOpen } = input.mesh;
  const { ports } = facts;
  const { concurrency, bodyMode, publicPaths, routerChoice, retriesMax, accessLogPath } =
    input.envoy;
  const at = (port: number): { host: string; port: number } => ({ host, port });
  return {
    binary: findEnvoy(packageRoot),
    concurrency,
    poolCluster: `pool-${defaultPool}`,
    poolEndpoints: facts.members.length,
    relayEndpoints: ports.relays.length,
    routerCluster: "router",
    bootstrap: buildBootstrap({
      nodeId: "gateway-1",
      public: at(ports.envoyPublic),
      trusted: at(ports.envoyTrusted),
      admin: at(ports.envoyAdmin),
      routers: ports.routers.map((router) => at(router.hot)),
      controls: ports.routers.map((router) => at(router.control)),
      otlp: otlpAddress(facts.otlpEndpoint),
      defaultPool: { id: defaultPool, models: facts.models, failOpen },
      publicPaths,
      bodyMode,
      routerChoice,
      retriesMax,
      accessLogPath: accessLogPath === "" ? undefined : accessLogPath,
      limits: { ...defaultLimits, ...defined(input.envoy.limits) },
      timeouts: { ...defaultTimeouts, ...defined(input.envoy.timeouts) },
    }),
  };
}

function otlpAddress(endpoint: string): { host: string; port: number } | undefined {
  if (endpoint === "") return undefined;
  const url = new URL(endpoint);
  return { host: url.hostname, port: url.port === "" ? 4317 : Number(url.port) };
}

/** Without the keys whose value is undefined. */
function defined<T extends Readonly<Record<string, number | undefined>>>(
  settings: T,
): { readonly [K in keyof T]?: number } {
  return Object.fromEntries(
    Object.entries(settings).filter(([, value]) => value !== undefined),
  ) as { readonly [K in keyof T]?: number };
}
