import { connect } from "node:http2";
import { afterEach, describe, expect, test } from "vitest";
import type { RelayEngine } from "../../services/shared/core/placement-token/placement.ts";
import { startScriptedEngine, type ScriptedEngine } from "../support/relay-engines.ts";
import { generate, idsOf } from "../support/relay-oracle.ts";
import {
  legAt,
  post,
  readStream,
  startTestRelay,
  type Answer,
  type TestRelay,
} from "../support/relay-requests.ts";
import { ScriptedRouter } from "../support/relay-router.ts";

/* What a relay holds for requests, what it asks of routers for them, and what it leaves to engines. */

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

interface Fleet {
  readonly relay: TestRelay;
  readonly one: ScriptedEngine;
  readonly two: ScriptedEngine;
}

async function start(settings: Record<string, unknown> = {}): Promise<Fleet> {
  const one = await startScriptedEngine();
  const two = await startScriptedEngine({ peers: () => [one] });
  const relay = await startTestRelay({ settings });
  open.push(one, two, { close: () => relay.stop() });
  return { relay, one, two };
}

const guard = { freezeItlMultiple: 20, freezeMsMin: 2_000, migrationsMax: 3 };
const bodyOf = (over: Record<string, unknown> = {}): string =>
  JSON.stringify({ model: "m", prompt: "hi", max_tokens: 8, ignore_eos: true, ...over });

function send(
  { relay, one }: Fleet,
  body: string,
  options: { guarded?: boolean; headers?: Record<string, string> } = {},
): Promise<Answer> {
  const token = relay.sign(body, {
    legs: [legAt(one.address, "whole")],
    ...(options.guarded === true ? { guard } : {}),
    tenant: "acme",
  });
  const headers = { "x-kvmesh-placement": token, ...options.headers };
  return post(relay.relay.httpPort, "/v1/completions", body, headers);
}

async function gauge(relay: TestRelay, name: string): Promise<number> {
  const line = (await relay.metrics()).split("\n").find((one) => one.startsWith(`${name} `));
  return Number(line?.split(" ")[1] ?? NaN);
}

describe("memory of bodies", () => {
  const large = (stream: boolean): string => bodyOf({ stream, prompt: "x".repeat(40_000) });

  test("is taken until the body is not needed any more", async () => {
    const fleet = await start({ limits: { bodyMemoryBytesMax: 65_536 } });
    const { relay, one } = fleet;
    one.faults = { firstMs: 2_000, tokenMs: 60 };
    const body = large(true);
    const first = send(fleet, body);
    await expect.poll(() => one.seen.length).toBe(1);
    expect(await gauge(relay, "kvmesh_relay_body_memory_bytes")).toBe(body.length);
    const refused = await send(fleet, body);
    expect(refused.status).toBe(503);
    expect(refused.text).toContain("no memory for the body");
    expect(refused.headers["retry-after"]).toBe("1");
    // Nobody asks for the body again once its answer passes.
    let openThen = 0;
    await expect
      .poll(
        async () => {
          openThen = relay.relay.openRequests;
          return gauge(relay, "kvmesh_relay_body_memory_bytes");
        },
        { timeout: 10_000, interval: 10 },
      )
      .toBe(0);
    expect(openThen).toBe(1);
    expect((await first).status).toBe(200);
    one.faults = {};
    expect((await send(fleet, body)).status).toBe(200);
    expect(await gauge(relay, "kvmesh_relay_body_memory_bytes")).toBe(0);
  });

  test("of a guarded stream is taken until its end, whose body may be needed again", async () => {
    const fleet = await start();
    fleet.one.faults = { tokenMs: 30 };
    const body = large(true);
    const answering = send(fleet, body, { guarded: true });
    await expect.poll(() => fleet.one.seen.length).toBe(1);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(await gauge(fleet.relay, "kvmesh_relay_body_memory_bytes")).toBe(body.length);
    expect(readStream((await answering).text).done).toBe(true);
    expect(await gauge(fleet.relay, "kvmesh_relay_body_memory_bytes")).toBe(0);
  });

  test("is given back whatever becomes of the request", async () => {
    const fleet = await start();
    const { relay, one } = fleet;
    await post(relay.relay.httpPort, "/v1/completions", large(false), {});
    one.faults = { status: 500 };
    await send(fleet, large(false));
    one.faults = { breakAfter: 2 };
    await send(fleet, large(true));
    const session = connect(`http://127.0.0.1:${String(relay.relay.h2Port)}`);
    open.push({
      close: () => {
        session.destroy();
      },
    });
    const stream = session.request({ ":method": "POST", ":path": "/v1/completions" });
    stream.on("error", () => undefined);
    stream.write(large(false));
    await expect
      .poll(() => gauge(relay, "kvmesh_relay_body_memory_bytes"))
      .toBe(large(false).length);
    stream.close(8);
    await expect.poll(() => gauge(relay, "kvmesh_relay_body_memory_bytes")).toBe(0);
    expect(relay.relay.openRequests).toBe(0);
  });
});

