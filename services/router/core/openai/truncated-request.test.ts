import { describe, expect, test } from "vitest";
import { readTruncatedRequest } from "./truncated-request.ts";

const path = "/v1/completions";
const read = (text: string) => readTruncatedRequest(path, Buffer.from(text));

describe("a body that is whole", () => {
  test("is read like one that came alone", () => {
    expect(read('{"model":"m","prompt":"hello","max_tokens":4}')).toEqual({
      kind: "completions",
      model: "m",
      tokensMax: 4,
      stream: false,
      prompt: { kind: "text", text: "hello" },
    });
  });

  test.each([
    ['{"model":"m","prompt":"a","cache_salt":"x"}', "cache_salt"],
    ['{"model":"m","prompt":"a","cache\\u005fsalt":"x"}', "cache_salt"],
    ['{"model":"m","prompt":7}', "prompt"],
    ['{"prompt":"a"}', "model"],
  ])("is refused for the same reasons: %s", (text, field) => {
    expect(() => read(text)).toThrow(expect.objectContaining({ code: "invalid_request", field }));
  });
});

describe("a body that is cut off", () => {
  test.each([
    ['{"model":"m","prompt":"the rest is miss', "m"],
    ['{ "model" :\n "m" , "prompt":"x', "m"],
    ['{"model":"qwen\\u002fx","prompt":"x', "qwen/x"],
    ['{"metadata":{"model":"other"},"model":"m","prompt":"', "m"],
    ['{"metadata":{"model":"other"},"prompt":"', undefined],
    ['{"prompt":"a \\"model\\":\\"no\\" b","model":"m","x":[', "m"],
    ['{"model":"m","model":"n","prompt":"', "n"],
    ['{"model":"cut of', undefined],
    ['{"messages":[{"role":"user","content":"\u6771', undefined],
    ["not json at all", undefined],
    ["", undefined],
  ])("tells the model where it is visible: %s", (text, model) => {
    expect(read(text)).toMatchObject({
      kind: "other",
      model,
      prompt: { kind: "load_only", reason: "body_truncated" },
    });
  });

  test("may end inside a character", () => {
    const bytes = Buffer.from('{"model":"m","prompt":"\u6771').subarray(0, -1);
    expect(readTruncatedRequest(path, bytes).model).toBe("m");
  });

  test.each([
    '{"model":"m","cache_salt":"x","prompt":"cut',
    '{"model":"m","cache\\u005fsalt":"x","prompt":"cut',
    '{"kv_transfer_params":{"a":1},"prompt":"cut',
    '{"prompt":["a","b"],"bootstrap_room" : 1, "x":"cut',
  ])("is refused when a reserved field is visible: %s", (text) => {
    expect(() => read(text)).toThrow("is reserved for the mesh itself");
  });

  test.each([
    '{"metadata":{"cache_salt":"x"},"prompt":"cut',
    '{"prompt":"say \\"cache_salt\\": now","x":"cut',
    '{"prompt":"cache_salt","x":"cut',
  ])("is not refused for a name that is no field of its own: %s", (text) => {
    expect(read(text).prompt.kind).toBe("load_only");
  });
});
