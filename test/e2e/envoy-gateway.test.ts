import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { defaultLimits, defaultTimeouts } from "../../envoy/options.ts";
import type { HTTPAccessLogEntry } from "../../services/shared/gen/envoy/data/accesslog/v3/accesslog.ts";
import { reservedFields } from "../../services/shared/core/reserved-fields.ts";
import { startGateway, type Answer, type Gateway } from "../support/gateway.ts";
import type { Verdict } from "../support/scripted-router.ts";

/** The error of an answer in the OpenAI shape; fails the test when the shape is another. */
function errorOf(answer: Answer): { message: string; type: string; param: null; code: string } {
  expect(answer.headers.get("content-type")).toMatch(/^application\/json/);
  const parsed = JSON.parse(answer.text) as { error: Record<string, unknown> };
  expect(Object.keys(parsed)).toEqual(["error"]);
  expect(Object.keys(parsed.error).sort()).toEqual(["code", "message", "param", "type"]);
  return parsed.error as ReturnType<typeof errorOf>;
}

const toOther = (gateway: Gateway): Verdict => ({
  kind: "pick",
  endpoints: gateway.other.endpoint,
  pool: "pool-other",
  decision: "r.1.1",
});

/** The access log record of a decision; records come some milliseconds after the answer. */
async function recordOf(gateway: Gateway, decision: string): Promise<HTTPAccessLogEntry> {
  const find = (): HTTPAccessLogEntry | undefined =>
    gateway.router.records.find(
      ({ commonProperties }) =>
        commonProperties?.metadata?.filterMetadata["kvmesh"]?.["decision"] === decision,
    );
  await expect.poll(find, { timeout: 3_000 }).toBeDefined();
  const record = find();
  if (record === undefined) throw new Error(`no record of ${decision}`);
  return record;
}

/** Everything a client could try in order to steer. */
const forged = {
  "x-kvmesh-pool": "pool-other",
  "x-kvmesh-tenant": "t1",
  "x-kvmesh-priority": "9",
  "x-kvmesh-placement": "forged",
  "x-kvmesh-unheard-of": "1",
  "x-keep-kvmesh-x-kvmesh-tenant": "t2",
  "x-gateway-destination-endpoint": "10.0.0.1:1",
  "x-gateway-inference-objective": "gold",
  "x-prefiller-host-port": "10.0.0.1:1",
  "x-data-parallel-rank": "3",
  "x-envoy-max-retries": "100",
  x_kvmesh_pool: "pool-other",
};
const isControl = (name: string): boolean =>
  /^x[-_](kvmesh|gateway|prefiller|data-parallel|keep|envoy-max)/.test(name);

