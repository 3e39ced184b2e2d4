import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { credentials, status, type ClientDuplexStream, type StatusObject } from "@grpc/grpc-js";
import { pino } from "pino";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { placeInput, promptHashes, routerCore } from "../../../test/support/router-builders.ts";
import { parseCidr } from "../../shared/core/cidr.ts";
import { workerId } from "../../shared/core/ids.ts";
import { realClock } from "../../shared/edge/clock.ts";
import { createGrpcServer, listen, type GrpcServer } from "../../shared/edge/grpc-server.ts";
import {
  createKeysFile,
  hashSeedFingerprint,
  joinProof,
  loadKeys,
  type MeshKeys,
} from "../../shared/edge/keys.ts";
import { createMetrics } from "../../shared/edge/metrics.ts";
import {
  MembershipClient,
  MembershipService,
  type Hello,
  type JoinRequest,
  type JoinResponse,
  type LoadSample,
} from "../../shared/gen/kvmesh/worker/v1/worker.ts";
import type { RouterCore } from "../core/router-core.ts";
import { routerMetrics } from "../metrics.ts";
import { createMembershipService } from "./membership-server.ts";
import { ModelRuntimes } from "./model-runtimes.ts";

const log = pino({ level: "silent" });

/** The default interval would make most of this file's time. */
const soon = { timeout: 3_000, interval: 5 };

interface Refusal {
  readonly status: number;
  readonly code: string;
  readonly details: string;
}

/** A worker's side of one join stream. */
class Worker {
  readonly call: ClientDuplexStream<JoinRequest, JoinResponse>;
  readonly heard: JoinResponse[] = [];
  readonly ended: Promise<Refusal>;
  readonly #keys: MeshKeys;

  constructor(client: MembershipClient, keys: MeshKeys) {
    this.#keys = keys;
    this.call = client.join();
    this.call.on("data", (response: JoinResponse) => this.heard.push(response));
    this.call.on("error", () => undefined);
    this.ended = new Promise((resolve) => {
      this.call.on("status", ({ code, details, metadata }: StatusObject) => {
        resolve({
          status: code,
          details,
          code: String(metadata.get("kvmesh-error-code")[0] ?? ""),
        });
      });
    });
  }

  send(message: NonNullable<JoinRequest["message"]>): void {
    this.call.write({ message });
  }

  async hears<K extends NonNullable<JoinResponse["message"]>["$case"]>(
    kind: K,
    count = 1,
  ): Promise<Extract<JoinResponse["message"], { $case: K }>> {
    return vi.waitFor(() => {
      const found = this.heard.map((r) => r.message).filter((m) => m?.$case === kind)[count - 1];
      if (found === undefined) throw new Error(`no ${kind} yet`);
      return found as Extract<JoinResponse["message"], { $case: K }>;
    }, soon);
  }

