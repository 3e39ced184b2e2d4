import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import { generate, idsOf } from "../../../../test/support/relay-oracle.ts";
import { readBody, type RequestKind } from "../body/relayed-body.ts";
import { continuationBody } from "./continuation.ts";
import { guardedBody, readGuardRequest } from "./guard-request.ts";
import { GuardedStream, type GuardedStreamOptions, type StreamPoint } from "./guarded-stream.ts";

const json = new JsonScanner(new Int32Array(8), 0);
const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
const decode = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

interface Asked {
  readonly prompt?: string | number[];
  readonly messages?: { readonly role: string; readonly content: string }[];
  readonly max_tokens?: number | null;
  readonly min_tokens?: number;
  readonly stop?: string[];
  readonly stop_token_ids?: number[];
  readonly ignore_eos?: boolean;
  readonly return_token_ids?: boolean;
  readonly stream_options?: { readonly include_usage?: boolean } | null;
}

/** What an engine streams for a body: vLLM's events, several tokens in one where `merge` says so. */
function engineStream(bytes: Uint8Array, chat: boolean, merge: (index: number) => boolean): string {
  const asked = JSON.parse(decode(bytes)) as Asked;
  const prompt =
    asked.messages?.map(({ role, content }) => `<${role}>${content}`).join("") ??
    asked.prompt ??
    "";
  const promptIds = typeof prompt === "string" ? idsOf(prompt) : prompt;
  const head = {
    id: "cmpl-1",
    object: chat ? "chat.completion.chunk" : "text_completion",
    created: 7,
    model: "m",
  };
  const tell = asked.return_token_ids === true;
  const events: unknown[] = [];
  if (chat) {
    const delta = { role: "assistant", content: "" };
    events.push({
      ...head,
      choices: [{ index: 0, delta, finish_reason: null }],
      ...(tell ? { prompt_token_ids: promptIds } : {}),
    });
  }
  let text = "";
  let ids: number[] = [];
  let count = 0;
  let isFirst = true;
  for (const step of generate({
    promptIds,
    tokensMax: asked.max_tokens ?? 60,
    tokensMin: asked.min_tokens ?? 0,
    stop: asked.stop ?? [],
    stopTokenIds: asked.stop_token_ids ?? [],
    ignoreEos: asked.ignore_eos ?? false,
  })) {
    text += step.text;
    ids.push(step.id);
    count++;
    if (step.finishReason === null && merge(count)) continue;
    events.push({
      ...head,
      choices: [
        {
          index: 0,
          ...(chat ? { delta: { content: text } } : { text }),
          logprobs: null,
          finish_reason: step.finishReason,
          stop_reason: null,
          ...(tell && isFirst && !chat ? { prompt_token_ids: promptIds } : {}),
          ...(tell ? { token_ids: ids } : {}),
        },
      ],
    });
    isFirst = false;
    text = "";
    ids = [];
  }
  if (asked.stream_options?.include_usage === true) {
    const usage = {
      prompt_tokens: promptIds.length,
      total_tokens: promptIds.length + count,
      completion_tokens: count,
    };
    events.push({ ...head, choices: [], usage });
  }
  return `${events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join("")}data: [DONE]\n\n`;
}

interface Seen {
  readonly text: string;
  readonly ids: number[];
  readonly finish: unknown[];
  readonly usage: unknown[];
  readonly done: number;
  readonly roles: number;
}

/** What a client makes of a stream. */
function read(stream: string): Seen {
  const seen = {
    text: "",
    ids: [] as number[],
    finish: [] as unknown[],
    usage: [] as unknown[],
    done: 0,
    roles: 0,
  };
  for (const event of stream.split("\n\n")) {
    const line = event.split("\n").find((one) => one.startsWith("data: "));
    if (line === undefined) continue;
    if (line === "data: [DONE]") {
      seen.done++;
      continue;
    }
    const chunk = JSON.parse(line.slice(6)) as {
      usage?: unknown;
      choices: {
        text?: string;
        delta?: { content?: string; role?: string };
        finish_reason: unknown;
        token_ids?: number[];
      }[];
    };
    if (chunk.usage !== undefined) seen.usage.push(chunk.usage);
    for (const choice of chunk.choices) {
      seen.text += choice.text ?? choice.delta?.content ?? "";
      seen.ids.push(...(choice.token_ids ?? []));
      if (choice.delta?.role !== undefined) seen.roles++;
      if (choice.finish_reason !== null) seen.finish.push(choice.finish_reason);
    }
  }
  return seen;
}

