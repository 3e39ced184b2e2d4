import type { MeshError } from "../../../shared/core/errors.ts";
import { realClock } from "../../../shared/edge/clock.ts";
import type { MeshConfig } from "../../config.ts";
import { demoModel } from "../../core/demo-profile.ts";
import { exitCodes, type CommandIo } from "../command-io.ts";
import { engineTrouble } from "../engine-check.ts";
import { Interrupts } from "../interrupts.ts";
import { firstToken } from "./first-token.ts";
import { defaultStatePath, Mesh } from "./mesh.ts";
import { prepareMesh, servedModels, type PortChoice, type PreparedMesh } from "./mesh-setup.ts";
import { checkServiceSettings } from "./service-settings.ts";
import { StateFolder, type MeshRun } from "./state-folder.ts";
import { Supervisor } from "./supervisor.ts";
import {
  compareDemo,
  meshForDemo,
  planDemo,
  sectionsForDemo,
  type Demo,
  type DemoFlags,
  type DemoName,
} from "./up-demo.ts";
import { readUpSettings, type UpSettings } from "./up-settings.ts";

/** Options of `kvmesh up`, checked. */
export interface UpOptions extends Omit<DemoFlags, "demo"> {
  /** Simulated engines, and what is compared first. */
  readonly demo: DemoName | undefined;
  /** End after the comparison. */
  readonly once: boolean;
  readonly config: string | undefined;
  readonly state: string | undefined;
  /** Print the effective settings of `mesh` and `envoy` and end. */
  readonly printConfig: boolean;
  readonly sets: readonly string[];
  readonly routers: number | undefined;
  readonly ports: PortChoice;
  /** When the person pressed Enter, milliseconds since 1970. */
  readonly startedUnixMs: number;
}

/** How long engines that somebody else runs are waited for before they are named as late, ms. */
const lateWorkersMs = 8_000;
/** Time between two looks at what is late, ms. */
const lateLookMs = 1_000;

/**
 * `kvmesh up`: starts a mesh on this machine, supervises it until Ctrl-C, and ends it in order. With `demo` the engines
 * are simulated, and policies or forms are compared first.
 *
 * Resolves to the exit code: 0 when it was ended by Ctrl-C or SIGTERM once it served (or came to the end of `once`),
 * 130 or 143 when it was interrupted before that, 1 when something failed.
 */
export async function upCommand(options: UpOptions, io: CommandIo): Promise<number> {
  const settings = readUpSettings({
    file: options.config,
    cwd: process.cwd(),
    env: process.env,
    sets: options.sets,
  });
  if (options.printConfig) {
    for (const line of settings.effective) io.out(line);
    return exitCodes.done;
  }
  const demo = demoOf(options);
  const sections =
    demo === undefined ? settings.sections : sectionsForDemo(settings.sections, demo);
  const state = new StateFolder(options.state ?? defaultStatePath);
  state.claim();
  const prepared = await prepareMesh({
    mesh: meshSettings(settings.mesh, options, demo),
    envoy: settings.envoy,
    sections,
    state,
    ports: options.ports,
    engines: demo?.profile.engines ?? [],
    workerSettings: demo?.profile.workerSettings ?? {},
  });
  const { plan } = prepared.options;
  const own = demo === undefined ? settings.mesh.workers : [];
  const { lines } = settings;
  await checkServiceSettings({
    plan,
    sections: settings.sections,
    memberSettings: plan.workers.map((_, index) => own[index]?.settings ?? {}),
    lines,
    state,
  });
  return new UpRun({ options, io, state, settings, demo, prepared }).run();
}

/** The demo that was asked for, planned. */
function demoOf({ demo, ...flags }: UpOptions): Demo | undefined {
  return demo === undefined ? undefined : planDemo({ ...flags, demo });
}

function meshSettings(mesh: MeshConfig, options: UpOptions, demo: Demo | undefined): MeshConfig {
  const counted = options.routers === undefined ? mesh : { ...mesh, routers: options.routers };
  return demo === undefined ? counted : meshForDemo(counted, demo);
}

/** One `kvmesh up` from start to end. */
class UpRun {
  readonly #options: UpOptions;
  readonly #io: CommandIo;
  readonly #state: StateFolder;
  readonly #demo: Demo | undefined;
  readonly #prepared: PreparedMesh;
  readonly #mesh: Mesh;
  readonly #interrupts: Interrupts;
  readonly #supervisor: Supervisor;
  readonly #gaveUp = new AbortController();
  #failure: Error | undefined;

