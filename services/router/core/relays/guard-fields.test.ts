import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { findUnguardable } from "./guard-fields.ts";

const encoder = new TextEncoder();
const reasonOf = (body: Record<string, unknown>, space?: number) =>
  findUnguardable(encoder.encode(JSON.stringify(body, undefined, space)));

const chat = {
  model: "m",
  messages: [
    { role: "system", content: 'about "tools" and {"n": 2}' },
    { role: "user", content: [{ type: "text", text: 'say \\"echo\\": true' }] },
  ],
  stream: true,
};

describe("findUnguardable", () => {
  test("lets plain chats and completions pass, whatever their texts say", () => {
    expect(reasonOf(chat)).toBeUndefined();
    expect(reasonOf(chat, 2)).toBeUndefined();
    expect(reasonOf({ model: "m", prompt: "echo [1]", stream: true, n: 1 })).toBeUndefined();
    expect(reasonOf({ model: "m", prompt: [1, 2, 3] })).toBeUndefined();
    expect(reasonOf({})).toBeUndefined();
  });

  test.each([
    ["choices", { n: 2 }],
    ["choices", { best_of: 3 }],
    ["choices", { use_beam_search: true }],
    ["batch", { prompt: ["a", "b"] }],
    ["batch", { prompt: [[1], [2]] }],
    ["echo", { echo: true }],
    ["logprobs", { logprobs: 3 }],
    ["tools", { tools: [{ type: "function" }] }],
    ["tools", { tool_choice: "auto" }],
    ["response_format", { response_format: { type: "json_object" } }],
    ["reasoning", { reasoning_effort: "high" }],
    ["presence_penalty", { presence_penalty: 0.5 }],
    ["usage_per_chunk", { stream_options: { continuous_usage_stats: true } }],
    ["suffix", { suffix: "end" }],
    ["media", { messages: [{ role: "user", content: [{ type: "image_url", image_url: {} }] }] }],
  ])("finds %s in %j", (reason, field) => {
    expect(reasonOf({ ...chat, ...field })).toBe(reason);
    expect(reasonOf({ ...field, stream: true }, 1)).toBe(reason);
  });

  test.each([
    { n: null },
    { best_of: 1 },
    { echo: false },
    { logprobs: null },
    { tools: [] },
    { response_format: null },
    { presence_penalty: 0 },
    { stream_options: { include_usage: true } },
  ])("takes %j for nothing asked", (field) => {
    expect(reasonOf({ ...chat, ...field })).toBeUndefined();
  });

  test("reads names that are spelled with escapes", () => {
    const spelled = '{"model":"m","\\u0074ools":[1],"stream":true}';
    expect(findUnguardable(encoder.encode(spelled))).toBe("tools");
  });

  test("finds a field wherever it stands among others of any shape", () => {
    const others = fc.dictionary(
      fc.string().map((name) => `x${name}`),
      fc.jsonValue(),
    );
    fc.assert(
      fc.property(others, others, (before, after) => {
        expect(reasonOf({ ...before, ...after })).toBeUndefined();
        expect(reasonOf({ ...before, echo: true, ...after })).toBe("echo");
      }),
    );
  });

  test("ends on bytes that are no JSON", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
        findUnguardable(bytes);
      }),
    );
    for (const text of ["{", '{"', '{"a', '{"a"', '{"a":', '{"a":"', '{"a":[{', "}", ""]) {
      findUnguardable(encoder.encode(text));
    }
  });
});
