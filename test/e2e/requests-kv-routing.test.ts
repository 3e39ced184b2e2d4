import {
  createChannelCredentials,
  createChannelOptions,
} from "../../services/shared/edge/grpc-client.ts";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import {
  RouterClient,
  type Candidate,
  type Decision,
  type PlaceResponse,
  type WorkerState,
} from "../../services/shared/gen/kvmesh/router/v1/router.ts";
import { loadAnswerOracle, type AnswerOracle } from "../support/answer-oracle.ts";
import { readCompletion } from "../support/completion-answers.ts";
import { sendExchange } from "../support/http-client.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";
import { metricOf, observedDecision, untilBooksClosed } from "../support/router-books.ts";

const blockSizeTokens = 16;
/**
 * Long enough, at the engines' own speed, that an answer ends well after its engine's events have reached the router;
 * they leave when the prompt's step begins.
 */
const answerTokens = 64;
/**
 * How fast the engines are, which their workers announce. A router that has to find out believes the engine that it has
 * measured to be another than the one that it has not, and rightly prefers the faster one to the one that holds a prompt.
 */
const stepModel = "h100_sxm/llama-3.1-8b/tp1";

let mesh: TestMesh;
let oracle: AnswerOracle;
let router: RouterClient;
beforeAll(async () => {
  oracle = await loadAnswerOracle();
  mesh = await startMesh({
    settings: { engine: { speedup: 1, stepModel }, worker: { engine: { stepModel } } },
  });
  router = new RouterClient(
    mesh.controls[0] ?? "",
    createChannelCredentials(),
    createChannelOptions(),
  );
});
afterAll(async () => {
  router.close();
  await mesh.stop();
});
beforeEach(async () => {
  await mesh.setPolicy("kv");
});
afterEach(async () => {
  await untilBooksClosed(mesh);
});

/**
 * A prompt that shares no block with any other. Computing it takes so long that one which is cached decides, though a busy
 * machine makes one engine's steps seem a fifth longer than the other's.
 */
function uniqueText(name: string, words = 1_500): string {
  return `${name} `.concat(
    Array.from({ length: words }, (_, i) => `${name}${String(i % 7)}`).join(" "),
  );
}

/** For the message of a failure: what each candidate cost. */
function costsOf({ candidates }: Decision): string {
  return candidates
    .map(({ workerId, costMs, terms, matchedTokens, reportedAgeMs }) => {
      const parts = terms.map(({ name, ms }) => `${name} ${ms.toFixed(1)}`).join(", ");
      const age = `report ${reportedAgeMs.toFixed(0)} ms old`;
      return `${workerId}: ${costMs.toFixed(1)} ms (${parts}), ${String(matchedTokens)} tokens cached, ${age}`;
    })
    .join("\n");
}

/** Placed on the engine that holds the prompt, and all of it that can be was taken from its cache. */
function expectHeldBy(engine: number, served: Served): void {
  expect(served.chosen.workerId, costsOf(served.decision)).toBe(`w${String(engine)}`);
  expect(served.chosen.matchedTokens).toBe(served.cachedTokens);
  expect(served.cachedTokens).toBe(reusable(served.promptTokens));
}

interface Served {
  readonly decision: Decision;
  readonly chosen: Candidate;
  /** What the engine itself says of the prompt. */
  readonly promptTokens: number;
  readonly cachedTokens: number;
}

let count = 0;
async function complete(prompt: string, url = mesh.url): Promise<Served | undefined> {
  const id = `kv-${String(count++)}`;
  const answer = await sendExchange({
    url,
    framing: "http1-length",
    path: "/v1/completions",
    headers: [["x-request-id", id]],
    body: Buffer.from(
      JSON.stringify({
        model: mesh.model,
        prompt,
        max_tokens: answerTokens,
        ignore_eos: true,
        return_token_ids: true,
      }),
    ),
  });
  expect(answer.status).toBe(200);
  const { tokens, usage } = readCompletion(answer.body, false);
  const ids = oracle.encode(prompt);
  expect(tokens).toEqual([oracle.answer(ids, answerTokens)]);
  expect(usage?.prompt_tokens).toBe(ids.length);
  if (url !== mesh.url) return undefined;
  const decision = await observedDecision(mesh, id);
  expect(decision).toMatchObject({ outcome: 1, promptTokens: ids.length });
  expect(decision.observed).toMatchObject({ servedAsPicked: true, status: 200 });
  const chosen = decision.candidates[0];
  if (chosen === undefined) throw new Error("placed without a candidate");
  const cachedTokens = usage?.prompt_tokens_details?.cached_tokens ?? -1;
  return { decision, chosen, promptTokens: ids.length, cachedTokens };
}

