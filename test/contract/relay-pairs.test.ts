import { afterEach, describe, expect, test } from "vitest";
import type { LegNotice } from "../../services/relay/core/topology/leg-notices.ts";
import type {
  PlacementLeg,
  RelayEngine,
} from "../../services/shared/core/placement-token/placement.ts";
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

/* engines.md §4: vLLM NixlConnector, SGLang bootstrap, TensorRT-LLM context first. */

interface Pair {
  readonly test: TestRelay;
  readonly prefill: ScriptedEngine;
  readonly decode: ScriptedEngine;
  readonly legs: readonly PlacementLeg[];
  readonly replays: () => number;
}

const open: { close(): Promise<void> }[] = [];
afterEach(async () => {
  await Promise.all(open.splice(0).map((one) => one.close()));
});

async function startPair(
  kind: RelayEngine = "vllm",
  settings: Record<string, unknown> = {},
): Promise<Pair> {
  let replays = 0;
  const prefill = await startScriptedEngine({ cachedTokens: 5 });
  const decode = await startScriptedEngine({
    cachedTokens: 3,
    peers: () => [prefill],
    onReplay: () => replays++,
  });
  const relay = await startTestRelay({ settings });
  open.push(prefill, decode, { close: () => relay.stop() });
  const legs = [legAt(prefill.address, "prefill", kind), legAt(decode.address, "decode", kind)];
  return { test: relay, prefill, decode, legs, replays: () => replays };
}

function send(
  { test: relay, legs }: Pair,
  body: string,
  options: {
    readonly path?: string;
    readonly token?: string;
    readonly headers?: Record<string, string>;
    readonly onText?: (text: string, leave: () => void) => void;
  } = {},
): Promise<Answer> {
  const token = options.token ?? relay.sign(body, { legs });
  return post(
    relay.relay.httpPort,
    options.path ?? "/v1/completions",
    body,
    { "x-kvmesh-placement": token, "x-request-id": "req-1", ...options.headers },
    options.onText,
  );
}

const prompt = "Why is the sky blue?";
const bodyOf = (over: Record<string, unknown> = {}): string =>
  JSON.stringify({ model: "m", prompt, max_tokens: 40, ignore_eos: true, ...over });
const expected = (tokensMax = 40): string =>
  [...generate({ promptIds: idsOf(prompt), tokensMax, ignoreEos: true })]
    .map(({ text }) => text)
    .join("");
const ends = (notices: readonly LegNotice[]): string[] =>
  notices.filter(({ ended }) => ended).map(({ leg, outcome }) => `${leg} ${outcome}`);

