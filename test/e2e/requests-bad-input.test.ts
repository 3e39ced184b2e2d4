import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { readError } from "../support/completion-answers.ts";
import { framings, sendExchange, type WireAnswer } from "../support/http-client.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";
import { metricOf, observedDecision, untilBooksClosed } from "../support/router-books.ts";

/** The router's own limit, and Envoy's above it. */
const routerBytesMax = 200_000;
const envoyBytesMax = 400_000;
const contextTokensMax = 2_000;

let mesh: TestMesh;
beforeAll(async () => {
  const limits = { bodyBytesMax: envoyBytesMax, guardBodyBytesMax: envoyBytesMax };
  mesh = await startMesh({
    settings: {
      engine: { contextTokensMax },
      router: { limits: { bodyBytesMax: routerBytesMax } },
    },
    envoySettings: { limits },
  });
});
afterAll(async () => {
  await mesh.stop();
});
afterEach(async () => {
  await untilBooksClosed(mesh);
});

const chatPath = "/v1/chat/completions";
const textPath = "/v1/completions";
const messages = [{ role: "user", content: "Hello!" }];

async function post(
  path: string,
  body: unknown,
  headers: readonly (readonly [string, string])[] = [],
  url = mesh.url,
): Promise<WireAnswer> {
  const bytes = Buffer.isBuffer(body)
    ? body
    : Buffer.from(typeof body === "string" ? body : JSON.stringify(body));
  return sendExchange({ url, framing: "http1-length", path, body: bytes, headers });
}

/** Requests that any engine has begun to serve since its start. */
async function servedByEngines(): Promise<number> {
  const counts = mesh.engineUrls.map((url) =>
    metricOf(url, "vllm:e2e_request_latency_seconds_count"),
  );
  return (await Promise.all(counts)).reduce((sum, count) => sum + count, 0);
}

async function setFault(engine: number, fault: Readonly<Record<string, unknown>>): Promise<void> {
  const response = await fetch(`${mesh.engineUrls[engine] ?? ""}/sim/faults`, {
    method: "POST",
    body: JSON.stringify(fault),
  });
  expect(response.status).toBe(200);
}

describe("the form of a request", () => {
  test.each([
    ["GET", chatPath, "POST"],
    ["DELETE", chatPath, "POST"],
    ["OPTIONS", textPath, "POST"],
    ["DELETE", "/v1/models", "GET, HEAD"],
  ])("%s %s is answered 405 with the methods that there are", async (method, path, allow) => {
    const answer = await sendExchange({ url: mesh.url, framing: "http1-length", method, path });
    expect([answer.status, answer.headers.get("allow")]).toEqual([405, allow]);
    expect(readError(answer)).toMatchObject({ code: "invalid_request" });
  });

  test("an encoded body is answered 415, and its encoding named", async () => {
    const body = { model: mesh.model, messages };
    const answer = await post(chatPath, body, [["content-encoding", "gzip"]]);
    expect(answer.status).toBe(415);
    expect(readError(answer).message).toContain('content-encoding "gzip"');
  });

  test("one model can be asked for by its id", async () => {
    const get = (id: string) =>
      sendExchange({
        url: mesh.url,
        framing: "http1-length",
        method: "GET",
        path: `/v1/models/${id}`,
      });
    const known = await get(mesh.model);
    expect(known.status).toBe(200);
    expect(JSON.parse(known.body.toString())).toMatchObject({ id: mesh.model, object: "model" });
    const unknown = await get("nobody/knows");
    expect(unknown.status).toBe(404);
    expect(readError(unknown)).toMatchObject({ code: "model_not_found" });
  });
});