interface Run {
  readonly body: Record<string, unknown>;
  readonly kind: RequestKind;
  /** After how many bytes each engine is lost; the last one lives. */
  readonly cuts: readonly number[];
  readonly merge: (index: number) => boolean;
  readonly pieceSize: number;
  readonly options?: Partial<GuardedStreamOptions>;
}

/** Runs a request over engines that are lost one after the other. Resolves to what the client got. */
function run({ body, kind, cuts, merge, pieceSize, options = {} }: Run): string {
  const facts = { kind, salted: false };
  const asked = readBody(json, encode(JSON.stringify(body)), facts);
  const request = readGuardRequest(asked);
  const guarded = readBody(json, guardedBody(asked), facts);
  const stream = new GuardedStream({ request, cachedTokens: -1, ...options });
  let out = "";
  let engineBody = guarded.object.bytes;
  let chat = kind === "chat";
  for (let engine = 0; ; engine++) {
    const all = encode(engineStream(engineBody, chat, merge));
    const end = cuts[engine] ?? all.length;
    let verdict = "more";
    for (let at = 0; at < Math.min(end, all.length) && verdict === "more"; at += pieceSize) {
      verdict = stream.receive(all.slice(at, Math.min(at + pieceSize, end)));
      out += decode(stream.takeOutput());
    }
    if (verdict === "finished") return out;
    expect(verdict).toBe("more");
    const cut = stream.cut();
    out += decode(stream.takeOutput());
    if (cut.kind === "finished") return out;
    if (cut.kind === "continue") {
      engineBody = continuationBody(guarded, request, cut);
      chat = false;
    }
  }
}

const requestOf = fc
  .record({
    prompt: fc.string({ maxLength: 12 }),
    max_tokens: fc.integer({ min: 1, max: 40 }),
    min_tokens: fc.option(fc.integer({ min: 0, max: 5 }), { nil: undefined }),
    ignore_eos: fc.boolean(),
    return_token_ids: fc.boolean(),
    stream_options: fc.option(fc.constant({ include_usage: true }), { nil: undefined }),
  })
  .map((fields) => JSON.parse(JSON.stringify({ model: "m", stream: true, ...fields })) as Asked);
const cuts = fc.array(fc.integer({ min: 0, max: 9_000 }), { maxLength: 4 });
const pieceSize = fc.constantFrom(1, 7, 64, 300, 100_000);
const stops = fc.array(
  fc.constantFrom("so on", " blue,", "é́", "漢", '"q', "ßß", "\n", "😀 and", ". so"),
  { minLength: 1, maxLength: 2 },
);
const never = (): boolean => false;
const asChat = ({ prompt, ...rest }: Asked): Asked => ({
  ...rest,
  messages: [{ role: "user", content: String(prompt) }],
});

function expectSame(asked: Asked, kind: RequestKind, got: string): void {
  const uncut = read(engineStream(encode(JSON.stringify(asked)), kind === "chat", never));
  expect(read(got)).toEqual(uncut);
}

