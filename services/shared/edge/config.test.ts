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
  steps: z.union([z.enum(["h100", "a100"]), z.strictObject({ c0: z.number().min(0) })]).optional(),
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
      'kvmesh.yaml:7: planer: unknown key "planer"; known: mesh, router, worker, relay, engine, console, envoy, cli',
      "kvmesh.yaml:2: router.port: must be at most 65535, got 70000",
      'kvmesh.yaml:5: router.policy: must be one of "kv", "round-robin", got "best"',
      "kvmesh.yaml:4: router.queue.depthMax: must be more than 0, got 0",
      'kvmesh.yaml:6: router.colour: unknown key "colour"; known: port, policy, peers, queue, steps, got "red"',
    ]);
  });

  test("says where a value came from when it is not the file", () => {
    expect(problemsOf({ env: { KVMESH_ROUTER__PORT: "x" }, sets: ["queue.depthMax=-1"] })).toEqual([
      expect.stringMatching(/^environment: router\.port: /),
      "flag: router.queue.depthMax: must be more than 0, got -1",
    ]);
  });

  test("reports an unknown key of a nested map at its own line, the likeliest known one first", () => {
    expect(problemsOf({ yaml: "router:\n  queue:\n    depthMax: 4\n    dephtMax: 4\n" })).toEqual([
      'kvmesh.yaml:4: router.queue.dephtMax: unknown key "dephtMax"; did you mean "depthMax"? known: depthMax, got 4',
    ]);
    expect(problemsOf({ yaml: "router:\n  peer: []\n" })).toEqual([
      'kvmesh.yaml:2: router.peer: unknown key "peer"; did you mean "peers"? known: peers, port, policy, queue, steps, got []',
    ]);
    expect(problemsOf({ yaml: "rooter: {}\n" })).toEqual([
      expect.stringContaining(
        'kvmesh.yaml:1: rooter: unknown key "rooter"; did you mean "router"?',
      ),
    ]);
  });

  test("gives each of several unknown keys its own line", () => {
    expect(
      problemsOf({ yaml: "router:\n  one: 1\n  port: 1\n  two: { three: 3 }\n" }).map(
        (problem) => problem.split(": unknown")[0],
      ),
    ).toEqual(["kvmesh.yaml:2: router.one", "kvmesh.yaml:4: router.two"]);
  });

  test("names where an unknown key came from when it is not the file", () => {
    const yaml = "router:\n  queue: {}\n";
    expect(
      problemsOf({ yaml, env: { KVMESH_ROUTER__QEUE__DEPTH: "3" }, sets: ["queue.deep=1"] }),
    ).toEqual([
      expect.stringMatching(/^flag: router\.queue\.deep: unknown key "deep"/),
      expect.stringMatching(/^environment: router\.qeue: .*did you mean "queue"\?/),
    ]);
  });

  test("says for a wrong type what is accepted", () => {
    expect(
      problemsOf({
        yaml: "router:\n  port: many\n  peers: a\n  queue: 3\n  policy: 1\n",
      }),
    ).toEqual([
      'kvmesh.yaml:2: router.port: must be a whole number, at least 0 and at most 65535, got "many"',
      'kvmesh.yaml:5: router.policy: must be one of "kv", "round-robin", got 1',
      'kvmesh.yaml:3: router.peers: must be a list, got "a"',
      "kvmesh.yaml:4: router.queue: must be a map with the keys depthMax, got 3",
    ]);
    expect(problemsOf({ yaml: "router:\n  port: 1.5\n" })).toEqual([
      "kvmesh.yaml:2: router.port: must be a whole number, at least 0 and at most 65535, got 1.5",
    ]);
    expect(problemsOf({ yaml: "router:\n  queue: { depthMax: x }\n" })).toEqual([
      'kvmesh.yaml:2: router.queue.depthMax: must be a whole number, more than 0, got "x"',
    ]);
  });

  test("names every choice of a value that may be a name or a map, and looks into the map", () => {
    expect(problemsOf({ yaml: "router:\n  steps: abacus\n" })).toEqual([
      'kvmesh.yaml:2: router.steps: must be one of "h100", "a100", or a map with the keys c0, got "abacus"',
    ]);
    expect(problemsOf({ yaml: "router:\n  steps:\n    c0: -1\n    c1: 2\n" })).toEqual([
      "kvmesh.yaml:3: router.steps.c0: must be at least 0, got -1",
      'kvmesh.yaml:4: router.steps.c1: unknown key "c1"; did you mean "c0"? known: c0, got 2',
    ]);
  });

  test("cuts a long value", () => {
    const [problem = ""] = problemsOf({ yaml: `router:\n  port: ${"x".repeat(5_000)}\n` });
    expect(problem.length).toBeLessThan(300);
    expect(problem).toMatch(/x…$/);
  });

  test("reports a section that is no map", () => {
    expect(problemsOf({ yaml: "router: 3\n" })).toEqual([
      "kvmesh.yaml:1: router: must be a map, got 3",
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
