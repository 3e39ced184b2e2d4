import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { mergeSettings, type Settings } from "../../services/cli/core/mesh-plan.ts";
import type { ManagedProcess } from "../../services/cli/edge/up/launcher.ts";
import { describeOutcomes, joinAccessLog, startLoad, type PickedOutcome } from "../support/load.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";
import { missingFrom, watchPool } from "../support/pool-watch.ts";
import { serviceProcess } from "../support/service-process.ts";

/** Unplaced requests are tolerated this long after a fault, ms: two health checks and their time-outs. */
const faultWindowMs = 3_000;
const secondModel = "second-model";

let mesh: TestMesh;
let engines: string[];
const beside: ManagedProcess[] = [];

beforeAll(async () => {
  mesh = await startMesh({ routers: 2, engines: 2 });
  engines = mesh.engineUrls.map((url) => url.replace("http://", "")).toSorted();
});

afterAll(async () => {
  await Promise.all(beside.map((one) => one.stop(2_000)));
  await mesh.stop();
});

function settingsOf(process: string, service: string): Settings {
  const file = mesh.state.file("config", `${process}.json`);
  const all = JSON.parse(readFileSync(file, "utf8")) as Readonly<Record<string, Settings>>;
  return all[service] ?? {};
}

/** An engine with another model, and its worker, in a pool of their own. */
async function startSecondPool(): Promise<{ readonly url: string }> {
  const engine = serviceProcess(mesh.state, {
    name: "second-engine",
    service: "engine",
    settings: mergeSettings(settingsOf("engine-0", "engine"), {
      instance: "second-engine",
      model: secondModel,
      port: 0,
      events: { port: 0, replayPort: 0 },
    }),
  });
  beside.push(engine);
  await engine.start();
  const { http, events, replay } = engine.ports;
  const worker = serviceProcess(mesh.state, {
    name: "second-worker",
    service: "worker",
    settings: mergeSettings(settingsOf("worker-0", "worker"), {
      workerId: "second",
      pool: "second",
      httpPort: 0,
      engine: {
        url: `http://127.0.0.1:${http}`,
        eventsEndpoint: `tcp://127.0.0.1:${events}`,
        replayEndpoint: `tcp://127.0.0.1:${replay}`,
      },
    }),
  });
  beside.push(worker);
  await worker.start();
  return { url: `http://127.0.0.1:${http}` };
}

/** What an engine has taken since its start: prompt tokens, so that refused requests do not hide behind retries. */
async function promptTokens(url: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const line = /^vllm:prompt_tokens_total\{[^}]*\} (\S+)$/m.exec(text);
  if (line === null) throw new Error(`no vllm:prompt_tokens_total at ${url}`);
  return Number(line[1]);
}

/** Requests that Envoy has sent to the engines of a pool. */
async function sentTo(cluster: string): Promise<number> {
  const hosts = (await mesh.admin.clusters()).get(cluster) ?? [];
  return hosts.reduce((sum, host) => sum + (host.stats["rq_total"] ?? 0), 0);
}

/** Asks until a request is answered as placed by a router, seen by the decision id that the trusted listener shows. */
async function untilPlaced(model: string): Promise<void> {
  await eventually(
    `a request for ${model} is placed by a router`,
    async () => {
      const answer = await mesh.chat({ model, url: mesh.trustedUrl });
      return answer.status === 200 && (answer.headers.get("x-kvmesh-decision") ?? "") !== "";
    },
    60_000,
  );
}

const unpicked = (outcomes: readonly PickedOutcome[]): PickedOutcome[] =>
  outcomes.filter((one) => one.unpicked !== undefined);
const failed = (outcomes: readonly PickedOutcome[]): PickedOutcome[] =>
  outcomes.filter((one) => one.failure !== undefined);

/**
 * Everything that one router's end may do to a load: no failure, at most 0.5 % unpicked, and those within the fault
 * window. A request belongs to the window when it was open during it.
 */
function expectUnharmed(outcomes: readonly PickedOutcome[], faultAt: number): void {
  expect(describeOutcomes(failed(outcomes))).toBe("");
  const outside = unpicked(outcomes).filter(
    ({ sentAt, endedAt }) => endedAt < faultAt || sentAt > faultAt + faultWindowMs,
  );
  expect(describeOutcomes(outside)).toBe("");
  const bad = unpicked(outcomes);
  console.info(`${outcomes.length} requests, 0 failed, ${bad.length} unpicked`);
  expect(bad.length / outcomes.length, describeOutcomes(bad)).toBeLessThanOrEqual(0.005);
}

