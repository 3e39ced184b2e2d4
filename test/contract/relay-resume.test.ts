import { spawn, type ChildProcess } from "node:child_process";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { startScriptedEngine, type ScriptedEngine } from "../support/relay-engines.ts";
import { generate, idsOf } from "../support/relay-oracle.ts";
import {
  legAt,
  post,
  readStream,
  startTestRelay,
  type TestRelay,
} from "../support/relay-requests.ts";
import { ScriptedRouter } from "../support/relay-router.ts";
import type { RelayHello } from "../../services/shared/gen/kvmesh/relay/v1/relay.ts";

const guard = { freezeItlMultiple: 50, freezeMsMin: 5_000, migrationsMax: 3 };
const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

interface Mesh {
  readonly router: ScriptedRouter;
  readonly relay: TestRelay;
  readonly engine: ScriptedEngine;
  /** A relay in a process of its own, which can be killed. */
  readonly other: { readonly child: ChildProcess; readonly httpPort: number };
}

async function start(settings: Record<string, unknown> = {}): Promise<Mesh> {
  const router = new ScriptedRouter();
  await router.start();
  const engine = await startScriptedEngine();
  const list = [`127.0.0.1:${String(router.port)}`];
  const relay = await startTestRelay({
    settings: { instance: "relay-a", routers: { list }, ...settings },
  });
  const ofOther = {
    instance: "relay-b",
    logLevel: "warn",
    keysFile: relay.keysFile,
    h2Port: 0,
    httpPort: 0,
    metricsPort: 0,
    "routers.list": JSON.stringify(list),
  };
  const child = spawn(
    process.execPath,
    [
      join(import.meta.dirname, "../../services/relay/main.ts"),
      ...Object.entries(ofOther).flatMap(([name, value]) => ["--set", `${name}=${String(value)}`]),
    ],
    { stdio: ["ignore", "inherit", "inherit", "ipc"] },
  );
  open.push(router, engine, { close: () => relay.stop() }, { close: () => child.kill("SIGKILL") });
  const httpPort = await new Promise<number>((resolve, reject) => {
    child.on("message", (message: { event?: string; ports?: { http: number } }) => {
      if (message.event === "ready") resolve(message.ports?.http ?? 0);
    });
    child.on("exit", () => {
      reject(new Error("the relay's process ended"));
    });
  });
  const hellos = (): RelayHello[] =>
    router.said.flatMap((one) => (one.$case === "hello" ? [one.value] : []));
  await expect.poll(() => hellos().length, { timeout: 10_000 }).toBe(2);
  const relays = hellos().map(({ instance, h2Address, epoch }) => ({ instance, h2Address, epoch }));
  const member = {
    workerId: `w-${engine.address}`,
    address: engine.address,
    workerStartMs: 1n,
    engineLife: 1n,
    engine: "vllm",
    ready: true,
  };
  for (const stream of router.streams) {
    router.snapshot(stream, [member], { relays, relayCount: 2 });
  }
  return { router, relay, engine, other: { child, httpPort } };
}

const prompt = "Once upon a time";
const body = JSON.stringify({
  model: "m",
  prompt,
  max_tokens: 120,
  ignore_eos: true,
  stream: true,
  temperature: 0,
  stop: ["never to be found"],
  stream_options: { include_usage: true },
});
const expected = [...generate({ promptIds: idsOf(prompt), tokensMax: 120, ignoreEos: true })]
  .map(({ text }) => text)
  .join("");

function headers({ relay, engine }: Mesh, resume?: string): Record<string, string> {
  const token = relay.sign(body, { legs: [legAt(engine.address, "whole")], guard });
  return {
    "x-kvmesh-placement": token,
    ...(resume === undefined ? {} : { "x-kvmesh-resume": resume }),
  };
}

/** What a client keeps when its relay dies: whole events, and the name of the last one. */
function keep(text: string): { readonly text: string; readonly id: string } {
  const whole = text.slice(0, text.lastIndexOf("\n\n") + 2);
  const ids = readStream(whole).ids;
  return { text: whole, id: ids[ids.length - 1] ?? "" };
}

