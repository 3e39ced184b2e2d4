import type { MeshPorts } from "./mesh-ports.ts";

/** A tree of settings as kvmesh.yaml has it. */
export type Settings = Readonly<Record<string, unknown>>;

/** Services that `up` starts as Node processes. */
export type PlannedService = "router" | "relay" | "worker" | "engine" | "console";

/** A port that a planned process listens on. */
export interface PlannedPort {
  readonly name: string;
  readonly port: number;
  /** Setting of kvmesh.yaml that moves it. */
  readonly setting: string;
}

/** One Node process: what to run, with which settings, on which ports. */
export interface ProcessPlan {
  /** `router-0`, `relay-0`, `worker-2`, `engine-3`, `console`. */
  readonly name: string;
  readonly service: PlannedService;
  /** Whole value of the service's key in the settings file of this process. */
  readonly settings: Settings;
  readonly ports: readonly PlannedPort[];
}

/** An engine and the worker beside it. */
export interface PlannedMember {
  /** Worker id. */
  readonly workerId: string;
  /** Engine's HTTP address. */
  readonly engineUrl: string;
  readonly kvEvents: string | undefined;
  readonly kvReplay: string | undefined;
  /** Keys of the `worker` section for this one. */
  readonly settings: Settings;
}

/** What the plan is made from. */
export interface PlanInput {
  readonly host: string;
  readonly keysFile: string;
  readonly blockSizeTokens: number;
  readonly policy: string;
  readonly defaultPool: string;
  readonly ports: MeshPorts;
  /** Whether a console is started. */
  readonly console: boolean;
  /** OTLP endpoint of all processes; empty means none. */
  readonly otlpEndpoint: string;
  /** Folder in which the console keeps its traces. */
  readonly consoleStore: string;
  /** Folder of tokenizer tables built before. */
  readonly cacheFolder: string;
  readonly members: readonly PlannedMember[];
  /** Settings of each simulated engine; empty when the engines are real. */
  readonly engines: readonly Settings[];
  /** Sections of kvmesh.yaml, laid under what the plan decides. */
  readonly sections: Readonly<Record<PlannedService, Settings>>;
}

/** How long a relay lets open requests go on once it is to end, ms: what passes Envoy was drained there already. */
export const relayDrainMs = 400;

/** Every Node process of a mesh. Envoy is planned from the same ports by its own bootstrap. */
export interface MeshPlan {
  readonly console: ProcessPlan | undefined;
  readonly routers: readonly ProcessPlan[];
  readonly relays: readonly ProcessPlan[];
  readonly engines: readonly ProcessPlan[];
  readonly workers: readonly ProcessPlan[];
}

/** Lays `over` on `under`: maps are merged key by key, everything else is replaced. */
export function mergeSettings(under: Settings, over: Settings): Settings {
  const merged: Record<string, unknown> = { ...under };
  for (const [key, value] of Object.entries(over)) {
    const below = merged[key];
    merged[key] = isMap(below) && isMap(value) ? mergeSettings(below, value) : value;
  }
  return merged;
}