describe("a gateway that fails open", () => {
  let gateway: Gateway;
  beforeAll(async () => {
    gateway = await startGateway({
      limits: { ...defaultLimits, bodyBytesMax: 5 * 1024 * 1024, connectionsMax: 100 },
      timeouts: { ...defaultTimeouts, requestHeadersMs: 1_000, requestMs: 1_500 },
      publicPaths: ["/v1/extra", "/v1/files/*"],
    });
  });
  afterAll(() => gateway.stop());
  beforeEach(() => {
    gateway.router.script = () => toOther(gateway);
    gateway.own.status = 200;
    gateway.other.status = 200;
  });

  test("sends a request to the engine and pool that the router named", async () => {
    const answer = await gateway.send("public", { body: { model: "m/2" } });
    expect(answer).toMatchObject({ status: 200, text: '{"engine":"other"}' });
    expect(answer.headers.get("x-request-id")).toMatch(/^[0-9a-f-]{36}$/);
    expect(answer.headers.get("x-kvmesh-decision")).toBeNull();
  });

  test("lets no control header of a public caller reach the router or the engine", async () => {
    await gateway.send("public", { body: { model: "m/2" }, headers: forged });
    const router = gateway.router.seen.at(-1)?.headers ?? new Map<string, string>();
    expect([...router.keys()].filter(isControl)).toEqual(["x-kvmesh-pool"]);
    expect(router.get("x-kvmesh-pool")).toBe("pool-default");
    const engine = gateway.other.seen.at(-1)?.headers ?? {};
    expect(Object.keys(engine).filter(isControl)).toEqual([]);
  });

  test("keeps what a trusted caller may say, shows it the decision, and hides both from the engine", async () => {
    const answer = await gateway.send("trusted", { body: { model: "m/2" }, headers: forged });
    const router = gateway.router.seen.at(-1)?.headers ?? new Map<string, string>();
    expect(Object.fromEntries([...router].filter(([name]) => isControl(name)))).toEqual({
      "x-kvmesh-pool": "pool-default",
      "x-kvmesh-tenant": "t1",
      "x-kvmesh-priority": "9",
      "x-gateway-inference-objective": "gold",
    });
    expect(answer.headers.get("x-kvmesh-decision")).toBe("r.1.1");
    const engine = gateway.other.seen.at(-1)?.headers ?? {};
    expect(Object.keys(engine).filter(isControl)).toEqual([]);
  });

  test("walks the fallback list when an engine refuses the connection", async () => {
    const dead = await startDeadEndpoint();
    gateway.router.ads.setMembers([
      { workerId: "own", pool: "default", endpoint: gateway.own.endpoint, state: "ready" },
      { workerId: "dead", pool: "other", endpoint: dead, state: "ready" },
      { workerId: "other", pool: "other", endpoint: gateway.other.endpoint, state: "ready" },
    ]);
    await expect.poll(() => gateway.envoy.admin("/clusters")).toContain(`pool-other::${dead}::`);
    gateway.router.script = () => ({
      kind: "pick",
      endpoints: `${dead},${gateway.other.endpoint}`,
      pool: "pool-other",
      decision: "r.1.2",
    });
    const answer = await gateway.send("public", { body: { model: "m/2" } });
    expect(answer).toMatchObject({ status: 200, text: '{"engine":"other"}' });
    const record = await recordOf(gateway, "r.1.2");
    expect(record.commonProperties).toMatchObject({
      upstreamRequestAttemptCount: 2,
      upstreamCluster: "pool-other",
    });
    gateway.router.ads.setMembers([
      { workerId: "own", pool: "default", endpoint: gateway.own.endpoint, state: "ready" },
      { workerId: "other", pool: "other", endpoint: gateway.other.endpoint, state: "ready" },
    ]);
    await expect
      .poll(() => gateway.envoy.admin("/clusters"))
      .not.toContain(`pool-other::${dead}::`);
  });

  test("closes the book through the access log: decision, status, time to the first byte, request id", async () => {
    const id = "0a7fbbd5-5b51-4ab1-a9d5-8d0b6a4b9d11";
    gateway.router.script = () => ({ ...toOther(gateway), decision: "r.1.3" }) as Verdict;
    await gateway.send("public", { body: { model: "m/2" }, headers: { "x-request-id": id } });
    const record = await recordOf(gateway, "r.1.3");
    expect(record.commonProperties?.streamId).toBe(id);
    expect(record.request?.requestHeaders["x-request-id"]).toBe(id);
    expect(record.response?.responseCode).toBe(200);
    expect(Number(record.commonProperties?.customTags["ttft_us"])).toBeGreaterThan(0);
    expect(record.commonProperties?.accessLogType).toBe(6);
  });

  test("passes the router's own errors on as they are", async () => {
    const body = '{"error":{"message":"no","type":"t","param":null,"code":"overloaded"}}';
    for (const status of [503, 404, 400, 429] as const) {
      gateway.router.script = () => ({ kind: "immediate", status, body });
      const answer = await gateway.send("public", { body: { model: "m/2" } });
      expect(answer).toMatchObject({ status, text: body });
      expect(answer.headers.get("retry-after")).toBe("7");
    }
  });

  test("shapes its own errors as the OpenAI API does, with Retry-After on 503", async () => {
    gateway.router.script = () =>
      ({ ...toOther(gateway), kind: "pick", pool: "pool-unknown" }) as Verdict;
    const noPool = await gateway.send("public", { body: { model: "m/2" } });
    expect(noPool.status).toBe(503);
    expect(noPool.headers.get("retry-after")).toBe("1");
    expect(errorOf(noPool)).toMatchObject({ code: "no_ready_worker" });

    const tooLarge = await gateway.send("public", { body: "x".repeat(6 * 1024 * 1024) });
    expect(tooLarge.status).toBe(413);
    expect(errorOf(tooLarge)).toMatchObject({ code: "request_too_large" });

    const headers = { "x-large": "y".repeat(60_000), "x-larger": "y".repeat(60_000) };
    const largeHeaders = await gateway.send("public", { body: { model: "m/2" }, headers });
    expect(largeHeaders.status).toBe(431);
    expect(errorOf(largeHeaders)).toMatchObject({ code: "invalid_request" });

    const badPath = await gateway.send("public", { path: "/v1%2fmodels", method: "GET" });
    expect(badPath.status).toBe(400);
    expect(errorOf(badPath)).toMatchObject({ code: "invalid_request" });
  });

  test("adds Retry-After to an engine's 503 and passes its body on", async () => {
    gateway.other.status = 503;
    const answer = await gateway.send("public", { body: { model: "m/2" } });
    expect(answer).toMatchObject({ status: 503, text: '{"engine":"other"}' });
    expect(answer.headers.get("retry-after")).toBe("1");
  });

  test("ends a client that sends too slowly", async () => {
    const answer = await new Promise<string>((resolve, reject) => {
      const socket = connect(gateway.envoy.ports["public"] ?? 0, "127.0.0.1");
      let text = "";
      socket.on("data", (chunk) => (text += chunk.toString()));
      socket.on("close", () => resolve(text));
      socket.on("error", reject);
      socket.write("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n{");
    });
    expect(answer).toMatch(/^HTTP\/1\.1 408 /);
    expect(answer).toContain('"code":"request_timeout"');
  });

  test("refuses more connections than it may hold", async () => {
    const sockets = Array.from({ length: 120 }, () =>
      connect(gateway.envoy.ports["public"] ?? 0, "127.0.0.1").on("error", () => undefined),
    );
    let closed = 0;
    for (const socket of sockets) socket.on("close", () => (closed += 1));
    await expect.poll(() => closed, { timeout: 3_000 }).toBeGreaterThanOrEqual(20);
    for (const socket of sockets) socket.destroy();
    await sleep(100);
  });

  test.each([
    ["POST", "/reset_prefix_cache"],
    ["POST", "/v1/load_lora_adapter"],
    ["POST", "/tokenize"],
    ["POST", "/v1/chat/completions/render"],
    ["POST", "/v1/chat/completionsx"],
    ["POST", "/v1/audio"],
    ["POST", "/V1/completions"],
    ["POST", "/v1/models/../../metrics"],
    ["GET", "/metrics"],
    ["GET", "/version"],
    ["GET", "/health"],
    ["GET", "/"],
  ])(
    "has nothing for public callers at %s %s, and passes it on for trusted ones",
    async (method, path) => {
      const parts = method === "POST" ? { body: { model: "m/2" } } : {};
      const engines = () => gateway.own.seen.length + gateway.other.seen.length;
      const before = [engines(), gateway.router.seen.length];
      const refused = await gateway.send("public", { method, path, ...parts });
      expect(refused.status).toBe(404);
      expect(errorOf(refused)).toMatchObject({ code: "not_found", type: "invalid_request_error" });
      expect(errorOf(refused).message).toContain("public callers");
      expect([engines(), gateway.router.seen.length]).toEqual(before);
      const passed = await gateway.send("trusted", { method, path, ...parts });
      expect(passed).toMatchObject({ status: 200, text: '{"engine":"other"}' });
    },
  );

  test.each([
    "/v1/chat/completions?a=/metrics",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/transcriptions",
    "/v1/models/m/2",
    "/v1/extra",
    "/v1/files/one",
  ])("passes %s of a public caller on", async (path) => {
    const answer = await gateway.send("public", { path, body: { model: "m/2" } });
    expect(answer).toMatchObject({ status: 200, text: '{"engine":"other"}' });
  });

  test("without a router serves the model list and no other path of an engine", async () => {
    gateway.router.script = () => ({ kind: "fail" });
    const models = await gateway.send("public", { method: "GET", path: "/v1/models" });
    expect(models).toMatchObject({ status: 200, text: '{"engine":"own"}' });
    for (const path of [
      "/metrics",
      "/reset_prefix_cache",
      "/v1/../metrics",
      "/v1/load_lora_adapter",
    ]) {
      const answer = await gateway.send("trusted", { body: { model: "m/1" }, path });
      expect(answer.status).toBe(503);
      expect(errorOf(answer).code).toBe("model_unavailable");
    }
  });

  test("without a router reads the model of a 4 MB body and refuses a larger one", async () => {
    gateway.router.script = () => ({ kind: "fail" });
    const body = (model: string, size: number): string =>
      JSON.stringify({ prompt: 'a"}'.repeat(size / 4), model });
    expect((await gateway.send("public", { body: body("m/1", 4_000_000) })).status).toBe(200);
    expect((await gateway.send("public", { body: body("m/2", 4_000_000) })).status).toBe(503);
    expect((await gateway.send("public", { body: body("m/1", 4_500_000) })).status).toBe(503);
  });
});

