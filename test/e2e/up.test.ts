import { mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { isAlive } from "../../services/cli/edge/up/launcher.ts";
import { freePorts } from "../../services/cli/edge/up/port-check.ts";
import { StateFolder, type MeshRun } from "../../services/cli/edge/up/state-folder.ts";
import { kvmesh, startKvmesh, type RunningCommand } from "../support/kvmesh-command.ts";
import { eventually } from "../support/mesh.ts";
import { tokenizerCache } from "../support/test-cache.ts";

let folder: string;
let started: RunningCommand[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-up-"));
  // Tables of tokenizers are not what these tests are about.
  mkdirSync(tokenizerCache, { recursive: true });
  symlinkSync(tokenizerCache, join(folder, "cache"));
  started = [];
});

afterEach(async () => {
  for (const command of started) {
    command.kill("SIGKILL");
    await command.ended();
  }
  rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
});

function up(...words: readonly string[]): RunningCommand {
  const state = ["--state", folder, "--ports-base", "all-free"];
  const command = startKvmesh(["up", ...state, ...words]);
  started.push(command);
  return command;
}

function demo(...words: readonly string[]): RunningCommand {
  return up("--demo", "--workers", "2", "--policies", "none", ...words);
}

function runOf(): MeshRun {
  const state = new StateFolder(folder).readRun();
  if (state.kind !== "running") throw new Error(`run.json is ${state.kind}`);
  return state.run;
}

async function chat(url: string, model = "qwen3-demo"): Promise<{ status: number; text: string }> {
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model,
      stream: true,
      max_tokens: 4,
      messages: [{ role: "user", content: "Hello!" }],
    }),
  });
  return { status: response.status, text: await response.text() };
}

