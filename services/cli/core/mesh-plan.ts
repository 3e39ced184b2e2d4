/** A tree of settings as kvmesh.yaml has it. */
export type Settings = Readonly<Record<string, unknown>>;

/** Services that `up` starts as Node processes. */
export type PlannedService = "router" | "worker" | "engine" | "console";

/** A port that a planned process listens on. */
export interface PlannedPort {
  readonly name: string;
  readonly port: number;
  /** Setting of kvmesh.yaml that moves it. */
  readonly setting: string;
}

/** One Node process: what to run, with which settings, on which ports. */
export interface ProcessPlan {
  /** `router-0`, `worker-2`, `engine-3`, `console`. */
  readonly name: string;
  readonly service: PlannedService;
  /** Whole value of the service's key in the settings file of this process. */
  readonly settings: Settings;
  readonly ports: readonly PlannedPort[];
}

/** Ports of one router. */
export interface RouterPorts {
  readonly hot: number;
  readonly control: number;
  readonly http: number;
}

/** Ports of one simulated engine. */
export interface EnginePorts {
  readonly http: number;
  readonly kvEvents: number;
  readonly kvReplay: number;
}

/** Every port of a mesh, decided. */
export interface MeshPorts {
  readonly envoyPublic: number;
  readonly envoyTrusted: number;
  readonly envoyAdmin: number;
  readonly routers: readonly RouterPorts[];
  readonly engines: readonly EnginePorts[];
  readonly workers: readonly number[];
  readonly consoleWeb: number;
  readonly otlpGrpc: number;
  readonly otlpHttp: number;
}

/** First ports of a layout; see the `mesh.ports` settings. */
export interface PortLayout {
  readonly envoyPublic: number;
  readonly envoyTrusted: number;
  readonly envoyAdmin: number;
  readonly routerHot: number;
  readonly routerControl: number;
  readonly routerHttp: number;
  readonly engineHttp: number;
  readonly engineKvEvents: number;
  readonly engineKvReplay: number;
  readonly workerHttp: number;
  readonly consoleWeb: number;
  readonly otlpGrpc: number;
  readonly otlpHttp: number;
}

/** How many of each. */
export interface MeshCounts {
  readonly routers: number;
  readonly engines: number;
  readonly workers: number;
}

const indices = (count: number): number[] => Array.from({ length: count }, (_, index) => index);

/** Ports of a mesh from the first port of each kind. */
export function layOutPorts(layout: PortLayout, counts: MeshCounts): MeshPorts {
  return {
    envoyPublic: layout.envoyPublic,
    envoyTrusted: layout.envoyTrusted,
    envoyAdmin: layout.envoyAdmin,
    routers: indices(counts.routers).map((i) => ({
      hot: layout.routerHot + 10 * i,
      control: layout.routerControl + 10 * i,
      http: layout.routerHttp + 10 * i,
    })),
    engines: indices(counts.engines).map((i) => ({
      http: layout.engineHttp + i,
      kvEvents: layout.engineKvEvents + i,
      kvReplay: layout.engineKvReplay + i,
    })),
    workers: indices(counts.workers).map((i) => layout.workerHttp + i),
    consoleWeb: layout.consoleWeb,
    otlpGrpc: layout.otlpGrpc,
    otlpHttp: layout.otlpHttp,
  };
}

/** A layout that starts at `base`, free of overlaps for up to 8 routers and 236 engines; takes 1,104 ports. */
export function layoutFrom(base: number): PortLayout {
  return {
    envoyPublic: base,
    envoyTrusted: base + 1,
    envoyAdmin: base + 2,
    consoleWeb: base + 3,
    otlpGrpc: base + 4,
    otlpHttp: base + 5,
    routerHot: base + 12,
    routerControl: base + 13,
    routerHttp: base + 14,
    engineHttp: base + 100,
    engineKvEvents: base + 356,
    engineKvReplay: base + 612,
    workerHttp: base + 868,
  };
}

/** How many ports `takePorts` consumes. */
export function portCount(counts: MeshCounts): number {
  return 6 + counts.routers * 3 + counts.engines * 3 + counts.workers;
}

/** Ports of a mesh from a list of free ones, taken in order. The list must hold `portCount` of them. */
export function takePorts(free: readonly number[], counts: MeshCounts): MeshPorts {
  let used = 0;
  const take = (): number => free[used++] ?? 0;
  return {
    envoyPublic: take(),
    envoyTrusted: take(),
    envoyAdmin: take(),
    routers: indices(counts.routers).map(() => ({ hot: take(), control: take(), http: take() })),
    engines: indices(counts.engines).map(() => ({
      http: take(),
      kvEvents: take(),
      kvReplay: take(),
    })),
    workers: indices(counts.workers).map(take),
    consoleWeb: take(),
    otlpGrpc: take(),
    otlpHttp: take(),
  };
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

/** Every Node process of a mesh. Envoy is planned from the same ports by its own bootstrap. */
export interface MeshPlan {
  readonly console: ProcessPlan | undefined;
  readonly routers: readonly ProcessPlan[];
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
