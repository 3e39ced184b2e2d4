import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import type { Placer } from "../../services/relay/edge/placer.ts";
import type { Placement } from "../../services/shared/core/placement-token/placement.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import {
  startScriptedEngine,
  type EngineFaults,
  type ScriptedEngine,
} from "../support/relay-engines.ts";
import { generate, idsOf } from "../support/relay-oracle.ts";
import {
  legAt,
  post,
  readStream,
  startTestRelay,
  type Answer,
  type TestRelay,
} from "../support/relay-requests.ts";

const guard = { freezeItlMultiple: 20, freezeMsMin: 250, migrationsMax: 6 };

interface Fleet {
  readonly relay: TestRelay;
  readonly engines: ScriptedEngine[];
  readonly excluded: string[][];
}

const open: { close(): unknown }[] = [];
afterEach(async () => {
  for (const one of open.splice(0).reverse()) await one.close();
});

/** A relay, and a router that places on the first engine that is not excluded. */
async function start(count = 3, settings: Record<string, unknown> = {}): Promise<Fleet> {
  const engines = await Promise.all(
    Array.from({ length: count }, () => startScriptedEngine({ cachedTokens: 4 })),
  );
  const excluded: string[][] = [];
  const placer: Placer = {
    place: (ask) => {
      excluded.push([...ask.excluded]);
      const engine = engines.find(({ address }) => !ask.excluded.includes(`w-${address}`));
      return Promise.resolve(
        engine === undefined
          ? { kind: "refused", outcome: "refused", code: "no_ready_worker", message: "none left" }
          : {
              kind: "placed",
              token: relay.sign(ask.body, { legs: [legAt(engine.address, "whole")] }),
            },
      );
    },
  };
  const relay = await startTestRelay({ settings, placer });
  open.push(...engines, { close: () => relay.stop() });
  return { relay, engines, excluded };
}

function send(
  fleet: Fleet,
  body: string,
  options: {
    path?: string;
    engine?: number;
    placement?: Partial<Placement>;
    onText?: (text: string) => void;
  } = {},
): Promise<Answer> {
  const engine = fleet.engines[options.engine ?? 0];
  const token = fleet.relay.sign(body, {
    legs: [legAt(engine?.address ?? "", "whole")],
    guard,
    ...options.placement,
  });
  return post(
    fleet.relay.relay.httpPort,
    options.path ?? "/v1/completions",
    body,
    { "x-kvmesh-placement": token },
    options.onText,
  );
}

const prompt = "Tell me a story";
const bodyOf = (over: Record<string, unknown> = {}): string =>
  JSON.stringify({ model: "m", prompt, max_tokens: 60, ignore_eos: true, stream: true, ...over });
const expected = (promptIds = idsOf(prompt), tokensMax = 60): string =>
  [...generate({ promptIds, tokensMax, ignoreEos: true })].map(({ text }) => text).join("");

