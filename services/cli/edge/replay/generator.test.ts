import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { PromptText } from "../../../shared/core/workload/text.ts";
import type { Workload } from "../../../shared/core/workload/workload.ts";
import { realClock } from "../../../shared/edge/clock.ts";
import type { RequestRecord } from "../../core/replay/outcome.ts";
import { checkTokenCount } from "./exchange.ts";
import { runReplay, type ReplayOptions, type ReplayProgress } from "./generator.ts";
import { replayCommand } from "./replay-command.ts";
import { runReplayInProcess } from "./replay-process.ts";

interface Body {
  readonly model: string;
  readonly prompt?: string;
  readonly messages?: readonly { readonly content: string }[];
  readonly max_tokens: number;
}

interface Arrival {
  readonly url: string;
  readonly headers: Readonly<Record<string, unknown>>;
  readonly raw: string;
  readonly body: Body;
  readonly atMs: number;
}

type Script = (response: ServerResponse, body: Body) => Promise<void> | void;

const event = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const token = (i: number, count: number): string =>
  event({
    choices: [
      {
        index: 0,
        text: ` t${i}`,
        token_ids: [i],
        finish_reason: i + 1 === count ? "length" : null,
      },
    ],
  });
const usage = (tokens: number): string =>
  event({
    choices: [],
    usage: {
      prompt_tokens: 100,
      completion_tokens: tokens,
      prompt_tokens_details: { cached_tokens: 75 },
    },
  });
const done = "data: [DONE]\n\n";

/** A whole answer, first token after `ttftMs`, then one every `itlMs`. */
function answer({ ttftMs = 0, itlMs = 0 } = {}): Script {
  return async (response, { max_tokens: count }) => {
    response.writeHead(200, {
      "content-type": "text/event-stream",
      "x-kvmesh-decision": "r.1.7",
      "x-gateway-destination-endpoint-served": "127.0.0.1:8100",
    });
    for (let i = 0; i < count; i++) {
      await realClock.sleep(i === 0 ? ttftMs : itlMs);
      response.write(token(i, count));
    }
    response.end(usage(count) + done);
  };
}

let server: Server;
let url: string;
let script: Script;
let arrivals: Arrival[];