describe("vLLM pair", () => {
  test("prefill makes one token, decode pulls and streams", async () => {
    const pair = await startPair();
    const body = bodyOf({
      stream: true,
      stream_options: { include_usage: true },
      min_tokens: 2,
      extra: { deep: [1, 2.5, "ä"] },
    });
    const answer = await send(pair, body);
    const stream = readStream(answer.text);
    expect(answer.status).toBe(200);
    expect(answer.headers["content-type"]).toContain("text/event-stream");
    expect(answer.headers["x-kvmesh-guard"]).toBe("off; reason=not_asked");
    expect(stream).toMatchObject({ text: expected(), done: true, finish: ["length"] });

    const [first] = pair.prefill.seen;
    expect(first?.json).toMatchObject({
      stream: false,
      stream_options: null,
      max_tokens: 1,
      min_tokens: 0,
      prompt,
      kv_transfer_params: { do_remote_decode: true, do_remote_prefill: false },
    });
    const [second] = pair.decode.seen;
    const params = /,"kv_transfer_params":(\{.*\})\}$/.exec(second?.raw ?? "")?.[1];
    expect(second?.raw).toBe(`${body.slice(0, -1)},"kv_transfer_params":${params ?? ""}}`);
    expect(params).toContain('"do_remote_prefill":true, "do_remote_decode":false');
    expect(params).toContain('"big":12345678901234567890');
    expect([first?.headers["x-request-id"], second?.headers["x-request-id"]]).toEqual([
      "req-1",
      "req-1",
    ]);
    expect(second?.headers["x-kvmesh-placement"]).toBeUndefined();
    expect(pair.replays()).toBe(0);
    expect(pair.prefill.handoffs.size).toBe(0);
    expect(ends(pair.test.notices)).toEqual(["prefill done", "decode done"]);
    expect(pair.test.notices.find(({ leg }) => leg === "prefill")).toMatchObject({
      promptTokens: idsOf(prompt).length,
      cachedTokens: 5,
    });
    expect(pair.test.notices[pair.test.notices.length - 1]).toMatchObject({
      last: true,
      generatedTokens: 40,
    });
  });

  test("a whole answer passes as it is", async () => {
    const pair = await startPair();
    const answer = await send(pair, bodyOf());
    const json = JSON.parse(answer.text) as { choices: { text: string }[] };
    expect(json.choices[0]?.text).toBe(expected());
    expect(answer.headers["content-length"]).toBe(String(Buffer.byteLength(answer.text)));
  });

  test("chat keeps both limits one token long at prefill", async () => {
    const pair = await startPair();
    const body = JSON.stringify({
      model: "m",
      messages: [{ role: "user", content: "hi" }],
      max_completion_tokens: 9,
      stream: true,
    });
    const answer = await send(pair, body, { path: "/v1/chat/completions" });
    expect(readStream(answer.text).done).toBe(true);
    expect(pair.prefill.seen[0]?.json).toMatchObject({ max_tokens: 1, max_completion_tokens: 1 });
    expect(pair.decode.seen[0]?.json).toMatchObject({ max_completion_tokens: 9, stream: true });
  });

  test.each([
    ["answers 503", { status: 503 }, "engine_error"],
    ["answers 400", { status: 400 }, "engine_error"],
    ["gives no hand-off", { noHandoff: true }, "no_handoff"],
  ])("prefill that %s is computed on decode", async (_name, faults, outcome) => {
    const pair = await startPair();
    pair.prefill.faults = faults;
    const body = bodyOf({ stream: true });
    const answer = await send(pair, body);
    expect(readStream(answer.text).text).toBe(expected());
    expect(pair.decode.seen.map(({ raw }) => raw)).toEqual([body]);
    expect(ends(pair.test.notices)).toEqual([`prefill ${outcome}`, "decode done"]);
    expect(await pair.test.metrics()).toContain(
      'kvmesh_relay_local_prefills_total{reason="prefill_failed"} 1',
    );
  });

  test("prefill that is gone, or does not answer in time, is computed on decode", async () => {
    const pair = await startPair("vllm", { deadlines: { prefillMs: 300 } });
    pair.prefill.faults = { hang: true };
    expect(readStream((await send(pair, bodyOf({ stream: true }))).text).text).toBe(expected());
    pair.prefill.kill();
    expect(readStream((await send(pair, bodyOf({ stream: true }))).text).text).toBe(expected());
    expect(ends(pair.test.notices)).toEqual([
      "prefill timeout",
      "decode done",
      "prefill lost",
      "decode done",
    ]);
  });

  test("a pull that fails is recomputed on decode, and its hand-off is not used again", async () => {
    const pair = await startPair();
    pair.decode.faults = { pullFails: true };
    const body = bodyOf({ stream: true });
    const answer = await send(pair, body);
    expect(readStream(answer.text)).toMatchObject({ text: expected(), done: true });
    expect(pair.decode.seen.map(({ raw }) => raw)[1]).toBe(body);
    expect(pair.replays()).toBe(0);
    expect(ends(pair.test.notices)).toEqual(["prefill done", "decode engine_error", "decode done"]);
  });

  test.each([
    ["n", { n: 2 }],
    ["best_of", { best_of: 2 }],
    ["several prompts", { prompt: ["a", "b"] }],
    ["several prompts as ids", { prompt: [[1], [2]] }],
    ["prompt_logprobs", { prompt_logprobs: 1 }],
    ["echo", { echo: true }],
  ])("a request with %s never uses a hand-off", async (_name, over) => {
    const pair = await startPair();
    const body = bodyOf(over);
    await send(pair, body);
    expect(pair.prefill.seen).toEqual([]);
    expect(pair.decode.seen.map(({ raw }) => raw)).toEqual([body]);
  });

  test("the client's leaving reaches both engines within 200 ms", async () => {
    const pair = await startPair();
    pair.prefill.faults = { hang: true };
    const controller = new AbortController();
    const body = bodyOf({ stream: true });
    const waiting = fetch(`http://127.0.0.1:${String(pair.test.relay.httpPort)}/v1/completions`, {
      method: "POST",
      body,
      headers: { "x-kvmesh-placement": pair.test.sign(body, { legs: pair.legs }) },
      signal: controller.signal,
    }).catch(() => undefined);
    await expect.poll(() => pair.prefill.seen.length).toBe(1);
    const leftAt = performance.now();
    controller.abort();
    await waiting;
    await expect.poll(() => pair.prefill.seen[0]?.abortedAt ?? 0).toBeGreaterThan(0);
    expect((pair.prefill.seen[0]?.abortedAt ?? Infinity) - leftAt).toBeLessThan(200);

    pair.prefill.faults = {};
    pair.decode.faults = { tokenMs: 20 };
    let left = 0;
    await send(pair, body, {
      onText: (text, leave) => {
        if (left > 0 || !text.includes("data:")) return;
        left = performance.now();
        leave();
      },
    });
    await expect.poll(() => pair.decode.seen[0]?.abortedAt ?? 0).toBeGreaterThan(0);
    expect((pair.decode.seen[0]?.abortedAt ?? Infinity) - left).toBeLessThan(200);
    await expect.poll(() => pair.test.relay.openRequests).toBe(0);
    expect(ends(pair.test.notices)).toEqual([
      "prefill cancelled",
      "decode not_started",
      "prefill done",
      "decode cancelled",
    ]);
  });

  test("an engine lost inside the answer is told inside the answer", async () => {
    const pair = await startPair();
    pair.decode.faults = { breakAfter: 5, tokenMs: 2 };
    const answer = await send(pair, bodyOf({ stream: true }));
    const stream = readStream(answer.text);
    expect(stream.done).toBe(false);
    expect(stream.chunks[stream.chunks.length - 1]).toMatchObject({
      error: { code: "worker_lost" },
    });
    expect(ends(pair.test.notices)).toEqual(["prefill done", "decode lost"]);
  });

  test("hand-offs are held back where too many wait", async () => {
    const pair = await startPair("vllm", { engines: { handoffTokensMax: 150 } });
    pair.decode.faults = { firstMs: 300 };
    const answers = await Promise.all([1, 2, 3].map(() => send(pair, bodyOf({ stream: true }))));
    for (const { text } of answers) expect(readStream(text).text).toBe(expected());
    expect(pair.prefill.seen.length).toBe(1);
    expect(await pair.test.metrics()).toContain(
      'kvmesh_relay_local_prefills_total{reason="handoff_full"} 2',
    );
  });
});

