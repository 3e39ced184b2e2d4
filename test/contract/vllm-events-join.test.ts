import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { afterEach, describe, expect, test } from "vitest";
import { hashBlocks, hashRoot } from "../../services/shared/core/block-hash.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { realClock } from "../../services/shared/edge/clock.ts";
import { createKeysFile, loadKeys, type MeshKeys } from "../../services/shared/edge/keys.ts";
import { WorkerConfig } from "../../services/worker/config.ts";
import { startWorker, type RunningWorker } from "../../services/worker/edge/worker.ts";
import { FakeRouter, type FakeRouterScript } from "../support/fake-router.ts";
import { FakeVllm, clearedEvent, removedEvent, storedEvent } from "../support/fake-vllm.ts";

const closers: (() => Promise<void> | void)[] = [];

afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function until(what: string, holds: () => boolean, withinMs = 8_000): Promise<void> {
  const deadline = performance.now() + withinMs;
  while (!holds()) {
    if (performance.now() > deadline) throw new Error(`not in time: ${what}`);
    await sleep(10);
  }
}

interface Mesh {
  readonly keys: MeshKeys;
  readonly keysFile: string;
  readonly folder: string;
}

function makeMesh(): Mesh {
  const folder = mkdtempSync(join(tmpdir(), "kvmesh-worker-"));
  closers.push(() => {
    rmSync(folder, { recursive: true, force: true });
  });
  const keysFile = join(folder, "mesh.keys");
  createKeysFile(keysFile);
  return { keys: loadKeys(keysFile), keysFile, folder };
}

async function makeEngine(
  facts: ConstructorParameters<typeof FakeVllm>[0] = {},
): Promise<FakeVllm> {
  const engine = await new FakeVllm(facts).start();
  closers.push(() => engine.close());
  return engine;
}

async function makeRouter(mesh: Mesh, script: Partial<FakeRouterScript> = {}): Promise<FakeRouter> {
  const router = await new FakeRouter(mesh.keys, script).start();
  closers.push(() => {
    router.close();
  });
  return router;
}

async function makeWorker(
  mesh: Mesh,
  engine: FakeVllm,
  routers: readonly FakeRouter[],
  more: Record<string, unknown> = {},
  engineMore: Record<string, unknown> = {},
  lines: Record<string, unknown>[] = [],
): Promise<RunningWorker> {
  const config = WorkerConfig.parse({
    workerId: "w0",
    keysFile: mesh.keysFile,
    httpPort: 0,
    engine: { url: engine.url, ...engineMore },
    routers: { list: routers.map((router) => router.target) },
    scrapeIntervalMs: 50,
    ...more,
  });
  const worker = await startWorker(config, {
    log: pino(
      { level: "debug" },
      {
        write: (line: string) => {
          lines.push(JSON.parse(line) as Record<string, unknown>);
        },
      },
    ),
    clock: realClock,
    random: new SeededRandom(1),
    workerStartMs: Date.now(),
  });
  closers.push(() => worker.stop("test over"));
  return worker;
}

const tokens = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => (from + i * 7) % 50_000);

/** Mesh hashes of a prompt as a router computes them. */
function meshHashes(mesh: Mesh, ids: readonly number[], blockSizeTokens = 32): bigint[] {
  const root = hashRoot(mesh.keys.hashSeed, { model: "tiny" });
  const pairs = hashBlocks(root, ids, blockSizeTokens);
  const out: bigint[] = [];
  for (let i = 0; i < pairs.length; i += 2) {
    out.push((BigInt(pairs[i + 1] ?? 0) << 32n) | BigInt(pairs[i] ?? 0));
  }
  return out;
}

const sorted = (hashes: Iterable<bigint> | undefined): bigint[] =>
  [...(hashes ?? [])].sort((a, b) => (a < b ? -1 : 1));

const sameSet = (router: FakeRouter, expected: readonly bigint[]): boolean => {
  const blocks = router.session?.blocks;
  return blocks?.size === expected.length && expected.every((hash) => blocks.has(hash));
};

describe("worker beside a vLLM, joined to routers", () => {
  test("joins with a valid proof, sends what the engine held before and every change after", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const prompt = tokens(3, 128);
    await engine.publish([
      storedEvent({ hashes: [11n, 12n, 13n, 14n], tokens: prompt.slice(0, 64) }),
    ]);
    const routers = [await makeRouter(mesh), await makeRouter(mesh)];
    await makeWorker(mesh, engine, routers);
    for (const router of routers) {
      await until("the first blocks", () => sameSet(router, meshHashes(mesh, prompt.slice(0, 64))));
      expect(router.session?.hello).toMatchObject({
        workerId: "w0",
        dpRank: 0,
        engineAddress: engine.url.slice("http://".length),
        model: { names: ["tiny"], contextTokensMax: 4_096 },
        cache: { engineBlockSizeTokens: 16, capacityTokens: 16_000n, prefixCaching: true },
        engine: { name: "vllm", version: "0.32.0", processStartSeconds: 1_700_000_000.25 },
        ready: true,
      });
    }
    await engine.publish([
      storedEvent({ hashes: [15n, 16n, 17n, 18n], parent: 14n, tokens: prompt.slice(64) }),
    ]);
    await engine.publish([removedEvent([16n])]);
    const expected = meshHashes(mesh, prompt);
    for (const router of routers) {
      await until("the changes", () =>
        sameSet(
          router,
          [expected[0], expected[1], expected[3]].filter((h) => h !== undefined),
        ),
      );
      expect(router.session?.violations).toEqual([]);
    }
    await engine.publish([clearedEvent]);
    for (const router of routers) await until("the clear", () => sameSet(router, []));
    expect(sorted(routers[0]?.session?.blocks)).toEqual([]);
  });

  test("sends load samples with the engine's numbers", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    engine.running = 5;
    engine.waiting = 2;
    const router = await makeRouter(mesh);
    await makeWorker(mesh, engine, [router]);
    await until("two samples", () => (router.session?.loads.length ?? 0) >= 2);
    expect(router.session?.loads.at(-1)).toMatchObject({
      running: 5,
      waiting: 2,
      kvUsageRatio: 0.25,
      promptTokens: 1_200n,
      finishedRequests: 7n,
    });
  });

  void writeFileSync;
});
