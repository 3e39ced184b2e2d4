import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { ConfigError } from "../../../shared/edge/config.ts";
import { planMesh } from "../../core/mesh-plan.ts";
import { layoutFrom, layOutPorts } from "../../core/mesh-ports.ts";
import { checkServiceSettings } from "./service-settings.ts";
import { StateFolder } from "./state-folder.ts";
import { readUpSettings, type UpSettings } from "./up-settings.ts";

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-settings-"));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

function read(yaml: string, sets: readonly string[] = []): UpSettings {
  const file = join(folder, "kvmesh.yaml");
  writeFileSync(file, yaml);
  return readUpSettings({ file, cwd: folder, env: {}, sets });
}

function problemsIn(yaml: string): string[] {
  try {
    read(yaml);
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.problems.map((one) => one.replace(folder, "."));
    throw error;
  }
}

describe("readUpSettings", () => {
  test("refuses two workers with one id or one engine, naming both lines", () => {
    const problems = problemsIn(`mesh:
  workers:
    - id: a
      engine: http://127.0.0.1:8000
    - id: b
      engine: http://127.0.0.1:8000/
    - { id: a, engine: "http://127.0.0.1:8001" }
`);
    expect(problems).toEqual([
      "./kvmesh.yaml:7: mesh.workers.2.id: a is taken by mesh.workers.0 (./kvmesh.yaml:3); give each worker its own".replace(
        "(./",
        `(${folder}/`,
      ),
      expect.stringMatching(
        /^\.\/kvmesh\.yaml:6: mesh\.workers\.1\.engine: .* \(.*:4\); one engine/,
      ),
    ]);
  });

  test("says of a missing setting that it is required, and lists sections together", () => {
    const problems = problemsIn("mesh:\n  workers:\n    - id: a\nenvoy:\n  concurrency: 0\n");
    expect(problems).toEqual([
      "./kvmesh.yaml:3: mesh.workers.0.engine: is required, a text",
      "./kvmesh.yaml:5: envoy.concurrency: must be at least 1, got 0",
    ]);
  });

  test("tells a policy that does not exist, and where each value came from", () => {
    expect(problemsIn("mesh: { policy: kvx }")[0]).toMatch(/mesh\.policy: must be one of .*"kv"/);
    const { effective } = read("mesh:\n  routers: 3\n", ["host=127.0.0.2"]);
    expect(effective).toContain("mesh.routers = 3  # file");
    expect(effective).toContain('mesh.host = "127.0.0.2"  # flag');
    expect(effective).toContain("envoy.concurrency = 1  # default");
    expect(effective).toContain('mesh.relays = "auto"  # default');
  });
});

async function serviceProblems(yaml: string): Promise<string[]> {
  const { mesh, sections, lines } = read(yaml);
  const state = new StateFolder(join(folder, "state"));
  const keysFile = state.prepare("");
  const counts = { routers: 1, relays: 1, engines: 0, workers: mesh.workers.length };
  const plan = planMesh({
    host: mesh.host,
    keysFile,
    blockSizeTokens: mesh.blockSizeTokens,
    policy: mesh.policy,
    defaultPool: mesh.defaultPool,
    ports: layOutPorts(layoutFrom(20_000), counts),
    console: true,
    otlpEndpoint: "",
    consoleStore: state.file("console"),
    cacheFolder: state.file("cache"),
    members: mesh.workers.map((worker) => ({
      workerId: worker.id,
      engineUrl: worker.engine,
      kvEvents: undefined,
      kvReplay: undefined,
      settings: worker.settings,
    })),
    engines: [],
    sections,
  });
  const memberSettings = mesh.workers.map((worker) => worker.settings);
  try {
    await checkServiceSettings({ plan, sections, memberSettings, lines, state });
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.problems.map((one) => one.replace(folder, "."));
    throw error;
  }
}

describe("checkServiceSettings", () => {
  test("finds what services would refuse, at its line of kvmesh.yaml", async () => {
    const problems = await serviceProblems(`router:
  polcy: kv
worker:
  logLevel: loud
mesh:
  workers:
    - id: a
      engine: http://127.0.0.1:8000
      settings:
        engine:
          modelDri: /models/x
relay:
  h2Prot: 1
`);
    expect(problems).toHaveLength(4);
    expect(problems[0]).toMatch(
      /^\.\/kvmesh\.yaml:2: router\.polcy: unknown key "polcy"; did you mean "policy"\?/,
    );
    expect(problems).toContainEqual(
      expect.stringMatching(
        /^\.\/kvmesh\.yaml:13: relay\.h2Prot: unknown key "h2Prot"; did you mean "h2Port"\?/,
      ),
    );
    expect(problems).toContainEqual(
      expect.stringMatching(/^\.\/kvmesh\.yaml:4: worker\.logLevel: must be one of/),
    );
    expect(problems).toContainEqual(
      expect.stringMatching(
        /^\.\/kvmesh\.yaml:11: mesh\.workers\.0\.settings\.engine\.modelDri: unknown key .*"modelDir"/,
      ),
    );
  }, 30_000);

  test("takes settings that are right", async () => {
    const yaml = 'mesh: { workers: [{ id: a, engine: "http://127.0.0.1:1" }] }\n';
    expect(await serviceProblems(`${yaml}router: { logLevel: warn }\n`)).toEqual([]);
  }, 30_000);
});