  /** Says hello with a right proof of what it says, unless told otherwise. */
  async hello(over: Partial<Hello> = {}): Promise<void> {
    const { value: challenge } = await this.hears("challenge");
    const said: Hello = {
      protocolVersion: 1,
      workerId: "w0",
      dpRank: 0,
      epoch: { workerStartMs: 1_000n, engineLife: 1n },
      pool: "default",
      engineAddress: "127.0.0.1:8100",
      role: 1,
      model: {
        names: ["m"],
        contextTokensMax: 10_000,
        tokenizerSha256: Buffer.alloc(0),
        chatTemplateSha256: Buffer.alloc(0),
        addsSpecialTokens: false,
        bosToken: "",
        eosToken: "",
      },
      cache: {
        engineBlockSizeTokens: 16,
        capacityTokens: 16_000n,
        prefixCaching: true,
        kvBytesPerToken: 0n,
      },
      engine: {
        name: "vllm",
        version: "0.32.0",
        stepTokensMax: 8_192,
        runningRequestsMax: 0,
        stepModel: undefined,
        processStartSeconds: 0,
      },
      hashSeedFingerprint: hashSeedFingerprint(this.#keys),
      joinProof: Buffer.alloc(0),
      joinKeyId: this.#keys.join[0]?.id ?? "",
      ready: true,
      kvTransfer: "",
      kvBootstrap: "",
      ...over,
    };
    const key = this.#keys.join[0]?.key ?? Buffer.alloc(32);
    const { workerId: id, engineAddress, epoch } = said;
    const proof = joinProof(key, {
      workerId: id,
      engineAddress,
      workerStartMs: epoch?.workerStartMs ?? 0n,
      engineLife: epoch?.engineLife ?? 0n,
      nonce: challenge.nonce,
    });
    this.send({ $case: "hello", value: { ...said, joinProof: over.joinProof ?? proof } });
  }

  async joined(over: Partial<Hello> = {}): Promise<this> {
    await this.hello(over);
    await this.hears("accepted");
    return this;
  }

  snapshot(hashes: Uint32Array, over: { baseSeq?: bigint; xorDigest?: bigint } = {}): void {
    let xor = 0n;
    const bytes = Buffer.from(hashes.buffer, hashes.byteOffset, hashes.byteLength);
    for (let at = 0; at < bytes.length; at += 8) xor ^= bytes.readBigUInt64LE(at);
    const blockCount = BigInt(hashes.length / 2);
    this.send({
      $case: "snapshot",
      value: { baseSeq: 0n, hashes: bytes, last: true, xorDigest: xor, blockCount, ...over },
    });
  }

  delta(seq: number, stored: Buffer | Uint32Array): void {
    const bytes = Buffer.isBuffer(stored)
      ? stored
      : Buffer.from(stored.buffer, stored.byteOffset, stored.byteLength);
    this.send({
      $case: "delta",
      value: {
        seq: BigInt(seq),
        stored: bytes,
        removed: Buffer.alloc(0),
        cleared: false,
        eventAgeMs: 1,
      },
    });
  }
}

const sample = (over: Partial<LoadSample> = {}): LoadSample => ({
  running: 3,
  waiting: 1,
  kvUsageRatio: 0.5,
  promptTokens: 0n,
  prefixQueryTokens: 0n,
  prefixHitTokens: 0n,
  generatedTokens: 0n,
  finishedRequests: 0n,
  preemptions: 0n,
  interTokenSecondsSum: 0,
  interTokenCount: 0n,
  prefillSecondsSum: 0,
  prefillCount: 0n,
  sampleAgeMs: 5,
  sentUnixUs: 77n,
  ...over,
});

let folder: string;
let keys: MeshKeys;
let core: RouterCore;
let server: GrpcServer;
let client: MembershipClient;
let workers: Worker[];

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "kvmesh-join-"));
  createKeysFile(join(folder, "mesh.keys"));
  keys = loadKeys(join(folder, "mesh.keys"));
  core = routerCore();
  const loopback = parseCidr("127.0.0.0/8");
  const allowed = loopback === undefined ? [] : [loopback];
  const { service } = createMembershipService({
    core,
    runtimes: new ModelRuntimes({ hashSeed: keys.hashSeed, log, cacheFolder: "" }),
    keys,
    clock: realClock,
    log,
    metrics: createMetrics(routerMetrics).metrics,
    instance: "r0",
    epoch: 1,
    blockSizeTokens: 16,
    allowedCidrs: allowed,
    settle: () => {
      core.takeEffects();
    },
  });
  server = createGrpcServer({
    callers: [{ service: "kvmesh.worker.v1.Membership", allowed }],
    messageBytesMax: 16 * 1024 * 1024,
    reflection: false,
  });
  server.add(MembershipService, service);
  const port = await listen(server.server, "127.0.0.1", 0);
  client = new MembershipClient(`127.0.0.1:${port}`, credentials.createInsecure());
  workers = [];
});

afterEach(() => {
  client.close();
  server.server.forceShutdown();
  rmSync(folder, { recursive: true });
});

function connect(with_: MeshKeys = keys): Worker {
  const worker = new Worker(client, with_);
  workers.push(worker);
  return worker;
}

const w0 = workerId("w0");

