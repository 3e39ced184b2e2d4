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

/** Ports of one relay. */
export interface RelayPorts {
  /** HTTP/2 with prior knowledge, and gRPC. */
  readonly h2: number;
  /** HTTP/1.1. */
  readonly http1: number;
  readonly metrics: number;
}

/** Every port of a mesh, decided. */
export interface MeshPorts {
  readonly envoyPublic: number;
  readonly envoyTrusted: number;
  readonly envoyAdmin: number;
  readonly routers: readonly RouterPorts[];
  readonly relays: readonly RelayPorts[];
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
  readonly relayH2: number;
  readonly relayHttp1: number;
  readonly relayMetrics: number;
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
  readonly relays: number;
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
    relays: indices(counts.relays).map((i) => ({
      h2: layout.relayH2 + 10 * i,
      http1: layout.relayHttp1 + 10 * i,
      metrics: layout.relayMetrics + 10 * i,
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

/** A layout that starts at `base`, free of overlaps for up to 8 routers, 8 relays and 236 engines; takes 1,104 ports. */
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
    relayH2: base + 15,
    relayHttp1: base + 16,
    relayMetrics: base + 17,
    engineHttp: base + 100,
    engineKvEvents: base + 356,
    engineKvReplay: base + 612,
    workerHttp: base + 868,
  };
}

/** How many ports `takePorts` consumes. */
export function portCount(counts: MeshCounts): number {
  return 6 + 3 * (counts.routers + counts.relays + counts.engines) + counts.workers;
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
    relays: indices(counts.relays).map(() => ({ h2: take(), http1: take(), metrics: take() })),
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
