import { createHash } from "node:crypto";
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

  test("fills a gap from the engine's replay and survives garbage, in order", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const router = await makeRouter(mesh);
    await makeWorker(mesh, engine, [router]);
    await until("the join", () => router.session?.snapshots === 1);
    const prompt = tokens(5, 160);
    await engine.publish([storedEvent({ hashes: [1n, 2n], tokens: prompt.slice(0, 32) })]);
    await until("the first block", () => sameSet(router, meshHashes(mesh, prompt.slice(0, 32))));
    await engine.publish(
      [storedEvent({ hashes: [3n, 4n], parent: 2n, tokens: prompt.slice(32, 64) })],
      { lost: true },
    );
    await engine.publish([
      storedEvent({ hashes: [5n, 6n], parent: 4n, tokens: prompt.slice(64, 96) }),
    ]);
    await until("the block after the gap", () =>
      sameSet(router, meshHashes(mesh, prompt.slice(0, 96))),
    );
    await engine.publish(
      [storedEvent({ hashes: [7n, 8n], parent: 6n, tokens: prompt.slice(96, 128) })],
      { broken: Buffer.from("not a batch") },
    );
    await engine.publish([
      storedEvent({ hashes: [9n, 10n], parent: 8n, tokens: prompt.slice(128) }),
    ]);
    await until("the blocks after the garbage", () => sameSet(router, meshHashes(mesh, prompt)));
    expect(router.session?.violations).toEqual([]);
    expect(router.session?.snapshots).toBe(1);
  });

  test("gives everything up when the engine no longer has the missing batches", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const router = await makeRouter(mesh);
    await makeWorker(mesh, engine, [router]);
    await until("the join", () => router.session?.snapshots === 1);
    const prompt = tokens(9, 64);
    await engine.publish([storedEvent({ hashes: [1n, 2n], tokens: prompt.slice(0, 32) })]);
    await until("the first block", () => router.session?.blocks.size === 1);
    await engine.publish(
      [storedEvent({ hashes: [3n, 4n], parent: 2n, tokens: prompt.slice(32) })],
      {
        lost: true,
      },
    );
    engine.dropReplayBuffer();
    const other = tokens(1_000, 32);
    await engine.publish([storedEvent({ hashes: [21n, 22n], tokens: other })]);
    await until("only what came after", () => sameSet(router, meshHashes(mesh, other)));
  });

  test("sends its snapshot again when a router lost a delta or doubts a digest, others unaffected", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const prompt = tokens(3, 96);
    await engine.publish([storedEvent({ hashes: [1n, 2n], tokens: prompt.slice(0, 32) })]);
    const doubting = await makeRouter(mesh, { doubtDigest: true });
    const losing = await makeRouter(mesh);
    const calm = await makeRouter(mesh);
    const all = [doubting, losing, calm];
    await makeWorker(mesh, engine, all);
    for (const router of all) {
      await until("the first block", () => sameSet(router, meshHashes(mesh, prompt.slice(0, 32))));
    }
    expect(doubting.session?.snapshots).toBe(2);
    losing.script.loseDelta = Number(losing.session?.appliedSeq) + 1;
    for (let i = 2; i < 6; i++) {
      await engine.publish([
        storedEvent({
          hashes: [BigInt(i + 1)],
          parent: BigInt(i),
          tokens: prompt.slice(16 * i, 16 * i + 16),
        }),
      ]);
      await sleep(20);
    }
    for (const router of all) {
      await until("all blocks", () => sameSet(router, meshHashes(mesh, prompt)));
      expect(router.session?.violations).toEqual([]);
    }
    expect(losing.session?.snapshots).toBe(2);
    expect(calm.session?.snapshots).toBe(1);
  });

  test("says a new hello with the next engine life after a restart on the same ports, with no old block", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const router = await makeRouter(mesh);
    await makeWorker(mesh, engine, [router]);
    await until("the join", () => router.session?.snapshots === 1);
    const before = tokens(3, 64);
    await engine.publish([storedEvent({ hashes: [1n, 2n, 3n, 4n], tokens: before })]);
    await until("blocks", () => router.session?.blocks.size === 2);
    await engine.crash();
    await until("not ready", () => router.session?.states.at(-1) === false);
    const after = tokens(77, 32);
    await engine.restart();
    await engine.publish([storedEvent({ hashes: [1n, 2n], tokens: after })]);
    await until("a second session", () => router.sessions.length === 2);
    await until("only the new block", () => sameSet(router, meshHashes(mesh, after)));
    expect(router.session?.hello.epoch?.engineLife).toBe(2n);
    expect(router.session?.hello.ready).toBe(true);
    expect(router.session?.hello.epoch?.workerStartMs).toBe(
      router.sessions[0]?.hello.epoch?.workerStartMs,
    );
    await sleep(300);
    expect(router.sessions.length).toBe(2);
  });

  test("takes a sequence that begins again as a restart, once", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const router = await makeRouter(mesh);
    await makeWorker(mesh, engine, [router]);
    await until("the join", () => router.session?.snapshots === 1);
    for (const hash of [1n, 2n, 3n]) {
      await engine.publish([storedEvent({ hashes: [hash], tokens: tokens(Number(hash), 16) })]);
    }
    await until("three batches", () => engine.nextSeq === 3);
    await sleep(50);
    engine.restartSequence();
    const after = tokens(500, 32);
    await engine.publish([storedEvent({ hashes: [8n, 9n], tokens: after })]);
    await until("the new life", () => router.session?.hello.epoch?.engineLife === 2n);
    await until("the new block", () => sameSet(router, meshHashes(mesh, after)));
    engine.processStartSeconds += 50;
    await sleep(300);
    // The start time adopted after the sequence began again has changed by now: that is a third life.
    await until("a third life", () => router.session?.hello.epoch?.engineLife === 3n);
  });

  test("tells routers that a frozen engine is not ready, and that it is again", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const router = await makeRouter(mesh);
    await makeWorker(mesh, engine, [router]);
    await until("the join", () => router.session?.snapshots === 1);
    engine.healthStatus = 503;
    await until("not ready", () => router.session?.states.at(-1) === false);
    engine.healthStatus = 200;
    await until("ready", () => router.session?.states.at(-1) === true);
    expect(router.sessions.length).toBe(1);
  });

  test("delivers tokenizer and template to a router that asks, and names their digests", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const tokenizer = JSON.stringify({
      model: { vocab: "x".repeat(3 * 1024 * 1024) },
      post_processor: {
        type: "TemplateProcessing",
        single: [
          { SpecialToken: { id: "<s>", type_id: 0 } },
          { Sequence: { id: "A", type_id: 0 } },
        ],
      },
    });
    const template = "{% for m in messages %}{{ m.content }}é{% endfor %}";
    writeFileSync(join(mesh.folder, "tokenizer.json"), tokenizer);
    writeFileSync(
      join(mesh.folder, "tokenizer_config.json"),
      JSON.stringify({ chat_template: template, bos_token: { content: "<s>" }, eos_token: "</s>" }),
    );
    const digests = [tokenizer, template].map((text) => createHash("sha256").update(text).digest());
    const router = await makeRouter(mesh, { artifacts: digests });
    await makeWorker(mesh, engine, [router], {}, { modelDir: mesh.folder });
    await until("both files", () => {
      const [first, second] = digests.map((sha) =>
        router.session?.artifacts.get(sha.toString("hex")),
      );
      return (
        first?.length === Buffer.byteLength(tokenizer) &&
        second?.length === Buffer.byteLength(template)
      );
    });
    expect(router.session?.artifacts.get(digests[1]?.toString("hex") ?? "")?.toString()).toBe(
      template,
    );
    expect(router.session?.hello.model).toMatchObject({
      tokenizerSha256: digests[0],
      chatTemplateSha256: digests[1],
      addsSpecialTokens: true,
      bosToken: "<s>",
      eosToken: "</s>",
    });
    expect(router.session?.violations).toEqual([]);
  });

  test("does not queue for a router that does not read: it merges, then sends a snapshot", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine({ blockCount: 400_000 });
    const slow = await makeRouter(mesh, { blockSizeTokens: 16 });
    const quick = await makeRouter(mesh, { blockSizeTokens: 16 });
    await makeWorker(mesh, engine, [slow, quick], {
      bounds: { pendingBlocksMax: 8_000, snapshotChunkHashes: 1_000 },
    });
    await until("the joins", () => slow.session?.snapshots === 1 && quick.session?.snapshots === 1);
    slow.session?.call.pause();
    // 2.9 MB of hashes in all, more than the sockets and windows on the way take in.
    const blocksPerBatch = 3_000;
    let expected: bigint[] = [];
    for (let batch = 0; batch < 120; batch++) {
      const ids = tokens(batch * 131, blocksPerBatch * 16);
      const hashes = Array.from({ length: blocksPerBatch }, (_, i) =>
        BigInt(batch * 1_000_000 + i + 1),
      );
      await engine.publish([storedEvent({ hashes, tokens: ids })]);
      expected = [...expected, ...meshHashes(mesh, ids, 16)];
      await sleep(5);
    }
    expected = [...new Set(expected)];
    await until("all blocks at the quick router", () => sameSet(quick, expected), 20_000);
    slow.session?.call.resume();
    await until("all blocks at the slow router", () => sameSet(slow, expected), 20_000);
    expect(slow.session?.violations).toEqual([]);
    expect(slow.session?.snapshots).toBeGreaterThanOrEqual(2);
    expect(quick.session?.snapshots).toBe(1);
    expect(slow.session?.largestChunk).toBeLessThanOrEqual(1_000);
  });

  test("measures the offset of a router's clock and exports it with its other metrics", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const router = await makeRouter(mesh, { clockAheadUs: 5_000_000 });
    const worker = await makeWorker(mesh, engine, [router]);
    await until("some samples", () => (router.session?.loads.length ?? 0) >= 3);
    await sleep(50);
    const url = `http://127.0.0.1:${String(worker.httpPort)}`;
    const text = await (await fetch(`${url}/metrics`)).text();
    const offset = /kvmesh_worker_router_clock_offset_seconds\{router="[^"]+"\} (\S+)/.exec(text);
    expect(Number(offset?.[1])).toBeGreaterThan(4.9);
    expect(Number(offset?.[1])).toBeLessThan(5.1);
    expect(text).toContain('kvmesh_worker_routers{state="member"} 1');
    expect(text).toContain("kvmesh_worker_engine_ready 1");
    expect((await fetch(`${url}/healthz`)).status).toBe(200);
  });
});