describe("kvmesh up --demo", () => {
  test("serves, restarts what dies, and leaves nothing behind after Ctrl-C", async () => {
    const command = demo();
    await command.prints("serving until Ctrl-C");
    expect(command.stderr()).toMatch(/ready after \d+\.\d s: 2 routers, 2 workers, Envoy/);
    expect(command.stderr()).toMatch(/first token after \d+\.\d s/);
    const run = runOf();
    expect(run.processes.map((one) => one.name).toSorted()).toEqual([
      "console",
      "engine-0",
      "engine-1",
      "envoy",
      "router-0",
      "router-1",
      "worker-0",
      "worker-1",
    ]);
    expect(statSync(join(folder, "mesh.keys")).mode & 0o777).toBe(0o600);
    const answer = await chat(run.urls.openai);
    expect(answer.status).toBe(200);
    expect(answer.text).toContain("data: [DONE]");

    const router = run.processes.find((one) => one.name === "router-0");
    process.kill(router?.pid ?? 0, "SIGKILL");
    await command.prints("router-0 died (signal SIGKILL); restart 1 in 100 ms");
    await command.prints("router-0 runs again, pid");
    const again = await eventually("run.json names the new process", () => {
      const now = runOf().processes.find((one) => one.name === "router-0");
      return now?.pid !== router?.pid && now;
    });
    expect(isAlive(again.pid)).toBe(true);
    expect(again.ports).toEqual(router?.ports);

    const doctor = await kvmesh(["doctor", "--state", folder]);
    expect(doctor.stdout).toMatch(
      /note {5}restarts .*router-0 died once and was started again, last \d+ s ago \(signal SIGKILL\)/,
    );

    const second = await kvmesh(["up", "--demo", "--state", folder, "--ports-base", "all-free"]);
    expect(second.code).toBe(1);
    expect(second.stderr).toContain(`a mesh runs already (pid ${run.supervisorPid}`);

    const { processes } = runOf();
    const from = performance.now();
    // As npm does: the signal of the terminal, and the same again from the parent.
    command.kill("SIGINT");
    command.kill("SIGINT");
    expect(await command.ended()).toBe(0);
    expect(performance.now() - from).toBeLessThan(5_500);
    expect(processes.filter((one) => isAlive(one.pid)).map((one) => one.name)).toEqual([]);
    expect(new StateFolder(folder).readRun().kind).toBe("none");
  });

  test("everything ends when the supervisor is killed, and commands say that the mesh died", async () => {
    const command = demo("--routers", "1");
    await command.prints("serving until Ctrl-C");
    const run = runOf();
    process.kill(run.supervisorPid, "SIGKILL");
    await command.ended();
    await eventually(
      "all processes are gone",
      () => run.processes.every((one) => !isAlive(one.pid)),
      30_000,
    );
    const workers = await kvmesh(["workers", "--state", folder]);
    expect(workers.code).toBe(1);
    expect(workers.stderr).toContain(`died (pid ${run.supervisorPid} is gone)`);
    const doctor = await kvmesh(["doctor", "--state", folder]);
    expect(doctor.code).toBe(1);
    expect(doctor.stdout).toContain("PROBLEM  mesh");
  });

  test("stops with the end of the log when a process dies too often", async () => {
    const command = demo("--routers", "1");
    await command.prints("serving until Ctrl-C");
    let deaths = 0;
    while (deaths < 5) {
      const pid = runOf().processes.find((one) => one.name === "worker-0")?.pid ?? 0;
      process.kill(pid, "SIGKILL");
      deaths++;
      if (deaths < 5) await command.prints(`restart ${deaths} in`);
      await eventually(
        "the worker is started again or the mesh ends",
        () => {
          const state = new StateFolder(folder).readRun();
          if (state.kind !== "running") return true;
          const now = state.run.processes.find((one) => one.name === "worker-0");
          return deaths >= 5 || (now !== undefined && now.pid !== pid);
        },
        15_000,
      );
    }
    expect(await command.ended()).toBe(1);
    expect(command.stderr()).toMatch(
      /worker-0 died 5 times within a minute \(last: signal SIGKILL\); its last lines:/,
    );
    expect(command.stderr()).toContain("worker_ready");
  });

  test("a second Ctrl-C kills at once", async () => {
    const command = demo("--routers", "1");
    await command.prints("serving until Ctrl-C");
    const { processes } = runOf();
    command.kill("SIGINT");
    // Two signals closer together than this are one: npm repeats the terminal's.
    await new Promise((resolve) => setTimeout(resolve, 700));
    const from = performance.now();
    command.kill("SIGINT");
    expect(await command.ended()).toBe(130);
    expect(performance.now() - from).toBeLessThan(1_500);
    expect(processes.filter((one) => isAlive(one.pid)).map((one) => one.name)).toEqual([]);
  });

  test("Ctrl-C during the start ends with 130 and nothing behind", async () => {
    const command = demo();
    await eventually(
      "something was started",
      () => statSync(join(folder, "logs", "router-0.log")).isFile(),
      20_000,
    );
    command.kill("SIGINT");
    expect(await command.ended()).toBe(130);
    expect(command.stdout()).toBe("");
  });

  test("a comparison with --once --json prints one line on stdout and ends with 0", async () => {
    const words = ["--once", "--json", "--duration", "3", "--policies", "round-robin,kv"];
    const command = up("--demo", "--workers", "2", "--rate", "3", ...words);
    expect(await command.ended()).toBe(0);
    const lines = command.stdout().trimEnd().split("\n");
    expect(lines).toHaveLength(1);
    const result = JSON.parse(lines[0] ?? "") as {
      readonly requests: number;
      readonly policies: Readonly<Record<string, { readonly workers: Record<string, number> }>>;
    };
    expect(result).toMatchObject({ schema: 1, workload: "agentic", errors: 0 });
    expect(Object.keys(result.policies)).toEqual(["round-robin", "kv"]);
    // Warm-up is in the sum of all requests, and not in what the workers served of each policy.
    const served = Object.values(result.policies).map((policy) =>
      Object.values(policy.workers).reduce((sum, count) => sum + count, 0),
    );
    const measured = /^requests +(\d+) +(\d+)$/m.exec(command.stderr())?.slice(1).map(Number);
    expect(served).toEqual(measured);
    expect(served.every((count) => count > 0)).toBe(true);
    expect(served.reduce((sum, count) => sum + count, 0)).toBeLessThan(result.requests);
    expect(Object.keys(result.policies["kv"]?.workers ?? {}).toSorted()).toEqual(["w0", "w1"]);
    expect(command.stderr()).toContain("token hit ratio");
  });
});

