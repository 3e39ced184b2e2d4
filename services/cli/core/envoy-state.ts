/** A host of an Envoy cluster, from `/clusters?format=json`. */
export interface EnvoyHost {
  /** ip:port. */
  readonly endpoint: string;
  /** Whether Envoy would send it requests. */
  readonly healthy: boolean;
  /** Why not, in Envoy's words; empty when healthy. */
  readonly reasons: readonly string[];
  /** Counters and gauges of the host, such as rq_total. */
  readonly stats: Readonly<Record<string, number>>;
}

/** Hosts of each cluster by name. */
export type EnvoyClusters = ReadonlyMap<string, readonly EnvoyHost[]>;

type Tree = Readonly<Record<string, unknown>>;

const asTree = (value: unknown): Tree =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? (value as Tree) : {};
const asList = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : []);
const asText = (value: unknown): string => (typeof value === "string" ? value : "");

/** Reads the JSON of `/clusters?format=json` (Envoy 1.37 to 1.40). What is not there is left out; never throws. */
export function parseClusters(json: unknown): EnvoyClusters {
  const clusters = new Map<string, EnvoyHost[]>();
  for (const status of asList(asTree(json)["cluster_statuses"])) {
    const { name, host_statuses: hosts } = asTree(status);
    clusters.set(asText(name), asList(hosts).map(parseHost));
  }
  return clusters;
}

function parseHost(json: unknown): EnvoyHost {
  const host = asTree(json);
  const socket = asTree(asTree(host["address"])["socket_address"]);
  const health = asTree(host["health_status"]);
  const reasons: string[] = [];
  for (const [key, value] of Object.entries(health)) {
    if (value === true) reasons.push(key);
    else if (key === "eds_health_status" && value !== "HEALTHY" && value !== "UNKNOWN") {
      reasons.push(`eds_${asText(value).toLowerCase()}`);
    }
  }
  const stats: Record<string, number> = {};
  for (const entry of asList(host["stats"])) {
    const { name, value } = asTree(entry);
    // Zero is left out of protobuf's JSON; 64-bit numbers are text there.
    stats[asText(name)] = Number(value ?? 0);
  }
  return {
    endpoint: `${asText(socket["address"])}:${Number(socket["port_value"] ?? 0)}`,
    healthy: reasons.length === 0,
    reasons,
    stats,
  };
}

/** Reads the plain text of `/stats`: `name: number` a line; histograms and texts are left out. */
export function parseStats(text: string): ReadonlyMap<string, number> {
  const stats = new Map<string, number>();
  for (const line of text.split("\n")) {
    const match = /^(.+): (\d+)$/.exec(line);
    if (match?.[1] !== undefined) stats.set(match[1], Number(match[2]));
  }
  return stats;
}

/** Sum of all stats whose name ends with `suffix`, such as `.ext_proc.failure_mode_allowed`. */
export function sumStats(stats: ReadonlyMap<string, number>, suffix: string): number {
  let sum = 0;
  for (const [name, value] of stats) if (name.endsWith(suffix)) sum += value;
  return sum;
}

/** "1.40.0" from Envoy's version text (`<commit>/1.40.0/Clean/RELEASE/BoringSSL`); undefined when it has none. */
export function envoyVersion(text: string): string | undefined {
  return /(?:^|[/ ])(\d+\.\d+\.\d+)(?:[/\s-]|$)/.exec(text)?.[1];
}

/** Whether a dotted version is at least the floor, number by number. */
export function isVersionAtLeast(version: string, floor: string): boolean {
  const numbers = version.split(".").map(Number);
  for (const [index, least] of floor.split(".").map(Number).entries()) {
    const number = numbers[index] ?? 0;
    if (number !== least) return number > least;
  }
  return true;
}

/** Lowest Envoy version whose behaviour is known to be right for kvmesh: earlier ones limit HTTP/1.1 bodies wrongly. */
export const envoyVersionFloor = "1.37.0";