describe("room of hand-offs", () => {
  test.each<[string, RelayEngine, Record<string, unknown>]>([
    ["prefill makes the whole answer", "tensorrt-llm", { ignore_eos: false }],
    ["decode answers before prefill", "sglang", {}],
    ["decode has pulled", "vllm", {}],
  ])("is given back when %s", async (_name, kind, over) => {
    const { relay, one, two } = await start();
    if (kind === "sglang") one.faults = { firstMs: 100 };
    let prompt = "hi";
    for (let i = 0; over["ignore_eos"] === false; i++) {
      prompt = `p${String(i)}`;
      const [first] = generate({ promptIds: idsOf(prompt), tokensMax: 4 });
      if (first?.finishReason === "stop") break;
    }
    const body = bodyOf({ prompt, stream: true, ...over });
    const legs = [legAt(one.address, "prefill", kind), legAt(two.address, "decode", kind)];
    const answer = await post(relay.relay.httpPort, "/v1/completions", body, {
      "x-kvmesh-placement": relay.sign(body, { legs }),
    });
    expect(readStream(answer.text).done).toBe(true);
    await expect.poll(() => relay.relay.openRequests).toBe(0);
    expect(await gauge(relay, "kvmesh_relay_handoff_tokens")).toBe(0);
  });
});

describe("what an engine refuses", () => {
  test("is the answer of a guarded stream, and is not tried elsewhere", async () => {
    const router = new ScriptedRouter();
    await router.start();
    const list = [`127.0.0.1:${String(router.port)}`];
    const fleet = await start({ routers: { list } });
    open.push(router);
    fleet.one.faults = { status: 400 };
    const answer = await send(fleet, bodyOf({ stream: true }), { guarded: true });
    expect(answer.status).toBe(400);
    expect(JSON.parse(answer.text)).toMatchObject({ error: { message: "scripted" } });
    expect(answer.headers["x-kvmesh-guard"]).toBe("off; reason=status");
    expect(fleet.one.seen.length).toBe(1);
    expect(router.asked).toEqual([]);
    expect(await fleet.relay.metrics()).toContain(
      'kvmesh_relay_guards_total{state="off",reason="status"} 1',
    );
  });

  test("breaks off a stream that has begun, after no more engines than are allowed", async () => {
    const router = new ScriptedRouter();
    await router.start();
    const list = [`127.0.0.1:${String(router.port)}`];
    const fleet = await start({ routers: { list } });
    open.push(router);
    const { relay, one, two } = fleet;
    await expect.poll(() => router.said.some(({ $case }) => $case === "load")).toBe(true);
    one.faults = { breakAfter: 4 };
    two.faults = { status: 400 };
    const body = bodyOf({ stream: true });
    router.token = relay.sign(body, { legs: [legAt(two.address, "whole")] });
    const answer = await send(fleet, body, { guarded: true });
    const { done, chunks } = readStream(answer.text);
    expect(done).toBe(false);
    expect(chunks[chunks.length - 1]).toMatchObject({ error: { code: "worker_lost" } });
    expect(two.seen.length).toBeLessThanOrEqual(3);
  });
});