describe("a body that cannot be served", () => {
  test.each([
    ["no JSON", chatPath, "hello", undefined],
    ["half of an object", chatPath, '{"model":"qwen3-demo","messages":[', undefined],
    ["a list", chatPath, "[]", undefined],
    ["two values", chatPath, "{} {}", undefined],
    [
      "bad UTF-8",
      chatPath,
      Buffer.from('{"model":"qwen3-demo","x":"\u00ff"}', "latin1"),
      undefined,
    ],
    ["a cut character", textPath, Buffer.from('{"model":"m","prompt":"東'), undefined],
    ["deep nesting", textPath, `{"model":"qwen3-demo","x":${"[".repeat(20_000)}`, undefined],
    ["no model", chatPath, { messages }, "model"],
    ["a number as model", chatPath, { model: 7, messages }, "model"],
    ["no messages", chatPath, { model: "qwen3-demo" }, "messages"],
    ["messages that are text", chatPath, { model: "qwen3-demo", messages: "hi" }, "messages"],
    ["empty messages", chatPath, { model: "qwen3-demo", messages: [] }, "messages"],
    ["a message that is text", chatPath, { model: "qwen3-demo", messages: ["x"] }, "messages[0]"],
    [
      "a number as content",
      chatPath,
      { model: "qwen3-demo", messages: [{ role: "user", content: 7 }] },
      "messages[0].content",
    ],
    ["tools that are text", chatPath, { model: "qwen3-demo", messages, tools: "x" }, "tools"],
    ["no prompt", textPath, { model: "qwen3-demo" }, "prompt"],
    ["an object as prompt", textPath, { model: "qwen3-demo", prompt: {} }, "prompt"],
    ["negative token ids", textPath, { model: "qwen3-demo", prompt: [1, -2] }, "prompt"],
    [
      "a limit of no token",
      textPath,
      { model: "qwen3-demo", prompt: "a", max_tokens: 0 },
      "max_tokens",
    ],
    [
      "half a token",
      chatPath,
      { model: "qwen3-demo", messages, max_completion_tokens: 1.5 },
      "max_completion_tokens",
    ],
    [
      "a reserved field",
      chatPath,
      { model: "qwen3-demo", messages, cache_salt: "x" },
      "cache_salt",
    ],
    [
      "a reserved field of transfers",
      chatPath,
      { model: "qwen3-demo", messages, kv_transfer_params: { do_remote_decode: true } },
      "kv_transfer_params",
    ],
    [
      "a reserved field with an escaped name",
      textPath,
      String.raw`{"model":"qwen3-demo","prompt":"a","\u0063ache_salt":"x"}`,
      "cache_salt",
    ],
    [
      "a reserved field that occurs twice",
      textPath,
      '{"bootstrap_room":1,"model":"qwen3-demo","prompt":"a","bootstrap_room":null}',
      "bootstrap_room",
    ],
    [
      "a reserved field that is null",
      textPath,
      '{"model":"qwen3-demo","prompt":"a","data_parallel_rank":null}',
      "data_parallel_rank",
    ],
  ])("%s: 400 that names the fault, and no engine sees it", async (_what, path, body, field) => {
    const before = await servedByEngines();
    const answer = await post(path, body);
    expect([answer.status, answer.complete]).toEqual([400, true]);
    const error = readError(answer);
    expect(error).toMatchObject({ type: "invalid_request_error", code: "invalid_request" });
    expect(error.param).toBe(field ?? null);
    expect(error.message.length).toBeGreaterThan(10);
    expect(await servedByEngines()).toBe(before);
  });

  test("an unknown model: 404 that names those served", async () => {
    const answer = await post(chatPath, { model: "gpt-none", messages });
    expect(answer.status).toBe(404);
    const error = readError(answer);
    expect(error).toMatchObject({ code: "model_not_found", param: "model" });
    expect(error.message).toContain('"gpt-none"');
    expect(error.message).toContain(mesh.model);
  });

  test("a model that is named twice counts as engines read it: the last one", async () => {
    const other = await post(textPath, '{"model":"qwen3-demo","prompt":"a","model":"gpt-none"}');
    expect(other.status).toBe(404);
    const own = await post(
      textPath,
      '{"model":"gpt-none","prompt":"a","max_tokens":1,"model":"qwen3-demo"}',
    );
    expect(own.status).toBe(200);
  });

  test("a prompt longer than the context: 400 with both lengths", async () => {
    const answer = await post(textPath, {
      model: mesh.model,
      prompt: Array.from({ length: contextTokensMax + 1 }, (_, i) => i + 100),
    });
    expect(answer.status).toBe(400);
    const error = readError(answer);
    expect(error.code).toBe("context_length_exceeded");
    expect(error.message).toContain(String(contextTokensMax + 1));
    expect(error.message).toContain(String(contextTokensMax));
    const before = await servedByEngines();
    const fits = await post(textPath, {
      model: mesh.model,
      max_tokens: 1,
      prompt: Array.from({ length: contextTokensMax - 1 }, (_, i) => i + 100),
    });
    expect(fits.status).toBe(200);
    expect(await servedByEngines()).toBe(before + 1);
  });

  test("a prompt that is not read is not refused for the guess of its length", async () => {
    // As long as a picture, 4 bytes a token would be far beyond the context; the engine itself takes or refuses it.
    const picture = { type: "image_url", image_url: { url: "data:,".padEnd(100_000, "a") } };
    const id = "picture";
    await post(
      chatPath,
      { model: mesh.model, max_tokens: 1, messages: [{ role: "user", content: [picture] }] },
      [["x-request-id", id]],
    );
    const decision = await observedDecision(mesh, id);
    expect(decision).toMatchObject({ outcome: 1, loadOnlyReason: "multimodal" });
    expect(decision.promptTokens).toBeLessThan(contextTokensMax);
  });

  test.each(framings)(
    "a body above the router's limit and above Envoy's: 413, %s",
    async (framing) => {
      const before = await servedByEngines();
      for (const size of [routerBytesMax + 1, envoyBytesMax * 3]) {
        const head = '{"model":"qwen3-demo","prompt":"';
        const body = Buffer.from(`${head}${"a".repeat(size - head.length - 2)}"}`);
        const answer = await sendExchange({
          url: mesh.url,
          framing,
          path: textPath,
          body,
          pieceBytes: 20_000,
        });
        expect([size, answer.status]).toEqual([size, 413]);
        expect(readError(answer)).toMatchObject({
          type: "invalid_request_error",
          code: "request_too_large",
        });
      }
      expect(await servedByEngines()).toBe(before);
    },
  );
});

