import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { loadAnswerOracle, type AnswerOracle } from "../support/answer-oracle.ts";
import { readCompletion, readError } from "../support/completion-answers.ts";
import { framings, openExchange, sendExchange, type Framing } from "../support/http-client.ts";
import { eventually, startMesh, type TestMesh } from "../support/mesh.ts";
import { metricOf, observedDecision, untilBooksClosed } from "../support/router-books.ts";

const bodyModes = ["buffered", "buffered_partial", "duplex"] as const;

/** Where Envoy stops collecting a body in the partial mode, bytes. */
const partialBytesMax = 1_048_576;

/** Around the borders that matter: HTTP/2 frames, pieces of an echoed body, connection buffers; then large ones. */
const sizes = [
  300, 16_383, 16_384, 16_385, 61_999, 62_000, 62_001, 65_535, 65_536, 65_537, 131_073, 1_000_000,
  2_000_000,
];

/** Tokens per prompt of a large body; the body is filled with as many prompts as it takes. */
const promptTokensMax = 3_000;
const answerTokens = 2;

interface SizedBody {
  readonly bytes: Buffer;
  readonly prompts: readonly (readonly number[])[];
}

/**
 * A completion request of exactly this many bytes, nearly all of them digits of random token ids: a byte that is lost,
 * doubled or moved breaks the JSON or changes a prompt, and with it the answer.
 */
function bodyOfSize(size: number, random: SeededRandom): SizedBody {
  const fields = `"max_tokens":${String(answerTokens)},"ignore_eos":true,"return_token_ids":true`;
  const head = `{"model":"qwen3-demo",${fields},"prompt":[[`;
  const tail = "]]}";
  const room = size - head.length - tail.length;
  const prompts: number[][] = [[]];
  let text = "";
  for (;;) {
    const prompt = prompts.at(-1) ?? [];
    const id = random.int(150_000);
    const isFull = prompt.length >= promptTokensMax;
    const separator = text === "" ? "" : isFull ? "],[" : ",";
    if (text.length + separator.length + String(id).length > room) break;
    text += `${separator}${String(id)}`;
    if (isFull) prompts.push([id]);
    else prompt.push(id);
  }
  return { bytes: Buffer.from(head + text + " ".repeat(room - text.length) + tail), prompts };
}

/** Text with characters of one to four bytes in UTF-8, about 4 KB. */
const prose =
  'Streams of tokens — «über» alles, 東京 and 🚀, then a "quote" and a \\ slash.\n'.repeat(50);

let oracle: AnswerOracle;
beforeAll(async () => {
  oracle = await loadAnswerOracle();
});

