import { spawn, type ChildProcess } from "node:child_process";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { cacheEnv, tokenizerCache } from "../support/test-cache.ts";
import { prefillParams, promptOf, until, type AnswerJson, type Json } from "./engine-pair.ts";

const main = fileURLToPath(new URL("../../services/simulator/main.ts", import.meta.url));

interface EngineProcess {
  readonly child: ChildProcess;
  readonly url: string;
  readonly ports: Readonly<Record<string, number>>;
}

const running = new Set<ChildProcess>();
process.once("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});
afterEach(async () => {
  const ended = [...running].map(
    (child) =>
      new Promise((resolve) => {
        if (child.exitCode !== null || child.signalCode !== null) resolve(undefined);
        else child.once("exit", resolve);
      }),
  );
  for (const child of running) child.kill("SIGKILL");
  await Promise.all(ended);
  running.clear();
});

/** Starts one engine process and waits for the line with its ports. */
async function startProcess(settings: readonly string[]): Promise<EngineProcess> {
  const sets = [
    "port=0",
    "events.port=0",
    "events.replayPort=0",
    "model=tiny",
    "blockSizeTokens=16",
    "kvTokens=16384",
    "contextTokensMax=8192",
    `cacheFolder=${tokenizerCache}`,
    "kv.enabled=true",
    "kv.loadFailurePolicy=recompute",
    ...settings,
  ];
  const child = spawn(
    process.execPath,
    [main, "engine", ...sets.flatMap((set) => ["--set", set])],
    { stdio: ["ignore", "pipe", "inherit"], env: { ...process.env, ...cacheEnv } },
  );
  running.add(child);
  const ports = await new Promise<Record<string, number>>((resolve, reject) => {
    let text = "";
    child.once("exit", (code) => {
      reject(new Error(`the engine ended with ${String(code)}: ${text}`));
    });
    child.stdout.on("data", (bytes: Buffer) => {
      text += bytes.toString();
      for (const line of text.split("\n").slice(0, -1)) {
        const entry = JSON.parse(line) as Json & { ports: Record<string, number> };
        if (entry["event"] === "engine_ready") resolve(entry.ports);
      }
    });
  });
  return { child, ports, url: `http://127.0.0.1:${String(ports["http"])}` };
}

async function ask(
  engine: EngineProcess,
  body: Json,
): Promise<{ status: number; json: AnswerJson }> {
  const response = await fetch(`${engine.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  return { status: response.status, json: (await response.json()) as AnswerJson };
}

async function metric(engine: EngineProcess, name: string): Promise<number> {
  const text = await (await fetch(`${engine.url}/metrics`)).text();
  const line = text.split("\n").find((one) => one.startsWith(`${name} `));
  return line === undefined ? 0 : Number(line.slice(line.lastIndexOf(" ") + 1));
}

let body: Json = {
  model: "tiny",
  prompt: promptOf(1_600, 80),
  temperature: 0,
  ignore_eos: true,
  return_token_ids: true,
  max_tokens: 16,
};
/** Blocks of such a prompt. */
const blocks = 100;
const tokensOf = (json: AnswerJson): number[] => json.choices[0]!.token_ids;

const vllmLeg = (first: AnswerJson): Json => ({ kv_transfer_params: first.kv_transfer_params });
const served = "kvmesh_engine_kv_served_blocks_total";

/** Prefills on `p`, begins the decode leg on `d` and returns when bytes flow. */
async function inTransfer(
  p: EngineProcess,
  d: EngineProcess,
): Promise<{ answer: ReturnType<typeof ask> }> {
  const before = await metric(p, served);
  const first = await ask(p, { ...body, kv_transfer_params: prefillParams, max_tokens: 1 });
  const answer = ask(d, { ...body, ...vllmLeg(first.json) });
  answer.catch(() => undefined);
  await until(async () => (await metric(p, served)) > before + 3, 8_000);
  return { answer };
}

describe("two engine processes", () => {
  test("of vLLM live through a standstill, a kill of prefill and a kill of decode, each in a transfer", async () => {
    // 100 blocks of 64 KiB take 1.6 s.
    const slow = ["kv.bytesPerBlock=65536", "kv.link.bytesPerS=4000000", "kv.leaseMs=2000"];
    const [p, d, spare] = await Promise.all([
      startProcess(slow),
      startProcess(slow),
      startProcess(slow),
    ]);
    const whole = tokensOf((await ask(spare, body)).json);

    const stopped = await inTransfer(p, d);
    p.child.kill("SIGSTOP");
    await new Promise((resolve) => setTimeout(resolve, 400));
    p.child.kill("SIGCONT");
    expect(tokensOf((await stopped.answer).json)).toEqual(whole);
    expect(await metric(d, "kvmesh_engine_kv_pulled_blocks_total")).toBe(blocks);
    expect(await metric(d, "kvmesh_engine_kv_recomputed_blocks_total")).toBe(0);

    // Another prompt, or the decode engine would have it already.
    body = { ...body, prompt: promptOf(1_600, 81) };
    const other = tokensOf((await ask(spare, body)).json);
    const killed = await inTransfer(p, d);
    p.child.kill("SIGKILL");
    const answer = await killed.answer;
    expect(answer.status).toBe(200);
    expect(tokensOf(answer.json)).toEqual(other);
    const got = (await metric(d, "kvmesh_engine_kv_pulled_blocks_total")) - blocks;
    expect(got).toBeGreaterThan(0);
    expect(got).toBeLessThan(blocks);
    expect(await metric(d, "kvmesh_engine_kv_recomputed_blocks_total")).toBe(blocks - got);

    body = { ...body, prompt: promptOf(1_600, 82) };
    await inTransfer(spare, d);
    expect(await metric(spare, "kvmesh_engine_kv_handoff_blocks")).toBe(blocks);
    d.child.kill("SIGKILL");
    await until(async () => (await metric(spare, "kvmesh_engine_kv_handoff_blocks")) === 0, 6_000);
    expect(await metric(spare, served)).toBeLessThan(blocks);
  }, 60_000);

  test("of SGLang recompute what a killed prefill engine did not send", async () => {
    const slow = ["kv.bytesPerBlock=65536", "kv.link.bytesPerS=4000000", "flavour=sglang"];
    const [p, d] = await Promise.all([
      startProcess([...slow, "role=prefill"]),
      startProcess([...slow, "role=decode"]),
    ]);
    const leg = {
      ...body,
      bootstrap_host: "127.0.0.1",
      bootstrap_port: p.ports["bootstrap"],
      bootstrap_room: 12,
    };
    const prefill = ask(p, leg).catch(() => undefined);
    const decode = ask(d, leg);
    await until(async () => (await metric(p, served)) > 3, 8_000);
    p.child.kill("SIGKILL");
    await prefill;
    const answer = await decode;
    const oracle = await fetch(`${d.url}/sim/oracle`, {
      method: "POST",
      body: JSON.stringify({ tokens: body["prompt"], max_tokens: 16, ignore_eos: true }),
    });
    expect(answer.status).toBe(200);
    expect(tokensOf(answer.json)).toEqual(((await oracle.json()) as { tokens: number[] }).tokens);
  }, 60_000);
});