describe("headers of a client", () => {
  const forged = (engine: string): readonly (readonly [string, string])[] => [
    ["x-gateway-destination-endpoint", engine],
    ["x-gateway-destination-endpoint-subset", engine],
    ["x-kvmesh-pool", "relays"],
    ["x-kvmesh-placement", "forged"],
    ["x-kvmesh-decision", "router-9.1.1"],
    ["x-data-parallel-rank", "1"],
    ["x-prefiller-host-port", engine],
    ["x-envoy-max-retries", "9"],
  ];

  test("that steer the mesh have no influence on the public listener", async () => {
    for (const url of mesh.engineUrls) {
      const endpoint = new URL(url).host;
      const id = `forged-${endpoint}`;
      const answer = await post(chatPath, { model: mesh.model, max_tokens: 1, messages }, [
        ["x-request-id", id],
        ...forged(endpoint),
      ]);
      expect(answer.status).toBe(200);
      expect(answer.headers.has("x-kvmesh-decision")).toBe(false);
      const decision = await observedDecision(mesh, id);
      // Both engines stay eligible, and the cheaper one serves, whatever the header said.
      expect(decision.filtered).toEqual([]);
      expect(decision.candidates.map((one) => one.workerId).toSorted()).toEqual(["w0", "w1"]);
      expect(decision.workerId).toBe(decision.candidates[0]?.workerId);
      expect(decision.observed).toMatchObject({
        servedAsPicked: true,
        servedEndpoint: decision.endpoints[0],
      });
    }
  });

  test("choose no engine on the trusted listener either, which shows the decision", async () => {
    for (const url of mesh.engineUrls) {
      const endpoint = new URL(url).host;
      const answer = await post(
        chatPath,
        { model: mesh.model, max_tokens: 1, messages },
        forged(endpoint),
        mesh.trustedUrl,
      );
      expect(answer.status).toBe(200);
      const id = answer.headers.get("x-kvmesh-decision") ?? "";
      expect(id).toMatch(/^router-0\.\d+\.\d+$/);
      const { decision } = await mesh.routers.explain({ kind: "decision", id });
      expect(decision?.requestId).toBe(answer.headers.get("x-request-id"));
      expect(decision?.candidates).toHaveLength(2);
      expect(decision?.filtered).toEqual([]);
    }
  });

  test("a refusal on the trusted listener is the same", async () => {
    const answer = await post(chatPath, "{}", [], mesh.trustedUrl);
    expect(answer.status).toBe(400);
    expect(readError(answer)).toMatchObject({ param: "model" });
  });
});

