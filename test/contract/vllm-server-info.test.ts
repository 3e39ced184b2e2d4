import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { pino } from "pino";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { realClock } from "../../services/shared/edge/clock.ts";
import type { Tracing } from "../../services/shared/edge/tracing.ts";
import { EngineConfig } from "../../services/simulator/config.ts";
import { startEngine, type RunningEngine } from "../../services/simulator/edge/engine-process.ts";
import { noArtifacts } from "../../services/worker/edge/artifacts.ts";
import { EngineHttp, type EngineFacts } from "../../services/worker/edge/engine-http.ts";
import { toHello } from "../../services/worker/edge/join-wire.ts";

const noTracing: Tracing = { start: () => undefined, stop: () => Promise.resolve() };

let engine: RunningEngine;
const closers: (() => Promise<void>)[] = [];

async function start(settings: Record<string, unknown>): Promise<RunningEngine> {
  const config = EngineConfig.parse({
    port: 0,
    logLevel: "silent",
    events: { port: 0, replayPort: 0 },
    ...settings,
  });
  return startEngine(config, {
    clock: realClock,
    log: pino({ level: "silent" }),
    tracing: noTracing,
    exit: () => undefined,
  });
}

async function discover(url: string): Promise<EngineFacts> {
  const http = new EngineHttp(url);
  closers.push(() => http.close());
  return http.discover();
}

beforeAll(async () => {
  engine = await start({ stepTokensMax: 1_536, runningMax: 77 });
});

afterEach(async () => {
  for (const close of closers.splice(0)) await close();
});

afterAll(async () => {
  await engine.close();
});

const url = (): string => `http://127.0.0.1:${String(engine.ports.http)}`;

describe("limits that an engine tells at /server_info", () => {
  test("are JSON only when asked for, as with vLLM in development mode", async () => {
    const asText = (await (await fetch(`${url()}/server_info`)).json()) as Record<string, unknown>;
    expect(typeof asText["vllm_config"]).toBe("string");
    const asJson = await (await fetch(`${url()}/server_info?config_format=json`)).json();
    expect(asJson).toMatchObject({
      vllm_config: {
        scheduler_config: { max_num_batched_tokens: 1_536, max_num_seqs: 77 },
        cache_config: { block_size: 16 },
      },
    });
  });

  test("become the worker's, and go into its hello unless the settings say otherwise", async () => {
    const facts = await discover(url());
    expect(facts).toMatchObject({ stepTokensMax: 1_536, runningRequestsMax: 77 });
    expect(helloOf(facts, 0)).toMatchObject({ stepTokensMax: 1_536, runningRequestsMax: 77 });
    expect(helloOf(facts, 512)).toMatchObject({ stepTokensMax: 512, runningRequestsMax: 512 });
  });

  test.each([
    ["is not there", 404, '{"detail":"Not Found"}'],
    ["is no JSON", 200, "<html>"],
    ["holds text", 200, '{"vllm_config":"VllmConfig(model=...)"}'],
    [
      "holds nonsense",
      200,
      '{"vllm_config":{"scheduler_config":{"max_num_batched_tokens":-1,"max_num_seqs":"many"}}}',
    ],
  ])("stay unknown when the page %s, and nothing else is lost", async (_how, status, text) => {
    const server = await proxyWith(status, text);
    const facts = await discover(server);
    expect(facts).toMatchObject({ stepTokensMax: 0, runningRequestsMax: 0 });
    expect(facts.cache?.blockSizeTokens).toBe(16);
    expect(facts.modelNames).toHaveLength(1);
  });
});

function helloOf(facts: EngineFacts, configured: number) {
  const hello = toHello(
    {
      workerId: "w0",
      dpRank: 0,
      workerStartMs: 1n,
      engineLife: 1,
      pool: "default",
      engineAddress: "127.0.0.1:8100",
      role: "both",
      engine: facts,
      engineName: "vllm",
      stepTokensMax: configured,
      runningRequestsMax: configured,
      stepModel: undefined,
      kvTransfer: "",
      kvBootstrap: "",
      kvBytesPerToken: 0,
      artifacts: noArtifacts,
      hashSeedFingerprint: Buffer.alloc(8),
      ready: true,
    },
    { proof: Buffer.alloc(32), keyId: "k" },
  );
  return hello.engine;
}

/** The engine's pages, but for `/server_info`. */
async function proxyWith(status: number, text: string): Promise<string> {
  const server: Server = createServer((request, response) => {
    if (request.url?.startsWith("/server_info") === true) {
      response.writeHead(status).end(text);
      return;
    }
    void fetch(`${url()}${request.url ?? "/"}`).then(async (page) => {
      response.writeHead(page.status).end(await page.text());
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  closers.push(
    () =>
      new Promise((resolve) => {
        server.close(() => {
          resolve();
        });
        server.closeAllConnections();
      }),
  );
  return `http://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
}
