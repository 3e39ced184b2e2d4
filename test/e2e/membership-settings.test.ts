import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { PlannedService } from "../../services/cli/core/mesh-plan.ts";
import { entryPoints, packageRoot, serviceNode } from "../../services/cli/edge/up/mesh.ts";

let folder: string;
let file: string;

// Every section wrong in several ways, on known lines.
const text = `router:
  hotPort: 70000
  blockSizeTokens: 0
  policy: fastest
  peers:
    - 127.0.0.1:9013
    - nowhere
  workers:
    graceMs: 5s
  qeue: 1
worker:
  workerId: "no blanks"
  httpPort: -1
  engine:
    url: ftp://127.0.0.1
    kind: tgi
  scrapeIntervalMs: 1
engine:
  port: many
  speedup: 0
  stepModel: abacus
  events:
    format: list
  colour: red
console:
  httpPort: 1.5
  otlp:
    allowedCidrs: []
    messageBytesMax: 1
  stoer: {}
consle: {}
relay:
  h2Port: -1
  engines:
    allowedCidrs: [everywhere]
  deadlnes: {}
`;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-settings-"));
  file = join(folder, "kvmesh.yaml");
  writeFileSync(file, text);
});

afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

/** Runs a service with the broken file to its end. */
async function run(
  service: PlannedService,
  words: readonly string[] = [],
  env: Readonly<Record<string, string>> = {},
): Promise<{ code: number | null; out: string; problems: string[] }> {
  const [main, ...own] = entryPoints[service];
  const child = spawn(serviceNode, [join(packageRoot, main), ...own, "--config", file, ...words], {
    cwd: folder,
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let out = "";
  let err = "";
  child.stdout.on("data", (bytes: Buffer) => {
    out += bytes.toString();
  });
  child.stderr.on("data", (bytes: Buffer) => {
    err += bytes.toString();
  });
  const code = await new Promise<number | null>((resolve) => child.once("close", resolve));
  return { code, out, problems: err.split("\n").filter((line) => line !== "") };
}

/** For each service: line path, and what its message must hold, in any order; no other problem may be printed. */
const expected: Readonly<
  Record<PlannedService, readonly (readonly [number, string, ...string[]])[]>
> = {
  router: [
    [2, "router.hotPort", "65535", "70000"],
    [3, "router.blockSizeTokens", "1", "0"],
    [4, "router.policy", "kv", "round-robin", "fastest"],
    [7, "router.peers.1", "ip:port", "nowhere"],
    [9, "router.workers.graceMs", "a whole number, at least", "5s"],
    [10, "router.qeue", 'unknown key "qeue"', "known: ", "hotPort", "got 1"],
  ],
  relay: [
    [33, "relay.h2Port", "at least 0", "-1"],
    [35, "relay.engines.allowedCidrs.0", "10.0.0.0/8", "everywhere"],
    [36, "relay.deadlnes", 'unknown key "deadlnes"; did you mean "deadlines"?'],
  ],
  worker: [
    [12, "worker.workerId", "[A-Za-z0-9._:-]", "no blanks"],
    [13, "worker.httpPort", "0", "-1"],
    [15, "worker.engine.url", "ftp://127.0.0.1"],
    [16, "worker.engine.kind", "vllm", "tgi"],
    [17, "worker.scrapeIntervalMs", "50", "1"],
  ],
  engine: [
    [19, "engine.port", "a whole number, at least 0 and at most 65535", "many"],
    [20, "engine.speedup", "0"],
    [21, "engine.stepModel", "h100_sxm/llama-3.1-8b/tp1", "a map with the keys c0", "abacus"],
    [23, "engine.events.format", "map", "array", "list"],
    [24, "engine.colour", 'unknown key "colour"', "known: ", "kvTokens"],
  ],
  console: [
    [26, "console.httpPort", "a whole number", "1.5"],
    [28, "console.otlp.allowedCidrs", "1"],
    [29, "console.otlp.messageBytesMax", "65536", "1"],
    [30, "console.stoer", 'unknown key "stoer"; did you mean "store"? known: store, '],
  ],
};

for (const service of ["router", "relay", "worker", "engine", "console"] as const) {
  test(`${service}: all problems at once with file, line, path and range, exit 2, nothing listens`, async () => {
    const { code, out, problems } = await run(service);
    expect(code).toBe(2);
    // Nothing was announced: the process ended before it opened anything.
    expect(out).toBe("");
    for (const [line, path, ...parts] of expected[service]) {
      const found = problems.filter((problem) => problem.startsWith(`${file}:${line}: `));
      expect(found, problems.join("\n")).toHaveLength(1);
      for (const part of [path, ...parts]) expect(found[0]).toContain(part);
    }
    const unknown = problems.filter((problem) => problem.startsWith(`${file}:31: `));
    expect(unknown.join("\n")).toContain('unknown key "consle"; did you mean "console"?');
    expect(problems, problems.join("\n")).toHaveLength(expected[service].length + 1);
  });
}

test("problems of the environment and of flags name where they come from", async () => {
  const { code, problems } = await run("router", ["--set", "drainMsMax=-5"], {
    KVMESH_ROUTER__LIMITS__BLOCKS_MAX: "12",
  });
  expect(code).toBe(2);
  expect(problems.join("\n")).toMatch(/^flag: router\.drainMsMax: .*0.*-5/m);
  expect(problems.join("\n")).toMatch(/^environment: router\.limits\.blocksMax: .*1024.*12/m);
});

test("a file that is no YAML, and one that is not there, are named with exit 2", async () => {
  const broken = join(folder, "broken.yaml");
  writeFileSync(broken, "router:\n  hotPort: [1,\n");
  const first = await run("router", ["--config", broken]);
  expect(first.code).toBe(2);
  expect(first.problems.join("\n")).toContain(`${broken}:`);
  const missing = join(folder, "missing.yaml");
  const second = await run("worker", ["--config", missing]);
  expect(second.code).toBe(2);
  expect(second.problems.join("\n")).toContain(missing);
});
