import { existsSync } from "node:fs";
import { join } from "node:path";
import { env as ownEnv } from "node:process";
import { fileURLToPath } from "node:url";
import { MeshError } from "../../../shared/core/errors.ts";
import { relaysCluster } from "../../../../envoy/headers.ts";
import { realClock } from "../../../shared/edge/clock.ts";
import type { MeshPlan, ProcessPlan, PlannedService } from "../../core/mesh-plan.ts";
import type { MeshPorts } from "../../core/mesh-ports.ts";
import { EnvoyAdmin } from "../envoy-admin.ts";
import { RouterClient } from "../router-client.ts";
import { envoyProcess } from "./envoy-process.ts";
import { isAlive, ManagedProcess, nodeBinary } from "./launcher.ts";
import type { StateFolder } from "./state-folder.ts";

/** Folder of package.json. */
export const packageRoot = fileURLToPath(new URL("../../../../", import.meta.url));

/** State folder when none is named. */
export const defaultStatePath = join(packageRoot, ".kvmesh");

/** Node that runs the services: the package's own where set-up has installed it. */
const ownNode = join(packageRoot, "node_modules/node/bin/node");
export const serviceNode = existsSync(ownNode) ? ownNode : nodeBinary;

/** Program and words of each service, from the package's folder. */
export const entryPoints: Readonly<Record<PlannedService, readonly [string, ...string[]]>> = {
  router: ["services/router/main.ts"],
  relay: ["services/relay/main.ts"],
  worker: ["services/worker/main.ts"],
  engine: ["services/simulator/main.ts", "engine"],
  console: ["services/console/main.ts"],
};

/** Where the command that runs here keeps compiled code; `bin.mjs` chooses it. */
const compileCache = ownEnv["NODE_COMPILE_CACHE"];

/** Envoy beside the Node processes. */
export interface MeshEnvoy {
  readonly binary: string;
  /** Whole bootstrap, written to the state folder. */
  readonly bootstrap: unknown;
  readonly concurrency: number;
  /** Cluster of the default pool, and how many endpoints it will have. */
  readonly poolCluster: string;
  readonly poolEndpoints: number;
  /** How many endpoints the cluster of the relays will have. */
  readonly relayEndpoints: number;
  /** Cluster of the routers. */
  readonly routerCluster: string;
}

/** What a mesh is started from. */
export interface MeshOptions {
  readonly state: StateFolder;
  readonly plan: MeshPlan;
  readonly ports: MeshPorts;
  readonly host: string;
  readonly envoy: MeshEnvoy | undefined;
  readonly readyMsMax: number;
  /** Whether the mesh is ready only with every worker; off where engines are somebody else's and may come later. */
  readonly needsWorkers: boolean;
  /** Added to the environment of every process. */
  readonly env?: Readonly<Record<string, string>>;
}

/** Longest times of the parts of a stop, ms; their sum stays below 5 s. */
const stopMs = { drain: 800, envoy: 500, servers: 3_000, console: 500 } as const;

/** The processes of one mesh: started in order, watched, and ended in order, each by its own id. */
export class Mesh {
  readonly options: MeshOptions;
  readonly admin: EnvoyAdmin;
  readonly routers: RouterClient;
  readonly #processes = new Map<string, ManagedProcess>();
  readonly #pids = new Set<number>();
  readonly #kinds = new Map<string, PlannedService | "envoy">();
  #stopping: Promise<void> | undefined;