describe("requests that cannot be sent on", () => {
  test("are refused with what is wrong, and no engine is blamed", async () => {
    const fleet = await start();
    const { relay, one } = fleet;
    const body = bodyOf();
    const session = connect(`http://127.0.0.1:${String(relay.relay.h2Port)}`);
    open.push({
      close: () => {
        session.destroy();
      },
    });
    const token = relay.sign(body, { legs: [legAt(one.address, "whole")] });
    const stream = session.request({
      ":method": "POST",
      // A blank in the target, which HTTP/2 frames carry and a request line cannot.
      ":path": "/v1/completions?a= b",
      "x-kvmesh-placement": token,
    });
    let status = 0;
    let text = "";
    stream.on("response", (fields) => {
      status = Number(fields[":status"]);
    });
    stream.on("data", (chunk: Buffer) => {
      text += chunk.toString();
    });
    const ended = new Promise((resolve) => stream.on("end", resolve));
    stream.end(body);
    await ended;
    expect(status).toBe(400);
    expect(text).toContain("path");
    expect(one.seen).toEqual([]);
    expect(relay.notices).toEqual([]);
    expect(await relay.metrics()).not.toContain('outcome="lost"');
  });
});

describe("what routers hear when a request is placed again", () => {
  async function startWithRouter(): Promise<Fleet & { readonly router: ScriptedRouter }> {
    const router = new ScriptedRouter();
    await router.start();
    open.push(router);
    const fleet = await start({ routers: { list: [`127.0.0.1:${String(router.port)}`] } });
    await expect.poll(() => router.said.some(({ $case }) => $case === "load")).toBe(true);
    return { ...fleet, router };
  }

  test("is the tenant that it was admitted for, its class and its targets", async () => {
    const fleet = await startWithRouter();
    const { relay, router, one, two } = fleet;
    one.kill();
    const body = bodyOf();
    router.token = relay.sign(body, { legs: [legAt(two.address, "whole")] });
    const headers = {
      "x-kvmesh-tenant": "another, which the router did not believe",
      "x-kvmesh-priority": "interactive",
      "x-kvmesh-slo-ttft-ms": "250",
      traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    };
    expect((await send(fleet, body, { headers })).status).toBe(200);
    const [metadata] = router.askedWith;
    expect(metadata?.get("x-kvmesh-tenant")).toEqual(["acme"]);
    expect(metadata?.get("x-kvmesh-priority")).toEqual(["interactive"]);
    expect(metadata?.get("x-kvmesh-slo-ttft-ms")).toEqual(["250"]);
    expect(metadata?.get("traceparent")).toEqual([headers.traceparent]);
  });

  test("that the rest of a stream needs no prefill, when it is placed on a pair", async () => {
    const fleet = await startWithRouter();
    const { relay, router, one, two } = fleet;
    const third = await startScriptedEngine();
    open.push(third);
    one.faults = { breakAfter: 4 };
    two.faults = { tokenMs: 40 };
    const body = bodyOf({ stream: true });
    const legs = [legAt(third.address, "prefill"), legAt(two.address, "decode")];
    router.token = relay.sign(body, { decisionId: "router-0.1.again", legs });
    const answering = send(fleet, body, { guarded: true });
    const told = (): readonly string[] =>
      relay.notices
        .filter(({ decisionId, ended }) => ended && decisionId === "router-0.1.again")
        .map(({ leg, outcome, last }) => `${leg} ${outcome} ${String(last)}`);
    // At once, not when the stream ends.
    await expect.poll(told).toEqual(["prefill not_started false"]);
    expect(readStream((await answering).text)).toMatchObject({ done: true, finish: ["length"] });
    expect(third.seen).toEqual([]);
    await expect.poll(told).toEqual(["prefill not_started false", "decode done true"]);
  });

  test("that nobody waits any more, when the client leaves", async () => {
    const fleet = await startWithRouter();
    const { relay, router, one } = fleet;
    one.kill();
    router.holdsPlaces = true;
    const body = bodyOf();
    const controller = new AbortController();
    const left = fetch(`http://127.0.0.1:${String(relay.relay.httpPort)}/v1/completions`, {
      method: "POST",
      body,
      headers: {
        "x-kvmesh-placement": relay.sign(body, { legs: [legAt(one.address, "whole")] }),
      },
      signal: controller.signal,
    }).catch(() => undefined);
    await expect.poll(() => router.asked.length).toBe(1);
    controller.abort();
    await left;
    await expect.poll(() => router.placesLeft, { timeout: 500 }).toBe(1);
    expect(relay.relay.openRequests).toBe(0);
    expect(await relay.metrics()).toContain(
      'kvmesh_relay_placements_again_total{outcome="cancelled"} 1',
    );
  });
});
