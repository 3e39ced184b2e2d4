import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadAnswerOracle, type AnswerOracle } from "../support/answer-oracle.ts";
import { tellFault } from "../support/engine-control.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";
import { PrefillGate, type GatePoint } from "../support/prefill-gate.ts";
import { relayHttpOf, relayMetric } from "../support/relay-metrics.ts";
import { metricOf, untilBooksClosed } from "../support/router-books.ts";
import {
  describeStreams,
  StreamLoad,
  tallyStreams,
  type JudgedStream,
} from "../support/stream-load.ts";

/** Kills in each phase, and faults of each kind; `npm run nightly:streams` sets 20. */
const rounds = Number(process.env["KVMESH_STREAM_ROUNDS"] ?? 1);
const seed = Number(process.env["KVMESH_SEED"] ?? 1);
const roundMsMax = 60_000;
const concurrency = 4;
/** As fast as what an engine sends when nothing shapes it. */
const unshaped = { kind: "kv_link", bytesPerS: 0, latencyMs: 0 };

let mesh: TestMesh;
let gate: PrefillGate;
let oracle: AnswerOracle;
let relays: readonly string[];
let prefill: string;
let decodes: readonly string[];

beforeAll(async () => {
  oracle = await loadAnswerOracle();
  gate = await PrefillGate.open();
  const connector = { kvTransfer: "NixlConnector", kvBytesPerToken: 4_096 };
  mesh = await startMesh({
    engines: 3,
    members: [
      { engine: { ...connector, role: "prefill", advertise: gate.address } },
      { engine: { ...connector, role: "decode" } },
      { engine: { ...connector, role: "decode" } },
    ],
    mesh: { relays: 1 },
    settings: {
      // Blocks so large that a pull takes several chunks, and can break between them.
      engine: {
        speedup: 4,
        kv: { enabled: true, bytesPerBlock: 65_536, stallTimeoutMs: 1_000, leaseMs: 5_000 },
      },
      // A machine that does much else keeps routers waiting.
      relay: { deadlines: { placeMs: 10_000 } },
      router: { stream: { freezeItlMultiple: 100, freezeMsMin: 8_000 } },
    },
  });
  const [first = "", ...others] = mesh.engineUrls;
  prefill = first;
  decodes = others;
  gate.target = Number(new URL(prefill).port);
  relays = [relayHttpOf(mesh, "relay-0")];
  await mesh.routers.setPolicy("kv", { placeOnArrival: false, disaggregation: "always" });
});

afterAll(async () => {
  await mesh.stop();
  gate.close();
});

let loads = 0;

function startStreams(): StreamLoad {
  return new StreamLoad({
    oracle,
    url: mesh.trustedUrl,
    model: mesh.model,
    concurrency,
    seed: 1_000 * seed + loads++,
    promptTokens: [300, 500],
    answerTokens: [8, 40],
  });
}

function expectWhole(streams: readonly JudgedStream[]): void {
  const why = describeStreams(streams);
  const { lost, doubled, reordered, foreign, complete } = tallyStreams(streams);
  expect({ lost, doubled, reordered, foreign, incomplete: streams.length - complete }, why).toEqual(
    { lost: 0, doubled: 0, reordered: 0, foreign: 0, incomplete: 0 },
  );
}

const sumOf = async (urls: readonly string[], name: string, labels = {}): Promise<number> => {
  const values = await Promise.all(urls.map((url) => metricOf(url, name, labels).catch(() => 0)));
  return values.reduce((sum, value) => sum + value, 0);
};
const waiting = (): Promise<number> => sumOf(decodes, "kvmesh_engine_kv_loads");
const localPrefills = (): Promise<number> =>
  relayMetric(relays, "kvmesh_relay_local_prefills_total");

/** Looks at metrics until a phase is reached. */
async function reached(phase: string, check: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!(await check())) {
    if (performance.now() > deadline) throw new Error(`never seen: ${phase}`);
    await sleep(2);
  }
}

interface Phase {
  /** What is done before streams come. */
  readonly prepare?: object;
  /** Kills the engine when a stream has come so far. */
  readonly kill: (kill: () => void) => Promise<void>;
  /** Whether decode has to compute the prompt then. */
  readonly recomputes: boolean;
}