describe("guarded streams", () => {
  test("pass with the fields of their engine, without ids that nobody asked for", async () => {
    const fleet = await start();
    const answer = await send(fleet, bodyOf({ stream_options: { include_usage: true } }));
    expect(answer.headers["x-kvmesh-guard"]).toBe("on");
    expect(readStream(answer.text)).toMatchObject({
      text: expected(),
      done: true,
      finish: ["length"],
    });
    expect(answer.text).not.toContain("token_ids");
    expect(answer.text).toContain('"cached_tokens":4');
    expect(fleet.engines[0]?.seen[0]?.json).toMatchObject({ return_token_ids: true });
  });

  test.each<[string, EngineFaults, string]>([
    ["breaks", { breakAfter: 17 }, "lost"],
    ["stands still", { freezeAfter: 9 }, "frozen"],
    ["reports its own death", { errorAfter: 21 }, "engine_error"],
  ])("an engine that %s is followed by another one", async (_name, faults, cause) => {
    const fleet = await start();
    const [first, second] = fleet.engines;
    if (first === undefined || second === undefined) throw new Error("no engines");
    first.faults = { ...faults, tokenMs: 1 };
    const answer = await send(fleet, bodyOf({ stream_options: { include_usage: true } }));
    const stream = readStream(answer.text);
    expect(stream).toMatchObject({ text: expected(), done: true, finish: ["length"] });
    const usage = stream.chunks.flatMap((chunk) => ("usage" in chunk ? [chunk["usage"]] : []));
    expect(usage).toEqual([
      {
        prompt_tokens: idsOf(prompt).length,
        total_tokens: idsOf(prompt).length + 60,
        completion_tokens: 60,
      },
    ]);
    expect(new Set(stream.chunks.map(({ id }) => id)).size).toBe(1);
    expect(fleet.excluded).toEqual([[`w-${first.address}`]]);
    const { json } = second.seen[0] ?? {};
    expect((json?.["prompt"] as number[]).slice(0, idsOf(prompt).length)).toEqual(idsOf(prompt));
    expect((json?.["prompt"] as number[]).length + Number(json?.["max_tokens"])).toBe(
      idsOf(prompt).length + 60,
    );
    expect(await fleet.relay.metrics()).toContain(
      `kvmesh_relay_migrations_total{cause="${cause}",outcome="continued"} 1`,
    );
    const ends = fleet.relay.notices.filter(({ ended }) => ended);
    expect(ends.map(({ outcome, last }) => [outcome, last])).toEqual([
      [cause, true],
      ["done", true],
    ]);
  });

  test("a chat is continued in its own framing", async () => {
    const fleet = await start();
    const [first, second] = fleet.engines;
    if (first === undefined) throw new Error("no engine");
    first.faults = { breakAfter: 11 };
    const messages = [{ role: "user", content: "hi" }];
    const body = JSON.stringify({
      model: "m",
      messages,
      max_tokens: 40,
      ignore_eos: true,
      stream: true,
      temperature: 0,
      chat_template_kwargs: { a: 1 },
    });
    const answer = await send(fleet, body, { path: "/v1/chat/completions" });
    const stream = readStream(answer.text);
    const promptIds = idsOf("<user>hi<assistant>");
    expect(stream).toMatchObject({ text: expected(promptIds, 40), done: true, finish: ["length"] });
    expect(new Set(stream.chunks.map(({ object }) => object))).toEqual(
      new Set(["chat.completion.chunk"]),
    );
    expect(second?.seen[0]?.path).toBe("/v1/completions");
    expect(second?.seen[0]?.json).toMatchObject({ temperature: 0, ignore_eos: true });
    expect(second?.seen[0]?.json).not.toHaveProperty("messages");
    expect(second?.seen[0]?.json).not.toHaveProperty("chat_template_kwargs");
  });

  test("engines lost one after the other, until it was moved too often", async () => {
    const fleet = await start(4);
    fleet.engines.forEach((engine, index) => {
      engine.faults = { breakAfter: index === 3 ? 1_000 : 7 };
    });
    expect(readStream((await send(fleet, bodyOf())).text)).toMatchObject({
      text: expected(),
      done: true,
    });
    for (const engine of fleet.engines) engine.faults = { breakAfter: 7 };
    const broken = readStream((await send(fleet, bodyOf())).text);
    expect(broken.done).toBe(false);
    expect(expected().startsWith(broken.text)).toBe(true);
    expect(broken.chunks[broken.chunks.length - 1]).toMatchObject({
      error: { code: "worker_lost" },
    });
  });

  test("engines that are all slow to begin are not given up one after the other", async () => {
    const fleet = await start(2);
    for (const engine of fleet.engines) engine.faults = { firstMs: 4_000 };
    expect(readStream((await send(fleet, bodyOf())).text)).toMatchObject({
      text: expected(),
      done: true,
    });
    // The second one gets more than the 2 s of the first.
    expect(fleet.excluded).toHaveLength(1);
  }, 20_000);

  test("where all engines were lost once, those before the last one are tried again", async () => {
    const fleet = await start(2);
    for (const engine of fleet.engines) engine.faults = { breakAfter: 25 };
    expect(readStream((await send(fleet, bodyOf())).text)).toMatchObject({
      text: expected(),
      done: true,
    });
    const [first = "", second = ""] = fleet.engines.map(({ address }) => `w-${address}`);
    expect(fleet.excluded).toEqual([[first], [first, second], [second]]);
  });

  test("a seed is changed, a penalty by frequency goes on as a bias", async () => {
    const fleet = await start();
    const [first, second] = fleet.engines;
    if (first === undefined) throw new Error("no engine");
    first.faults = { breakAfter: 20 };
    await send(
      fleet,
      bodyOf({ seed: 7, frequency_penalty: 0.5, logit_bias: { "5": 1 }, min_tokens: 30 }),
    );
    const json = second?.seen[0]?.json ?? {};
    expect(json["seed"]).not.toBe(7);
    expect(json["min_tokens"]).toBe(
      30 - ((json["prompt"] as number[]).length - idsOf(prompt).length),
    );
    const generated = (json["prompt"] as number[]).slice(idsOf(prompt).length);
    const bias = json["logit_bias"] as Record<string, number>;
    expect(bias["5"]).toBe(1);
    for (const id of new Set(generated)) {
      expect(bias[String(id)]).toBe(-0.5 * generated.filter((one) => one === id).length);
    }
  });

  test.each([
    ["choices", { n: 2 }],
    ["tools", { tools: [{ type: "function" }] }],
    ["response_format", { response_format: { type: "json_object" } }],
    ["logprobs", { logprobs: 1 }],
    ["presence_penalty", { presence_penalty: 0.1 }],
    ["usage_per_chunk", { stream_options: { continuous_usage_stats: true } }],
  ])("streams that cannot be continued say so: %s", async (reason, over) => {
    const fleet = await start();
    const answer = await send(fleet, bodyOf(over));
    expect(answer.headers["x-kvmesh-guard"]).toBe(`off; reason=${reason}`);
    expect(fleet.engines[0]?.seen[0]?.json).not.toHaveProperty("return_token_ids");
    expect(await fleet.relay.metrics()).toContain(
      `kvmesh_relay_guards_total{state="off",reason="${reason}"} 1`,
    );
  });

  test("a pair's decode is guarded as well", async () => {
    const fleet = await start();
    const [prefill, decode] = fleet.engines;
    if (prefill === undefined || decode === undefined) throw new Error("no engines");
    decode.faults = { breakAfter: 13 };
    const legs = [legAt(prefill.address, "prefill"), legAt(decode.address, "decode")];
    const answer = await send(fleet, bodyOf(), { placement: { legs } });
    expect(readStream(answer.text)).toMatchObject({ text: expected(), done: true });
  });

  test("the client's leaving stops whichever engine works on it", async () => {
    const fleet = await start();
    const [first, second] = fleet.engines;
    if (first === undefined || second === undefined) throw new Error("no engines");
    first.faults = { breakAfter: 5 };
    second.faults = { tokenMs: 20 };
    const controller = new AbortController();
    const body = bodyOf({ max_tokens: 500 });
    const token = fleet.relay.sign(body, { legs: [legAt(first.address, "whole")], guard });
    const response = await fetch(
      `http://127.0.0.1:${String(fleet.relay.relay.httpPort)}/v1/completions`,
      {
        method: "POST",
        body,
        headers: { "x-kvmesh-placement": token },
        signal: controller.signal,
      },
    );
    await expect.poll(() => second.seen.length).toBe(1);
    controller.abort();
    await response.text().catch(() => undefined);
    await expect.poll(() => second.seen[0]?.abortedAt ?? 0).toBeGreaterThan(0);
    await expect.poll(() => fleet.relay.relay.openRequests).toBe(0);
  });

  test("400 streams over engines that break and freeze at random lose and double nothing", async () => {
    const fleet = await start(4);
    const random = new SeededRandom(5);
    const draw = (max: number): number => Math.floor(random.next() * max);
    // Faults count tokens of each stream: every engine breaks or freezes many of them.
    const [one, two, three, four] = fleet.engines as [
      ScriptedEngine,
      ScriptedEngine,
      ScriptedEngine,
      ScriptedEngine,
    ];
    const stir = setInterval(() => {
      one.faults = { breakAfter: 1 + draw(40) };
      two.faults = { breakAfter: 1 + draw(60) };
      three.faults = draw(3) === 0 ? { freezeAfter: 1 + draw(40) } : {};
      four.faults = {};
    }, 5);
    try {
      for (let round = 0; round < 8; round++) {
        const answers = await Promise.all(
          Array.from({ length: 50 }, async (_, i) => {
            const text = `r${String(round)}-${String(i)}`;
            const stops = i % 3 === 0 ? { stop: [" so on", "漢"] } : {};
            const body = bodyOf({ prompt: text, max_tokens: 20 + draw(60), ...stops });
            const asked = JSON.parse(body) as { max_tokens: number; stop?: string[] };
            const steps = [
              ...generate({
                promptIds: idsOf(text),
                tokensMax: asked.max_tokens,
                ignoreEos: true,
                stop: asked.stop ?? [],
              }),
            ];
            const want = steps.map((step) => step.text).join("");
            const answer = await send(fleet, body, { engine: draw(3) });
            return { want, finish: steps[steps.length - 1]?.finishReason, answer };
          }),
        );
        for (const { want, finish, answer } of answers) {
          expect(readStream(answer.text)).toMatchObject({
            text: want,
            done: true,
            finish: [finish],
          });
        }
      }
    } finally {
      clearInterval(stir);
    }
    const moved = /kvmesh_relay_migrations_total\{cause="lost",outcome="continued"\} (\d+)/.exec(
      await fleet.relay.metrics(),
    )?.[1];
    expect(Number(moved)).toBeGreaterThan(100);
  }, 60_000);
});

