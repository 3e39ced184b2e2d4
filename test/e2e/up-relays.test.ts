import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { RouterClient } from "../../services/cli/edge/router-client.ts";
import { isAlive } from "../../services/cli/edge/up/launcher.ts";
import { StateFolder, type MeshRun } from "../../services/cli/edge/up/state-folder.ts";
import { kvmesh, startKvmesh, type RunningCommand } from "../support/kvmesh-command.ts";
import { eventually } from "../support/mesh.ts";
import { tokenizerCache } from "../support/test-cache.ts";

let folder: string;
let command: RunningCommand | undefined;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-relays-"));
  mkdirSync(tokenizerCache, { recursive: true });
  symlinkSync(tokenizerCache, join(folder, "cache"));
});

afterEach(async () => {
  command?.kill("SIGKILL");
  await command?.ended();
  rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 100 });
});

function runOf(): MeshRun {
  const state = new StateFolder(folder).readRun();
  if (state.kind !== "running") throw new Error(`run.json is ${state.kind}`);
  return state.run;
}

/** The pair that a decision was placed on; undefined when it runs whole. */
async function pairOf(decision: string): Promise<{ prefill: string; decode: string } | undefined> {
  const { stdout } = await kvmesh(["explain", decision, "--state", folder, "--json"]);
  const { pair } = (JSON.parse(stdout) as { decision: DecisionJson }).decision;
  const [first] = pair?.candidates ?? [];
  if (pair?.form !== "pair" || first === undefined) return undefined;
  return { prefill: first.prefillWorkerId, decode: first.decodeWorkerId };
}

interface DecisionJson {
  readonly pair?: {
    readonly form: string;
    readonly candidates: readonly {
      readonly prefillWorkerId: string;
      readonly decodeWorkerId: string;
    }[];
  };
}

interface GeneratedJson {
  readonly decisionId: string;
  readonly finishReason: string;
  readonly text: string;
  readonly usage: { readonly completionTokens: number };
}

test("a mesh with a relay places pairs, streams them over HTTP and gRPC, and leaves nothing behind after Ctrl-C", async () => {
  const place = ["--state", folder, "--ports-base", "all-free"];
  const up = startKvmesh([
    ...["up", "--demo", "disagg", "--policies", "none", "--routers", "1"],
    ...place,
  ]);
  command = up;
  await up.prints("serving until Ctrl-C");
  expect(up.stderr()).toMatch(/ready after \d+\.\d s: 1 routers, 1 relays, 4 workers, Envoy/);
  expect(up.stdout()).toContain("npx kvmesh generate");
  const run = runOf();
  const [relay] = run.relays;
  const processes = run.processes.map((one) => one.name);
  expect(processes).toContain("relay-0");

  const router = new RouterClient(run.routers.map(({ control }) => control));
  await router.setPolicy("kv", { placeOnArrival: false, disaggregation: "always" });
  router.close();

  // Over HTTP through Envoy, which the router sends to the relay.
  const response = await fetch(`${run.urls.trusted}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model: run.model,
      stream: true,
      max_tokens: 12,
      messages: [{ role: "user", content: "Say what a relay does. ".repeat(40) }],
    }),
  });
  const answer = await response.text();
  expect(response.status).toBe(200);
  expect(answer).toContain("data: [DONE]");
  expect(response.headers.get("x-gateway-destination-endpoint-served")).toBe(relay?.h2);
  const decision = response.headers.get("x-kvmesh-decision") ?? "";
  const pair = await pairOf(decision);
  expect(pair).toBeDefined();
  expect(pair?.prefill).not.toBe(pair?.decode);

  // Over gRPC, to the relay and through Envoy: text as it comes, then what it took.
  const prompt = "Once upon a time there was a relay between two engines. ".repeat(20);
  const words = ["--max-tokens", "16", "--seed", "7"];
  const direct = await kvmesh(["generate", prompt, ...words, "--state", folder]);
  expect(direct.code).toBe(0);
  expect(direct.stdout.trim().length).toBeGreaterThan(10);
  expect(direct.stderr).toContain("16 out, ended by length");
  const envoy = new URL(run.urls.trusted).host;
  const through = await kvmesh([
    ...["generate", prompt, ...words, "--json"],
    ...["--relay", envoy, "--model", run.model],
  ]);
  expect(through.code).toBe(0);
  const generated = JSON.parse(through.stdout) as GeneratedJson;
  expect(generated).toMatchObject({ finishReason: "length", usage: { completionTokens: 16 } });
  expect(generated.text.trim()).toBe(direct.stdout.trim());
  expect(await pairOf(generated.decisionId)).toBeDefined();

  // The whole way is in one trace, and its parts make up the time to the first token.
  const trace = await eventually(
    "the trace is complete",
    async () => {
      const shown = await kvmesh(["trace", decision, "--state", folder]);
      return shown.stdout.includes("complete: yes") && shown.stdout;
    },
    20_000,
  );
  expect(trace).toContain(`worker ${pair?.prefill ?? ""} → ${pair?.decode ?? ""} through`);
  expect(trace).toMatch(/kvmesh\.kv\.transfer +\S+ → \S+, [\d,]+ bytes/);
  const ms = (label: string): number => {
    const [, value = "NaN", unit] = new RegExp(`${label} +(-?[\\d.]+) (ms|s)`).exec(trace) ?? [];
    return Number(value) * (unit === "s" ? 1_000 : 1);
  };
  const observed = ms("observed at Envoy");
  expect(Math.abs(ms("sum") - observed)).toBeLessThanOrEqual(Math.max(1, observed * 0.05));

  const workers = await kvmesh(["workers", "--state", folder]);
  expect(workers.stdout).toMatch(/relay-0 .*attached/);
  const doctor = await kvmesh(["doctor", "--state", folder]);
  expect(doctor.stdout).toContain("relay-0 is attached to 1 of 1 routers");
  expect(doctor.stdout).toContain("cluster relays: 1 of 1 endpoints healthy");
  expect(doctor.code).toBe(0);

  const from = performance.now();
  up.kill("SIGINT");
  expect(await up.ended()).toBe(0);
  expect(performance.now() - from).toBeLessThan(5_500);
  await eventually("every process is gone", () => run.processes.every(({ pid }) => !isAlive(pid)));
  expect(new StateFolder(folder).readRun().kind).toBe("none");
}, 90_000);