describe("SGLang pair", () => {
  test("both legs get the same body and room at once; the client gets decode's answer", async () => {
    const pair = await startPair("sglang");
    const body = bodyOf({ stream: true });
    const answer = await send(pair, body);
    expect(readStream(answer.text)).toMatchObject({ text: expected(), done: true });
    const [prefill] = pair.prefill.seen;
    const [decode] = pair.decode.seen;
    expect(prefill?.raw).toBe(decode?.raw);
    expect(prefill?.raw.startsWith(body.slice(0, -1))).toBe(true);
    expect(prefill?.json).toMatchObject({ bootstrap_host: "127.0.0.1", bootstrap_port: 8998 });
    expect(prefill?.json["bootstrap_room"]).toBeLessThan(2 ** 31);
  });

  test("a failure of prefill stops decode, which cannot prefill", async () => {
    const pair = await startPair("sglang");
    pair.prefill.faults = { status: 500 };
    pair.decode.faults = { hang: true };
    const answer = await send(pair, bodyOf({ stream: true }));
    expect(answer.status).toBe(502);
    await expect.poll(() => pair.decode.seen[0]?.abortedAt ?? 0).toBeGreaterThan(0);
    expect(ends(pair.test.notices)).toEqual(["prefill engine_error", "decode cancelled"]);
  });
});

describe("TensorRT-LLM pair", () => {
  test("context first, then generation with the same parameters and the prompt's ids", async () => {
    const pair = await startPair("tensorrt-llm");
    const answer = await send(pair, bodyOf({ stream: true }));
    expect(readStream(answer.text).text).toBe(expected());
    expect(pair.prefill.seen[0]?.json).toMatchObject({
      stream: false,
      max_tokens: 40,
      disaggregated_params: { request_type: "context_only", schedule_style: 0 },
    });
    expect(pair.decode.seen[0]?.json).toMatchObject({
      stream: true,
      prompt: idsOf(prompt),
      disaggregated_params: {
        request_type: "generation_only",
        ctx_request_id: 99,
        encoded_opaque_state: "b3BhcXVl",
        ctx_usage: { prompt_tokens: idsOf(prompt).length },
      },
    });
  });

  test("an answer that ends with its first token is complete without decode", async () => {
    const pair = await startPair("tensorrt-llm");
    let ending = "";
    for (let i = 0; ending === ""; i++) {
      const [first] = generate({ promptIds: idsOf(`p${String(i)}`), tokensMax: 4 });
      if (first?.finishReason === "stop") ending = `p${String(i)}`;
    }
    const body = bodyOf({ prompt: ending, ignore_eos: false, stream: true });
    const answer = await send(pair, body);
    expect(readStream(answer.text)).toMatchObject({ text: "", done: true, finish: ["stop"] });
    expect(pair.decode.seen).toEqual([]);
    expect(ends(pair.test.notices)).toEqual(["prefill done", "decode not_started"]);
  });
});