describe("a gateway whose router does not place", () => {
  let gateway: Gateway;
  beforeAll(async () => {
    gateway = await startGateway({ timeouts: { ...defaultTimeouts, routerMessageMs: 250 } });
  });
  afterAll(() => gateway.stop());

  describe.each(["end", "fail", "hang"] as const)("when its answer is: %s", (kind) => {
    beforeEach(() => {
      gateway.router.script = () => ({ kind });
    });

    test.each([
      ['{"model":"m/1","messages":[{"content":"}\\"]"}]}', 200],
      ['{"messages":[],"model":"m\\/1"}', 200],
      ['{"prompt":"names no model"}', 200],
    ])("serves %s from the default pool", async (body, status) => {
      const answer = await gateway.send("public", { body });
      expect(answer).toMatchObject({ status, text: '{"engine":"own"}' });
      expect(gateway.own.seen.at(-1)?.body.toString()).toBe(body);
    });

    test.each<readonly [string, number]>([
      ['{"model":"m/2"}', 503],
      ['{"model":"m/1","model":"m/2"}', 503],
      ['{"model":"m/2","model":"m/1"}', 503],
      ['{"mod\\u0065l":"m/2"}', 503],
      ['{"model":"m\\u002f1"}', 503],
      ['{"model":{"a":"m/1"}}', 503],
      ['{"model":["m/1"]}', 503],
      ['{"x":"{\\"model\\":\\"m/1\\"}","model":"m/2"}', 503],
      ['{"model":"m/1"} {"model":"m/2"}', 503],
      ['{"model":"m/1"', 503],
      ['[{"model":"m/1"}]', 503],
      ["model=m/1", 503],
      ['{"model":"m/1","kv_transfer_params":{}}', 400],
      ...[...reservedFields].map((field) => [`{"${field}":"x","model":"m/1"}`, 400] as const),
    ])("never lets an engine see %s", async (body, status) => {
      const before = gateway.own.seen.length + gateway.other.seen.length;
      const answer = await gateway.send("public", { body });
      expect(answer.status).toBe(status);
      expect(errorOf(answer).code).toBe(status === 503 ? "model_unavailable" : "invalid_request");
      expect(answer.headers.get("retry-after")).toBe(status === 503 ? "1" : null);
      expect(gateway.own.seen.length + gateway.other.seen.length).toBe(before);
    });
  });
});

