import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, existsSync, writeFileSync } from "node:fs";
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/** The Envoy that set-up fetches. Never the Python wrapper beside it: signals would reach Python. */
export const envoyBinary = join(
  import.meta.dirname,
  "..",
  "..",
  ".kvmesh",
  "tools",
  "envoy",
  "envoy",
  "_bin",
  "envoy",
);

/** How `startEnvoy` starts one. */
export interface StartEnvoyOptions {
  /** Configuration as an object, or as text in YAML or JSON. Port 0 is allowed everywhere. */
  readonly bootstrap: unknown;
  /** Folder for its files. */
  readonly dir: string;
  readonly concurrency?: number;
  /** Clusters that must have at least one endpoint before it counts as ready. */
  readonly waitForClusters?: readonly string[];
  /** Longest wait until it is ready, ms. */
  readonly readyMsMax?: number;
}

/** A running Envoy. */
export interface RunningEnvoy {
  readonly pid: number;
  readonly adminPort: number;
  /** Port of each listener by its name. */
  readonly ports: Readonly<Record<string, number>>;
  /** GET on the admin interface. */
  admin(path: string): Promise<string>;
  /** One counter or gauge; 0 when it does not exist. */
  stat(name: string): Promise<number>;
  /** What it wrote to its log. */
  readonly logPath: string;
  stop(): Promise<void>;
}

const running = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

async function waitFor<T>(
  what: string,
  deadline: number,
  child: ChildProcess,
  logPath: string,
  probe: () => Promise<T | undefined>,
): Promise<T> {
  for (;;) {
    if (child.exitCode !== null || child.signalCode !== null) {
      const log = await readFile(logPath, "utf8");
      throw new Error(
        `envoy ended (${String(child.exitCode ?? child.signalCode)}) before ${what}:\n${log.slice(-4_000)}`,
      );
    }
    const found = await probe().catch(() => undefined);
    if (found !== undefined) return found;
    if (Date.now() > deadline) {
      child.kill("SIGKILL");
      const log = await readFile(logPath, "utf8");
      throw new Error(`envoy: no ${what} in time:\n${log.slice(-4_000)}`);
    }
    await sleep(20);
  }
}

interface ListenerStatus {
  readonly name: string;
  readonly local_address: { readonly socket_address: { readonly port_value: number } };
}

/** Validates a configuration with the real Envoy; resolves with its message, rejects when it is refused. */
export async function validateEnvoyConfig(text: string, dir: string): Promise<string> {
  const path = join(dir, `validate-${String(Math.trunc(performance.now() * 1_000))}.yaml`);
  writeFileSync(path, text);
  const child = spawn(envoyBinary, ["--mode", "validate", "-c", path, "--log-level", "error"], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let output = "";
  child.stdout.on("data", (chunk) => (output += String(chunk)));
  child.stderr.on("data", (chunk) => (output += String(chunk)));
  const [code] = (await once(child, "close")) as [number | null];
  if (code !== 0) throw new Error(output);
  return output;
}

/**
 * Starts Envoy and waits until it is live, its listeners are bound and the named clusters have endpoints. Fails when
 * the child ends, with its log. Every started Envoy is killed when this process ends.
 */
export async function startEnvoy(options: StartEnvoyOptions): Promise<RunningEnvoy> {
  if (!existsSync(envoyBinary)) {
    throw new Error(`no Envoy at ${envoyBinary}: run \`node services/cli/setup/setup.mjs\``);
  }
  await mkdir(options.dir, { recursive: true });
  const configPath = join(options.dir, "envoy.yaml");
  const logPath = join(options.dir, "envoy.log");
  const adminPath = join(options.dir, "admin-address");
  const { bootstrap } = options;
  writeFileSync(configPath, typeof bootstrap === "string" ? bootstrap : JSON.stringify(bootstrap));
  const child = spawn(
    envoyBinary,
    [
      ...["-c", configPath, "--concurrency", (options.concurrency ?? 1).toString()],
      ...["--disable-hot-restart", "--log-level", "warning", "--admin-address-path", adminPath],
      ...["--drain-time-s", "1", "--file-flush-interval-msec", "250"],
    ],
    { stdio: ["ignore", "pipe", "pipe"] },
  );
  running.add(child);
  child.once("close", () => running.delete(child));
  const log = createWriteStream(logPath);
  child.stdout.pipe(log, { end: false });
  child.stderr.pipe(log, { end: false });
  const { pid } = child;
  if (pid === undefined) throw new Error("envoy did not start");

  const deadline = Date.now() + (options.readyMsMax ?? 20_000);
  const adminPort = await waitFor("admin address", deadline, child, logPath, async () => {
    const address = await readFile(adminPath, "utf8");
    const port = Number(address.slice(address.lastIndexOf(":") + 1));
    return port > 0 ? port : undefined;
  });
  const admin = async (path: string): Promise<string> => {
    const response = await fetch(`http://127.0.0.1:${adminPort.toString()}${path}`, {
      signal: AbortSignal.timeout(2_000),
    });
    return response.text();
  };
  await waitFor("readiness", deadline, child, logPath, async () =>
    (await admin("/ready")).trim() === "LIVE" ? true : undefined,
  );
  for (const cluster of options.waitForClusters ?? []) {
    await waitFor(`endpoint in cluster ${cluster}`, deadline, child, logPath, async () =>
      new RegExp(`^${cluster}::[^:]+:\\d+::`, "m").test(await admin("/clusters"))
        ? true
        : undefined,
    );
  }
  const listeners = JSON.parse(await admin("/listeners?format=json")) as {
    listener_statuses: ListenerStatus[];
  };
  const ports = Object.fromEntries(
    listeners.listener_statuses.map(({ name, local_address }) => [
      name,
      local_address.socket_address.port_value,
    ]),
  );
  return {
    pid,
    adminPort,
    ports,
    admin,
    logPath,
    stat: async (name) => {
      const line = (await admin(`/stats?filter=${encodeURIComponent(`^${name}$`)}`)).trim();
      return line === "" ? 0 : Number(line.slice(line.lastIndexOf(":") + 1));
    },
    stop: async () => {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill("SIGTERM");
        const kill = setTimeout(() => child.kill("SIGKILL"), 3_000);
        await once(child, "close");
        clearTimeout(kill);
      }
      log.end();
    },
  };
}