beforeAll(async () => {
  server = createServer((incoming, response) => {
    let raw = "";
    incoming.setEncoding("utf8");
    incoming.on("data", (part: string) => (raw += part));
    incoming.on("end", () => {
      if (incoming.url === "/v1/models") {
        response.end(JSON.stringify({ object: "list", data: [{ id: "demo" }] }));
        return;
      }
      const body = JSON.parse(raw) as Body;
      const { url: path = "", headers } = incoming;
      arrivals.push({ url: path, headers, raw, body, atMs: realClock.now() });
      void script(response, body);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(() => {
  server.closeAllConnections();
  server.close();
});
beforeEach(() => {
  arrivals = [];
  script = answer();
});

function workload(atMs: readonly number[], outputTokens = 3): Workload {
  return {
    name: "small",
    description: "d",
    licence: "l",
    source: "s",
    blockTokens: 16,
    requests: atMs.map((at, i) => ({
      atMs: at,
      inputTokens: 40,
      outputTokens,
      blockIds: [0, i],
    })),
  };
}

async function replay(options: Partial<ReplayOptions> & { workload: Workload }) {
  const records: RequestRecord[] = [];
  const result = await runReplay({
    url,
    model: "demo",
    rateFactor: 1,
    warmupRatio: 0,
    onRecord: (record) => records.push(record),
    ...options,
  });
  return { result, records };
}

describe("runReplay", () => {
  test("sends text at the workload's times and measures what comes back", async () => {
    script = answer({ ttftMs: 60, itlMs: 20 });
    const small = workload([0, 100, 200, 300], 5);
    const { result, records } = await replay({
      workload: small,
      rateFactor: 2,
      warmupRatio: 1 / 3,
    });
    expect(result).toMatchObject({
      workload: "small",
      requests: 4,
      requestsMeasured: 3,
      errors: 0,
      unpicked: 0,
      hitTokenRatio: 0.75,
      workers: { "127.0.0.1:8100": 3 },
      usageMissing: 0,
      lengthDiffers: 0,
      promptTokens: 300,
      outputTokens: 15,
      durationMs: 150,
    });
    expect(result.ttftMs.p50).toBeGreaterThanOrEqual(59);
    expect(result.ttftMs.p50).toBeLessThan(400);
    expect(result.tpotMs.p50).toBeGreaterThanOrEqual(18);
    expect(result.tpotMs.p50).toBeLessThan(100);
    const text = new PromptText(small);
    expect(arrivals.map(({ body }) => body.prompt)).toEqual(
      [0, 1, 2, 3].map((i) => text.prompt(i)),
    );
    expect(JSON.parse(arrivals[0]!.raw)).toEqual({
      model: "demo",
      prompt: text.prompt(0),
      max_tokens: 5,
      stream: true,
      stream_options: { include_usage: true },
      ignore_eos: true,
      temperature: 0,
    });
    expect(records.map(({ dueMs }) => dueMs).sort((x, y) => x - y)).toEqual([0, 50, 100, 150]);
  });

  test("calls the chat API with the same text, and sends given headers", async () => {
    const small = workload([0, 1]);
    await replay({
      workload: small,
      url: `${url}/v1/`,
      api: "chat",
      headers: { "x-kvmesh-tenant": "t" },
    });
    expect(arrivals[0]).toMatchObject({
      url: "/v1/chat/completions",
      headers: { "x-kvmesh-tenant": "t", "content-type": "application/json" },
      body: { messages: [{ role: "user", content: new PromptText(small).prompt(0) }] },
    });
  });

  test("never waits for an answer before sending the next request", async () => {
    script = answer({ ttftMs: 800 });
    const { result } = await replay({ workload: workload([0, 20, 40, 60, 80]) });
    expect(arrivals[4]!.atMs - arrivals[0]!.atMs).toBeLessThan(700);
    expect(result.errors).toBe(0);
  });

  test("counts its own lateness into the latencies, and says that the run proves nothing", async () => {
    script = (response, body) => {
      // The generator runs on this event loop; the first request holds it while the second falls due.
      if (arrivals.length === 1) {
        const until = realClock.now() + 400;
        while (realClock.now() < until);
      }
      void answer()(response, body);
    };
    const { result, records } = await replay({ workload: workload([0, 150, 700]) });
    const late = records.find((record) => record.index === 1)!;
    expect(late.lateMs).toBeGreaterThan(120);
    expect(late.ttftMs).toBeGreaterThanOrEqual(late.lateMs);
    expect(result.valid).toBe(false);
    expect(result.invalidReasons.join()).toContain("late at p99");
  });

  const broken: readonly [string, Script, string, Partial<ReplayOptions>?][] = [
    [
      "http_503",
      (response) => {
        response.writeHead(503).end('{"error":{"message":"no capacity"}}');
      },
      "no capacity",
    ],
    ["reset", (response) => void response.socket!.destroy(), ""],
    [
      "truncated",
      (response) => {
        response.writeHead(200);
        response.write(token(0, 3), () => response.socket!.destroy());
      },
      "",
    ],
    ["truncated", (response) => void response.end(token(0, 3)), "without a finish reason"],
    ["truncated", (response) => void response.end(token(0, 1)), "without [DONE]"],
    [
      "stream_error",
      (response) => void response.end(token(0, 3) + event({ error: { message: "gone" } }) + done),
      "gone",
    ],
    ["bad_stream", (response) => void response.end("data: {oops\n\n" + done), "not JSON"],
    ["truncated", (response) => void response.end('{"choices":[]}'), "after 0 chunks"],
    [
      "timeout",
      (response) => {
        response.writeHead(200).flushHeaders();
      },
      "no token for 100 ms",
      { firstTokenMsMax: 100 },
    ],
    [
      "timeout",
      (response) => void response.writeHead(200).write(token(0, 3)),
      "silent for 100 ms",
      { stallMsMax: 100 },
    ],
    [
      "unfinished",
      (response) => void response.writeHead(200).write(token(0, 3)),
      "still open",
      { drainMsMax: 50 },
    ],
    [
      "wrong_answer",
      (response) => void response.end(token(0, 3) + token(2, 3) + usage(3) + done),
      "2 token ids came, 3 by usage",
      { verify: checkTokenCount },
    ],
    [
      "wrong_answer",
      (response) => void response.end(token(0, 1) + usage(1) + done),
      "1 tokens by usage, 3 asked for",
      { verify: checkTokenCount },
    ],
  ];
  test.each(broken)("calls a failure %s", async (kind, breaks, detail, options = {}) => {
    script = breaks;
    const { result, records } = await replay({ workload: workload([0]), ...options });
    expect(records).toHaveLength(1);
    expect(records[0]).toMatchObject({ error: kind });
    expect(records[0]!.errorDetail).toContain(detail);
    expect(result).toMatchObject({ errors: 1, errorsByKind: { [kind]: 1 }, valid: false });
    expect(result.ttftMs.count).toBe(0);
  });

  test("calls a closed port connect", async () => {
    const closed = createServer();
    await new Promise<void>((resolve) => closed.listen(0, "127.0.0.1", resolve));
    const { port } = closed.address() as AddressInfo;
    await new Promise((resolve) => closed.close(resolve));
    const { records } = await replay({
      workload: workload([0, 5]),
      url: `http://127.0.0.1:${port}`,
    });
    expect(records.map((record) => record.error)).toEqual(["connect", "connect"]);
  });

  test("keeps a good answer whose connection breaks after [DONE]", async () => {
    script = (response) => {
      response.writeHead(200);
      response.write(token(0, 1) + usage(1) + done, () => response.socket!.destroy());
    };
    const { result } = await replay({ workload: workload([0], 1) });
    expect(result).toMatchObject({ errors: 0, lengthDiffers: 0 });
  });

  test("counts a request above the cap as an error and does not send it", async () => {
    script = answer({ ttftMs: 150 });
    const { result, records } = await replay({ workload: workload([0, 10, 20, 800]), openMax: 2 });
    expect(result.errorsByKind).toEqual({ overflow: 1 });
    expect(records.find((record) => record.error === "overflow")).toMatchObject({ index: 2 });
    expect(arrivals).toHaveLength(3);
  });

  test("passes a whole answer through the check and hands it text and ids", async () => {
    const answers: unknown[] = [];
    const { result } = await replay({
      workload: workload([0]),
      verify: (got) => {
        answers.push(got);
        return checkTokenCount(got);
      },
    });
    expect(result.errors).toBe(0);
    expect(answers).toMatchObject([
      { text: " t0 t1 t2", tokenIds: [0, 1, 2], completionTokens: 3 },
    ]);
    expect(JSON.parse(arrivals[0]!.raw)).toMatchObject({ return_token_ids: true });
  });

  test("counts chunks where there is no usage, and says so", async () => {
    script = (response) => void response.end(token(0, 3) + token(1, 3) + token(2, 3) + done);
    const { result } = await replay({ workload: workload([0]) });
    expect(result).toMatchObject({
      errors: 0,
      usageMissing: 1,
      outputTokens: 3,
      hitTokenRatio: null,
      unpicked: null,
    });
  });

  test("stops when called off: sends nothing more and closes what is open", async () => {
    const stop = new AbortController();
    const closed = new Promise<void>((resolve) => {
      script = (response) => {
        response.on("close", resolve);
        response.writeHead(200).write(token(0, 3));
        stop.abort();
      };
    });
    const { result } = await replay({ workload: workload([0, 60_000]), signal: stop.signal });
    await closed;
    expect(result).toMatchObject({ requests: 1, errorsByKind: { stopped: 1 }, valid: false });
  });

  test("reports progress up to the end", async () => {
    const seen: ReplayProgress[] = [];
    script = answer({ ttftMs: 600 });
    await replay({
      workload: workload([0, 800]),
      warmupRatio: 0.9,
      onProgress: (progress) => seen.push(progress),
    });
    expect(seen.map((progress) => progress.phase)).toContain("warm-up");
    expect(seen.at(-1)).toMatchObject({ phase: "draining", due: 2, sent: 2 });
  });

  test("refuses an endpoint that is none", async () => {
    await expect(replay({ workload: workload([0]), url: "127.0.0.1:1" })).rejects.toThrow(
      "is not a URL",
    );
    await expect(replay({ workload: workload([0]), url: "ftp://x" })).rejects.toThrow("http://");
  });
});

describe("replay in its own process and as a command", () => {
  let folder: string;
  let file: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "replay-"));
    file = join(folder, "tiny.jsonl");
    const rows = [0, 50, 400].map(
      (timestamp) =>
        `{"timestamp":${timestamp},"input_length":40,"output_length":3,"hash_ids":[1,2]}`,
    );
    writeFileSync(file, `${rows.join("\n")}\n`);
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  const order = () => ({
    workload: file,
    file: { blockTokens: 20 },
    url,
    model: "demo",
    rateFactor: 1,
    warmupRatio: 0,
  });

  test("gives the same result from a process of its own", async () => {
    const seen: ReplayProgress[] = [];
    const result = await runReplayInProcess(
      { ...order(), verifyTokens: true },
      { onProgress: (progress) => seen.push(progress) },
    );
    expect(result).toMatchObject({ workload: "tiny", requests: 3, errors: 0 });
    expect(seen.length).toBeGreaterThan(0);
  });

  test("passes on why an order is refused, and stops when called off", async () => {
    await expect(runReplayInProcess({ ...order(), rateFactor: -1 })).rejects.toMatchObject({
      code: "invalid_request",
      message: expect.stringContaining("rate factor -1"),
    });
    script = (response) => {
      response.writeHead(200).flushHeaders();
    };
    const stop = new AbortController();
    const result = await runReplayInProcess(order(), {
      signal: stop.signal,
      onProgress: ({ sent }) => {
        if (sent === 3) stop.abort();
      },
    });
    expect(result).toMatchObject({ errorsByKind: { stopped: 3 }, valid: false });
  });

  test("writes one line per request and one JSON line of result", async () => {
    const out = join(folder, "out.jsonl");
    const written: string[] = [];
    const write = process.stdout.write.bind(process.stdout);
    process.stdout.write = (text: string | Uint8Array) => {
      written.push(String(text));
      return true;
    };
    try {
      await replayCommand().parseAsync(
        [file, "--url", url, "--block-tokens", "20", "--out", out, "--json", "--warmup", "0"],
        { from: "user" },
      );
    } finally {
      process.stdout.write = write;
    }
    const printed = written.filter((text) => text.startsWith("{"));
    expect(printed).toHaveLength(1);
    expect(JSON.parse(printed[0]!)).toMatchObject({ model: "demo", requests: 3, errors: 0 });
    const lines = readFileSync(out, "utf8").trim().split("\n");
    expect(lines.map((line): unknown => JSON.parse(line))).toMatchObject([
      { index: 0, status: 200, cachedTokens: 75 },
      { index: 1, worker: "127.0.0.1:8100" },
      { index: 2, decision: "r.1.7" },
    ]);
    process.exitCode = 0;
  });
});
