import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { describeOutcomes, joinAccessLog, startLoad } from "../support/load.ts";
import { eventually, startMesh, type ChatAnswer, type TestMesh } from "../support/mesh.ts";
import { missingFrom, watchPool } from "../support/pool-watch.ts";
import { untilBooksEmpty, untilWorker } from "../support/topology.ts";

let mesh: TestMesh;
let engines: string[];

beforeAll(async () => {
  // Slow enough that a stream of 2,000 tokens takes seconds.
  mesh = await startMesh({ routers: 2, engines: 2, settings: { engine: { speedup: 5 } } });
  engines = mesh.engineUrls.map((url) => url.replace("http://", "")).toSorted();
});

afterEach(async () => {
  // What a failed test has left dead would fail all that follow.
  for (const name of ["worker-0", "worker-1", "engine-0", "engine-1", "envoy"]) {
    if (!mesh.process(name).running) await mesh.process(name).restart();
  }
  await mesh.untilServing();
  await mesh.setPolicy("kv");
  await untilBooksEmpty(mesh);
});

afterAll(async () => {
  await mesh.stop();
});

const longPrompt = (topic: string): string =>
  `${topic}: ${"tell me more of it, please. ".repeat(60)}`;

/** Decision about a request, once it is known. */
async function decisionOf(requestId: string) {
  const found = await eventually(
    `a router explains ${requestId}`,
    async () => (await mesh.routers.explain({ kind: "request", id: requestId })).decision,
    10_000,
  );
  return found;
}

/** Sends a chat and says which worker it was placed on. */
async function chatPlaced(content: string): Promise<{ answer: ChatAnswer; workerId: string }> {
  const id = randomUUID();
  const answer = await mesh.chat({ content, headers: { "x-request-id": id } });
  expect(answer.status, answer.text).toBe(200);
  return { answer, workerId: (await decisionOf(id)).workerId };
}

/** Leading blocks of a prompt that the deciding router believes a worker to hold; asks by sending the prompt. */
async function matchedBlocks(content: string, workerId: string): Promise<number> {
  const id = randomUUID();
  const answer = await mesh.chat({ content, headers: { "x-request-id": id } });
  expect(answer.status, answer.text).toBe(200);
  const { candidates } = await decisionOf(id);
  const found = candidates.find((one) => one.workerId === workerId);
  if (found === undefined) throw new Error(`${workerId} was no candidate`);
  return found.matchedBlocks;
}

/** Waits until the router that decides believes a worker to hold a prompt of `longPrompt`. */
async function untilHeld(content: string, workerId: string): Promise<void> {
  await eventually(
    `${workerId} is known to hold the prompt`,
    async () => (await matchedBlocks(content, workerId)) > 10,
    30_000,
  );
}

/** A stream that takes seconds, and the number of the worker and engine that it is on. */
async function startLongStream(): Promise<{ answer: Promise<ChatAnswer>; index: number }> {
  const id = randomUUID();
  const answer = mesh.chat({
    content: `a long answer ${id}`,
    maxTokens: 2_000,
    body: { ignore_eos: true },
    headers: { "x-request-id": id },
  });
  const { workerId } = await decisionOf(id);
  return { answer, index: Number(workerId.slice(1)) };
}