describe("refusals", () => {
  test.each([
    [16, "bad_proof"],
    [7, "caller_not_allowed"], // without an error code of the router's Join handler
    [3, "incompatible"],
    [6, "id_taken"],
    [10, "stale_epoch"],
  ])(
    "status %i is logged once as %s with how to mend it, and not tried again at once",
    async (code, refusal) => {
      const mesh = makeMesh();
      const engine = await makeEngine();
      const router = await makeRouter(mesh, { refuseWith: { code, details: "no" } });
      const lines: Record<string, unknown>[] = [];
      const worker = await makeWorker(mesh, engine, [router], {}, {}, lines);
      await until("the refusal", () => lines.some((line) => line["event"] === "join_refused"));
      await sleep(300);
      const refused = lines.filter((line) => line["event"] === "join_refused");
      expect(refused).toHaveLength(1);
      expect(refused[0]).toMatchObject({ refusal, reason: "no" });
      expect(String(refused[0]?.["mend"]).length).toBeGreaterThan(20);
      expect(router.attempts).toBe(1);
      expect([...worker.linkStates().values()]).toEqual(["refused"]);
    },
  );

  test("keys that differ give a refusal, not a membership", async () => {
    const mesh = makeMesh();
    const other = makeMesh();
    const engine = await makeEngine();
    const router = await makeRouter(other);
    const lines: Record<string, unknown>[] = [];
    await makeWorker(mesh, engine, [router], {}, {}, lines);
    await until("the refusal", () => lines.some((line) => line["refusal"] === "hash_seed"));
    expect(router.sessions).toHaveLength(0);
  });

  test("an engine block size that does not divide the mesh's is refused with both numbers", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine({ blockSizeTokens: 24 });
    const router = await makeRouter(mesh);
    const lines: Record<string, unknown>[] = [];
    await makeWorker(mesh, engine, [router], {}, {}, lines);
    await until("the refusal", () => lines.some((line) => line["refusal"] === "block_size"));
    const [line] = lines.filter((one) => one["refusal"] === "block_size");
    expect(line?.["reason"]).toBe(
      "the engine's blocks hold 24 tokens, which does not divide the mesh's 32",
    );
    expect(router.sessions).toHaveLength(0);
  });

  test("routers that disagree on the block size: the first is served, the other is named", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const first = await makeRouter(mesh);
    const lines: Record<string, unknown>[] = [];
    const late = await makeRouter(mesh, { challengeDelayMs: 200, blockSizeTokens: 64 });
    await makeWorker(mesh, engine, [first, late], {}, {}, lines);
    await until("the first join", () => first.session?.snapshots === 1);
    await until(
      "the refusal",
      () => lines.some((line) => line["refusal"] === "block_size"),
      12_000,
    );
    expect(late.sessions).toHaveLength(0);
    expect(first.session?.ended).toBe(false);
  });
});

