import { readFileSync, readdirSync, readlinkSync } from "node:fs";
import { createServer } from "node:net";

/** A port that a process of the mesh will listen on. */
export interface WantedPort {
  readonly host: string;
  readonly port: number;
  /** Process that wants it, such as `router-0`. */
  readonly process: string;
  /** What to change to move it, such as `up.envoy.publicPort` in kvmesh.yaml. */
  readonly setting: string;
}

/** A wanted port that cannot be had. */
export interface PortProblem {
  readonly wanted: WantedPort;
  /** Code of the operating system, such as EADDRINUSE, or `duplicate` when two of ours want it. */
  readonly code: string;
  /** Who holds it, when that can be known. */
  readonly holder?: string;
}

/** Checks all ports at once by listening for a moment. Port 0 (any) is always free. */
export async function checkPorts(wanted: readonly WantedPort[]): Promise<PortProblem[]> {
  const problems: PortProblem[] = [];
  const seen = new Map<string, WantedPort>();
  const toTry: WantedPort[] = [];
  for (const one of wanted) {
    if (one.port === 0) continue;
    const key = `${one.host}:${String(one.port)}`;
    const first = seen.get(key);
    if (first === undefined) {
      seen.set(key, one);
      toTry.push(one);
    } else {
      problems.push({
        wanted: one,
        code: "duplicate",
        holder: `${first.process} (${first.setting})`,
      });
    }
  }
  await Promise.all(
    toTry.map(async (one) => {
      const code = await tryListen(one.host, one.port);
      if (code === undefined) return;
      const holder = code === "EADDRINUSE" ? holderOf(one.port) : undefined;
      problems.push({ wanted: one, code, ...(holder === undefined ? {} : { holder }) });
    }),
  );
  return problems.toSorted((a, b) => a.wanted.port - b.wanted.port);
}

/** One line for a person: which port, who has it, what to change. */
export function portProblemText({ wanted, code, holder }: PortProblem): string {
  const who = holder === undefined ? "" : ` by ${holder}`;
  const why = {
    EADDRINUSE: `is in use${who}`,
    EACCES: "may not be used by this user",
    EADDRNOTAVAIL: `is not possible: ${wanted.host} is no address of this machine`,
    duplicate: `is wanted twice, also${who}`,
  }[code];
  return `port ${String(wanted.port)} for ${wanted.process} ${why ?? `cannot be had (${code})`}; change ${wanted.setting}, or use --ports-base <n> or --ports-base all-free`;
}

/** Ports that are described one by one; above it they are summed up. */
const describedMax = 3;

/** All problems for a person: each in full while they are few, else who holds which, and in both cases what to do. */
export function portProblemsText(problems: readonly PortProblem[], wantedCount: number): string {
  if (problems.length <= describedMax) return problems.map(portProblemText).join("\n");
  const byHolder = new Map<string, number[]>();
  for (const { wanted, holder, code } of problems) {
    const who =
      code === "EADDRINUSE" ? (holder ?? "another process") : `${holder ?? wanted.host} (${code})`;
    byHolder.set(who, [...(byHolder.get(who) ?? []), wanted.port]);
  }
  const held = [...byHolder].map(([who, ports]) => `  ${who}: ${ports.join(", ")}`);
  return [
    `${String(problems.length)} of ${String(wantedCount)} ports cannot be had:`,
    ...held.slice(0, holdersMax),
    ...(held.length > holdersMax ? [`  and ${String(held.length - holdersMax)} more`] : []),
    "use --ports-base all-free (any free ports) or --ports-base <n> (others), or end what holds them",
  ].join("\n");
}

/** Most holders named in a summary. */
const holdersMax = 6;

async function tryListen(host: string, port: number): Promise<string | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) => {
      resolve(error.code ?? "unknown");
    });
    server.listen({ host, port, exclusive: true }, () => {
      server.close(() => {
        resolve(undefined);
      });
    });
  });
}

/** Ports tried before giving up on finding free ones. */
const triesMax = 2_000;
/**
 * Free ports are looked for below the range from which Linux takes the ports of outgoing connections (32768 up), so
 * that nothing takes one between the look and its use but another such search.
 */
const searchFrom = 20_000;
const searchTo = 32_000;

/** `count` ports of the host that were free just now. `draw` gives the start of the search, 0 to 1. */
export async function freePorts(
  host: string,
  count: number,
  draw: () => number,
): Promise<number[]> {
  const found: number[] = [];
  const span = searchTo - searchFrom;
  let next = Math.floor(draw() * span);
  for (let tried = 0; found.length < count; tried++) {
    if (tried >= triesMax + count) {
      throw new Error(
        `found ${String(found.length)} of ${String(count)} free ports in ${String(tried)} tries`,
      );
    }
    const port = searchFrom + (next % span);
    // Neighbours are skipped so that two searches that start near each other part soon.
    next += 1 + Math.floor(draw() * 7);
    if (!found.includes(port) && (await tryListen(host, port)) === undefined) found.push(port);
  }
  return found;
}

/**
 * Process that listens on a TCP port, from /proc: "node, pid 123"; undefined where that cannot be known (no Linux,
 * another user's process). Looks through at most 4,096 processes.
 */
export function holderOf(port: number): string | undefined {
  try {
    const inodes = listeningInodes(port);
    if (inodes.size === 0) return undefined;
    const pids = readdirSync("/proc")
      .filter((name) => /^\d+$/.test(name))
      .slice(0, 4_096);
    for (const pid of pids) {
      if (holdsSocket(pid, inodes)) {
        return `${readFileSync(`/proc/${pid}/comm`, "utf8").trim()}, pid ${pid}`;
      }
    }
  } catch {
    // No /proc: the message does without a name.
  }
  return undefined;
}

function listeningInodes(port: number): Set<string> {
  const inodes = new Set<string>();
  const hexPort = port.toString(16).toUpperCase().padStart(4, "0");
  for (const table of ["/proc/net/tcp", "/proc/net/tcp6"]) {
    for (const line of readFileSync(table, "utf8").split("\n").slice(1)) {
      const cells = line.trim().split(/\s+/);
      // Cells: slot, local address:port, remote, state (0A listening), …, inode in the tenth.
      if (
        cells[3] === "0A" &&
        cells[1]?.endsWith(`:${hexPort}`) === true &&
        cells[9] !== undefined
      ) {
        inodes.add(cells[9]);
      }
    }
  }
  return inodes;
}

function holdsSocket(pid: string, inodes: ReadonlySet<string>): boolean {
  try {
    for (const descriptor of readdirSync(`/proc/${pid}/fd`)) {
      const match = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${descriptor}`));
      if (match?.[1] !== undefined && inodes.has(match[1])) return true;
    }
  } catch {
    // Another user's process, or one that just ended.
  }
  return false;
}
