import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import {
  llama3Pattern,
  o200kPattern,
  preTokenizerOf,
  qwen3Json,
  TokenizerOracle,
} from "../../../../test/support/tokenizer-oracle.ts";
import { MeshError } from "../errors.ts";
import { FusedBpe } from "./fused-bpe.ts";
import { parseTokenizerJson } from "./tokenizer-json.ts";
import { buildTokenizer } from "./build-tokenizer.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** Characters that split rules treat in ways of their own, and what they treat alike. */
const hardAscii = fc.constantFrom(
  ...Array.from("aabsStTmdlLrReEvVxBZ019   \t\n\r''/..!-_\u0000\u000b"),
);

const texts: Readonly<Record<string, string>> = {
  prose: "The router keeps what it knows now, not what a scrape said last. It isn't late: 08:45.",
  code: "for (let i = 0; i < 10_000; i++) {\n\tx[i] ??= `${a}_${b}`; // no-op\n}\n",
  contractions: "I'm you'll THEY'RE she'd 'Tis 'x ''s 've'l 'r' 'ſ it'S'LL' '",
  digits: "1 22 333 4444 55555 ٣٤٥ ½²₃ Ⅷ 3.14e-10",
  emoji: "👨‍👩‍👧‍👦 ❤️ 🇩🇪🇯🇵 👍🏽 ok🙂🙂",
  "Chinese, Japanese, Korean": "日本語のテキスト、中文文本。한국어 텍스트!全角 スペース",
  "decomposed and composed marks":
    "e\u0301 é cafe\u0301 \u212b a\u0323\u0307 a\u0307\u0323 각 \u1112\u1161\u11ab",
  "marks of Indic and Thai scripts": "नमस्ते दुनिया กำลังทดสอบ বাংলা தமிழ் ಕನ್ನಡ",
  "a mark after a token": "<think>\u0338x >\u0338 <|im_end|>\u0301",
  "compositions newer than the reference":
    "\u{113c2}\u{113c2} \u{16d67}\u{16d67}e\u0301 \u{1611e}\u{1611e}",
  "white space runs": "a  b   c    \t\t x \u00a0\u00a0 y\u3000\u3000z\u0085\u0085w\ufeffv \u2028 ",
  "line ends": "a\r\nb\r\n\r\nc\n \n  d\r\r e \n",
  "spaces at the end": "end   ",
  symbols: "!!! ?!\n\n--> <-- ## **bold** {{}} ___ $$ \u0000\u0001\u007f",
  "control tokens":
    "<|im_start|>user\nhi<|im_end|>\n<tool_call>{}</tool_call><|endoftext|><|im_end|>",
  "almost control tokens":
    "<|im_start <|im_end|<|im_end|> <<<|im_start|>> <|IM_END|> <think</think>",
  "lone surrogates": "a\ud800b\udc00c",
  empty: "",
};

async function expectEqualIds(
  ours: Tokenizer,
  oracle: TokenizerOracle,
  text: string,
): Promise<void> {
  expect(Array.from(ours.encode(text))).toEqual(await oracle.encode(text));
}

