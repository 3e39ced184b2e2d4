import fc from "fast-check";
import { describe, expect, test } from "vitest";

import { MeshError } from "../../../shared/core/errors.ts";
import { readOpenAiRequest } from "./openai-request.ts";
import { reservedFields } from "../../../shared/core/reserved-fields.ts";

const chatPath = "/v1/chat/completions";
const completionsPath = "/v1/completions";

const bytes = (body: unknown): Uint8Array =>
  new TextEncoder().encode(typeof body === "string" ? body : JSON.stringify(body));
const chat = (over: Record<string, unknown> = {}) =>
  readOpenAiRequest(
    chatPath,
    bytes({ model: "m", messages: [{ role: "user", content: "hi" }], ...over }),
  );
const completion = (over: Record<string, unknown> = {}) =>
  readOpenAiRequest(completionsPath, bytes({ model: "m", prompt: "hi", ...over }));

/** Field of the refusal; `""` for a refusal of the whole body, `undefined` when it is taken. */
function refusedField(run: () => unknown): string | undefined {
  try {
    run();
    return undefined;
  } catch (error) {
    if (!(error instanceof MeshError)) throw error;
    expect(error.code).toBe("invalid_request");
    expect(error.message.length).toBeGreaterThan(10);
    return error.field ?? "";
  }
}

describe("what a request asks", () => {
  test.each([
    [true, true],
    [false, false],
    [null, false],
    [undefined, false],
    ["true", undefined],
    [1, undefined],
  ])("an answer that streams or not: stream %j is read as %j", (stream, expected) => {
    expect(chat({ stream }).stream).toBe(expected);
    expect(completion({ prompt: "x", stream }).stream).toBe(expected);
  });

  test("a chat: messages, tools and how to render them", () => {
    const messages = [
      { role: "system", content: "be kind" },
      { role: "user", content: [{ type: "text", text: "hi" }] },
    ];
    expect(
      chat({
        messages,
        tools: [{ type: "function" }],
        add_generation_prompt: false,
        continue_final_message: true,
        chat_template_kwargs: { enable_thinking: false },
        max_completion_tokens: 9,
        max_tokens: 99,
      }),
    ).toEqual({
      kind: "chat",
      model: "m",
      tokensMax: 9,
      stream: false,
      prompt: {
        kind: "chat",
        chat: {
          messages,
          tools: [{ type: "function" }],
          addGenerationPrompt: false,
          continueFinalMessage: true,
          templateKwargs: { enable_thinking: false },
        },
      },
    });
    expect(chat({ tools: [] }).prompt).toMatchObject({
      chat: {
        tools: undefined,
        addGenerationPrompt: true,
        continueFinalMessage: false,
        templateKwargs: {},
      },
    });
  });

  test.each([
    ["a text", "hi", { kind: "text", text: "hi" }],
    ["an empty text", "", { kind: "text", text: "" }],
    ["several texts: the first decides", ["a", "b"], { kind: "text", text: "a" }],
    ["token ids", [1, 2, 4_294_967_295], { kind: "tokens", ids: [1, 2, 4_294_967_295] }],
    [
      "several lists of token ids: the first decides",
      [[5, 6], [7]],
      { kind: "tokens", ids: [5, 6] },
    ],
  ])("a completion of %s", (_name, prompt, expected) => {
    expect(completion({ prompt, max_tokens: 3 })).toEqual({
      kind: "completions",
      model: "m",
      tokensMax: 3,
      stream: false,
      prompt: expected,
    });
  });

  test.each([
    [
      "pictures",
      () => chat({ messages: [{ role: "user", content: [{ type: "image_url", image_url: {} }] }] }),
      "multimodal",
    ],
    ["a template of its own", () => chat({ chat_template: "{{ x }}" }), "custom_template"],
    ["embeddings", () => completion({ prompt: null, prompt_embeds: "AAAA" }), "prompt_embeddings"],
    [
      "another path",
      () => readOpenAiRequest("/v1/rerank", bytes({ model: "m", query: "x" })),
      "other_path",
    ],
    ["no body", () => readOpenAiRequest("/v1/anything", new Uint8Array(0)), "no_body"],
    [
      "an upload",
      () =>
        readOpenAiRequest(
          "/v1/audio/transcriptions",
          bytes("--x\r\n"),
          "multipart/form-data; boundary=x",
        ),
      "other_path",
    ],
  ])("%s is placed by load", (_name, read, reason) => {
    expect(read().prompt).toEqual({ kind: "load_only", reason });
  });

  test("another path may name its model; chat and completions must", () => {
    expect(readOpenAiRequest("/v1/rerank", bytes({ model: "m" })).model).toBe("m");
    expect(readOpenAiRequest("/v1/rerank", bytes({})).model).toBeUndefined();
  });

  test("the query and a last slash are no part of the path", () => {
    const body = bytes({ model: "m", prompt: "x" });
    expect(readOpenAiRequest("/v1/completions/?a=/v1/chat/completions", body).kind).toBe(
      "completions",
    );
    expect(readOpenAiRequest("/prefix/v1/completions", body).kind).toBe("completions");
  });

  test("fields that are null count as absent, unknown ones pass", () => {
    expect(
      chat({ max_tokens: null, tools: null, chat_template_kwargs: null, anything: [1] }).tokensMax,
    ).toBeUndefined();
  });

  test("the last of two equal fields counts, as in engines", () => {
    expect(
      readOpenAiRequest(completionsPath, bytes('{"model":"a","prompt":"x","model":"b"}')).model,
    ).toBe("b");
  });
});