describe("an engine that misbehaves", () => {
  const streamed = {
    model: "qwen3-demo",
    messages,
    stream: true,
    max_tokens: 20,
    ignore_eos: true,
  };

  test.each(framings)(
    "cuts its stream: the client sees it, and the book closes, %s",
    async (framing) => {
      await setFault(0, { kind: "truncate_stream", count: 1 });
      await setFault(1, { kind: "truncate_stream", count: 1 });
      const id = `cut-${framing}`;
      const answer = await sendExchange({
        url: mesh.url,
        framing,
        path: chatPath,
        body: Buffer.from(JSON.stringify(streamed)),
        headers: [["x-request-id", id]],
      });
      expect([answer.status, answer.complete]).toEqual([200, false]);
      const text = answer.body.toString();
      expect(text).toContain("data: ");
      expect(text).not.toContain("[DONE]");
      const decision = await observedDecision(mesh, id);
      expect(decision.observed).toMatchObject({ closedBy: "access_log", status: 200, attempts: 1 });
      expect(decision.observed?.responseFlags).toMatch(/UC|UPE|UR/);
      // The other engine has its fault still before it.
      for (const url of mesh.engineUrls) {
        const rest = await sendExchange({
          url,
          framing: "http1-length",
          path: chatPath,
          body: Buffer.from(JSON.stringify({ ...streamed, max_tokens: 4 })),
        });
        expect(rest.status).toBe(200);
      }
    },
  );

  test("answers 500: its own error reaches the client, and the book closes", async () => {
    await setFault(0, { kind: "error_500", count: 1 });
    await setFault(1, { kind: "error_500", count: 1 });
    const answer = await post(chatPath, streamed, [["x-request-id", "error-500"]]);
    expect(answer.status).toBe(500);
    expect(readError(answer)).toMatchObject({ type: "InternalServerError" });
    const decision = await observedDecision(mesh, "error-500");
    expect(decision.observed).toMatchObject({ closedBy: "access_log", status: 500, attempts: 1 });
    const after = await Promise.all(
      mesh.engineUrls.map((url) => post(chatPath, streamed, [], url)),
    );
    expect(after.map((one) => one.status).toSorted()).toEqual([200, 500]);
  });
});

describe("no live worker", () => {
  test("while every engine is down: 503 with Retry-After, and service again afterwards", async () => {
    for (const engine of ["engine-0", "engine-1"]) await mesh.process(engine).kill();
    const answer = await eventually(
      "the router knows that no engine is ready",
      async () => {
        const got = await post(chatPath, { model: mesh.model, max_tokens: 1, messages });
        return got.body.toString().includes("no worker of pool") ? got : undefined;
      },
      30_000,
    );
    expect(answer.status).toBe(503);
    expect(readError(answer)).toMatchObject({
      type: "service_unavailable_error",
      code: "no_ready_worker",
    });
    expect(Number(answer.headers.get("retry-after"))).toBeGreaterThanOrEqual(1);
    expect(Number(answer.headers.get("retry-after-ms"))).toBeGreaterThanOrEqual(1);
    const models = await sendExchange({
      url: mesh.url,
      framing: "http1-length",
      method: "GET",
      path: "/v1/models",
    });
    expect(JSON.parse(models.body.toString())).toEqual({ object: "list", data: [] });

    for (const engine of ["engine-0", "engine-1"]) await mesh.process(engine).restart();
    await mesh.untilServing();
    expect((await mesh.chat()).status).toBe(200);
  });

  test("after every worker said goodbye: 503 with Retry-After", async () => {
    for (const worker of ["worker-0", "worker-1"]) await mesh.process(worker).kill("SIGTERM");
    const answer = await eventually(
      "the router has no worker",
      async () => {
        const got = await post(chatPath, { model: mesh.model, max_tokens: 1, messages });
        return got.body.toString().includes("no worker has joined") ? got : undefined;
      },
      30_000,
    );
    expect(answer.status).toBe(503);
    expect(readError(answer)).toMatchObject({ code: "no_ready_worker" });
    expect(Number(answer.headers.get("retry-after"))).toBeGreaterThanOrEqual(1);

    for (const worker of ["worker-0", "worker-1"]) await mesh.process(worker).restart();
    await mesh.untilServing();
    expect((await mesh.chat()).status).toBe(200);
  });
});