/** Gives a running simulated engine a fault. */
async function fault(index: number, body: Readonly<Record<string, unknown>>): Promise<void> {
  const response = await fetch(`${mesh.engineUrls[index] ?? ""}/sim/faults`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  expect(response.status, await response.text()).toBe(200);
}

const endpointOf = (index: number): string => (mesh.engineUrls[index] ?? "").replace("http://", "");

/** A stream that has reached its end with every token. */
function expectWhole(answer: ChatAnswer): void {
  expect(answer.status, answer.text.slice(-300)).toBe(200);
  expect(answer.text.trimEnd().endsWith("data: [DONE]"), answer.text.slice(-300)).toBe(true);
  expect(answer.usage?.completion_tokens).toBe(2_000);
}

describe("a worker", () => {
  test("killed and back within the grace period is not missed, and its engine serves on", async () => {
    const watch = watchPool(mesh);
    const { answer, index } = await startLongStream();
    await mesh.process(`worker-${index}`).kill("SIGKILL");
    await untilWorker(mesh, `w${index}`, "the worker is away", (one) => one?.state === "away");
    await mesh.process(`worker-${index}`).restart();
    await untilWorker(mesh, `w${index}`, "the worker is back", (one) => one?.state === "ready");
    expectWhole(await answer);
    expect(missingFrom(await watch.stop(), engines)).toEqual([]);
  });

  test("gone for longer leaves the pool, its streams end whole, and it comes back knowing its blocks", async () => {
    const content = longPrompt(randomUUID());
    const { workerId } = await chatPlaced(content);
    const index = Number(workerId.slice(1));
    await untilHeld(content, workerId);
    const direct = async (): Promise<ChatAnswer> =>
      mesh.chat({
        content: `direct ${randomUUID()}`,
        url: mesh.engineUrls[index] ?? "",
        maxTokens: 2_000,
        body: { ignore_eos: true },
      });
    await mesh.process(`worker-${index}`).kill("SIGKILL");
    const streaming = direct();
    const clusters = async (): Promise<string[]> =>
      ((await mesh.admin.clusters()).get("pool-default") ?? []).map((host) => host.endpoint);
    await eventually(
      "Envoy has lost the endpoint",
      async () => !(await clusters()).includes(endpointOf(index)),
      30_000,
    );
    expect(await clusters()).toEqual(engines.filter((one) => one !== endpointOf(index)));
    // Nothing but the pool has lost it: the engine serves, and the other one takes all requests.
    expectWhole(await streaming);
    for (let i = 0; i < 4; i++) {
      expect((await chatPlaced(`elsewhere ${i}`)).workerId).not.toBe(workerId);
    }
    await mesh.process(`worker-${index}`).restart();
    await mesh.untilServing();
    await untilWorker(mesh, workerId, "blocks are known again", (one) => (one?.blocks ?? 0n) > 10n);
    await untilHeld(content, workerId);
  });
});

describe("an engine", () => {
  test("killed under load and restarted empty: only what it was answering is lost, its blocks are forgotten", async () => {
    const content = longPrompt(randomUUID());
    const { workerId } = await chatPlaced(content);
    const index = Number(workerId.slice(1));
    await untilHeld(content, workerId);
    const before = await untilWorker(
      mesh,
      workerId,
      "it is ready",
      (one) => one?.state === "ready",
    );

    // Both engines take half, also of a light load.
    await mesh.setPolicy("round-robin");
    const load = startLoad(mesh, { perSecond: 20, maxTokens: 40 });
    await sleep(2_000);
    // Its worker tells nobody for a moment, so that requests go on to be placed there.
    const worker = mesh.process(`worker-${index}`);
    await worker.kill("SIGSTOP");
    const killedAt = Date.now();
    try {
      await mesh.process(`engine-${index}`).kill("SIGKILL");
      await sleep(500);
    } finally {
      await worker.kill("SIGCONT");
    }
    await untilWorker(mesh, workerId, "it is not ready", (one) => one?.state !== "ready");
    await sleep(1_500);
    await mesh.process(`engine-${index}`).restart();
    const life = before[0]?.engineLife ?? 0n;
    await untilWorker(
      mesh,
      workerId,
      "it is ready in another life",
      (one) => one?.state === "ready" && one.engineLife > life,
    );
    const backAt = Date.now();
    await sleep(2_000);
    const outcomes = await joinAccessLog(mesh, await load.stop());

    // What the dead engine was answering cannot go on: a stream is cut, a request without an answer yet gets a 503 and
    // is not sent elsewhere, since it may be what kills engines. Nothing else may fail.
    const failed = outcomes.filter((one) => one.failure !== undefined);
    const lost = failed.filter(
      ({ sentAt, status, record }) =>
        sentAt <= killedAt + 100 &&
        record["served"] === endpointOf(index) &&
        (status === 200 || (status === 503 && record["flags"] === "UC")),
    );
    expect(describeOutcomes(failed.filter((one) => !lost.includes(one)))).toBe("");
    expect(lost.length).toBeLessThan(10);
    const retried = outcomes.filter((one) => Number(one.record["attempts"]) > 1);
    console.info(
      `${outcomes.length} requests, ${lost.length} lost with it, ${retried.length} served by a fallback`,
    );
    expect(retried.length).toBeGreaterThan(0);
    expect(describeOutcomes(retried.filter((one) => one.failure !== undefined))).toBe("");
    // The restarted engine takes load again.
    const backThere = outcomes.filter(
      (one) => one.sentAt > backAt && one.record["served"] === endpointOf(index),
    );
    expect(backThere.length).toBeGreaterThan(5);
    await untilBooksEmpty(mesh);
    // The new life has at most the first block, which the template gives to every prompt, or what was computed anew.
    expect(await matchedBlocks(content, workerId)).toBeLessThanOrEqual(2);
  });

  test("killed before the first byte of its answers: clean errors, and the other engine's are whole", async () => {
    await mesh.setPolicy("round-robin");
    // Neither engine makes a step, so that nothing has begun to answer.
    const frozen = { kind: "freeze", ms: 4_000 };
    await Promise.all([fault(0, frozen), fault(1, frozen)]);
    const waiting = Array.from({ length: 8 }, async (_, i) => {
      const id = randomUUID();
      const headers = { "x-request-id": id };
      const answer = await mesh.chat({
        content: `waits ${i} ${id}`,
        stream: false,
        headers,
        body: { ignore_eos: true },
      });
      return { answer, workerId: (await decisionOf(id)).workerId };
    });
    await untilWorker(mesh, "w1", "requests wait there", (one) => (one?.openRequests ?? 0) > 0);
    await mesh.process("engine-1").kill("SIGKILL");
    const answers = await Promise.all(waiting);
    const lost = answers.filter(({ answer }) => answer.status !== 200);
    expect(lost.length).toBeGreaterThan(0);
    for (const { answer, workerId } of lost) {
      expect(workerId).toBe("w1");
      expect(answer.status, answer.text).toBe(503);
      expect(answer.headers.get("retry-after")).toMatch(/^\d+$/);
      expect(JSON.parse(answer.text)).toMatchObject({ error: { code: "no_ready_worker" } });
    }
    for (const { answer } of answers.filter((one) => one.workerId === "w0")) {
      expect(answer.status, answer.text).toBe(200);
      expect(answer.usage?.completion_tokens).toBe(8);
    }
    // From now on everything is placed on the other one, or reaches it as the fallback.
    for (let i = 0; i < 10; i++) {
      const answer = await mesh.chat({ content: `after ${i} ${randomUUID()}` });
      expect(answer.status, answer.text).toBe(200);
    }
  });

  test("frozen in its core: requests there wait, and none fails", async () => {
    await mesh.setPolicy("round-robin");
    const load = startLoad(mesh, { perSecond: 20 });
    await sleep(1_000);
    const from = Date.now();
    await fault(0, { kind: "freeze", ms: 3_000 });
    await sleep(4_000);
    const outcomes = await joinAccessLog(mesh, await load.stop());
    expect(describeOutcomes(outcomes.filter((one) => one.failure !== undefined))).toBe("");
    const during = outcomes.filter((one) => one.sentAt > from && one.sentAt < from + 3_000);
    const there = during.filter((one) => one.record["served"] === endpointOf(0)).length;
    expect(there).toBeGreaterThan(during.length / 4);
  });

  test("stopped as a process: it gets nothing new once noticed, and goes on as the same life", async () => {
    await mesh.setPolicy("round-robin");
    const [before] = await untilWorker(mesh, "w0", "it is ready", (one) => one?.state === "ready");
    const load = startLoad(mesh, { perSecond: 20 });
    await sleep(500);
    await mesh.process("engine-0").kill("SIGSTOP");
    let noticedAt = 0;
    let goesOnAt = 0;
    try {
      await untilWorker(mesh, "w0", "it is not ready", (one) => one?.state !== "ready");
      noticedAt = Date.now();
      await sleep(2_000);
    } finally {
      goesOnAt = Date.now();
      await mesh.process("engine-0").kill("SIGCONT");
    }
    const [after] = await untilWorker(mesh, "w0", "it is ready", (one) => one?.state === "ready");
    expect(after?.engineLife).toBe(before?.engineLife);
    const outcomes = await joinAccessLog(mesh, await load.stop());
    expect(describeOutcomes(outcomes.filter((one) => one.failure !== undefined))).toBe("");
    const sentThere = outcomes.filter(
      (one) =>
        one.sentAt > noticedAt + 300 &&
        one.sentAt < goesOnAt - 300 &&
        String(one.record["picked"]).startsWith(endpointOf(0)),
    );
    expect(describeOutcomes(sentThere)).toBe("");
  });

  test("slow: everything is answered", async () => {
    await mesh.setPolicy("round-robin");
    const load = startLoad(mesh, { perSecond: 20 });
    await fault(1, { kind: "slow", factor: 10, ms: 3_000 });
    await sleep(3_500);
    const outcomes = await load.stop();
    expect(describeOutcomes(outcomes.filter((one) => one.failure !== undefined))).toBe("");
  });
});

describe("Envoy", () => {
  test("killed and started again serves with the whole pool from its first answer", async () => {
    await mesh.process("envoy").kill("SIGKILL");
    const watch = watchPool(mesh);
    await mesh.process("envoy").restart();
    await eventually("Envoy is live", async () => mesh.admin.isLive(), 30_000);
    // No waiting for anything else: live means that discovery has answered.
    for (let i = 0; i < 10; i++) {
      const answer = await mesh.chat({ content: `after the restart ${i}` });
      expect(answer.status, answer.text).toBe(200);
    }
    await mesh.untilServing();
    const sightings = await watch.stop();
    const withPool = sightings.filter(({ endpoints }) => endpoints.length > 0);
    expect(withPool.length).toBeGreaterThan(0);
    expect(missingFrom(withPool, engines)).toEqual([]);
    const { workerId } = await chatPlaced("placed again");
    expect(workerId).toMatch(/^w[01]$/);
  });
});