describe("a gateway that fails closed", () => {
  let gateway: Gateway;
  beforeAll(async () => {
    gateway = await startGateway({
      defaultPool: { id: "default", models: ["m/1"], failOpen: false },
      timeouts: { ...defaultTimeouts, routerMessageMs: 1_000 },
    });
  });
  afterAll(() => gateway.stop());

  test.each(["end", "fail", "hang"] as const)(
    "answers 503 or 504 and sends nothing to an engine when the router's answer is: %s",
    async (kind) => {
      gateway.router.script = () => ({ kind });
      const before = gateway.own.seen.length;
      const answer = await gateway.send("public", { body: { model: "m/1" } });
      expect(answer.status).toBe(kind === "hang" ? 504 : 503);
      expect(errorOf(answer).type).toBe(
        kind === "hang" ? "timeout_error" : "service_unavailable_error",
      );
      if (kind !== "hang") expect(answer.headers.get("retry-after")).toBe("1");
      expect(gateway.own.seen.length).toBe(before);
    },
  );

  test("serves what the router places", async () => {
    gateway.router.script = () => toOther(gateway);
    const answer = await gateway.send("public", { body: { model: "m/2" } });
    expect(answer).toMatchObject({ status: 200, text: '{"engine":"other"}' });
  });
});

describe.each(["buffered_partial", "duplex"] as const)("body mode %s", (bodyMode) => {
  let gateway: Gateway;
  beforeAll(async () => {
    gateway = await startGateway({ bodyMode });
  });
  afterAll(() => gateway.stop());

  test("places a request and delivers its whole body", async () => {
    gateway.router.script = () => toOther(gateway);
    const body = JSON.stringify({ model: "m/2", prompt: "z".repeat(40_000) });
    const answer = await gateway.send("public", { body });
    expect(answer).toMatchObject({ status: 200, text: '{"engine":"other"}' });
    expect(gateway.other.seen.at(-1)?.body.toString()).toBe(body);
    expect(gateway.router.seen.at(-1)?.bodyMode).toBe(bodyMode === "duplex" ? 4 : 3);
  });

  test("never sends a request that nobody placed to another model's engine", async () => {
    gateway.router.script = () => ({ kind: "end" });
    const before = gateway.own.seen.length;
    const answer = await gateway.send("public", { body: { model: "m/2" } });
    expect(answer.status).toBe(503);
    expect(gateway.own.seen.length).toBe(before);
  });
});

/** An address of loopback on which nothing listens. */
async function startDeadEndpoint(): Promise<string> {
  const { createServer } = await import("node:net");
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === "string") throw new Error("no address");
  return `127.0.0.1:${address.port.toString()}`;
}