/** Through Envoy, with everything that must hold of any request. */
async function place(prompt: string): Promise<Served> {
  const served = await complete(prompt);
  if (served === undefined) throw new Error("not through Envoy");
  return served;
}

/** Straight at an engine, past the mesh. */
async function warm(engine: number, prompt: string): Promise<void> {
  await complete(prompt, mesh.engineUrls[engine] ?? "");
}

/** Tokens of a prompt that a cache can give: whole blocks, never the last token. */
function reusable(promptTokens: number): number {
  return Math.floor((promptTokens - 1) / blockSizeTokens) * blockSizeTokens;
}

function termOf(candidate: Candidate, name: string): number {
  return candidate.terms.find((term) => term.name === name)?.ms ?? Number.NaN;
}

async function workerState(id: string): Promise<WorkerState> {
  const { pools } = await mesh.routers.topology();
  const found = pools.flatMap((pool) => pool.workers).find((worker) => worker.workerId === id);
  if (found === undefined) throw new Error(`no worker ${id}`);
  return found;
}

/** Leading blocks of a prompt that the router believes each worker to hold, without placing anything. */
async function matchedBlocks(prompt: string): Promise<ReadonlyMap<string, number>> {
  const json = Buffer.from(JSON.stringify({ model: mesh.model, prompt }));
  const { decision } = await new Promise<PlaceResponse>((resolve, reject) => {
    router.place(
      {
        requestId: "",
        prompt: { $case: "body", value: { path: "/v1/completions", json } },
        subset: [],
        dryRun: true,
        excludedWorkerIds: [],
      },
      (error, response) => {
        if (error === null) resolve(response);
        else reject(error);
      },
    );
  });
  return new Map(decision?.candidates.map((one) => [one.workerId, one.matchedBlocks]));
}

/** Waits until the router believes that an engine holds so many of the prompt's blocks; all of them unless said. */
async function untilKnown(engine: number, prompt: string, blocks?: number): Promise<void> {
  const wanted = blocks ?? Math.floor(oracle.encode(prompt).length / blockSizeTokens);
  let known: number | undefined;
  await eventually(
    `w${String(engine)} is known to hold ${String(wanted)} blocks of the prompt`,
    async () => {
      known = (await matchedBlocks(prompt)).get(`w${String(engine)}`);
      if (known !== wanted) throw new Error(`they are ${String(known)}`);
      return true;
    },
    20_000,
  );
}

describe("policy kv", () => {
  test("sends a prompt to the worker that holds it, and predicts what it has cached", async () => {
    const prompt = uniqueText("held");
    const first = await place(prompt);
    expect(first.cachedTokens).toBe(0);
    expect(first.decision.candidates.map((one) => one.matchedBlocks)).toEqual([0, 0]);
    expect(first.decision.observed).toMatchObject({ cachedTokens: 0, cachedDifference: "none" });
    await untilKnown(Number(first.chosen.workerId.slice(1)), prompt);

    const second = await place(prompt);
    expectHeldBy(Number(first.chosen.workerId.slice(1)), second);
    expect(second.chosen.matchedBlocks).toBe(Math.floor(second.promptTokens / blockSizeTokens));
    expect(second.decision.observed).toMatchObject({
      cachedTokens: second.cachedTokens,
      cachedDifference: "none",
    });
    const other = second.decision.candidates[1];
    expect(other?.matchedBlocks).toBe(0);
    expect(second.decision.marginMs).toBeGreaterThan(0);
    // The other one would have had to compute the prompt.
    expect(termOf(second.chosen, "prefill")).toBeLessThan(
      other === undefined ? 0 : termOf(other, "prefill"),
    );
    // A prompt that only begins alike is matched as far as it does, in whole blocks.
    const branch = await place(prompt.slice(0, prompt.length / 2) + uniqueText("branch", 100));
    expect(branch.chosen.workerId).toBe(first.chosen.workerId);
    expect(branch.cachedTokens).toBeGreaterThan(0);
    expect(branch.chosen.matchedTokens).toBe(branch.cachedTokens);
    expect(branch.chosen.matchedBlocks * blockSizeTokens).toBe(branch.cachedTokens);
  });

  test("finds what came past the mesh, on the engine that has it", async () => {
    for (const engine of [1, 0]) {
      const prompt = uniqueText(`past${String(engine)}`);
      await warm(engine, prompt);
      await untilKnown(engine, prompt);
      expectHeldBy(engine, await place(prompt));
    }
  });

  test("forgets what an engine has dropped", async () => {
    const prompt = uniqueText("dropped");
    await warm(1, prompt);
    await untilKnown(1, prompt);
    await fetch(`${mesh.engineUrls[1] ?? ""}/reset_prefix_cache`, { method: "POST" });
    // An engine tells of it with its next step.
    await warm(1, uniqueText("step", 20));
    await untilKnown(1, prompt, 0);
    const served = await place(prompt);
    expect(served.decision.candidates.map((one) => one.matchedBlocks)).toEqual([0, 0]);
    expect(served.cachedTokens).toBe(0);
  });
});