describe("the Qwen3 vocabulary", () => {
  let ours: FusedBpe;
  let oracle: TokenizerOracle;
  beforeAll(() => {
    ours = new FusedBpe(parseTokenizerJson(qwen3Json()));
    oracle = new TokenizerOracle(qwen3Json());
  });

  test.each(Object.entries(texts))("gives the reference's ids for %s", async (_, text) => {
    await expectEqualIds(ours, oracle, text);
    // The second time words come from the table.
    await expectEqualIds(ours, oracle, text);
  });

  test("gives the reference's ids for any mix of hard pieces", async () => {
    const piece = fc.oneof(
      fc.string({ unit: "binary", maxLength: 12 }),
      fc.string({ unit: "grapheme", maxLength: 12 }),
      fc.string({ unit: fc.constantFrom(" ", "\n", "\r", "\t", "a", "1", ".", "'", "s") }),
      // Longer than what is cut at once.
      fc.string({ unit: hardAscii, minLength: 60, maxLength: 200 }),
      fc.constantFrom(...Object.values(texts), "<|im_start|>", "<|im_end|>", "\u0301", "\u0327"),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 8 }), async (pieces) => {
        await expectEqualIds(ours, oracle, pieces.join(""));
      }),
      { numRuns: 300 },
    );
  });

  test("reads malformed UTF-8 as engines do after replacing it", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 60 }), async (bytes) => {
        const replaced = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
        expect(Array.from(ours.encode(bytes))).toEqual(await oracle.encode(replaced));
      }),
      { numRuns: 300 },
    );
  });

  test("gives the same ids for a string and its bytes, and its text back", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme", maxLength: 100 }), (text) => {
        const bytes = new TextEncoder().encode(text);
        const ids = ours.encode(bytes);
        expect(ours.encode(text)).toEqual(ids);
        const restored = new TextDecoder("utf-8", { ignoreBOM: true }).decode(ours.decode(ids));
        expect(restored.normalize("NFC")).toBe(text.normalize("NFC"));
      }),
    );
  });

  test("keeps results of earlier calls apart from later ones", () => {
    const first = ours.encode("first text");
    const copy = Array.from(first);
    ours.encode("another text, longer than the first");
    expect(Array.from(first)).toEqual(copy);
  });

  test("reads control tokens as text on request, ordinary added tokens never", () => {
    const [control, ...more] = ours.encode("<|im_end|>");
    expect([control, more]).toEqual([151_645, []]);
    const asText = ours.encode("<|im_end|>", { special: false });
    expect(asText.length).toBeGreaterThan(1);
    expect(new TextDecoder().decode(ours.decode(asText))).toBe("<|im_end|>");
    expect([...ours.encode("<think>", { special: false })]).toEqual([151_667]);
  });

  test("knows its size and refuses to decode what it does not have", () => {
    expect(ours.vocabularySize).toBe(151_669);
    for (const id of [151_669, -1, 0.5, Number.NaN]) {
      expect(() => ours.decode([id])).toThrow(MeshError);
    }
  });

  test.each([
    ["one letter", "a"],
    ["two letters", "ab"],
    ["one space", " "],
    ["one symbol", "="],
    ["one ideograph", "語"],
    ["one mark", "\u0301"],
  ])("cuts a run of %s of 100 KB in linear-logarithmic time", async (_, unit) => {
    const size = new TextEncoder().encode(unit).length;
    const long = unit.repeat(100_000 / size);
    const short = unit.repeat(10_000 / size);
    const seconds = (text: string): number => {
      const start = process.cpuUsage();
      ours.encode(text);
      const { user, system } = process.cpuUsage(start);
      return (user + system) / 1e6;
    };
    // A quadratic merge would take tens of seconds here.
    expect(seconds(long)).toBeLessThan(1);
    await expectEqualIds(ours, oracle, short);
  });

  test("gives a text up that has too many words to merge, and goes on with others", () => {
    const tokenizer = new FusedBpe(parseTokenizerJson(qwen3Json()));
    const letter = (i: number): string => String.fromCharCode(97 + (i % 26));
    const words = Array.from({ length: 26 }, (_, i) => `xq${letter(i)}${letter(7 * i)}`);
    const text = words.join(" ");
    expect(tokenizer.encodeScratch(text, 10)).toBeUndefined();
    expect(tokenizer.encode(text)).toEqual(
      new FusedBpe(parseTokenizerJson(qwen3Json())).encode(text),
    );
    // Nothing is left to merge.
    expect(tokenizer.encodeScratch(text, 0)).toEqual(tokenizer.encode(text));
  });

  test("keeps words in use while words that come once pass by, and goes on with the same ids", async () => {
    const tokenizer = new FusedBpe(parseTokenizerJson(qwen3Json()));
    const spell = (prefix: string, i: number): string =>
      prefix + i.toString(36).replaceAll(/\d/g, (digit) => "ÜÖÄßÑÇÉÈÊÅ"[Number(digit)] ?? "");
    const used = Array.from({ length: 500 }, (_, i) => spell("inuse", i)).join(" ");
    const before = tokenizer.encode(used);
    const merged = tokenizer.mergedWords;
    tokenizer.encode(used);
    expect(tokenizer.mergedWords).toBe(merged);
    let again = 0;
    for (let flood = 0; flood < 40; flood++) {
      const words = Array.from({ length: 5_000 }, (_, i) => spell("once", 5_000 * flood + i));
      tokenizer.encode(words.join(" "));
      const start = tokenizer.mergedWords;
      expect(tokenizer.encode(used)).toEqual(before);
      again += tokenizer.mergedWords - start;
    }
    // 200 000 words that come once do not fit; of 20 000 uses of the others hardly any is merged anew.
    expect(again).toBeLessThan(500);
    for (const text of Object.values(texts)) await expectEqualIds(tokenizer, oracle, text);
  });
});

