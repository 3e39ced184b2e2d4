import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { z } from "zod";
import { ConfigError, resolveConfig, type LoadedConfig } from "./config.ts";

const Schema = z.strictObject({
  port: z.number().int().min(0).max(65_535).default(9002),
  policy: z.enum(["kv", "round-robin"]).default("kv"),
  peers: z.array(z.string()).default([]),
  queue: z.strictObject({ depthMax: z.number().int().positive().default(1024) }).prefault({}),
});

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-config-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

function load(options: {
  yaml?: string;
  env?: Record<string, string>;
  sets?: string[];
}): LoadedConfig<z.infer<typeof Schema>> {
  let file: string | undefined;
  if (options.yaml !== undefined) {
    file = join(folder, "kvmesh.yaml");
    writeFileSync(file, options.yaml);
  }
  return resolveConfig({
    service: "router",
    schema: Schema,
    file,
    env: options.env ?? {},
    sets: options.sets ?? [],
  });
}

function problemsOf(options: Parameters<typeof load>[0]): readonly string[] {
  try {
    load(options);
  } catch (error) {
    if (error instanceof ConfigError) return error.problems.map((p) => p.replace(`${folder}/`, ""));
    throw error;
  }
  return [];
}

describe("resolveConfig", () => {
  test("takes defaults when nothing is given", () => {
    expect(load({}).config).toEqual({
      port: 9002,
      policy: "kv",
      peers: [],
      queue: { depthMax: 1024 },
    });
  });

  test("lets file, environment and flags win in this order and remembers the source", () => {
    const loaded = load({
      yaml: "router:\n  port: 1\n  queue: { depthMax: 2 }\n  policy: round-robin\n",
      env: { KVMESH_ROUTER__QUEUE__DEPTH_MAX: "3", KVMESH_ROUTER__PEERS: "[a, b]" },
      sets: ["port=4"],
    });
    expect(loaded.config).toEqual({
      port: 4,
      policy: "round-robin",
      peers: ["a", "b"],
      queue: { depthMax: 3 },
    });
    expect(loaded.sources.get("port")).toBe("flag");
    expect(loaded.sources.get("queue.depthMax")).toBe("environment");
    expect(loaded.sources.get("policy")).toBe("file");
  });

  test("freezes what it returns", () => {
    expect(Object.isFrozen(load({}).config.queue)).toBe(true);
  });

  test("names file, line, path, range and value of every problem at once", () => {
    expect(
      problemsOf({
        yaml: "router:\n  port: 70000\n  queue:\n    depthMax: 0\n  policy: best\n  colour: red\nplaner: {}\n",
      }),
    ).toEqual([
      'kvmesh.yaml:7: unknown key "planer"; known: mesh, router, worker, engine, console, envoy, cli',
      "kvmesh.yaml:2: router.port: must be at most 65535, got 70000",
      'kvmesh.yaml:5: router.policy: must be one of "kv", "round-robin", got "best"',
      "kvmesh.yaml:4: router.queue.depthMax: must be more than 0, got 0",
      expect.stringMatching(/^kvmesh\.yaml:1: router: unknown key "colour"/),
    ]);
  });

  test("says where a value came from when it is not the file", () => {
    expect(problemsOf({ env: { KVMESH_ROUTER__PORT: "x" }, sets: ["queue.depthMax=-1"] })).toEqual([
      expect.stringMatching(/^environment: router\.port: /),
      "flag: router.queue.depthMax: must be more than 0, got -1",
    ]);
  });

  test("reports YAML that does not parse with its line", () => {
    expect(problemsOf({ yaml: "router:\n  port: [1\n" })[0]).toMatch(/^kvmesh\.yaml:\d+: /);
  });

  test("reports a file that is not there and a flag without a value", () => {
    expect(() =>
      resolveConfig({
        service: "router",
        schema: Schema,
        file: join(folder, "none.yaml"),
        env: {},
        sets: ["port"],
      }),
    ).toThrow(/none\.yaml: cannot be read[\s\S]*--set port: must be path=value/);
  });
});