describe("kvmesh up", () => {
  test("names every port that is taken, who has it and what to change, before anything starts", async () => {
    const server = createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const address = server.address();
    const port = typeof address === "object" && address !== null ? address.port : 0;
    const words = ["--set", `ports.envoyPublic=${port}`, "--set", `ports.routerHttp=${port}`];
    const { code, stderr } = await kvmesh(["up", "--demo", "--state", folder, ...words]);
    server.close();
    expect(code).toBe(1);
    expect(stderr).toContain(`port ${port} for`);
    expect(stderr).toContain(`is in use by`);
    expect(stderr).toContain(`pid ${process.pid}`);
    expect(stderr).toMatch(/change mesh\.ports\.(envoyPublic|routerHttp)/);
    expect(stderr).toContain("is wanted twice");
    expect(new StateFolder(folder).readRun().kind).toBe("none");
  });

  test("lists all problems of the settings with file and line, and ends with 2", async () => {
    const file = join(folder, "kvmesh.yaml");
    writeFileSync(
      file,
      "mesh:\n  routers: 99\n  workers:\n    - id: 'a b'\n      engine: ftp://x\nenvoi: {}\n",
    );
    const { code, stderr } = await kvmesh(["up", "--config", file, "--state", folder]);
    expect(code).toBe(2);
    expect(stderr).toContain(`${file}:2: mesh.routers: must be at most 8, got 99`);
    expect(stderr).toContain("mesh.workers.0.id");
    expect(stderr).toContain("mesh.workers.0.engine");
    expect(stderr).toContain('unknown key "envoi"');
  });

  test("starts while an engine of somebody else is down, names it, and serves once it is there", async () => {
    const [port = 0] = await freePorts("127.0.0.1", 1, Math.random);
    const file = join(folder, "kvmesh.yaml");
    writeFileSync(
      file,
      `mesh: { routers: 1, console: false, workers: [{ id: late, engine: "http://127.0.0.1:${port}" }] }\n`,
    );
    const command = up("--config", file);
    await command.prints("waiting until Ctrl-C");
    expect(command.stderr()).toContain(
      `NOT serving yet: engine of late at http://127.0.0.1:${port}: connection refused; waiting`,
    );
    expect(command.stderr()).not.toContain("ready after");
    expect(command.stdout()).not.toContain("serving until");
    const ports = [
      "--set",
      `port=${port}`,
      "--set",
      "events.port=0",
      "--set",
      "events.replayPort=0",
      "--set",
      `cacheFolder=${tokenizerCache}`,
    ];
    const engine = startKvmesh(["engine", ...ports]);
    started.push(engine);
    await engine.prints('"event":"engine_ready"');
    await command.prints("serving until Ctrl-C");
    // It says that the routers serve before Envoy does.
    await command.prints("ready after");
    expect(command.stderr()).toMatch(/ready after .* 1 workers/);
    const { urls } = runOf();
    await eventually(
      "the late engine is served",
      async () => (await chat(urls.openai)).status === 200,
      40_000,
    );
    command.kill("SIGTERM");
    expect(await command.ended()).toBe(0);
    engine.kill("SIGTERM");
    await engine.ended();
  });

  test("puts routers, workers and Envoy beside engines that somebody else runs", async () => {
    const ports = ["--set", "port=0", "--set", "events.port=0", "--set", "events.replayPort=0"];
    const engine = startKvmesh([
      "engine",
      ...ports,
      "--set",
      "model=their-model",
      "--set",
      "speedup=20",
      "--set",
      `cacheFolder=${tokenizerCache}`,
    ]);
    started.push(engine);
    await engine.prints('"event":"engine_ready"');
    const line =
      engine
        .stdout()
        .split("\n")
        .find((one) => one.includes("engine_ready")) ?? "{}";
    const bound = (JSON.parse(line) as { ports: { http: number; events: number; replay: number } })
      .ports;
    const file = join(folder, "kvmesh.yaml");
    writeFileSync(
      file,
      `mesh:
  routers: 1
  console: false
  workers:
    - id: theirs
      engine: http://127.0.0.1:${bound.http}
      kvEvents: tcp://127.0.0.1:${bound.events}
      kvReplay: tcp://127.0.0.1:${bound.replay}
`,
    );
    const command = up("--config", file);
    await command.prints("serving until Ctrl-C");
    const run = runOf();
    expect(run.model).toBe("their-model");
    expect((await chat(run.urls.openai, "their-model")).status).toBe(200);
    const workers = await kvmesh(["workers", "--json", "--state", folder]);
    expect(JSON.parse(workers.stdout)).toMatchObject({
      pools: [{ workers: [{ workerId: "theirs", state: "ready" }] }],
    });
    command.kill("SIGTERM");
    expect(await command.ended()).toBe(0);
    // The engine is not ours to end.
    expect(isAlive(engine.pid)).toBe(true);
    engine.kill("SIGTERM");
    expect(await engine.ended()).toBe(0);
  });
});