describe("a stream with stop texts that cannot be guarded after all", () => {
  type Answering = (response: ServerResponse) => void;
  const event = (text: string, over: Record<string, unknown> = {}): string => {
    const choice = { index: 0, text, logprobs: null, finish_reason: null, stop_reason: null };
    const chunk = { id: "c", object: "text_completion", created: 7, model: "m" };
    return `data: ${JSON.stringify({ ...chunk, choices: [{ ...choice, ...over }] })}\n\n`;
  };
  const withIds = event("one ", { prompt_token_ids: [1, 2], token_ids: [5] });
  const begin = (response: ServerResponse, text: string): void => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.write(text);
  };
  const inOnePiece: Answering = (response) => {
    begin(response, withIds + event("two "));
  };

  /** What a client gets from an engine that answers its requests one after the other as told. */
  async function ask(
    first: Answering,
    second: Answering,
  ): Promise<{ readonly text: string; readonly requests: number }> {
    let requests = 0;
    const server = createServer((request, response) => {
      request.resume().on("end", () => {
        (requests++ === 0 ? first : second)(response);
      });
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    open.push({
      close: () => {
        server.closeAllConnections();
        server.close();
      },
    });
    const fleet = await start(0, { deadlines: { firstByteMs: 500 } });
    const body = bodyOf({ stop: ["never to be found"] });
    const address = `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
    const { text } = await send(fleet, body, { placement: { legs: [legAt(address, "whole")] } });
    return { text, requests };
  }

  test("is asked for anew, and nothing comes twice", async () => {
    const { text, requests } = await ask(inOnePiece, (response) => {
      begin(response, `${event("one ") + event("two", { finish_reason: "stop" })}data: [DONE]\n\n`);
      response.end();
    });
    expect(requests).toBe(2);
    expect(readStream(text)).toMatchObject({ text: "one two", done: true, finish: ["stop"] });
  });

  test("breaks off once the client has tokens of it", async () => {
    const { text, requests } = await ask((response) => {
      begin(response, withIds);
      setTimeout(() => response.write(event("two ")), 50);
    }, inOnePiece);
    expect(requests).toBe(1);
    const { chunks, ...stream } = readStream(text);
    expect(stream).toMatchObject({ text: "one ", done: false });
    expect(chunks.at(-1)).toMatchObject({ error: { code: "worker_lost" } });
  });

  test.each<[string, Answering]>([
    [
      "fails",
      (response) => {
        response.writeHead(500, { "content-type": "application/json" }).end('{"exploded":true}');
      },
    ],
    [
      "refuses",
      (response) => {
        response.writeHead(400, { "content-type": "application/json" }).end('{"exploded":true}');
      },
    ],
    [
      "dies",
      (response) => {
        begin(response, 'data: {"error":{"message":"exploded"}}\n\n');
      },
    ],
    ["says nothing", () => undefined],
  ])("breaks off when the engine that is asked anew %s", async (_, second) => {
    const { text, requests } = await ask(inOnePiece, second);
    expect(requests).toBe(2);
    expect(text.startsWith('data: {"error"')).toBe(true);
    const { chunks, ...stream } = readStream(text);
    expect(stream).toMatchObject({ text: "", done: false });
    expect(chunks).toHaveLength(1);
    expect(JSON.stringify(chunks)).toMatch(/worker_lost|deadline_exceeded/);
  });
});