function isMap(value: unknown): value is Settings {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The addresses on which routers take joins, in order. */
export function routerAddresses(host: string, ports: MeshPorts): string[] {
  return ports.routers.map((router) => `${host}:${String(router.control)}`);
}

/** Turns the input into processes. Pure: the same input gives the same plan. */
export function planMesh(input: PlanInput): MeshPlan {
  return {
    console: input.console ? planConsole(input) : undefined,
    routers: input.ports.routers.map((_, index) => planRouter(input, index)),
    relays: input.ports.relays.map((_, index) => planRelay(input, index)),
    engines: input.engines.map((settings, index) => planEngine(input, settings, index)),
    workers: input.members.map((member, index) => planWorker(input, member, index)),
  };
}

function planRouter(input: PlanInput, index: number): ProcessPlan {
  const own = input.ports.routers[index];
  if (own === undefined) throw new RangeError(`no ports for router ${String(index)}`);
  const addresses = routerAddresses(input.host, input.ports);
  const step = index === 0 ? "" : ` (router ${String(index)} is ${String(10 * index)} higher)`;
  return {
    name: `router-${String(index)}`,
    service: "router",
    ports: [
      { name: "hot", port: own.hot, setting: `mesh.ports.routerHot${step}` },
      { name: "control", port: own.control, setting: `mesh.ports.routerControl${step}` },
      { name: "http", port: own.http, setting: `mesh.ports.routerHttp${step}` },
    ],
    settings: mergeSettings(mergeSettings({ policy: input.policy }, input.sections.router), {
      instance: `router-${String(index)}`,
      host: input.host,
      hotPort: own.hot,
      controlPort: own.control,
      httpPort: own.http,
      keysFile: input.keysFile,
      blockSizeTokens: input.blockSizeTokens,
      pools: { default: input.defaultPool, known: [input.defaultPool] },
      peers: addresses.filter((_, other) => other !== index),
      cacheFolder: input.cacheFolder,
      ...endpointOf(input),
    }),
  };
}

function planRelay(input: PlanInput, index: number): ProcessPlan {
  const own = input.ports.relays[index];
  if (own === undefined) throw new RangeError(`no ports for relay ${String(index)}`);
  const step = index === 0 ? "" : ` (relay ${String(index)} is ${String(10 * index)} higher)`;
  return {
    name: `relay-${String(index)}`,
    service: "relay",
    ports: [
      { name: "h2", port: own.h2, setting: `mesh.ports.relayH2${step}` },
      { name: "http", port: own.http1, setting: `mesh.ports.relayHttp1${step}` },
      { name: "metrics", port: own.metrics, setting: `mesh.ports.relayMetrics${step}` },
    ],
    settings: mergeSettings(mergeSettings({ drainMsMax: relayDrainMs }, input.sections.relay), {
      instance: `relay-${String(index)}`,
      host: input.host,
      h2Port: own.h2,
      httpPort: own.http1,
      metricsPort: own.metrics,
      keysFile: input.keysFile,
      routers: { list: routerAddresses(input.host, input.ports) },
      ...endpointOf(input),
    }),
  };
}

function endpointOf(input: PlanInput): Settings {
  return input.otlpEndpoint === "" ? {} : { otlpEndpoint: input.otlpEndpoint };
}

function planEngine(input: PlanInput, settings: Settings, index: number): ProcessPlan {
  const own = input.ports.engines[index];
  if (own === undefined) throw new RangeError(`no ports for engine ${String(index)}`);
  const step = index === 0 ? "" : ` (engine ${String(index)} is ${String(index)} higher)`;
  return {
    name: `engine-${String(index)}`,
    service: "engine",
    ports: [
      { name: "http", port: own.http, setting: `mesh.ports.engineHttp${step}` },
      { name: "kvEvents", port: own.kvEvents, setting: `mesh.ports.engineKvEvents${step}` },
      { name: "kvReplay", port: own.kvReplay, setting: `mesh.ports.engineKvReplay${step}` },
    ],
    settings: mergeSettings(mergeSettings(input.sections.engine, settings), {
      instance: `engine-${String(index)}`,
      host: input.host,
      port: own.http,
      events: { port: own.kvEvents, replayPort: own.kvReplay },
      cacheFolder: input.cacheFolder,
      ...endpointOf(input),
    }),
  };
}

function planWorker(input: PlanInput, member: PlannedMember, index: number): ProcessPlan {
  const http = input.ports.workers[index];
  if (http === undefined) throw new RangeError(`no port for worker ${String(index)}`);
  const step = index === 0 ? "" : ` (worker ${String(index)} is ${String(index)} higher)`;
  return {
    name: `worker-${String(index)}`,
    service: "worker",
    ports: [{ name: "http", port: http, setting: `mesh.ports.workerHttp${step}` }],
    settings: mergeSettings(mergeSettings(input.sections.worker, member.settings), {
      workerId: member.workerId,
      host: input.host,
      httpPort: http,
      keysFile: input.keysFile,
      pool: input.defaultPool,
      blockSizeTokens: input.blockSizeTokens,
      routers: { list: routerAddresses(input.host, input.ports) },
      engine: {
        url: member.engineUrl,
        ...(member.kvEvents === undefined ? {} : { eventsEndpoint: member.kvEvents }),
        ...(member.kvReplay === undefined ? {} : { replayEndpoint: member.kvReplay }),
      },
    }),
  };
}

function planConsole(input: PlanInput): ProcessPlan {
  const { consoleWeb, otlpGrpc, otlpHttp } = input.ports;
  return {
    name: "console",
    service: "console",
    ports: [
      { name: "http", port: consoleWeb, setting: "mesh.ports.consoleWeb" },
      { name: "otlpGrpc", port: otlpGrpc, setting: "mesh.ports.otlpGrpc" },
      { name: "otlpHttp", port: otlpHttp, setting: "mesh.ports.otlpHttp" },
    ],
    settings: mergeSettings(input.sections.console, {
      instance: "console",
      host: input.host,
      httpPort: consoleWeb,
      otlp: { grpcPort: otlpGrpc, httpPort: otlpHttp },
      store: { stateDir: input.consoleStore },
    }),
  };
}