describe("the other policies", () => {
  test("kv-blind ranks as if nothing were cached, and still predicts with what is", async () => {
    const prompt = uniqueText("blind");
    await warm(1, prompt);
    await untilKnown(1, prompt);
    await mesh.setPolicy("kv-blind");
    const { decision } = await place(prompt);
    expect(decision.policy).toBe("kv-blind");
    const byId = new Map(decision.candidates.map((one) => [one.workerId, one]));
    const [without, holder] = [byId.get("w0"), byId.get("w1")];
    if (without === undefined || holder === undefined) throw new Error("a candidate is missing");
    expect([without.matchedBlocks, holder.matchedBlocks]).toEqual([
      0,
      Math.floor(decision.promptTokens / blockSizeTokens),
    ]);
    // Terms leave the cache out, predictions do not: they agree only where nothing is cached.
    const ranked = (one: Candidate): number => termOf(one, "queue") + termOf(one, "prefill");
    expect(without.predictedTtftMs).toBeCloseTo(ranked(without), 3);
    expect(holder.predictedTtftMs).toBeLessThan(ranked(holder) / 2);
    expect(decision.candidates[0]?.costMs).toBeLessThanOrEqual(decision.candidates[1]?.costMs ?? 0);

    await mesh.setPolicy("kv");
    const aware = await place(prompt);
    expect(aware.chosen.predictedTtftMs).toBeCloseTo(ranked(aware.chosen), 3);
  });

  test("round-robin takes turns, whoever holds the prompt", async () => {
    await mesh.setPolicy("round-robin");
    const prompt = uniqueText("turns");
    const chosen: string[] = [];
    for (let i = 0; i < 6; i++) {
      const { decision, chosen: one } = await place(prompt);
      expect(decision.policy).toBe("round-robin");
      expect(one.terms.map((term) => term.name)).toEqual(["turn"]);
      chosen.push(one.workerId);
    }
    const [first = "", second = ""] = chosen;
    expect([first, second].toSorted()).toEqual(["w0", "w1"]);
    expect(chosen).toEqual([first, second, first, second, first, second]);
  });

  test("least-requests goes where fewer requests are open", async () => {
    await mesh.setPolicy("least-requests");
    const long = mesh.chat({ maxTokens: 400, body: { ignore_eos: true } });
    const busy = await eventually("the long request is placed", async () => {
      const { decision } = await mesh.routers.explain({ kind: "last" });
      return decision?.policy === "least-requests" && decision.observed === undefined
        ? decision.workerId
        : undefined;
    });
    const { chosen, decision } = await place(uniqueText("fewer", 50));
    expect(chosen.workerId).not.toBe(busy);
    expect(chosen.terms).toEqual([{ name: "open", ms: 0 }]);
    expect(decision.candidates[1]).toMatchObject({ workerId: busy, openRequests: 1 });
    expect((await long).status).toBe(200);
  });

  test("a policy that does not exist is refused by name", async () => {
    await expect(mesh.setPolicy("best")).rejects.toThrow(/best.*kv/s);
  });
});