describe.each(bodyModes)("body mode %s", (bodyMode) => {
  let mesh: TestMesh;
  beforeAll(async () => {
    const limits = { bodyBytesMax: partialBytesMax, guardBodyBytesMax: partialBytesMax };
    mesh = await startMesh({
      bodyMode,
      settings: { engine: { speedup: 1_000 } },
      envoySettings: {
        // A busy machine takes seconds to carry the largest bodies; their answer is what counts here.
        timeouts: { routerMessageMs: 20_000 },
        ...(bodyMode === "buffered_partial" ? { limits } : {}),
      },
    });
  });
  afterAll(async () => {
    await mesh.stop();
  });
  afterEach(async () => {
    await untilBooksClosed(mesh);
  });

  describe.each(framings)("%s", (framing: Framing) => {
    test("delivers bodies of 300 B to 2 MB byte for byte to the engine that was picked", async () => {
      const random = new SeededRandom(bodyModes.indexOf(bodyMode) * 10 + framings.indexOf(framing));
      for (const size of sizes) {
        const { bytes, prompts } = bodyOfSize(size, random);
        expect(bytes.length).toBe(size);
        const answer = await sendExchange({
          url: mesh.url,
          framing,
          path: "/v1/completions",
          body: bytes,
          pieceBytes: 50_000,
        });
        if (answer.status !== 200) throw new Error(`${String(size)}: ${answer.body.toString()}`);
        expect([size, answer.status, answer.complete]).toEqual([size, 200, true]);
        const { tokens, usage } = readCompletion(answer.body, false);
        expect(usage?.prompt_tokens).toBe(prompts.flat().length);
        expect(tokens).toEqual(prompts.map((prompt) => oracle.answer(prompt, answerTokens)));
        const decision = await observedDecision(mesh, answer.headers.get("x-request-id") ?? "");
        expect(decision.outcome).toBe(1);
        expect(decision.observed).toMatchObject({ servedAsPicked: true, status: 200, attempts: 1 });
        const seesAll = bodyMode !== "buffered_partial" || size <= partialBytesMax;
        expect(decision.loadOnlyReason).toBe(seesAll ? "" : "body_truncated");
        if (seesAll) expect(decision.promptTokens).toBe(prompts[0]?.length);
      }
    });

    test.each([
      ["chat", true],
      ["chat", false],
      ["completions", true],
      ["completions", false],
    ] as const)("answers %s, stream %s, with the right tokens", async (kind, stream) => {
      const isChat = kind === "chat";
      const prompt = isChat ? { messages: [{ role: "user", content: prose }] } : { prompt: prose };
      const body = {
        model: mesh.model,
        max_tokens: 12,
        ignore_eos: true,
        return_token_ids: true,
        stream,
        ...(stream ? { stream_options: { include_usage: true } } : {}),
        ...prompt,
      };
      const answer = await sendExchange({
        url: mesh.url,
        framing,
        path: isChat ? "/v1/chat/completions" : "/v1/completions",
        body: Buffer.from(JSON.stringify(body)),
        pieceBytes: 700,
      });
      expect([answer.status, answer.complete]).toEqual([200, true]);
      const { tokens, texts, usage, done } = readCompletion(answer.body, stream);
      const promptIds = isChat ? oracle.encodeChat(body) : oracle.encode(prose);
      const expected = oracle.answer(promptIds, 12);
      expect(tokens).toEqual([expected]);
      expect(texts).toEqual([oracle.text(expected)]);
      expect(usage).toMatchObject({ prompt_tokens: promptIds.length, completion_tokens: 12 });
      expect(done).toBe(true);
      const decision = await observedDecision(mesh, answer.headers.get("x-request-id") ?? "");
      expect(decision).toMatchObject({ outcome: 1, promptTokens: promptIds.length });
      expect(decision.observed).toMatchObject({ servedAsPicked: true });
    });

    test("answers what needs no body", async () => {
      const models = await sendExchange({
        url: mesh.url,
        framing,
        method: "GET",
        path: "/v1/models",
      });
      expect([models.status, models.complete]).toEqual([200, true]);
      expect(JSON.parse(models.body.toString())).toMatchObject({
        object: "list",
        data: [{ id: mesh.model, object: "model", owned_by: "kvmesh", max_model_len: 65_536 }],
      });
      const health = await sendExchange({
        url: mesh.trustedUrl,
        framing,
        method: "GET",
        path: "/health",
      });
      expect([health.status, health.complete]).toEqual([200, true]);
      const id = health.headers.get("x-request-id") ?? "";
      expect(await observedDecision(mesh, id)).toMatchObject({
        outcome: 1,
        loadOnlyReason: "no_body",
        observed: { servedAsPicked: true, status: 200 },
      });
    });

    test.each([
      ["one byte", "1", 400, "invalid_request"],
      ["an empty object", "{}", 400, "invalid_request"],
      ["half of an object", '{"model":"qwen3-demo","prompt":"a', 400, "invalid_request"],
      [
        "a reserved field",
        '{"model":"qwen3-demo","prompt":"a","cache_salt":"x"}',
        400,
        "invalid_request",
      ],
      [
        "an escaped reserved field",
        '{"model":"qwen3-demo","prompt":"a","cache\\u005fsalt":"x"}',
        400,
        "invalid_request",
      ],
      ["an unknown model", '{"model":"nobody","prompt":"a"}', 404, "model_not_found"],
    ] as const)("refuses %s", async (_what, text, status, code) => {
      const answer = await sendExchange({
        url: mesh.url,
        framing,
        path: "/v1/completions",
        body: Buffer.from(text),
      });
      expect([answer.status, answer.complete]).toEqual([status, true]);
      expect(readError(answer)).toMatchObject({ code, type: "invalid_request_error" });
    });

    test("refuses an empty body", async () => {
      const answer = await sendExchange({
        url: mesh.url,
        framing,
        path: "/v1/completions",
        body: Buffer.alloc(0),
      });
      expect([answer.status, answer.complete]).toEqual([400, true]);
      expect(readError(answer)).toMatchObject({ code: "invalid_request" });
    });
  });

  // In the partial mode a router sees the beginning alone, and the engine refuses.
  test.skipIf(bodyMode === "buffered_partial").each([
    [16, "http1-length"],
    [16, "http2"],
    [60, "http1-chunked"],
  ] as const)(
    "says of %i MiB of text that it is too long, not that nobody serves, %s",
    { timeout: 30_000 },
    async (mebibytes, framing) => {
      const content = "many words to read \n".repeat((mebibytes * 1_048_576) / 21);
      const messages = [{ role: "user", content }];
      const body = Buffer.from(JSON.stringify({ model: "qwen3-demo", messages }));
      const path = "/v1/chat/completions";
      const answer = await sendExchange({ url: mesh.url, framing, path, body });
      expect(answer.status).toBe(400);
      expect(readError(answer)).toMatchObject({ code: "context_length_exceeded" });
    },
  );

  describe.each(["http1-chunked", "http2"] as const)("%s with trailers", (framing) => {
    test("serves a request that ends with trailers", async () => {
      for (const size of [300, 62_000, 200_000]) {
        const { bytes, prompts } = bodyOfSize(size, new SeededRandom(size));
        const answer = await sendExchange({
          url: mesh.url,
          framing,
          path: "/v1/completions",
          body: bytes,
          pieceBytes: 30_000,
          trailers: { "x-checksum": "abc" },
        });
        expect([size, answer.status, answer.complete]).toEqual([size, 200, true]);
        const { tokens } = readCompletion(answer.body, false);
        expect(tokens).toEqual(prompts.map((prompt) => oracle.answer(prompt, answerTokens)));
        const decision = await observedDecision(mesh, answer.headers.get("x-request-id") ?? "");
        expect(decision).toMatchObject({ outcome: 1, loadOnlyReason: "" });
        expect(decision.observed).toMatchObject({ servedAsPicked: true });
      }
    });

    test.each([
      ["a reserved field", '{"model":"qwen3-demo","prompt":"a","cache_salt":"x"}', 400],
      ["an escaped one", '{"model":"qwen3-demo","prompt":"a","cache\\u005fsalt":"x"}', 400],
      ["an unknown model", '{"model":"nobody","prompt":"a"}', 404],
    ] as const)("refuses %s before trailers", async (_what, text, status) => {
      const answer = await sendExchange({
        url: mesh.url,
        framing,
        path: "/v1/completions",
        body: Buffer.from(text),
        trailers: { "x-checksum": "abc" },
      });
      expect([answer.status, answer.complete]).toEqual([status, true]);
      expect(readError(answer)).toMatchObject({ type: "invalid_request_error" });
    });
  });

  describe("a client that goes away", () => {
    async function setFault(fault: Readonly<Record<string, unknown>>): Promise<void> {
      for (const url of mesh.engineUrls) {
        const response = await fetch(`${url}/sim/faults`, {
          method: "POST",
          body: JSON.stringify(fault),
        });
        expect(response.status).toBe(200);
      }
    }
    beforeAll(async () => {
      // About 7 ms per token: answers of 4,000 tokens take longer than any of these tests.
      await setFault({ kind: "slow", factor: 1_000, ms: 600_000 });
    });
    afterAll(async () => {
      await setFault({ kind: "slow", factor: 1, ms: 1 });
    });

    async function untilEnginesIdle(): Promise<void> {
      for (const url of mesh.engineUrls) {
        await eventually(`${url} runs nothing`, async () => {
          const name = "vllm:num_requests_running";
          return (await metricOf(url, name)) === 0;
        });
      }
    }

    const streamed = (id: string) => ({
      framing: "http1-length" as Framing,
      path: "/v1/chat/completions",
      headers: [["x-request-id", id]] as const,
      body: Buffer.from(
        JSON.stringify({
          model: "qwen3-demo",
          max_tokens: 4_000,
          ignore_eos: true,
          stream: true,
          messages: [{ role: "user", content: "Tell me everything." }],
        }),
      ),
    });

    test.each(framings)("in the middle of its upload, %s", async (framing) => {
      const { bytes } = bodyOfSize(900_000, new SeededRandom(5));
      for (const sentBytes of [0, 1_000, 400_000]) {
        const exchange = openExchange({
          url: mesh.url,
          framing,
          path: "/v1/completions",
          ...(framing === "http1-chunked" ? {} : { contentLength: bytes.length }),
        });
        const streams = async (): Promise<number> =>
          metricOf(mesh.routerHttp[0] ?? "", "kvmesh_router_ext_proc_streams_open");
        await exchange.write(bytes.subarray(0, sentBytes));
        await eventually("the router has heard of it", async () => (await streams()) === 1);
        exchange.reset();
        await expect(exchange.answer).rejects.toThrow();
        await untilBooksClosed(mesh);
      }
      await untilEnginesIdle();
    });

    test.each(framings)("before the first byte of its answer, %s", async (framing) => {
      await setFault({ kind: "freeze", ms: 1_500 });
      const id = `before-${bodyMode}-${framing}`;
      const { body, ...request } = { ...streamed(id), framing };
      const exchange = openExchange({
        url: mesh.url,
        ...request,
        ...(framing === "http1-chunked" ? {} : { contentLength: body.length }),
      });
      await exchange.write(body);
      exchange.end();
      await eventually("the request is in the book", async () => {
        const open = await metricOf(mesh.routerHttp[0] ?? "", "kvmesh_router_reservations_open");
        return open === 1;
      });
      exchange.reset();
      const decision = await observedDecision(mesh, id);
      expect(decision.observed).toMatchObject({ closedBy: "access_log", ttftMs: 0 });
      expect(decision.observed?.responseFlags).toBe(framing === "http2" ? "DR" : "DC");
      await untilEnginesIdle();
    });

    test.each(framings)("in the middle of its answer, %s", async (framing) => {
      const id = `amid-${bodyMode}-${framing}`;
      const { body, ...request } = { ...streamed(id), framing };
      const exchange = openExchange({
        url: mesh.url,
        ...request,
        ...(framing === "http1-chunked" ? {} : { contentLength: body.length }),
      });
      await exchange.write(body);
      exchange.end();
      expect((await exchange.firstBytes).toString()).toContain("data: ");
      exchange.reset();
      const decision = await observedDecision(mesh, id);
      expect(decision.observed).toMatchObject({
        closedBy: "access_log",
        status: 200,
        servedAsPicked: true,
      });
      expect(decision.observed?.ttftMs).toBeGreaterThan(0);
      expect(decision.observed?.responseFlags).toBe(framing === "http2" ? "DR" : "DC");
      await untilEnginesIdle();
    });
  });
});