describe("guarded stream", () => {
  test("a stream that is never cut passes byte for byte, without what nobody asked for", () => {
    fc.assert(
      fc.property(requestOf, pieceSize, fc.boolean(), (request, size, chat) => {
        const asked = chat ? asChat(request) : request;
        const kind = chat ? "chat" : "completion";
        const got = run({
          body: asked as Record<string, unknown>,
          kind,
          cuts: [],
          merge: never,
          pieceSize: size,
        });
        expectSame(asked, kind, got);
        expect(got).not.toContain(asked.return_token_ids === true ? "id: " : "token_ids");
      }),
      { numRuns: 120 },
    );
  });

  test("cut anywhere, any number of times, the client sees one stream", () => {
    fc.assert(
      fc.property(requestOf, cuts, pieceSize, fc.boolean(), (request, at, size, chat) => {
        const asked = chat ? asChat(request) : request;
        const kind = chat ? "chat" : "completion";
        const body = asked as Record<string, unknown>;
        expectSame(asked, kind, run({ body, kind, cuts: at, merge: never, pieceSize: size }));
      }),
      { numRuns: 250 },
    );
  });

  test("also where chunks hold several tokens and hide half a character", () => {
    fc.assert(
      fc.property(
        requestOf,
        cuts,
        pieceSize,
        fc.integer({ min: 2, max: 5 }),
        (asked, at, size, n) => {
          const body = asked as Record<string, unknown>;
          const merge = (index: number): boolean => index % n !== 0;
          expectSame(
            asked,
            "completion",
            run({ body, kind: "completion", cuts: at, merge, pieceSize: size }),
          );
        },
      ),
      { numRuns: 250 },
    );
  });

  test("stop texts end it at the same place, also across a cut", () => {
    fc.assert(
      fc.property(requestOf, stops, cuts, pieceSize, (request, stop, at, size) => {
        const asked = { ...request, stop };
        const body = asked as Record<string, unknown>;
        expectSame(
          asked,
          "completion",
          run({ body, kind: "completion", cuts: at, merge: never, pieceSize: size }),
        );
      }),
      { numRuns: 250 },
    );
  });

  test("indices never jump and never repeat, and a stream goes on from any of them elsewhere", () => {
    fc.assert(
      fc.property(
        requestOf,
        cuts,
        fc.option(stops, { nil: undefined }),
        fc.nat(),
        (request, at, stop, pick) => {
          const asked = stop === undefined ? request : { ...request, stop };
          const body = {
            ...asked,
            return_token_ids: true,
            stream_options: { include_usage: true },
          };
          const points: StreamPoint[] = [];
          const options = {
            nameOf: (point: StreamPoint) => {
              points.push(point);
              return String(points.length - 1);
            },
          };
          const got = run({
            body,
            kind: "completion",
            cuts: at,
            merge: never,
            pieceSize: 300,
            options,
          });
          const whole = read(got);
          for (let i = 1; i < points.length; i++) {
            expect(points[i]?.index).toBeGreaterThan(points[i - 1]?.index ?? 0);
          }
          // The client got everything up to one event, and another relay goes on.
          const point = points[pick % Math.max(1, points.length)];
          if (point === undefined) return;
          const name = `id: ${String(points.indexOf(point))}\n`;
          const end = got.indexOf("\n\n", got.indexOf(name)) + 2;
          const facts = { kind: "completion", salted: false } as const;
          const parsed = readBody(json, encode(JSON.stringify(body)), facts);
          const guardRequest = readGuardRequest(parsed);
          const promptIds = Uint32Array.from(idsOf(String(asked.prompt)));
          const resumed = new GuardedStream({
            request: guardRequest,
            cachedTokens: -1,
            resumed: {
              promptIds,
              generated: Uint32Array.from(whole.ids.slice(0, point.index)),
              point,
              frame: { id: '"cmpl-1"', created: "7", model: '"m"' },
              traceparent: "",
            },
          });
          const cut = resumed.cut();
          let out = got.slice(0, end) + decode(resumed.takeOutput());
          if (cut.kind === "continue") {
            const next = continuationBody(parsed, guardRequest, cut);
            const stopless = JSON.stringify({
              ...(JSON.parse(decode(next)) as object),
              stop: null,
            });
            resumed.receive(encode(engineStream(encode(stopless), false, never)));
            out += decode(resumed.takeOutput());
          }
          expect(read(out)).toEqual(whole);
        },
      ),
      { numRuns: 200 },
    );
  });

  test("takes a name back where the next event has none, so that readers keep no older one", () => {
    const names: string[] = [];
    const nameOf = ({ index }: StreamPoint): string | undefined => {
      const name = index % 5 < 2 ? undefined : `at-${String(index)}`;
      names.push(name ?? "");
      return name;
    };
    const body = { model: "m", prompt: "a reader", stream: true, max_tokens: 30, ignore_eos: true };
    const options = { nameOf };
    const got = run({ body, kind: "completion", cuts: [], merge: never, pieceSize: 300, options });
    let kept = "";
    const keptBehind = got
      .split("\n\n")
      .filter((event) => event.includes("data: {"))
      .map((event) => {
        const line = event.split("\n").find((one) => one.startsWith("id:"));
        if (line !== undefined) kept = line.slice("id: ".length);
        return kept;
      });
    expect(keptBehind).toEqual(names);
    expect(new Set(names).size).toBeGreaterThan(5);
    expect(got.split("id: \n").length - 1).toBeGreaterThan(2);
  });

  test("says what cannot be continued, and lets it pass", () => {
    const asked = { model: "m", stream: true, messages: [{ role: "user", content: "x" }] };
    const facts = { kind: "chat", salted: false } as const;
    const request = readGuardRequest(readBody(json, encode(JSON.stringify(asked)), facts));
    for (const [delta, reason] of [
      ['{"reasoning_content":"hm"}', "reasoning"],
      ['{"tool_calls":[{"index":0}]}', "tools"],
      ['{"content":"text without ids"}', "no_token_ids"],
    ] as const) {
      const stream = new GuardedStream({ request, cachedTokens: -1 });
      const text = `data: {"choices":[{"index":0,"delta":${delta},"finish_reason":null}]}\n\ndata: {"rest`;
      expect(stream.receive(encode(text))).toBe("unguarded");
      expect(stream.unguardedReason).toBe(reason);
      expect(decode(stream.takeOutput())).toBe(text);
    }
  });

  test("takes the last name back when the guard is given up, so that nobody goes on from it", () => {
    const asked = { model: "m", stream: true, messages: [{ role: "user", content: "x" }] };
    const facts = { kind: "chat", salted: false } as const;
    const request = readGuardRequest(readBody(json, encode(JSON.stringify(asked)), facts));
    const chunk = (delta: string, ids: string): string =>
      `data: {"id":"a","prompt_token_ids":[1],"choices":[{"index":0,"delta":${delta},"finish_reason":null,"token_ids":${ids}}]}\n\n`;
    const named = chunk('{"content":"a"}', "[7]");
    const last = chunk('{"reasoning_content":"hm"}', "[8]");
    for (const pieces of [[named, last], [named + last]]) {
      const stream = new GuardedStream({ request, cachedTokens: -1, nameOf: () => "n" });
      let out = "";
      for (const piece of pieces) {
        stream.receive(encode(piece));
        out += decode(stream.takeOutput());
      }
      expect(stream.unguardedReason).toBe("reasoning");
      expect(out.match(/id: .*$/gm)).toEqual(["id: n", "id: "]);
      expect(out.endsWith(`id: \n${last}`)).toBe(true);
    }
  });

  test("engines that are lost before their first token are counted as well", () => {
    const request = readGuardRequest(
      readBody(json, encode('{"prompt":"x","stream":true}'), { kind: "completion", salted: false }),
    );
    const stream = new GuardedStream({ request, cachedTokens: -1 });
    for (let losses = 1; losses <= 5; losses++) {
      expect(stream.receive(encode(": wait\n\n"))).toBe("more");
      expect(stream.cut()).toEqual({ kind: "restart" });
      expect(stream.losses).toBe(losses);
    }
    stream.takeOutput();
  });

  test("an engine's own failure inside the stream is one", () => {
    const request = readGuardRequest(
      readBody(json, encode('{"prompt":"x","stream":true}'), { kind: "completion", salted: false }),
    );
    for (const event of [
      '{"error":{"message":"EngineCore died"}}',
      '{"choices":[{"index":0,"text":"","finish_reason":"abort","token_ids":[]}]}',
      "[DONE]",
    ]) {
      const stream = new GuardedStream({ request, cachedTokens: -1 });
      expect(stream.receive(encode(`data: ${event}\n\n`))).toBe("failed");
      expect(decode(stream.takeOutput())).toBe("");
    }
  });
});