describe("a worker that joins", () => {
  test("is challenged, accepted, and its blocks and load arrive", async () => {
    const worker = await connect().joined();
    worker.snapshot(promptHashes(1, 40));
    worker.delta(1, promptHashes(1, 60).subarray(80));
    worker.send({ $case: "load", value: sample() });
    const ack = await worker.hears("ack", 2);
    expect(ack.value).toMatchObject({ appliedSeq: 1n, echoUnixUs: 77n });
    expect(core.members.get(w0)).toMatchObject({ suspect: false, appliedSeq: 1 });
    const decision = core.place(placeInput(), realClock.now());
    expect(decision.candidates[0]).toMatchObject({
      matchedBlocks: 60,
      reportedRunning: 3,
      reportedWaiting: 1,
    });
  });

  test("is away when its stream ends, gone when it says goodbye", async () => {
    const first = await connect().joined();
    first.call.end();
    await vi.waitFor(() => {
      expect(core.members.get(w0)?.unheldSince).toBeDefined();
    }, soon);
    const second = await connect().joined();
    second.send({ $case: "state", value: { ready: false, reason: "" } });
    await vi.waitFor(() => {
      expect(core.members.get(w0)?.ready).toBe(false);
    }, soon);
    second.send({ $case: "goodbye", value: { reason: "test" } });
    expect((await second.ended).status).toBe(status.OK);
    expect(core.members.size).toBe(0);
  });

  test("takes over from its own older stream, which ends as stale_epoch", async () => {
    const first = await connect().joined();
    await connect().joined();
    expect(await first.ended).toMatchObject({ code: "stale_epoch" });
    expect(core.members.get(w0)?.unheldSince).toBeUndefined();
  });

  test("may say hello again when its engine has another life", async () => {
    const worker = await connect().joined();
    worker.snapshot(promptHashes(1, 40));
    await worker.hello({ epoch: { workerStartMs: 1_000n, engineLife: 2n } });
    await worker.hears("accepted", 2);
    expect(core.index.blockCount).toBe(0);
    expect(core.members.get(w0)?.unheldSince).toBeUndefined();
  });
});

describe("what is refused, without harm to others", () => {
  const nan = {
    prefillC0Ms: NaN,
    prefillC1MsPerToken: 1,
    prefillC2MsPerTokenContext: 1,
    decodeD0Ms: 1,
    decodeD1MsPerSequence: 1,
    decodeD2MsPerContextToken: 1,
  };
  const engine = {
    name: "vllm",
    version: "",
    stepTokensMax: 0,
    runningRequestsMax: 0,
    processStartSeconds: 0,
  };
  const cache = { capacityTokens: 1n, prefixCaching: true, kvBytesPerToken: 0n };

  test.each<[string, Partial<Hello>, string, RegExp]>([
    ["another protocol", { protocolVersion: 2 }, "invalid_request", /protocol 2/],
    ["no proof", { joinProof: Buffer.alloc(32) }, "unauthenticated", /keys file/],
    [
      "a proof with a key that does not exist",
      { joinKeyId: "other" },
      "unauthenticated",
      /key other/,
    ],
    ["another hash seed", { hashSeedFingerprint: Buffer.alloc(8) }, "invalid_request", /hash seed/],
    [
      "an address outside the allowed ranges",
      { engineAddress: "10.0.0.1:80" },
      "permission_denied",
      /allowedCidrs \(127\.0\.0\.0\/8\)/,
    ],
    [
      "an address that is a name",
      { engineAddress: "engine:80" },
      "permission_denied",
      /allowedCidrs/,
    ],
    ["an address without port", { engineAddress: "127.0.0.1" }, "invalid_request", /not ip:port/],
    [
      "a block size that does not divide",
      { cache: { ...cache, engineBlockSizeTokens: 12 } },
      "invalid_request",
      /12 tokens.*16/,
    ],
    ["an id with blanks", { workerId: "a b" }, "invalid_request", /worker_id/],
    ["no role", { role: 0 }, "invalid_request", /role/],
    ["no model facts", { model: undefined }, "invalid_request", /model, cache, engine and epoch/],
    [
      "step times that are no numbers",
      { engine: { ...engine, stepModel: nan } },
      "invalid_request",
      /step_model/,
    ],
    [
      "the id of another engine",
      { workerId: "held", engineAddress: "127.0.0.1:9" },
      "already_exists",
      /127\.0\.0\.1:8101/,
    ],
    [
      "the engine of another worker",
      { engineAddress: "127.0.0.1:8101" },
      "already_exists",
      /served by worker held/,
    ],
    [
      "an epoch beyond all numbers",
      { epoch: { workerStartMs: 2n ** 64n - 1n, engineLife: 1n } },
      "",
      /./,
    ],
  ])("%s", async (_name, over, code, details) => {
    const held = await connect().joined({ workerId: "held", engineAddress: "127.0.0.1:8101" });
    const worker = connect();
    await worker.hello(over);
    const refusal = await worker.ended;
    if (code !== "") expect(refusal.code).toBe(code);
    expect(refusal.status).not.toBe(status.OK);
    expect(refusal.details).toMatch(details);
    expect([...core.members.all()].map((m) => [m.key, m.unheldSince])).toEqual([
      ["held", undefined],
    ]);
    held.snapshot(promptHashes(1, 3));
    await held.hears("ack");
  });

  test("a proof made for another challenge", async () => {
    const [first, second] = [connect(), connect()];
    const { value } = await first.hears("challenge");
    const replayed = joinProof(keys.join[0]?.key ?? Buffer.alloc(0), {
      workerId: "w0",
      engineAddress: "127.0.0.1:8100",
      workerStartMs: 1_000n,
      engineLife: 1n,
      nonce: value.nonce,
    });
    await second.hello({ joinProof: replayed });
    expect(await second.ended).toMatchObject({
      code: "unauthenticated",
      status: status.UNAUTHENTICATED,
    });
  });

  test("anything before hello", async () => {
    const worker = connect();
    worker.send({ $case: "load", value: sample() });
    expect(await worker.ended).toMatchObject({
      code: "invalid_request",
      details: "load came before hello",
    });
  });

  test("hashes that are no whole hashes", async () => {
    const worker = await connect().joined();
    worker.delta(1, Buffer.alloc(12));
    expect(await worker.ended).toMatchObject({ code: "invalid_request" });
    await vi.waitFor(() => {
      expect(core.members.get(w0)?.unheldSince).toBeDefined();
    }, soon);
  });

  test("a second worker on the stream of the first", async () => {
    const worker = await connect().joined();
    await worker.hello({ workerId: "w1", engineAddress: "127.0.0.1:8101" });
    expect(await worker.ended).toMatchObject({
      code: "invalid_request",
      details: /held for w0/ as never,
    });
    expect(core.members.size).toBe(1);
  });

  test("a file that nobody asked for is ignored, garbage counters too", async () => {
    const worker = await connect().joined();
    worker.send({
      $case: "artifact",
      value: { sha256: Buffer.alloc(32), content: Buffer.from("x"), last: true },
    });
    worker.send({
      $case: "load",
      value: sample({ sampleAgeMs: NaN, kvUsageRatio: NaN, interTokenSecondsSum: Infinity }),
    });
    worker.send({
      $case: "load",
      value: sample({
        interTokenSecondsSum: 1e300,
        interTokenCount: 2n ** 63n,
        generatedTokens: 2n ** 63n,
        finishedRequests: 1n,
      }),
    });
    worker.send({ $case: "load", value: sample({ running: 9 }) });
    await vi.waitFor(() => {
      expect(core.book.lastReport(w0)?.running).toBe(9);
    }, soon);
    const { candidates, expectedOutputTokens } = core.place(placeInput(), realClock.now());
    expect(
      candidates.every((c) => Number.isFinite(c.costMs) && Number.isFinite(c.reportedAgeMs)),
    ).toBe(true);
    expect(expectedOutputTokens).toBeLessThanOrEqual(1_000_000);
  });
});