describe("with two routers", () => {
  test("one killed under load harms no request, and its restart shrinks no pool", async () => {
    const watch = watchPool(mesh);
    const load = startLoad(mesh, { perSecond: 40 });
    await sleep(1_500);
    const faultAt = Date.now();
    await mesh.process("router-0").kill("SIGKILL");
    // Longer than the grace period of 5 s, after which an engine would leave that the dead router alone had held.
    await sleep(6_000);
    const restartAt = Date.now();
    await mesh.process("router-0").restart();
    await mesh.untilServing();
    await sleep(2_000);
    const outcomes = await joinAccessLog(mesh, await load.stop());
    const sightings = await watch.stop();
    expectUnharmed(outcomes, faultAt);
    expect(missingFrom(sightings, engines)).toEqual([]);
    expect(sightings.filter(({ at }) => at > restartAt).length).toBeGreaterThan(10);
    // Both decide again.
    const deciders = new Set(
      outcomes
        .filter(({ sentAt }) => sentAt > restartAt)
        .map(({ record }) => String(record["decision"]).split(".")[0]),
    );
    expect([...deciders].toSorted()).toEqual(["router-0", "router-1"]);
  });

  test("one restarted gracefully under load harms no request and shrinks no pool", async () => {
    const watch = watchPool(mesh);
    const load = startLoad(mesh, { perSecond: 40 });
    await sleep(1_000);
    const faultAt = Date.now();
    await mesh.process("router-1").kill("SIGTERM");
    const goneAt = Date.now();
    await sleep(2_000);
    await mesh.process("router-1").restart();
    await mesh.untilServing();
    await sleep(2_000);
    const outcomes = await joinAccessLog(mesh, await load.stop());
    const sightings = await watch.stop();
    console.info(`drained for ${goneAt - faultAt} ms`);
    expectUnharmed(outcomes, goneAt);
    expect(missingFrom(sightings, engines)).toEqual([]);
  });
});

describe("without any router", () => {
  test("the default pool is served, another model never reaches its engines, and all is placed again later", async () => {
    const second = await startSecondPool();
    await untilPlaced(secondModel);
    const placed = await mesh.chat({ model: secondModel });
    expect(placed.status, placed.text).toBe(200);

    await Promise.all(
      ["router-0", "router-1"].map(async (name) => mesh.process(name).kill("SIGKILL")),
    );
    const before = await Promise.all([...mesh.engineUrls, second.url].map(promptTokens));
    const sentBefore = await sentTo("pool-default");
    // Requests in pairs: served by the default pool, refused for the second model.
    const pairs = 20;
    for (let i = 0; i < pairs; i++) {
      const own = await mesh.chat({ content: `served without a router ${i}` });
      expect(own.status, own.text).toBe(200);
      expect(own.text).toContain("data: [DONE]");
      const other = await mesh.chat({ model: secondModel, content: `refused ${i}` });
      expect(other.status, other.text).toBe(503);
      expect(other.headers.get("retry-after")).toMatch(/^\d+$/);
      expect(JSON.parse(other.text)).toMatchObject({
        error: { message: expect.any(String) as string, type: expect.any(String) as string },
      });
    }
    const after = await Promise.all([...mesh.engineUrls, second.url].map(promptTokens));
    expect(await sentTo("pool-default")).toBe(sentBefore + pairs);
    // The second pool's engine was not reached unplaced either, and the default pool's did the served half.
    expect((after[2] ?? 0) - (before[2] ?? 0)).toBe(0);
    expect((after[0] ?? 0) + (after[1] ?? 0)).toBeGreaterThan((before[0] ?? 0) + (before[1] ?? 0));

    const watch = watchPool(mesh);
    await Promise.all(["router-0", "router-1"].map(async (name) => mesh.process(name).restart()));
    await mesh.untilServing();
    await untilPlaced(secondModel);
    const load = startLoad(mesh, { perSecond: 20 });
    await sleep(3_000);
    const outcomes = await joinAccessLog(mesh, await load.stop());
    expect(missingFrom(await watch.stop(), engines)).toEqual([]);
    expect(describeOutcomes([...failed(outcomes), ...unpicked(outcomes)])).toBe("");
  });
});