const atGate = (point: GatePoint): Phase["kill"] => {
  return (kill) => gate.at(point, kill);
};

const phases: Readonly<Record<string, Phase>> = {
  "before it is asked": { kill: atGate("connected"), recomputes: true },
  "when it is asked": { kill: atGate("asked"), recomputes: true },
  "while it computes": {
    prepare: { kind: "slow", factor: 100, ms: 5_000 },
    kill: async (kill) => {
      await gate.at("passed_on", () => undefined);
      await sleep(50);
      kill();
    },
    recomputes: true,
  },
  "when it has computed": { kill: atGate("answered"), recomputes: true },
  "before its blocks are pulled": {
    prepare: { kind: "kv_stall", ms: 900 },
    kill: async (kill) => {
      await reached("a load", async () => (await waiting()) > 0);
      kill();
    },
    recomputes: true,
  },
  "while its blocks are pulled": {
    prepare: { kind: "kv_link", bytesPerS: 600_000, latencyMs: 0 },
    kill: async (kill) => {
      const name = "kvmesh_engine_kv_served_bytes_total";
      const before = await sumOf([prefill], name);
      await reached(
        "a pull",
        async () => (await sumOf([prefill], name)) > before && (await waiting()) > 0,
      );
      kill();
    },
    recomputes: true,
  },
  "when its blocks are pulled": {
    kill: async (kill) => {
      const pulled = (): Promise<number> =>
        sumOf([prefill], "kvmesh_engine_kv_handoffs_total", { outcome: "pulled" });
      const before = await pulled();
      await reached("the end of a pull", async () => (await pulled()) > before);
      kill();
    },
    recomputes: false,
  },
};

describe("streams of pairs survive the death of their prefill engine", () => {
  test.each(Object.entries(phases))(
    "%s",
    { timeout: 60_000 + rounds * roundMsMax },
    async (_name, { prepare, kill, recomputes }) => {
      const engine = mesh.process("engine-0");
      for (let round = 0; round < rounds; round++) {
        if (prepare !== undefined) await tellFault(prefill, prepare);
        const before = await localPrefills();
        const killed = kill(() => {
          void engine.kill("SIGKILL");
        });
        const load = startStreams();
        try {
          await killed;
          await eventually("it is gone", () => !engine.running);
          // What is open now must end although nothing of the engine is left.
          const open = load.ended.length + concurrency;
          await eventually("streams go on", () => load.ended.length >= open, 30_000);
        } finally {
          await load.stop();
        }
        expectWhole(load.ended);
        if (recomputes) expect(await localPrefills()).toBeGreaterThan(before);
        await engine.restart();
        await mesh.untilServing();
      }
      await untilBooksClosed(mesh);
    },
  );
});

describe("KV that does not arrive as it was sent", () => {
  test.each([
    ["a bit turned over is found, and its block computed", { kind: "kv_flip", count: 3 }],
    ["a connection that is cut", { kind: "kv_cut", count: 3 }],
    ["a link that stands still", { kind: "kv_stall", ms: 2_500 }],
  ])("%s", { timeout: 60_000 + rounds * roundMsMax }, async (_name, fault) => {
    for (let round = 0; round < rounds; round++) {
      await tellFault(prefill, unshaped);
      const damaged = (reason: string): Promise<number> =>
        sumOf(decodes, "kvmesh_engine_kv_bad_blocks_total", { reason });
      const before = { bad: await damaged("damaged"), local: await localPrefills() };
      await tellFault(prefill, fault);
      const load = startStreams();
      try {
        await eventually(
          "prompts are computed again",
          async () => (await localPrefills()) > before.local,
          30_000,
        );
        const some = load.ended.length + 3 * concurrency;
        await eventually("streams go on", () => load.ended.length >= some, 30_000);
      } finally {
        await load.stop();
      }
      expectWhole(load.ended);
      expect(await damaged("foreign")).toBe(0);
      if (fault.kind === "kv_flip") expect(await damaged("damaged")).toBeGreaterThan(before.bad);
    }
    await untilBooksClosed(mesh);
  });
});
