import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { createKeysFile, loadKeys, type MeshKeys } from "../../services/shared/edge/keys.ts";
import { BenchChild } from "./child-process.ts";
import { repositoryRoot } from "./figures.ts";
import { RouterMetrics } from "./router-metrics.ts";

/** Tokens per block of the mesh under test. */
export const blockSizeTokens = 32;

interface Ports {
  readonly hot: number;
  readonly control: number;
  readonly http: number;
}

/** A real router process with a keys file and a temporary folder of its own, on free ports. */
export class RouterProcess {
  readonly keys: MeshKeys;
  readonly keysFile: string;
  readonly ports: Ports;
  readonly #child: BenchChild;

  private constructor(keysFile: string, child: BenchChild, ports: Ports) {
    this.keysFile = keysFile;
    this.keys = loadKeys(keysFile);
    this.#child = child;
    this.ports = ports;
  }

  /**
   * Starts it. `root` is the checkout whose router runs, by default this one; `nodeArgs` are options of Node, such as
   * those of its profiler.
   */
  static async start(options: {
    readonly membersMax: number;
    readonly root?: string;
    /** Keys of a mesh that runs already, when this router is to be told the same things. */
    readonly keysFile?: string | undefined;
    readonly nodeArgs?: readonly string[];
  }): Promise<RouterProcess> {
    const folder = mkdtempSync(join(tmpdir(), "kvmesh-bench-"));
    // Also when a benchmark fails half way.
    process.once("exit", () => {
      rmSync(folder, { recursive: true, force: true });
    });
    const keysFile = options.keysFile ?? join(folder, "mesh.keys");
    if (options.keysFile === undefined) createKeysFile(keysFile);
    const settings = {
      instance: "bench",
      hotPort: 0,
      controlPort: 0,
      httpPort: 0,
      keysFile,
      blockSizeTokens,
      workers: { max: options.membersMax },
      peerWaitMs: 0,
      drainServeMs: 0,
      drainMsMax: 5_000,
      logLevel: "warn",
    };
    const config = join(folder, "kvmesh.json");
    writeFileSync(config, JSON.stringify({ router: settings }));
    const child = new BenchChild(join(options.root ?? repositoryRoot, "services/router/main.ts"), {
      name: "router",
      args: ["--config", config],
      nodeArgs: options.nodeArgs ?? [],
      serialization: "json",
    });
    const { ports } = await child.answer<{ readonly ports: Ports }>("ready");
    return new RouterProcess(keysFile, child, ports);
  }

  get pid(): number {
    return this.#child.pid;
  }

  metrics(): Promise<RouterMetrics> {
    return RouterMetrics.read(this.ports.http);
  }

  /** Waits until it has members and their tokenizer. */
  async untilServing(): Promise<void> {
    const deadline = performance.now() + 60_000;
    while ((await fetch(`http://127.0.0.1:${String(this.ports.http)}/healthz`)).status !== 200) {
      if (performance.now() > deadline) throw new Error("the router does not serve");
      await sleep(50);
    }
  }

  async stop(): Promise<void> {
    await this.#child.stop();
  }
}