describe("faults of one engine's KV events", () => {
  async function setFault(fault: Readonly<Record<string, unknown>>): Promise<void> {
    const response = await fetch(`${mesh.engineUrls[1] ?? ""}/sim/faults`, {
      method: "POST",
      body: JSON.stringify(fault),
    });
    expect(response.status).toBe(200);
  }

  const worker = (i: number): string => mesh.workerHttp[i] ?? "";
  const batches = async (i: number, outcome: string): Promise<number> =>
    metricOf(worker(i), "kvmesh_worker_event_batches_total", { outcome });

  /** What must not move at the other worker. */
  async function othersState(): Promise<unknown> {
    const { resyncs, engineLife, workerStartMs } = await workerState("w0");
    return {
      resyncs,
      engineLife,
      workerStartMs,
      undecodable: await batches(0, "undecodable"),
      gaps: await metricOf(worker(0), "kvmesh_worker_event_gaps_total"),
      forgets: await metricOf(worker(0), "kvmesh_worker_forgets_total"),
      snapshots: await metricOf(worker(0), "kvmesh_worker_snapshots_total"),
    };
  }

  /** The index says of a prompt exactly what the engines say. */
  async function expectRight(name: string): Promise<void> {
    for (const engine of [0, 1]) {
      const prompt = uniqueText(`${name}${String(engine)}`);
      await warm(engine, prompt);
      await untilKnown(engine, prompt);
      const served = await place(prompt);
      expectHeldBy(engine, served);
      expect(served.decision.candidates[1]?.matchedBlocks).toBe(0);
    }
  }

  test("garbage is counted, that worker recovers, and the other is untouched", async () => {
    const others = await othersState();
    const [undecodable, applied] = [await batches(1, "undecodable"), await batches(1, "applied")];
    await setFault({ kind: "garbage_events", count: 10 });
    await eventually(
      "the worker has seen the garbage",
      async () => (await batches(1, "undecodable")) > undecodable,
      20_000,
    );
    await warm(1, uniqueText("after-garbage"));
    await eventually(
      "events are applied again",
      async () => (await batches(1, "applied")) > applied,
      20_000,
    );
    expect(await othersState()).toEqual(others);
    await expectRight("garbage");
    expect(mesh.process("worker-1").running).toBe(true);
  });

  test("dropped events are fetched again when the gap shows", async () => {
    const others = await othersState();
    const gaps = await metricOf(worker(1), "kvmesh_worker_event_gaps_total");
    const lost = uniqueText("lost");
    await setFault({ kind: "drop_events", ratio: 1, ms: 600_000 });
    await warm(1, lost);
    await setFault({ kind: "drop_events", ratio: 0, ms: 1 });
    await warm(1, uniqueText("seen"));
    await eventually(
      "the worker has found the gap",
      async () => (await metricOf(worker(1), "kvmesh_worker_event_gaps_total")) > gaps,
      20_000,
    );
    await untilKnown(1, lost);
    expectHeldBy(1, await place(lost));
    expect(await othersState()).toEqual(others);
    await expectRight("dropped");
  });

  test("events that come late and mixed with garbage leave the index right", async () => {
    const others = await othersState();
    await setFault({ kind: "drop_events", ratio: 0.5, ms: 600_000 });
    const prompts = Array.from({ length: 8 }, (_, i) => uniqueText(`mixed${String(i)}`, 100));
    for (const prompt of prompts) {
      await setFault({ kind: "garbage_events", count: 3 });
      await warm(1, prompt);
    }
    await setFault({ kind: "drop_events", ratio: 0, ms: 1 });
    await warm(1, uniqueText("mixed-end", 100));
    for (const prompt of prompts) await untilKnown(1, prompt);
    expect(await othersState()).toEqual(others);
    await expectRight("late");
  });

  test("an engine that starts again, empty, is not believed to hold anything", async () => {
    const others = await othersState();
    const prompt = uniqueText("gone");
    await warm(1, prompt);
    await untilKnown(1, prompt);
    const { engineLife } = await workerState("w1");
    await mesh.process("engine-1").kill();
    await mesh.process("engine-1").restart();
    await eventually(
      "the router knows the new life of the engine",
      async () => (await workerState("w1")).engineLife > engineLife,
      30_000,
    );
    await mesh.untilServing();
    const served = await place(prompt);
    expect(served.decision.candidates.map((one) => one.matchedBlocks)).toEqual([0, 0]);
    expect(served.cachedTokens).toBe(0);
    expect(await othersState()).toEqual(others);
    await expectRight("reborn");
  });
});
