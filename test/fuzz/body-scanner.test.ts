import { isUtf8 } from "node:buffer";
import { describe, expect, test } from "vitest";
import { BodyReader } from "../../services/router/core/openai/body-reader.ts";
import {
  readOpenAiRequest,
  type OpenAiRequest,
} from "../../services/router/core/openai/openai-request.ts";
import { MeshError } from "../../services/shared/core/errors.ts";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { mutate } from "../support/random-messages.ts";
import { taken } from "../support/scanned-requests.ts";

/** Seconds of the campaign; longer runs set the variable. */
const seconds = Number(process.env["KVMESH_FUZZ_SECONDS"] ?? 5);
const firstSeed = Number(process.env["KVMESH_FUZZ_SEED"] ?? 1);
const batch = 200;
/** Slower than any sane reading of 8 KB by a factor of a thousand. */
const batchMsMax = 20_000;

const encoder = new TextEncoder();
const long = "The quick brown fox jumps over the lazy dog. ".repeat(3);

/** Bodies that are taken, of the shapes that clients send. */
const bodies: readonly (readonly [path: string, body: unknown])[] = [
  [
    "/v1/chat/completions",
    {
      model: "m",
      messages: [
        { role: "system", content: 'Be kind.\n\t"Always" \\ / é 日本 👩‍👧' },
        {
          role: "user",
          content: [
            { type: "text", text: long },
            { type: "input_text", text: "" },
          ],
        },
        {
          role: "assistant",
          content: null,
          tool_calls: [
            { id: "c", type: "function", function: { name: "f", arguments: '{"a":1}' } },
          ],
          reasoning_content: "why\u0000not",
        },
        { role: "tool", tool_call_id: "c", content: long + "</think>" },
        { role: "assistant", content: "ok", refusal: null, annotations: [] },
      ],
      tools: [{ type: "function", function: { name: "f", parameters: { a: [1, 2.5e-3, -0] } } }],
      max_tokens: 12,
      stream: true,
      user: "u",
    },
  ],
  ["/v1/chat/completions", { messages: [{ role: "user", content: long }], model: "m" }],
  [
    "/v1/chat/completions",
    {
      model: "m",
      messages: [{ content: [{ type: "image_url", image_url: { url: "x" } }], role: "user" }],
      chat_template_kwargs: { enable_thinking: false },
      n: 2,
      temperature: 0.7,
    },
  ],
  ["/v1/completions", { model: "m", prompt: long + "\ud83d", max_tokens: 5 }],
  ["/v1/completions", { prompt: [1, 2, 3], model: "m", stream: false }],
];

/** What breaks JSON, or looks as if it did. */
const tokens: readonly string[] = [
  ...['"', "\\", "{", "}", "[", "]", ",", ":", " ", "\n", "\u0000", "\u001f", "\ufeff", "é", "👧"],
  ...[
    "\\u",
    "\\ud83d",
    "\\udc00",
    "\\u0041",
    "\\n",
    '\\"',
    "\\\\",
    "\\x",
    "\\/",
    "0",
    "01",
    "-",
    "1.",
  ],
  ...["1e5", "1E+", "true", "fals", "null", "nul", '"model"', '"messages"', '"role"', '"content"'],
  ...[
    '"cache_salt":1,',
    '"\\u006dodel":"x",',
    '"model":"y",',
    '"tools":[],',
    '"tools":null,',
    '"n":1,',
  ],
  ...[
    '"max_tokens":0,',
    '"max_tokens":1.0,',
    '"stream":1,',
    '"chat_template":"x",',
    '"__proto__":{},',
  ],
  ...['{"type":"text"},', '{"type":"text","text":"\\u00e9"},', '{"role":"user"},', "[[[[", "]]]]"],
  `"deep":${"[".repeat(60)}${"]".repeat(60)},`,
  `"deep":${"[".repeat(70)}${"]".repeat(70)},`,
];

function pick<T>(random: SeededRandom, items: readonly T[]): T {
  return items[random.int(items.length)] as T;
}

/** A body, mostly broken in some way, the same for a seed wherever it runs. */
function input(seed: number): { readonly path: string; readonly bytes: Uint8Array } {
  const random = new SeededRandom(seed);
  const [path, value] = pick(random, bodies);
  let text = JSON.stringify(value, undefined, random.int(4) === 0 ? 1 : undefined);
  if (random.int(4) === 0) text = text.replace(/[^\0-\x7f]/g, escaped);
  for (let n = random.int(4); n > 0; n--) {
    const at = random.int(text.length + 1);
    const end = random.int(3) === 0 ? at + random.int(12) : at;
    text = text.slice(0, at) + (random.int(5) === 0 ? "" : pick(random, tokens)) + text.slice(end);
  }
  const bytes = encoder.encode(text);
  return { path, bytes: random.int(4) === 0 ? mutate(random, bytes) : bytes };
}

function escaped(unit: string): string {
  return `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

function outcome(read: () => OpenAiRequest): unknown {
  try {
    return taken(read());
  } catch (error) {
    if (!(error instanceof MeshError)) throw error;
    return { refused: error.code, message: error.message, field: error.field };
  }
}

describe("bodies from outside", () => {
  test(
    "the scanner and the full parser agree on any bytes, with and without vector instructions",
    { timeout: seconds * 2_000 + 30_000 },
    () => {
      const key = Int32Array.from({ length: 8 }, (_, i) => Math.imul(i + 1, 0x9e3779b1));
      const readers = [0, 1 << 20].map(
        (simdSizeMax) => new BodyReader({ key, isUtf8, simdSizeMax }),
      );
      const until = performance.now() + seconds * 1_000;
      let seed = firstSeed;
      let refused = 0;
      while (performance.now() < until) {
        const startedAt = performance.now();
        for (let i = 0; i < batch; i++, seed++) {
          const { path, bytes } = input(seed);
          const expected = outcome(() => readOpenAiRequest(path, bytes));
          if (typeof expected === "object" && expected !== null && "refused" in expected) refused++;
          for (const reader of readers) {
            expect(
              outcome(() => reader.read(path, bytes)),
              `seed ${seed}`,
            ).toEqual(expected);
          }
        }
        expect(performance.now() - startedAt, `seeds before ${seed}`).toBeLessThan(batchMsMax);
      }
      const cases = seed - firstSeed;
      expect(refused).toBeGreaterThan(cases / 20);
      // Otherwise the parser would have been compared with itself.
      for (const { figures } of readers) expect(figures.scanned).toBeGreaterThan(cases / 10);
    },
  );
});