  constructor(parts: {
    readonly options: UpOptions;
    readonly io: CommandIo;
    readonly state: StateFolder;
    readonly settings: UpSettings;
    readonly demo: Demo | undefined;
    readonly prepared: PreparedMesh;
  }) {
    this.#options = parts.options;
    this.#io = parts.io;
    this.#state = parts.state;
    this.#demo = parts.demo;
    this.#prepared = parts.prepared;
    this.#mesh = new Mesh(parts.prepared.options);
    this.#interrupts = new Interrupts(() => {
      this.#io.err("killing everything that is left");
      void this.#killAll();
    });
    this.#interrupts.signal.addEventListener("abort", () => {
      this.#io.err("ending in order; Ctrl-C again kills at once");
    });
    this.#supervisor = new Supervisor(this.#mesh, {
      say: (line) => {
        this.#io.err(line);
      },
      gaveUp: (error: MeshError) => {
        this.#failure = error;
        this.#gaveUp.abort();
      },
      changed: () => {
        this.#writeRun();
      },
    });
  }

  async run(): Promise<number> {
    const signal = AbortSignal.any([this.#interrupts.signal, this.#gaveUp.signal]);
    let served = false;
    try {
      await this.#mesh.start(signal);
      this.#supervisor.watch();
      this.#writeRun();
      if (this.#demo === undefined) await this.#untilReady(signal, () => (served = true));
      else {
        await this.#sayReady();
        await this.#compare(this.#demo, signal);
        served = true;
      }
      if (!this.#options.once) {
        if (this.#demo !== undefined) await this.#sayNext();
        await Promise.race([this.#interrupts.happened(), this.#untilGivenUp()]);
      }
    } catch (error) {
      // What was given up because of Ctrl-C is no failure of its own.
      if (!signal.aborted)
        this.#failure = error instanceof Error ? error : new Error(String(error));
    }
    await this.#end();
    if (this.#failure !== undefined) {
      this.#io.err(this.#failure.message);
      return exitCodes.failed;
    }
    return served ? exitCodes.done : this.#interrupts.exitCode;
  }

  async #untilGivenUp(): Promise<void> {
    if (this.#gaveUp.signal.aborted) return;
    await new Promise<void>((resolve) => {
      this.#gaveUp.signal.addEventListener("abort", () => {
        resolve();
      });
    });
  }

  async #sayReady(): Promise<void> {
    const { options } = this.#prepared;
    const { routers, relays } = options.plan;
    const seconds = (): string => ((Date.now() - this.#options.startedUnixMs) / 1_000).toFixed(1);
    this.#io.err(
      `ready after ${seconds()} s: ${[
        `${routers.length} routers`,
        ...(relays.length === 0 ? [] : [`${relays.length} relays`]),
        `${this.#prepared.members.length} workers`,
        ...(options.envoy === undefined ? [] : ["Envoy"]),
      ].join(", ")}`,
    );
    if (this.#demo === undefined) return;
    await firstToken(this.#openaiUrl, demoModel);
    this.#io.err(`first token after ${seconds()} s`);
  }

  /**
   * Says what is true: ready when every worker is, serving with some, or not serving and why. Engines may come later, which
   * is no failure; it resolves when all are there.
   */
  async #untilReady(signal: AbortSignal, serves: () => void): Promise<void> {
    const lateAt = realClock.now() + lateWorkersMs;
    const wanted = this.#prepared.members.length;
    let said = "";
    let told = false;
    for (;;) {
      const ready = await this.#mesh.readyWorkers();
      if (ready > 0 && ready >= wanted && (await this.#mesh.missing(true)).length === 0) break;
      if (wanted === 0 || realClock.now() >= lateAt) {
        const late = await this.#lateText(ready);
        if (late !== said) this.#io.err(late);
        if (said === "" && ready === 0) this.#io.err("waiting until Ctrl-C");
        said = late;
        if (ready > 0 && !told) {
          serves();
          await this.#sayNext();
          told = true;
        }
      }
      await realClock.sleep(said === "" ? 100 : lateLookMs, signal);
    }
    serves();
    await this.#sayReady();
    if (!told) await this.#sayNext();
  }

  /** What keeps the mesh from serving, the cause first. */
  async #lateText(ready: number): Promise<string> {
    const { members, blockSizeTokens } = this.#prepared;
    if (members.length === 0) {
      return "NOT serving: no engine is configured; name engines under mesh.workers in kvmesh.yaml, or use --demo for simulated ones";
    }
    const troubles = await Promise.all(
      members.map(async ({ workerId, engineUrl }) => {
        const trouble = await engineTrouble(engineUrl, blockSizeTokens);
        return trouble === undefined ? [] : [`engine of ${workerId} at ${engineUrl}: ${trouble}`];
      }),
    );
    const causes = troubles.flat();
    if (causes.length === 0) causes.push(...(await this.#mesh.missing(true)));
    const head =
      ready === 0
        ? "NOT serving yet"
        : `serving with ${String(ready)} of ${String(members.length)} workers`;
    return `${head}: ${causes.join("; ")}; waiting`;
  }

  async #compare(demo: Demo, signal: AbortSignal): Promise<void> {
    await compareDemo(demo, {
      flags: { ...this.#options, demo: demo.kind },
      mesh: this.#mesh,
      prepared: this.#prepared,
      trustedUrl: this.#urls().trusted,
      io: this.#io,
      signal,
    });
  }

  async #sayNext(): Promise<void> {
    const print = this.#options.json ? this.#io.err : this.#io.out;
    const { openai, trusted, envoyAdmin, console } = this.#urls();
    print(`OpenAI API     ${openai}/v1`);
    print(`  for trusted  ${trusted}/v1`);
    print(`Envoy admin    ${envoyAdmin}`);
    if (console !== undefined) print(`console        ${console}`);
    print("\ntry next:");
    const model = await this.#model();
    print(
      `  curl -N ${openai}/v1/chat/completions -H 'content-type: application/json' -d '{"model":"${model}","stream":true,"max_tokens":32,"messages":[{"role":"user","content":"Hello!"}]}'`,
    );
    if (this.#prepared.options.plan.relays.length > 0) {
      print('  npx kvmesh generate "Once upon a time" --max-tokens 32');
    }
    print("  npx kvmesh explain last");
    print("  npx kvmesh trace last");
    print("\nserving until Ctrl-C");
  }

  /** A model to ask for; engines that came late are asked again. */
  async #model(): Promise<string> {
    const { models, members } = this.#prepared;
    if (models[0] !== undefined) return models[0];
    const late = await Promise.all(members.map((member) => servedModels(member.engineUrl)));
    return late.flat()[0] ?? "<model>";
  }

  get #openaiUrl(): string {
    return this.#urls().openai;
  }

  #urls(): MeshRun["urls"] {
    const { host, ports } = this.#prepared.options;
    const at = (port: number): string => `http://${host}:${port}`;
    return {
      openai: at(ports.envoyPublic),
      trusted: at(ports.envoyTrusted),
      envoyAdmin: at(ports.envoyAdmin),
      ...(this.#prepared.options.plan.console === undefined
        ? {}
        : {
            console: at(ports.consoleWeb),
            otlpGrpc: at(ports.otlpGrpc),
            otlpHttp: at(ports.otlpHttp),
          }),
    };
  }

  #writeRun(): void {
    const { options, members, keysFile, models } = this.#prepared;
    const { host, ports } = options;
    const at = (port: number): string => `${host}:${port}`;
    this.#state.writeRun({
      startedUnixMs: this.#options.startedUnixMs,
      demo: this.#demo !== undefined,
      model: models[0] ?? "",
      urls: this.#urls(),
      routers: ports.routers.map((router, index) => ({
        instance: `router-${index}`,
        control: at(router.control),
        http: at(router.http),
        hot: at(router.hot),
      })),
      relays: ports.relays.map((relay, index) => ({
        instance: `relay-${index}`,
        h2: at(relay.h2),
        http: at(relay.http1),
        metrics: at(relay.metrics),
      })),
      members: members.map((member, index) => ({
        workerId: member.workerId,
        engineUrl: member.engineUrl,
        workerHttp: at(ports.workers[index] ?? 0),
        kvEvents: member.kvEvents,
      })),
      keysFile,
      blockSizeTokens: this.#prepared.blockSizeTokens,
      processes: [...this.#mesh.processes.values()].flatMap((one) => {
        const { name, pid, ports: bound, logFile } = one;
        const died = this.#supervisor.deathsOf(name);
        if (pid === undefined) return [];
        return [{ name, pid, ports: bound, logFile, ...(died === undefined ? {} : { died }) }];
      }),
    });
  }

  async #end(): Promise<void> {
    const from = performance.now();
    this.#supervisor.end();
    await this.#mesh.stop();
    this.#state.removeRun();
    const left = this.#mesh.survivors();
    if (left.length > 0) {
      this.#failure ??= new Error(`processes are left behind: ${left.join(", ")}`);
    }
    this.#io.err(
      `ended ${this.#mesh.processes.size} processes in ${((performance.now() - from) / 1_000).toFixed(1)} s`,
    );
    this.#interrupts.release();
  }

  async #killAll(): Promise<void> {
    this.#supervisor.end();
    await this.#mesh.kill();
    this.#state.removeRun();
    process.exit(this.#interrupts.exitCode);
  }
}