describe("coming and going", () => {
  test("waits for an engine and for routers that are not there yet, and dials again after a router restart", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const router = await new FakeRouter(mesh.keys).start();
    const port = Number(router.target.split(":")[1]);
    await engine.crash();
    const worker = await makeWorker(mesh, engine, [router]);
    await sleep(200);
    expect(worker.linkStates().size).toBe(0);
    await engine.restart();
    await until("the join", () => router.session?.snapshots === 1);
    router.close();
    await until("the loss", () => ![...worker.linkStates().values()].includes("member"));
    const again = await new FakeRouter(mesh.keys).start(port);
    closers.push(() => {
      again.close();
    });
    await until("the second join", () => again.session?.snapshots === 1);
    expect(again.session?.hello.epoch?.engineLife).toBe(1n);
  });

  test("says goodbye and is gone within two seconds, also when a router is silent", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const router = await makeRouter(mesh);
    const silent = await makeRouter(mesh, { silent: true });
    const worker = await makeWorker(mesh, engine, [router, silent]);
    await until("the join", () => router.session?.snapshots === 1);
    const startedAt = performance.now();
    await worker.stop("SIGTERM");
    expect(performance.now() - startedAt).toBeLessThan(2_000);
    await until("the goodbye", () => router.session?.goodbye === "SIGTERM");
  });

  test("finds routers behind a name", async () => {
    const mesh = makeMesh();
    const engine = await makeEngine();
    const router = await makeRouter(mesh);
    const port = String(router.target.split(":")[1]);
    await makeWorker(mesh, engine, [], { routers: { list: [], dns: `localhost:${port}` } });
    await until("the join", () => router.session?.snapshots === 1);
  });
});
