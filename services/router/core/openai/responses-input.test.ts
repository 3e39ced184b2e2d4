import { describe, expect, test } from "vitest";
import type { MeshError } from "../../../shared/core/errors.ts";
import { readOpenAiRequest, type OpenAiRequest } from "./openai-request.ts";

const read = (body: Record<string, unknown>): OpenAiRequest =>
  readOpenAiRequest("/v1/responses", new TextEncoder().encode(JSON.stringify(body)));

const messagesOf = (body: Record<string, unknown>): unknown => {
  const { prompt } = read(body);
  return prompt.kind === "chat" ? prompt.chat.messages : prompt;
};

describe("a request to the responses API", () => {
  test("a text is what the user says, instructions come before it", () => {
    expect(
      read({ model: "m", input: "hi", max_output_tokens: 7, stream: true, user: "u" }),
    ).toEqual({
      kind: "responses",
      model: "m",
      tokensMax: 7,
      session: "u",
      stream: true,
      prompt: {
        kind: "chat",
        chat: {
          messages: [{ role: "user", content: "hi" }],
          tools: undefined,
          addGenerationPrompt: true,
          continueFinalMessage: false,
          templateKwargs: {},
        },
      },
    });
    expect(messagesOf({ input: "hi", instructions: "be kind" })).toEqual([
      { role: "system", content: "be kind" },
      { role: "user", content: "hi" },
    ]);
  });

  test("calls and reasoning join the assistant's message, outputs of calls are tool messages", () => {
    const input = [
      { role: "user", content: [{ type: "input_text", text: "weather?" }] },
      { type: "reasoning", summary: [], content: [{ type: "reasoning_text", text: "look it up" }] },
      { type: "message", role: "assistant", content: [{ type: "output_text", text: "Wait." }] },
      { type: "function_call", call_id: "1", name: "f", arguments: "{}" },
      { type: "custom_tool_call", call_id: "2", name: "g", input: "ls" },
      { type: "function_call_output", call_id: "1", output: "sun" },
      { type: "custom_tool_call_output", call_id: "2", output: "a b" },
      { role: "assistant", content: "Sun." },
      { role: "assistant", content: "Bye." },
    ];
    expect(messagesOf({ input })).toEqual([
      { role: "user", content: [{ type: "input_text", text: "weather?" }] },
      {
        role: "assistant",
        reasoning: "look it up",
        content: "Wait.",
        tool_calls: [
          { id: "1", type: "function", function: { name: "f", arguments: "{}" } },
          { id: "2", type: "function", function: { name: "g", arguments: '{"input":"ls"}' } },
        ],
      },
      { role: "tool", tool_call_id: "1", content: "sun" },
      { role: "tool", tool_call_id: "2", content: "a b" },
      { role: "assistant", content: "Sun." },
      { role: "assistant", content: "Bye." },
    ]);
  });

  test("functions are tools as chats have them, the engine's own tools are none", () => {
    const tools = [
      { type: "web_search" },
      { type: "function", name: "f", description: "d", parameters: {}, strict: true },
    ];
    expect(read({ input: "x", tools }).prompt).toMatchObject({
      chat: {
        tools: [
          {
            type: "function",
            function: { name: "f", description: "d", parameters: {}, strict: true },
          },
        ],
      },
    });
    expect(read({ input: "x", tools, tool_choice: "none" }).prompt).toMatchObject({
      chat: { tools: undefined },
    });
  });

  test("a message that was cut off is continued", () => {
    const input = [
      { role: "user", content: "count" },
      { type: "message", role: "assistant", status: "incomplete", content: "one two" },
    ];
    expect(read({ input }).prompt).toMatchObject({
      chat: { addGenerationPrompt: false, continueFinalMessage: true },
    });
  });

  test.each<[string, Record<string, unknown>, string]>([
    ["an earlier response", { input: "x", previous_response_id: "r" }, "stored_conversation"],
    ["an item by its id", { input: [{ type: "item_reference", id: "i" }] }, "stored_conversation"],
    [
      "reasoning that only its maker can read",
      { input: [{ type: "reasoning", summary: [], encrypted_content: "x" }] },
      "stored_conversation",
    ],
    [
      "a picture",
      { input: [{ role: "user", content: [{ type: "input_image", image_url: "x" }] }] },
      "multimodal",
    ],
  ])("%s is placed by load", (_name, body, reason) => {
    expect(read(body).prompt).toEqual({ kind: "load_only", reason });
  });

  test.each([[{}], [{ input: 7 }], [{ input: [] }], [{ input: ["x"] }], [{ input: [{}] }]])(
    "%j is refused by its input",
    (body) => {
      const refusal = expect.objectContaining({
        code: "invalid_request",
        field: expect.stringMatching(/^input/) as string,
      }) as MeshError;
      expect(() => read(body)).toThrow(refusal);
    },
  );
});

describe("a request for embeddings", () => {
  const embeddings = (body: Record<string, unknown>): OpenAiRequest =>
    readOpenAiRequest("/v1/embeddings", new TextEncoder().encode(JSON.stringify(body)));

  test.each<[string, unknown, unknown]>([
    ["a text", "hi", { kind: "text", text: "hi" }],
    ["texts", ["a", "b"], { kind: "texts", texts: ["a", "b"] }],
    ["token ids", [1, 2], { kind: "tokens", ids: [1, 2] }],
    ["lists of token ids", [[1, 2], [3]], { kind: "tokens", ids: [1, 2, 3] }],
  ])("of %s expects no answer beyond its first token", (_name, input, prompt) => {
    expect(embeddings({ model: "m", input })).toEqual({
      kind: "embeddings",
      model: "m",
      tokensMax: 1,
      prompt,
    });
  });

  test("may be of a chat", () => {
    const messages = [{ role: "user", content: "hi" }];
    expect(embeddings({ messages }).prompt).toMatchObject({ kind: "chat", chat: { messages } });
  });

  test.each([[{}], [{ input: [] }], [{ input: [1, "a"] }], [{ input: [[1], ["a"]] }]])(
    "%j is refused by its input",
    (body) => {
      expect(() => embeddings(body)).toThrow(
        expect.objectContaining({ code: "invalid_request", field: "input" }) as MeshError,
      );
    },
  );
});