  constructor(options: MeshOptions) {
    this.options = options;
    this.admin = new EnvoyAdmin({ host: options.host, port: options.ports.envoyAdmin });
    this.routers = new RouterClient(
      options.ports.routers.map((router) => `${options.host}:${router.control}`),
    );
    const { plan, envoy, state } = options;
    const planned = [
      plan.console,
      ...plan.routers,
      ...plan.relays,
      ...plan.engines,
      ...plan.workers,
    ];
    for (const one of planned)
      if (one !== undefined) this.#add(one.service, this.#nodeProcess(one));
    if (envoy !== undefined) {
      const bootstrapFile = state.write("envoy.json", envoy.bootstrap);
      const { binary, concurrency } = envoy;
      const logFile = state.beginLog("envoy");
      this.#add(
        "envoy",
        envoyProcess({ binary, bootstrapFile, logFile, cwd: packageRoot, concurrency }),
      );
    }
  }

  /** All processes by name. */
  get processes(): ReadonlyMap<string, ManagedProcess> {
    return this.#processes;
  }

  /** Whether a stop has begun. */
  get stopping(): boolean {
    return this.#stopping !== undefined;
  }

  /** A process by name; fails with `not_found`. */
  process(name: string): ManagedProcess {
    const found = this.#processes.get(name);
    if (found === undefined) {
      const known = [...this.#processes.keys()].join(", ");
      throw new MeshError("not_found", `no process '${name}' in this mesh; known: ${known}`);
    }
    return found;
  }

  /** Names of the processes of one kind, in order. */
  names(kind: PlannedService | "envoy"): string[] {
    return [...this.#kinds].filter(([, own]) => own === kind).map(([name]) => name);
  }

  /**
   * Starts everything. Console, routers, relays and engines at once, workers when the engines answer, Envoy when the
   * routers do; then waits until the mesh serves (`missing`). The first failure ends what was started and is thrown.
   */
  async start(signal?: AbortSignal): Promise<void> {
    const failed = new AbortController();
    const all = signal === undefined ? failed.signal : AbortSignal.any([signal, failed.signal]);
    const begin = async (name: string): Promise<void> => {
      try {
        await this.startProcess(name, all);
      } catch (error) {
        failed.abort();
        throw error;
      }
    };
    const beginAll = async (kind: PlannedService | "envoy"): Promise<void> => {
      await Promise.all(this.names(kind).map(begin));
    };
    const console = beginAll("console");
    const routers = beginAll("router");
    // A relay waits for routers by itself.
    const relays = beginAll("relay");
    const workers = beginAll("engine").then(() => beginAll("worker"));
    const envoy = routers.then(() => beginAll("envoy"));
    const settled = await Promise.allSettled([console, routers, relays, workers, envoy]);
    const reasons = settled
      .filter((one) => one.status === "rejected")
      .map((one): unknown => one.reason);
    // What was cancelled because another failed is not the cause.
    const cause =
      reasons.find((one) => !(one instanceof MeshError && one.code === "cancelled")) ?? reasons[0];
    if (cause === undefined) {
      try {
        await this.untilServing(signal);
        return;
      } catch (error) {
        await this.stop();
        throw error;
      }
    }
    await this.stop();
    if (cause instanceof Error) throw cause;
    throw new Error("a process could not be started", { cause });
  }

  /** Starts one process that does not run. */
  async startProcess(name: string, signal?: AbortSignal): Promise<void> {
    const process = this.process(name);
    const started = process.start(signal);
    if (process.pid !== undefined) this.#pids.add(process.pid);
    await started;
  }

  /** Ends one process and starts it again with the same settings and ports. */
  async restartProcess(name: string, signal?: AbortSignal): Promise<void> {
    await this.process(name).stop(stopMs.servers);
    await this.startProcess(name, signal);
  }

  /** Gives a process new settings; they count from its next start on. */
  changeSettings(plan: ProcessPlan): void {
    this.process(plan.name);
    this.#writeSettings(plan);
  }

  /** Waits until nothing is `missing`. Fails with `deadline_exceeded` and what is. */
  async untilServing(signal?: AbortSignal): Promise<void> {
    const deadline = realClock.now() + this.options.readyMsMax;
    for (;;) {
      signal?.throwIfAborted();
      const missing = await this.missing();
      if (missing.length === 0) return;
      if (realClock.now() > deadline) {
        throw new MeshError(
          "deadline_exceeded",
          `the mesh was not ready within ${this.options.readyMsMax} ms: ${missing.join("; ")}`,
        );
      }
      await realClock.sleep(100, signal);
    }
  }

  /**
   * What is not yet as it should be, for people; empty when the mesh serves: every process runs, every router reports all
   * workers ready, and Envoy lists all engines, relays and routers as healthy. Without `withWorkers` it is enough that the routers
   * answer: they take no requests before their first worker, and Envoy waits for them.
   */
  async missing(withWorkers = this.options.needsWorkers): Promise<string[]> {
    const gone = [...this.#processes.values()].filter((one) => !one.running);
    const states = gone.map((one) => `${one.name} does not run`);
    const [topologies, envoys] = await Promise.all([
      this.#missingMembers(withWorkers),
      withWorkers ? this.#missingInEnvoy() : [],
    ]);
    return [...states, ...topologies, ...envoys];
  }

  /** Workers that every router reports ready, the least of those that answer; 0 when none does. */
  async readyWorkers(): Promise<number> {
    const counts = [...(await this.routers.topologies()).values()].map((seen) =>
      seen instanceof MeshError
        ? 0
        : seen.pools.flatMap((pool) => pool.workers).filter((one) => one.state === "ready").length,
    );
    return counts.length === 0 ? 0 : Math.min(...counts);
  }

  /** Ends everything in order; resolves when no process is left. Takes at most 5 s. */
  async stop(): Promise<void> {
    this.#stopping ??= this.#stopInOrder();
    return this.#stopping;
  }

  /** Kills everything now. */
  async kill(): Promise<void> {
    const all = [...this.#processes.values()];
    for (const one of all) one.kill("SIGKILL");
    await Promise.all(all.map((one) => one.exited()));
  }

  /** Ids of processes that this mesh started and that still exist. */
  survivors(): number[] {
    return [...this.#pids].filter(isAlive);
  }

  #add(kind: PlannedService | "envoy", process: ManagedProcess): void {
    this.#processes.set(process.name, process);
    this.#kinds.set(process.name, kind);
  }

  #writeSettings(plan: ProcessPlan): string {
    return this.options.state.write(`config/${plan.name}.json`, { [plan.service]: plan.settings });
  }

  #nodeProcess(plan: ProcessPlan): ManagedProcess {
    const { state, readyMsMax, env } = this.options;
    const settings = this.#writeSettings(plan);
    const [main, ...words] = entryPoints[plan.service];
    return new ManagedProcess({
      name: plan.name,
      command: [serviceNode, join(packageRoot, main), ...words, "--config", settings],
      cwd: packageRoot,
      // Compiled code is kept between starts, with that of the command: a process is up in half the time.
      env: { NODE_COMPILE_CACHE: compileCache ?? state.file("compile-cache"), ...env },
      logFile: state.beginLog(plan.name),
      readiness: "ipc",
      readyMsMax,
    });
  }

  async #missingMembers(withWorkers: boolean): Promise<string[]> {
    const workers = withWorkers ? this.options.plan.workers.length : 0;
    const relays = this.options.plan.relays.length;
    const missing: string[] = [];
    for (const [address, seen] of await this.routers.topologies()) {
      if (seen instanceof MeshError) {
        missing.push(seen.message);
        continue;
      }
      const attached = seen.relays.filter((relay) => relay.state === "attached").length;
      if (attached < relays) {
        missing.push(`router ${address} has ${attached} of ${relays} relays attached`);
      }
      const members = seen.pools.flatMap((pool) => pool.workers);
      const ready = members.filter((member) => member.state === "ready").length;
      if (ready < workers) {
        const others = members
          .filter((member) => member.state !== "ready")
          .map((member) => `${member.workerId} ${member.state}`);
        const detail = others.length === 0 ? "" : ` (${others.join(", ")})`;
        missing.push(`router ${address} has ${ready} of ${workers} workers ready${detail}`);
      }
    }
    return missing;
  }

  async #missingInEnvoy(): Promise<string[]> {
    const { envoy, ports } = this.options;
    if (envoy === undefined) return [];
    if (!(await this.admin.isLive())) return ["Envoy is not live"];
    const clusters = await this.admin.clusters().catch(() => new Map<string, never[]>());
    const wanted = [
      { cluster: envoy.poolCluster, count: envoy.poolEndpoints },
      { cluster: relaysCluster, count: envoy.relayEndpoints },
      { cluster: envoy.routerCluster, count: ports.routers.length },
    ];
    return wanted.flatMap(({ cluster, count }) => {
      const hosts = clusters.get(cluster) ?? [];
      const healthy = hosts.filter((host) => host.healthy).length;
      return healthy >= count
        ? []
        : [`Envoy's cluster ${cluster} has ${healthy} of ${count} endpoints healthy`];
    });
  }

  async #stopInOrder(): Promise<void> {
    this.routers.close();
    await this.#drainEnvoy();
    // What a relay still carries came to it directly; it has the time that Envoy needs to end.
    await Promise.all([
      this.#stopAll(this.names("envoy"), stopMs.envoy),
      this.#stopAll(this.names("relay"), stopMs.envoy),
    ]);
    // Routers answer on for a while after they are asked to end, which is when workers say goodbye to them.
    const servers = [...this.names("worker"), ...this.names("router"), ...this.names("engine")];
    await this.#stopAll(servers, stopMs.servers);
    await this.#stopAll(this.names("console"), stopMs.console);
  }

  async #stopAll(names: readonly string[], graceMs: number): Promise<void> {
    await Promise.all(names.map((name) => this.process(name).stop(graceMs)));
  }

  async #drainEnvoy(): Promise<void> {
    const envoy = this.#processes.get("envoy");
    if (envoy?.running !== true) return;
    try {
      await this.admin.drain();
      const deadline = realClock.now() + stopMs.drain;
      while (realClock.now() < deadline) {
        const active = await this.admin.stats("^http\\.(public|trusted)\\.downstream_rq_active$");
        if ([...active.values()].every((count) => count === 0)) break;
        await realClock.sleep(50);
      }
    } catch {
      // An Envoy that does not answer has nothing left to drain.
    }
  }
}
