import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CompletionStream } from "./completion-stream.ts";

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const event = (value: unknown): string => `data: ${JSON.stringify(value)}\n\n`;
const chunk = (text: string, finish: string | null = null): string =>
  event({
    id: "cmpl-1",
    object: "text_completion",
    choices: [{ index: 0, text, logprobs: null, finish_reason: finish, stop_reason: null }],
    usage: null,
  });
const usage = (completion: number, cached?: number): string =>
  event({
    id: "cmpl-1",
    choices: [],
    usage: {
      prompt_tokens: 100,
      completion_tokens: completion,
      ...(cached === undefined ? {} : { prompt_tokens_details: { cached_tokens: cached } }),
    },
  });
const done = "data: [DONE]\n\n";

function read(parts: readonly (readonly [text: string, nowMs: number])[], readInFull = false) {
  const stream = new CompletionStream({ readInFull });
  for (const [text, nowMs] of parts) stream.push(bytes(text), nowMs);
  return stream;
}

describe("CompletionStream", () => {
  test("times the first and the last token and reads usage", () => {
    const stream = read([
      [chunk(""), 5],
      [chunk(" a"), 10],
      [chunk(" b") + chunk(" c"), 20],
      [chunk(" d", "length"), 40],
      [usage(4, 64) + done, 90],
    ]);
    expect(stream).toMatchObject({
      firstTokenMs: 10,
      lastTokenMs: 40,
      chunkCount: 4,
      finishReason: "length",
      isDone: true,
      usage: { promptTokens: 100, completionTokens: 4, cachedTokens: 64 },
      error: undefined,
      malformed: undefined,
    });
  });

  test("takes a token id with empty text as a token, as for half a character", () => {
    const first = event({ choices: [{ index: 0, text: "", token_ids: [9], finish_reason: null }] });
    expect(read([[first, 7]]).firstTokenMs).toBe(7);
  });

  test("reads chat chunks: the role is no token, content, reasoning and tool calls are", () => {
    const delta = (value: unknown) =>
      event({ choices: [{ index: 0, delta: value, finish_reason: null }] });
    const role = delta({ role: "assistant", content: "" });
    for (const token of [
      { content: "x" },
      { reasoning_content: "x" },
      { tool_calls: [{ index: 0 }] },
    ]) {
      expect(
        read([
          [role, 1],
          [delta(token), 2],
        ]).firstTokenMs,
      ).toBe(2);
    }
  });

  test("is not fooled by an answer that quotes a finish reason", () => {
    const stream = read([
      [chunk(" a"), 1],
      [chunk('"finish_reason":"stop" and "finish_reason":null'), 2],
      [chunk(' "error": "usage" [DONE]'), 3],
    ]);
    expect(stream).toMatchObject({ finishReason: undefined, isDone: false, chunkCount: 3 });
    const end = read([
      [chunk(" a"), 1],
      [chunk('"finish_reason":null', "stop"), 2],
    ]);
    expect(end.finishReason).toBe("stop");
  });

  test("understands blanks inside the JSON, carriage returns, comments and other fields", () => {
    const spaced = (finish: string): string =>
      `event: x\r\n: ping\r\ndata:  {"choices": [{"text": " a", "finish_reason" : ${finish}}]}\r\n\r\n`;
    const stream = read([
      [spaced("null"), 1],
      [spaced("null"), 2],
      [spaced('"stop"'), 3],
      [": ping\n\n", 8],
      ["data: [DONE]\r\n\r\n", 9],
    ]);
    expect(stream).toMatchObject({
      firstTokenMs: 1,
      lastTokenMs: 3,
      chunkCount: 3,
      finishReason: "stop",
      isDone: true,
      malformed: undefined,
    });
  });

  test("sees an error event before and after the first token", () => {
    const failed = event({ error: { message: "engine is gone", code: 500 } });
    expect(read([[failed, 1]]).error).toBe("engine is gone");
    expect(
      read([
        [chunk(" a"), 1],
        [failed + done, 2],
      ]),
    ).toMatchObject({ error: "engine is gone", isDone: true, finishReason: undefined });
  });

  test.each([
    ["data: {broken\n\n", "a chunk is not JSON"],
    ["data: 3\n\n", "a chunk is not a JSON object"],
    ["data: {}\n\n", "a chunk has no choices"],
    ['data: {"choices":[],"usage":{}}\n\n', "usage has no prompt_tokens"],
  ])("calls %j malformed", (text, problem) => {
    expect(read([[text, 1]]).malformed).toContain(problem);
  });

  test("gives up on a line without end", () => {
    const stream = new CompletionStream({ readInFull: false });
    for (let i = 0; i < 20; i++) stream.push(bytes("data: " + "x".repeat(65_536)), i);
    expect(stream.malformed).toContain("a line has more than");
  });

  test("finds the same whether read in full or not, and however the bytes are cut", () => {
    const text = fc.oneof(fc.string(), fc.constantFrom('"finish_reason":null', "é", "[DONE]", ""));
    fc.assert(
      fc.property(
        fc.array(text, { minLength: 1, maxLength: 12 }),
        fc.array(fc.nat(3_000), { maxLength: 20 }),
        fc.boolean(),
        (texts, cuts, crlf) => {
          const plain =
            texts.map((part) => chunk(part)).join("") + chunk(" z", "stop") + usage(7) + done;
          const all = bytes(crlf ? plain.replaceAll("\n", "\r\n") : plain);
          const at = [0, ...cuts.map((cut) => cut % all.length).sort((a, b) => a - b), all.length];
          const seen = [true, false].map((readInFull) => {
            const stream = new CompletionStream({ readInFull });
            for (let i = 1; i < at.length; i++) stream.push(all.subarray(at[i - 1], at[i]), i);
            return stream;
          });
          const { firstTokenMs, lastTokenMs, chunkCount } = seen[1]!;
          expect(seen[0]).toMatchObject({ firstTokenMs, lastTokenMs, chunkCount });
          expect(seen[0]!.text).toBe(`${texts.join("")} z`);
          for (const stream of seen) {
            expect(stream).toMatchObject({
              isDone: true,
              finishReason: "stop",
              usage: { completionTokens: 7, cachedTokens: undefined },
              malformed: undefined,
            });
          }
        },
      ),
    );
  });
});