describe("resume", () => {
  test("a relay is killed; the other one goes on where the client's stream broke off", async () => {
    const mesh = await start();
    mesh.engine.faults = { tokenMs: 5 };
    // The relays hear of each other in a moment.
    await expect
      .poll(
        async () => {
          const answer = await post(mesh.other.httpPort, "/v1/completions", body, headers(mesh));
          return readStream(answer.text).ids.length;
        },
        { timeout: 15_000 },
      )
      .toBeGreaterThan(60);
    const broken = await post(
      mesh.other.httpPort,
      "/v1/completions",
      body,
      headers(mesh),
      (text) => {
        if (text.split("id: ").length > 40) mesh.other.child.kill("SIGKILL");
      },
    );
    expect(broken.broken).toBe(true);
    const kept = keep(broken.text);
    expect(readStream(kept.text).done).toBe(false);
    // Placements on an engine that is no member, or whose streams cannot be continued, do not use up what is kept.
    for (const leg of [
      { ...legAt(mesh.engine.address, "whole"), workerId: "gone" },
      { ...legAt(mesh.engine.address, "whole"), engine: "sglang" as const },
    ]) {
      const refused = await post(mesh.relay.relay.httpPort, "/v1/completions", body, {
        "x-kvmesh-placement": mesh.relay.sign(body, { legs: [leg], guard }),
        "x-kvmesh-resume": kept.id,
      });
      expect(refused.status).toBe(409);
      expect(refused.text).toContain(leg.workerId === "gone" ? "stale_epoch" : "resume_lost");
    }
    const rest = await post(
      mesh.relay.relay.httpPort,
      "/v1/completions",
      body,
      headers(mesh, kept.id),
    );
    expect(rest.status).toBe(200);
    const stream = readStream(kept.text + rest.text);
    expect(stream).toMatchObject({ text: expected, done: true, finish: ["length"] });
    expect(
      stream.chunks.flatMap((chunk) => (chunk["usage"] === undefined ? [] : [chunk["usage"]])),
    ).toMatchObject([{ completion_tokens: 120, prompt_tokens: idsOf(prompt).length }]);
    // Handed over once: the same token again finds nothing.
    const again = await post(
      mesh.relay.relay.httpPort,
      "/v1/completions",
      body,
      headers(mesh, kept.id),
    );
    expect(again.status).toBe(409);
    expect(again.text).toContain("resume_lost");
  }, 40_000);

  test("forged tokens and other bodies are refused, lost streams are never begun anew", async () => {
    const mesh = await start();
    let named = "";
    await expect
      .poll(
        async () => {
          const answer = await post(
            mesh.relay.relay.httpPort,
            "/v1/completions",
            body,
            headers(mesh),
          );
          named = readStream(answer.text).ids[3] ?? "";
          return named;
        },
        { timeout: 15_000 },
      )
      .not.toBe("");
    const requests = mesh.engine.seen.length;
    const send = (resume: string): ReturnType<typeof post> =>
      post(mesh.relay.relay.httpPort, "/v1/completions", body, headers(mesh, resume));
    const forged = `${named.slice(0, -6)}AAAAAA`;
    expect((await send(forged)).status).toBe(401);
    expect((await send("nonsense")).status).toBe(401);
    // The client got everything, so that nothing is kept any more.
    await expect.poll(async () => (await send(named)).status).toBe(409);
    mesh.other.child.kill("SIGKILL");
    expect((await send(named)).status).toBe(409);
    expect(mesh.engine.seen.length).toBe(requests);
    expect(await mesh.relay.metrics()).toContain('kvmesh_relay_resumes_total{outcome="lost"}');
  }, 40_000);

  test("the first tokens wait for the buddy's word, and every one that goes out has a name", async () => {
    const mesh = await start({ deadlines: { mirrorMs: 20_000 } });
    const send = (onText?: (text: string) => void): ReturnType<typeof post> =>
      post(mesh.relay.relay.httpPort, "/v1/completions", body, headers(mesh), onText);
    const isNamed = async (): Promise<boolean> => readStream((await send()).text).ids.length > 0;
    await expect.poll(isNamed, { timeout: 15_000 }).toBe(true);
    mesh.engine.faults = { tokenMs: 20 };
    mesh.other.child.kill("SIGSTOP");
    let got = "";
    const answer = send((text) => {
      got = text;
    });
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(got).not.toContain("data:");
    mesh.other.child.kill("SIGCONT");
    const { text } = await answer;
    expect(readStream(text)).toMatchObject({ text: expected, done: true });
    // The name comes in front of the first token, and none is ever taken back.
    expect(text.indexOf("id: ")).toBeGreaterThanOrEqual(0);
    expect(text.indexOf("id: ")).toBeLessThan(text.indexOf('"text"'));
    expect(text).not.toContain("id: \n");
  }, 40_000);

  test("a buddy that says nothing in time costs the first tokens their names, and is counted", async () => {
    const mesh = await start({ deadlines: { mirrorMs: 100 } });
    const send = (): ReturnType<typeof post> =>
      post(mesh.relay.relay.httpPort, "/v1/completions", body, headers(mesh));
    await expect
      .poll(async () => readStream((await send()).text).ids.length, { timeout: 15_000 })
      .toBeGreaterThan(0);
    const unnamed = async (): Promise<string> =>
      /unnamed_starts_total (\d+)/.exec(await mesh.relay.metrics())?.[1] ?? "";
    const before = Number(await unnamed());
    mesh.engine.faults = { tokenMs: 5 };
    mesh.other.child.kill("SIGSTOP");
    const { text } = await send();
    mesh.other.child.kill("SIGCONT");
    const stream = readStream(text);
    expect(stream).toMatchObject({ text: expected, done: true });
    expect(stream.ids.filter((id) => id !== "")).toEqual([]);
    expect(Number(await unnamed())).toBe(before + 1);
  }, 40_000);
});