describe("acks", () => {
  test("deltas share the ack of the load report after them; reports without any get none", async () => {
    const worker = await connect().joined();
    worker.snapshot(promptHashes(1, 3));
    for (let i = 0; i < 5; i++) worker.send({ $case: "load", value: sample() });
    worker.delta(1, promptHashes(2, 1));
    worker.delta(2, promptHashes(3, 1));
    worker.send({ $case: "load", value: sample() });
    const last = await worker.hears("ack", 2);
    expect(last.value.appliedSeq).toBe(2n);
    expect(worker.heard.filter((r) => r.message?.$case === "ack")).toHaveLength(2);
  });
});

describe("resync", () => {
  test("a gap is answered by one request for the snapshot", async () => {
    const worker = await connect().joined();
    worker.snapshot(promptHashes(1, 3));
    worker.delta(5, promptHashes(2, 1));
    worker.delta(6, promptHashes(3, 1));
    expect((await worker.hears("resync")).value.reason).toBe(1);
    worker.snapshot(promptHashes(1, 3), { baseSeq: 6n });
    await worker.hears("ack", 2);
    expect(worker.heard.filter((r) => r.message?.$case === "resync")).toHaveLength(1);
    expect(core.members.get(w0)).toMatchObject({ suspect: false, appliedSeq: 6, resyncs: 1 });
  });

  test("wrong snapshots are asked for again, five times; then the stream is ended", async () => {
    const worker = await connect().joined();
    for (let i = 0; i < 6; i++) worker.snapshot(promptHashes(1, 3), { xorDigest: 1n });
    expect(await worker.ended).toMatchObject({ code: "stale_epoch" });
    const reasons = worker.heard.flatMap((r) =>
      r.message?.$case === "resync" ? [r.message.value.reason] : [],
    );
    expect(reasons).toEqual([2, 2, 2, 2, 2]);
    expect(core.index.blockCount).toBe(0);
  });
});
