import { describe, expect, test } from "vitest";

import { hashBlocks, hashRoot } from "../../../shared/core/block-hash.ts";
import { MeshError } from "../../../shared/core/errors.ts";
import type { OpenAiPrompt } from "../openai/openai-prompt.ts";
import type { ChatPrompt } from "../openai/scanned-body.ts";
import type { ModelRuntime } from "./model-runtime.ts";
import { loadOnlyPrompt, readPrompt } from "./read-prompt.ts";

const root = hashRoot(new Uint8Array(32).fill(1), { model: "m" });
const chat: ChatPrompt = {
  messages: [{ role: "user", content: "hi" }],
  tools: [{ type: "function" }],
  addGenerationPrompt: true,
  continueFinalMessage: false,
  templateKwargs: { enable_thinking: false },
};

/** One token per character; the template shows what it was given. */
const runtime = (over: Partial<ModelRuntime> = {}): ModelRuntime => ({
  tokenizer: {
    encode: (text) =>
      Uint32Array.from(
        typeof text === "string" ? text : new TextDecoder().decode(text),
        (c) => c.codePointAt(0) ?? 0,
      ),
  },
  unsupported: false,
  template: { render: (messages, options) => JSON.stringify([messages, options]) },
  addsSpecialTokens: false,
  root,
  ...over,
});
const text = (length: number): OpenAiPrompt => ({ kind: "text", text: "x".repeat(length) });

describe("readPrompt", () => {
  test("hashes the full blocks of a text", () => {
    const prompt = readPrompt(text(40), 100, runtime(), 16);
    expect(prompt).toEqual({
      tokens: 40,
      hashes: hashBlocks(root, new Uint32Array(40).fill(120), 16),
      loadOnly: undefined,
    });
    expect(prompt.hashes).toHaveLength(4);
    expect(readPrompt(text(15), 100, runtime(), 16).hashes).toHaveLength(0);
    expect(readPrompt(text(0), 100, runtime(), 16)).toMatchObject({
      tokens: 0,
      loadOnly: undefined,
    });
  });

  test("hashes token ids as they are, also without a tokenizer", () => {
    const ids = Array.from({ length: 20 }, (_, i) => i * 7);
    const bare = runtime({ tokenizer: undefined });
    expect(readPrompt({ kind: "tokens", ids }, 0, bare, 16)).toEqual({
      tokens: 20,
      hashes: hashBlocks(root, ids, 16),
      loadOnly: undefined,
    });
  });

  test("hashes the first of several texts and counts them all", () => {
    const texts = ["x".repeat(20), "y".repeat(7)];
    expect(readPrompt({ kind: "texts", texts }, 0, runtime(), 16)).toEqual({
      tokens: 27,
      hashes: hashBlocks(root, new Uint32Array(20).fill(120), 16),
      loadOnly: undefined,
    });
  });

  test("renders a chat with everything that its template takes", () => {
    const rendered = JSON.stringify([
      chat.messages,
      {
        addGenerationPrompt: true,
        continueFinalMessage: false,
        kwargs: { enable_thinking: false },
        tools: [{ type: "function" }],
      },
    ]);
    expect(readPrompt({ kind: "chat", chat }, 0, runtime(), 16).tokens).toBe(rendered.length);
    const noTools = { ...chat, tools: undefined };
    expect(readPrompt({ kind: "chat", chat: noTools }, 0, runtime(), 16).tokens).toBeLessThan(
      rendered.length,
    );
  });

  test.each<[string, OpenAiPrompt, ModelRuntime | undefined, string]>([
    ["a tokenizer that has not come", text(5), runtime({ tokenizer: undefined }), "no_tokenizer"],
    [
      "a tokenizer of an unknown family",
      text(5),
      runtime({ tokenizer: undefined, unsupported: true }),
      "unsupported_tokenizer",
    ],
    [
      "a chat without template",
      { kind: "chat", chat },
      runtime({ template: undefined }),
      "no_chat_template",
    ],
    [
      "a chat without tokenizer",
      { kind: "chat", chat },
      runtime({ tokenizer: undefined }),
      "no_tokenizer",
    ],
    ["a pool that nobody has joined", text(5), undefined, "no_tokenizer"],
    ["what was not read", { kind: "load_only", reason: "multimodal" }, runtime(), "multimodal"],
    [
      "what was not read in such a pool",
      { kind: "load_only", reason: "multimodal" },
      undefined,
      "multimodal",
    ],
  ])("%s is placed by load with a length guessed from the body", (_name, prompt, model, reason) => {
    expect(readPrompt(prompt, 401, model, 16)).toEqual({
      tokens: 101,
      hashes: new Uint32Array(0),
      loadOnly: reason,
    });
  });

  test("passes on what the template refuses", () => {
    const refusing = runtime({
      template: {
        render: () => {
          throw new MeshError("invalid_request", "roles must alternate", { field: "messages" });
        },
      },
    });
    expect(() => readPrompt({ kind: "chat", chat }, 0, refusing, 16)).toThrow(
      "roles must alternate",
    );
  });
});

test("a prompt that is not read has no hashes", () => {
  expect(loadOnlyPrompt("other_path", 0)).toEqual({
    tokens: 0,
    hashes: new Uint32Array(0),
    loadOnly: "other_path",
  });
});