describe("the o200k family", () => {
  const json = qwen3Json({
    root: { normalizer: null, pre_tokenizer: preTokenizerOf(o200kPattern) },
    model: { ignore_merges: true },
  });
  const ours = buildTokenizer(json);
  const oracle = new TokenizerOracle(json);

  test.each([
    "camelCase HTTPServer XMLHttpRequest iOS McDonald aB ABc aBC",
    "don't DON'T it'll IT'LLx 's x'S a'b 'tis O'Neil's we'Re",
    "\u0301 \u0301ABC \u0301abc A\u0301B !\u0301 !!\u0301a  \u0301 x\u0301\u0301Y",
    "ǅ ǅa aǅ ʰA Aʰ ʰ ªº Aªb 語A語a語 語ABC ABC語 ABC語D",
    "//\n//\n a/b /\r\n/ ./x ?!/\n/\n\n/",
    "é É éÉ ÉÉé ÄÖÜ äöü Äpfel ÄPFEL ÄPFELa ПРИВЕТ Привет приВЕТ",
    "x\u{e0100}y \u{e0100} \u{e01ef}A \u{e01f0}A ❤️ A\u{fe0f}B",
    "1234567 1a23 ٣٤٥٦٧",
    ...Object.values(texts),
  ])("gives the reference's ids for %j", async (text) => {
    await expectEqualIds(ours, oracle, text);
    await expectEqualIds(ours, oracle, text);
  });

  test("gives the reference's ids for any mix of hard pieces", async () => {
    const unit = fc.constantFrom(
      ...Array.from("aAbBsS '\u0301ǅʰª語Éé1 /\n\r!\u{e0100}\u017f\ufe0f\u3000"),
    );
    const piece = fc.oneof(
      fc.string({ unit, maxLength: 20 }),
      fc.string({ unit: "grapheme" }),
      fc.string({ unit: hardAscii, minLength: 60, maxLength: 200 }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 6 }), async (pieces) => {
        await expectEqualIds(ours, oracle, pieces.join(""));
      }),
      { numRuns: 2_000 },
    );
  });
});

describe("the Llama 3 family", () => {
  const json = qwen3Json({
    root: {
      normalizer: null,
      pre_tokenizer: preTokenizerOf(llama3Pattern),
      post_processor: {
        type: "Sequence",
        processors: [
          { type: "ByteLevel", add_prefix_space: true, trim_offsets: false, use_regex: true },
          {
            type: "TemplateProcessing",
            single: [
              { SpecialToken: { id: "<|endoftext|>", type_id: 0 } },
              { Sequence: { id: "A", type_id: 0 } },
            ],
            pair: [],
            special_tokens: {
              "<|endoftext|>": { id: "<|endoftext|>", ids: [151_643], tokens: ["<|endoftext|>"] },
            },
          },
        ],
      },
    },
    model: { ignore_merges: true },
  });

  test("groups digits by three, leaves text unnormalised and takes whole words first", async () => {
    const ours = buildTokenizer(json);
    const oracle = new TokenizerOracle(json);
    for (const text of [...Object.values(texts), "1234567 12 1a23", "٣٤٥٦٧ 1½²3"]) {
      await expectEqualIds(ours, oracle, text);
    }
    expect(ours.prefixIds).toEqual([151_643]);
  });
});

describe("a file that cannot be served exactly", () => {
  const small = (overrides: object): Uint8Array =>
    new TextEncoder().encode(
      JSON.stringify({
        normalizer: null,
        pre_tokenizer: preTokenizerOf(llama3Pattern),
        model: { type: "BPE", vocab: {}, merges: [] },
        ...overrides,
      }),
    );

  test.each([
    [
      "a split pattern of another family",
      { pre_tokenizer: preTokenizerOf("\\w+") },
      /split pattern/,
    ],
    ["another pre-tokenizer", { pre_tokenizer: { type: "Whitespace" } }, /pre_tokenizer/],
    ["another normaliser", { normalizer: { type: "NFKC" } }, /normalizer "NFKC"/],
    ["another model", { model: { type: "Unigram" } }, /model.type "Unigram"/],
    ["dropout", { model: { type: "BPE", dropout: 0.1, vocab: {}, merges: [] } }, /dropout/],
    [
      "tokens that strip spaces",
      { added_tokens: [{ id: 1, content: "x", lstrip: true }] },
      /lstrip/,
    ],
    ["a vocabulary without all bytes", {}, /single byte 0/],
    [
      "a merge that is no pair",
      { model: { type: "BPE", vocab: {}, merges: ["a"] } },
      /merges\[0\]/,
    ],
    ["an id that is none", { model: { type: "BPE", vocab: { a: -1 }, merges: [] } }, /token id/],
  ])("is refused: %s", (_, overrides, message) => {
    expect(() => buildTokenizer(small(overrides))).toThrow(message);
    expect(() => buildTokenizer(small(overrides))).toThrow(
      expect.objectContaining({ code: "invalid_request" }),
    );
  });

  test("is refused: bytes that are not JSON", () => {
    expect(() => buildTokenizer(Uint8Array.of(0xff))).toThrow(/not JSON/);
  });
});