describe("what a relay refuses", () => {
  const errorOf = (answer: Answer): { code: string; message: string } =>
    (JSON.parse(answer.text) as { error: { code: string; message: string } }).error;

  test("requests without a valid placement, saying why", async () => {
    const pair = await startPair();
    const body = bodyOf();
    const token = pair.test.sign(body, { legs: pair.legs });
    const flipped = `${token.slice(0, -10)}${token[token.length - 10] === "A" ? "B" : "A"}${token.slice(-9)}`;
    const old = { issuedUnixMs: Date.now() - 60_000, expiresUnixMs: Date.now() - 40_000 };
    for (const [reason, sent, sentBody] of [
      ["missing", "", body],
      ["bad_signature", flipped, body],
      ["digest_mismatch", token, `${body} `],
      ["expired", pair.test.sign(body, { legs: pair.legs, ...old }), body],
    ] as const) {
      const answer = await send(pair, sentBody, { token: sent });
      expect(answer.status, reason).toBe(401);
      expect(errorOf(answer)).toMatchObject({ code: "unauthenticated" });
      expect(errorOf(answer).message).toContain(reason);
    }
    expect(pair.prefill.seen.length + pair.decode.seen.length).toBe(0);
  });

  test.each([
    ["as it is", (name: string) => `"${name}":{}`],
    ["twice", (name: string) => `"${name}":null,"${name}":{"do_remote_prefill":true}`],
    [
      "with escapes",
      (name: string) =>
        `"${name.slice(0, 3)}\\u${name.charCodeAt(3).toString(16).padStart(4, "0")}${name.slice(4)}":{}`,
    ],
  ])("fields of the mesh %s", async (_name, spell) => {
    const pair = await startPair();
    for (const name of [
      "kv_transfer_params",
      "bootstrap_room",
      "disaggregated_params",
      "cache_salt",
    ]) {
      const body = `${bodyOf().slice(0, -1)},${spell(name)}}`;
      const answer = await send(pair, body);
      expect(answer.status, body).toBe(400);
      expect(errorOf(answer).message).toContain(name);
    }
    expect(pair.prefill.seen.length + pair.decode.seen.length).toBe(0);
  });

  test("a salt is let through once where the router put it in", async () => {
    const pair = await startPair();
    const salted = `${bodyOf().slice(0, -1)},"cache_salt":"s"}`;
    const twice = `${salted.slice(0, -1)},"cache_salt":"t"}`;
    const sign = (body: string): string => pair.test.sign(body, { legs: pair.legs, salted: true });
    expect((await send(pair, salted, { token: sign(salted) })).status).toBe(200);
    expect((await send(pair, twice, { token: sign(twice) })).status).toBe(400);
  });

  test("engines outside the allowed ranges, other paths, broken bodies", async () => {
    const pair = await startPair();
    const body = bodyOf();
    const far = [legAt("192.0.2.1:8000", "whole")];
    expect((await send(pair, body, { token: pair.test.sign(body, { legs: far }) })).status).toBe(
      502,
    );
    expect((await send(pair, body, { path: "/v1/embeddings" })).status).toBe(404);
    for (const broken of ["{", "[]", `${body}x`, `"${body}`, '{"stream":"yes"}']) {
      expect((await send(pair, broken)).status, broken).toBe(400);
    }
    expect(await pair.test.metrics()).toContain('kvmesh_relay_requests_total{mode="none"');
  });
});

describe("slow readers", () => {
  test("stop their engine from being read, and bound what waits", async () => {
    const pair = await startPair("vllm", { limits: { clientBufferBytesMax: 16_384 } });
    pair.decode.faults = { padding: 8_192 };
    const body = bodyOf({ stream: true, max_tokens: 8_000 });
    const { connect } = await import("node:net");
    const socket = connect(pair.test.relay.httpPort, "127.0.0.1");
    socket.pause();
    socket.write(
      `POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-kvmesh-placement: ${pair.test.sign(body, { legs: pair.legs })}\r\ncontent-length: ${String(Buffer.byteLength(body))}\r\n\r\n${body}`,
    );
    // What is in the kernel's buffers may still move; then nothing does.
    const bytes = async (): Promise<number> =>
      Number(/kvmesh_relay_client_bytes_total (\d+)/.exec(await pair.test.metrics())?.[1]);
    let before = -1;
    await expect
      .poll(
        async () => {
          const now = await bytes();
          const still = now > 0 && now === before;
          before = now;
          return still;
        },
        { timeout: 12_000, interval: 400 },
      )
      .toBe(true);
    let size = 0;
    let ended = false;
    socket.on("data", (part: Buffer) => {
      size += part.length;
      if (part.includes("[DONE]")) ended = true;
    });
    socket.resume();
    await expect.poll(() => ended, { timeout: 15_000 }).toBe(true);
    expect(size).toBeGreaterThan(before + 1_000_000);
    socket.destroy();
  }, 30_000);
});
