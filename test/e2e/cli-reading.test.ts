import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { StateFolder, type MeshRun } from "../../services/cli/edge/up/state-folder.ts";
import { kvmesh, startKvmesh, type RunningCommand } from "../support/kvmesh-command.ts";
import { eventually } from "../support/mesh.ts";

let folder: string;
let mesh: RunningCommand;
let run: MeshRun;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-cli-"));
  const words = ["--workers", "2", "--policies", "none", "--ports-base", "all-free"];
  mesh = startKvmesh(["up", "--demo", "--state", folder, ...words]);
  await mesh.prints("serving until Ctrl-C");
  const state = new StateFolder(folder).readRun();
  if (state.kind !== "running") throw new Error(`run.json is ${state.kind}`);
  run = state.run;
});

afterAll(async () => {
  mesh.kill("SIGINT");
  await mesh.ended();
  rmSync(folder, { recursive: true, force: true });
});

/** Sends one chat through Envoy and resolves to its request id. */
async function request(id: string): Promise<void> {
  const response = await fetch(`${run.urls.trusted}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-request-id": id },
    body: JSON.stringify({
      model: run.model,
      stream: true,
      max_tokens: 4,
      messages: [{ role: "user", content: "Tell me about the sea. ".repeat(60) }],
    }),
  });
  expect(response.status).toBe(200);
  await response.text();
}

/** Runs a command until it succeeds and its output has what is awaited. */
async function until(words: readonly string[], has: (stdout: string) => boolean): Promise<string> {
  return eventually(
    `kvmesh ${words.join(" ")}`,
    async () => {
      const { code, stdout } = await kvmesh([...words, "--state", folder]);
      return code === 0 && has(stdout) && stdout;
    },
    20_000,
  );
}

interface ExplainJson {
  readonly decision: {
    readonly id: string;
    readonly requestId: string;
    readonly workerId: string;
    readonly candidates: readonly {
      readonly workerId: string;
      readonly costMs: number;
      readonly terms: readonly { readonly name: string; readonly ms: number }[];
    }[];
    readonly observed: { readonly status: number; readonly ttftMs: number } | null;
  };
  readonly whatIf: { readonly workerId: string } | null;
}

describe("reading commands", () => {
  test("explain prints the last decision, by request id and by decision id alike", async () => {
    const id = "8f14e45f-ceea-467f-a0b3-111111111111";
    await request(id);
    const json = await until(
      ["explain", id, "--json"],
      (text) => !text.includes('"observed":null'),
    );
    const { decision } = JSON.parse(json) as ExplainJson;
    expect(decision.requestId).toBe(id);
    expect(decision.candidates.map((one) => one.workerId).toSorted()).toEqual(["w0", "w1"]);
    for (const one of decision.candidates) {
      const sum = one.terms.reduce((total, term) => total + term.ms, 0);
      expect(one.costMs).toBeCloseTo(sum, 3);
      expect(one.terms.length).toBeGreaterThan(2);
    }
    expect(decision.observed?.status).toBe(200);
    expect(decision.observed?.ttftMs).toBeGreaterThan(0);

    const byId = await kvmesh(["explain", decision.id, "--state", folder]);
    expect(byId.code).toBe(0);
    for (const word of ["w0", "w1", "queue", "prefill", "predicted", "observed", decision.id]) {
      expect(byId.stdout).toContain(word);
    }
    const last = await kvmesh(["explain", "last", "--json", "--state", folder]);
    expect((JSON.parse(last.stdout) as ExplainJson).decision.id).toBe(decision.id);
  });

  test("explain --what-if ranks with other weights and knows its terms", async () => {
    const answer = await kvmesh([
      "explain",
      "last",
      "--what-if",
      "prefill=0",
      "--json",
      "--state",
      folder,
    ]);
    expect(answer.code).toBe(0);
    expect((JSON.parse(answer.stdout) as ExplainJson).whatIf?.workerId).toMatch(/^w[01]$/);
    const wrong = await kvmesh(["explain", "last", "--what-if", "prefil=0", "--state", folder]);
    expect(wrong.code).toBe(2);
    expect(wrong.stderr).toContain("Did you mean 'prefill'?");
    const malformed = await kvmesh(["explain", "last", "--what-if", "prefill", "--state", folder]);
    expect(malformed.code).toBe(2);
  });

  test("explain of an unknown id fails with 1 and says so", async () => {
    const { code, stderr, stdout } = await kvmesh([
      "explain",
      "no-such-request",
      "--state",
      folder,
    ]);
    expect(code).toBe(1);
    expect(stderr).toContain("no-such-request");
    expect(stdout).toBe("");
  });

  test("workers prints both workers and both routers, from any router", async () => {
    const { code, stdout } = await kvmesh(["workers", "--state", folder]);
    expect(code).toBe(0);
    for (const word of ["w0", "w1", "ready", "router-0", "router-1", "serving", run.model]) {
      expect(stdout).toContain(word);
    }
    const second = await kvmesh(["workers", "--json", "--router", run.routers[1]?.control ?? ""]);
    expect(JSON.parse(second.stdout)).toMatchObject({ schema: 1, routerInstance: "router-1" });
  });

  test("top shows one screen with --once, and streams topologies and decisions with --json", async () => {
    const { code, stdout } = await kvmesh(["top", "--once", "--state", folder]);
    expect(code).toBe(0);
    expect(stdout).toContain("decisions/s");
    expect(stdout).toContain("w1");
    const live = startKvmesh(["top", "--json", "--state", folder]);
    await live.prints('"topology"');
    // The stream of the router that decides may begin after the first decision.
    await eventually(
      "a decision is streamed",
      async () => {
        await request("8f14e45f-ceea-467f-a0b3-222222222222");
        return live.stdout().includes("8f14e45f-ceea-467f-a0b3-222222222222");
      },
      20_000,
    );
    for (const line of live.stdout().trimEnd().split("\n")) JSON.parse(line);
    live.kill("SIGINT");
    expect(await live.ended()).toBe(0);
  });

  test("trace prints the spans of a request", async () => {
    const id = "8f14e45f-ceea-467f-a0b3-333333333333";
    await request(id);
    const text = await until(["trace", id], (out) => out.includes("kvmesh.serve"));
    expect(text).toContain("kvmesh.route");
    const json = await kvmesh(["trace", id, "--json", "--state", folder]);
    expect(() => void JSON.parse(json.stdout)).not.toThrow();
  });

  test("doctor finds a healthy mesh healthy", async () => {
    const json = await until(["doctor", "--json"], (text) => text.includes('"healthy":true'));
    const { findings } = JSON.parse(json) as { findings: { subject: string; text: string }[] };
    for (const subject of [
      "node",
      "envoy",
      "mesh",
      "keys",
      "discovery",
      "router",
      "worker",
      "engine",
    ]) {
      expect(findings.map((one) => one.subject)).toContain(subject);
    }
  });

  test("doctor says which keys file others can read, and exits with 1", async () => {
    const { chmodSync } = await import("node:fs");
    chmodSync(run.keysFile, 0o644);
    const { code, stdout } = await kvmesh(["doctor", "--state", folder]);
    chmodSync(run.keysFile, 0o600);
    expect(code).toBe(1);
    expect(stdout).toContain(`chmod 600 ${run.keysFile}`);
  });

  test("a frozen worker is found by doctor", async () => {
    const worker = run.processes.find((one) => one.name === "worker-0");
    process.kill(worker?.pid ?? 0, "SIGSTOP");
    try {
      const { stdout } = await eventually(
        "doctor finds it",
        async () => {
          const answer = await kvmesh(["doctor", "--state", folder]);
          return answer.code === 1 && /PROBLEM .*w0/.test(answer.stdout) && answer;
        },
        20_000,
      );
      expect(stdout).toMatch(/PROBLEM {2}health {5}worker w0/);
    } finally {
      process.kill(worker?.pid ?? 0, "SIGCONT");
    }
  });
});

test("usage errors end with 2 and suggest what was meant", async () => {
  const command = await kvmesh(["explian", "last"]);
  expect(command.code).toBe(2);
  expect(command.stderr).toContain("Did you mean explain?");
  const option = await kvmesh(["up", "--polices", "kv"]);
  expect(option.code).toBe(2);
  expect(option.stderr).toContain("Did you mean --policies?");
  const policy = await kvmesh(["up", "--demo", "--policies", "kvblind"]);
  expect(policy.code).toBe(2);
  expect(policy.stderr).toContain("Did you mean 'kv-blind'?");
  const address = await kvmesh(["explain", "last", "--router", "notahostport"]);
  expect(address.code).toBe(2);
  expect(address.stderr).toContain("must be host:port");
  const model = await kvmesh(["envoy", "print", "--model", ""]);
  expect(model).toMatchObject({ code: 2, stdout: "" });
  const once = await kvmesh(["up", "--once"]);
  expect(once.code).toBe(2);
  expect(once.stderr).toContain("--once needs --demo");
  const port = await kvmesh(["router", "--port", "3"]);
  expect(port.code).toBe(2);
  expect(port.stderr).toContain("--set port=value");
});

test("envoy print writes configuration to stdout", async () => {
  const { code, stdout } = await kvmesh(["envoy", "print", "--full"]);
  expect(code).toBe(0);
  expect(stdout).toContain("envoy.filters.http.ext_proc");
});

test("a command without a mesh says how to start one", async () => {
  const { code, stderr } = await kvmesh(["workers", "--state", join(tmpdir(), "no-such-state")]);
  expect(code).toBe(1);
  expect(stderr).toContain('start one with "npm start"');
  const gone = await kvmesh(["workers", "--router", "127.0.0.1:1"]);
  expect(gone.code).toBe(1);
  expect(gone.stderr).toContain("no router answers");
  expect(gone.stderr).not.toContain("Resolution note");
  expect(gone.stderr.trimEnd()).not.toMatch(/:$/);
});