describe("what is refused, with its field", () => {
  test.each<[string, () => unknown, string]>([
    ["no body", () => readOpenAiRequest(chatPath, new Uint8Array(0)), ""],
    ["malformed JSON", () => readOpenAiRequest(chatPath, bytes('{"model":')), ""],
    ["two values", () => readOpenAiRequest(chatPath, bytes("{} {}")), ""],
    ["a list", () => readOpenAiRequest(chatPath, bytes([])), ""],
    ["a text", () => readOpenAiRequest(chatPath, bytes('"model"')), ""],
    ["null", () => readOpenAiRequest(chatPath, bytes("null")), ""],
    ["malformed JSON on another path", () => readOpenAiRequest("/v1/embeddings", bytes("{")), ""],
    [
      "malformed JSON that calls itself JSON",
      () => readOpenAiRequest("/v1/embeddings", bytes("{"), "application/json"),
      "",
    ],
    [
      "an upload to the chat path",
      () => readOpenAiRequest(chatPath, bytes("--x"), "multipart/form-data"),
      "",
    ],
    ["no model", () => chat({ model: undefined }), "model"],
    ["a model of null", () => chat({ model: null }), "model"],
    ["a model that is a number", () => chat({ model: 7 }), "model"],
    ["an empty model", () => chat({ model: "" }), "model"],
    [
      "a model of a wrong type on another path",
      () => readOpenAiRequest("/v1/x", bytes({ model: [] })),
      "model",
    ],
    ["no messages", () => chat({ messages: undefined }), "messages"],
    ["messages that are a text", () => chat({ messages: "hi" }), "messages"],
    ["an empty list of messages", () => chat({ messages: [] }), "messages"],
    ["a message that is a text", () => chat({ messages: ["hi"] }), "messages[0]"],
    [
      "a message without role",
      () => chat({ messages: [{ role: "user", content: "" }, {}] }),
      "messages[1].role",
    ],
    [
      "content that is a number",
      () => chat({ messages: [{ role: "user", content: 5 }] }),
      "messages[0].content",
    ],
    [
      "a part that is a number",
      () => chat({ messages: [{ role: "user", content: [5] }] }),
      "messages[0].content[0]",
    ],
    [
      "a part without type",
      () => chat({ messages: [{ role: "user", content: [{}] }] }),
      "messages[0].content[0]",
    ],
    [
      "a text part without text",
      () => chat({ messages: [{ role: "user", content: [{ type: "text" }] }] }),
      "messages[0].content[0].text",
    ],
    ["tools that are no list", () => chat({ tools: {} }), "tools"],
    [
      "template arguments that are no object",
      () => chat({ chat_template_kwargs: [] }),
      "chat_template_kwargs",
    ],
    [
      "a flag that is a text",
      () => chat({ add_generation_prompt: "yes" }),
      "add_generation_prompt",
    ],
    [
      "a flag that is a number",
      () => chat({ continue_final_message: 1 }),
      "continue_final_message",
    ],
    ["max_tokens of 0", () => chat({ max_tokens: 0 }), "max_tokens"],
    ["max_tokens of 1.5", () => completion({ max_tokens: 1.5 }), "max_tokens"],
    [
      "max_completion_tokens that is a text",
      () => chat({ max_completion_tokens: "9" }),
      "max_completion_tokens",
    ],
    ["no prompt", () => completion({ prompt: undefined }), "prompt"],
    ["an empty list of prompts", () => completion({ prompt: [] }), "prompt"],
    ["a mixed list of prompts", () => completion({ prompt: ["a", 1] }), "prompt"],
    ["a prompt that is an object", () => completion({ prompt: {} }), "prompt"],
    ["token ids below 0", () => completion({ prompt: [-1] }), "prompt"],
    ["token ids of more than 32 bits", () => completion({ prompt: [2 ** 32] }), "prompt"],
    ["token ids that are fractions", () => completion({ prompt: [[0.5]] }), "prompt"],
  ])("%s", (_name, read, field) => {
    expect(refusedField(read)).toBe(field);
  });

  describe("reserved fields", () => {
    test.each([...reservedFields])("%s, whatever its value", (field) => {
      for (const value of [null, "x", {}, 0, false]) {
        expect(refusedField(() => chat({ [field]: value }))).toBe(field);
        expect(refusedField(() => completion({ [field]: value }))).toBe(field);
        expect(
          refusedField(() => readOpenAiRequest("/v1/responses", bytes({ [field]: value }))),
        ).toBe(field);
      }
    });

    test("also written with escapes", () => {
      const body = '{"model":"m","prompt":"x","\\u0063ache\\u005Fsalt":"s"}';
      expect(refusedField(() => readOpenAiRequest(completionsPath, bytes(body)))).toBe(
        "cache_salt",
      );
    });

    test("also when a later field of the same name hides the first", () => {
      const body = '{"cache_salt":"a","model":"m","prompt":"x","cache_salt":null}';
      expect(refusedField(() => readOpenAiRequest(completionsPath, bytes(body)))).toBe(
        "cache_salt",
      );
    });

    test("not deeper inside, where they are a caller's own words", () => {
      expect(refusedField(() => chat({ metadata: { cache_salt: "x" } }))).toBeUndefined();
      expect(refusedField(() => completion({ prompt: 'say "cache_salt": 1' }))).toBeUndefined();
    });
  });

  test("bytes that are not UTF-8, wherever they are", () => {
    const good = bytes({ model: "m", prompt: "hallöchen" });
    fc.assert(
      fc.property(fc.nat(good.length - 1), fc.constantFrom(0xff, 0xc0, 0xf8), (where, byte) => {
        const bad = Uint8Array.from(good);
        bad[where] = byte;
        expect(refusedField(() => readOpenAiRequest(completionsPath, bad))).toBe("");
      }),
    );
  });

  test("other encodings that some JSON readers would guess", () => {
    const text = '{"cache_salt":"x"}';
    const utf16 = new Uint8Array(Buffer.from(text, "utf16le"));
    for (const body of [utf16, Uint8Array.from([0xff, 0xfe, ...utf16]), utf16.toReversed()]) {
      expect(refusedField(() => readOpenAiRequest("/v1/responses", body))).toBe("");
    }
  });

  test("a body that ends anywhere before its end", () => {
    const whole = bytes({
      model: "m",
      messages: [{ role: "user", content: 'a "quoted" wörd' }],
      max_tokens: 5,
    });
    for (let length = 0; length < whole.length; length++) {
      expect(refusedField(() => readOpenAiRequest(chatPath, whole.subarray(0, length)))).toBe("");
    }
  });

  test("nesting beyond 64 levels, before anything walks it", () => {
    const nested = (levels: number) =>
      `{"model":"m","prompt":"x","a":${"[".repeat(levels)}${"]".repeat(levels)}}`;
    expect(
      refusedField(() => readOpenAiRequest(completionsPath, bytes(nested(63)))),
    ).toBeUndefined();
    expect(refusedField(() => readOpenAiRequest(completionsPath, bytes(nested(64))))).toBe("");
    expect(
      refusedField(() => readOpenAiRequest(completionsPath, bytes("[".repeat(5_000_000)))),
    ).toBe("");
    const inString = JSON.stringify({ model: "m", prompt: '[{"\\'.repeat(1_000) });
    expect(refusedField(() => readOpenAiRequest(completionsPath, bytes(inString)))).toBeUndefined();
  });

  test("nothing else: a prompt of 8 MB passes", () => {
    expect(completion({ prompt: "x".repeat(8_000_000) }).prompt).toMatchObject({ kind: "text" });
  });

  test("arbitrary bytes and arbitrary JSON give a request or a named refusal, never another error", () => {
    const paths = fc.constantFrom(chatPath, completionsPath, "/v1/responses", "/x");
    fc.assert(
      fc.property(paths, fc.uint8Array({ maxLength: 200 }), (path, body) => {
        refusedField(() => readOpenAiRequest(path, body));
      }),
    );
    const value = fc.jsonValue({ maxDepth: 4 });
    const body = fc.record(
      {
        model: fc.oneof(fc.constant("m"), value),
        messages: value,
        prompt: value,
        max_tokens: value,
        tools: value,
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(paths, body, (path, json) => {
        refusedField(() => readOpenAiRequest(path, bytes(json)));
      }),
      { numRuns: 500 },
    );
  });
});
