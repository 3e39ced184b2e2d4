/** Ports between those of two processes of one host; each process has three neighbouring ones. */
const portStep = 10;

/** What a router process needs to know of itself and of the others on its host. */
export interface RouterProcessPlan {
  readonly instance: string;
  readonly hotPort: number;
  readonly controlPort: number;
  readonly httpPort: number;
  /** Control addresses of all other routers: those beside it, and those of other hosts. */
  readonly peers: readonly string[];
}

/** Settings that the plan is made from. */
export interface ProcessGroupOptions {
  readonly instance: string;
  /** Address that the processes listen on. */
  readonly host: string;
  readonly hotPort: number;
  readonly controlPort: number;
  readonly httpPort: number;
  readonly peers: readonly string[];
  readonly processes: number;
}

/** Address under which processes of this host reach each other. */
function reachable(host: string): string {
  if (host === "0.0.0.0") return "127.0.0.1";
  if (host === "::") return "[::1]";
  return host.includes(":") ? `[${host}]` : host;
}

/**
 * The processes of one host: process i is named `<instance>-<i>`, has ports 10 × i higher, and every other one as its
 * peer. Each is a router like any other, with its own view and its own endpoint in Envoy's cluster.
 */
export function planProcesses(options: ProcessGroupOptions): RouterProcessPlan[] {
  const { instance, host, hotPort, controlPort, httpPort, peers, processes } = options;
  const controls = Array.from(
    { length: processes },
    (_, i) => `${reachable(host)}:${String(controlPort + portStep * i)}`,
  );
  return controls.map((own, i) => ({
    instance: `${instance}-${String(i)}`,
    hotPort: hotPort + portStep * i,
    controlPort: controlPort + portStep * i,
    httpPort: httpPort + portStep * i,
    peers: [...controls.filter((other) => other !== own), ...peers],
  }));
}
