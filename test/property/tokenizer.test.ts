import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import { describe, expect, test } from "vitest";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { normaliseLikeReference } from "../../services/shared/core/tokenizer/reference-unicode.ts";
import { buildTokenizer } from "../../services/shared/core/tokenizer/build-tokenizer.ts";
import {
  buildClassTable,
  CharClass,
  classMask,
  lowerCase,
  nfcSensitive,
  upperCase,
} from "../../services/shared/core/tokenizer/unicode-classes.ts";
import {
  llama3Pattern,
  o200kPattern,
  preTokenizerOf,
  qwen3Json,
  TokenizerOracle,
} from "../support/tokenizer-oracle.ts";

const modules = join(import.meta.dirname, "../../node_modules");

/** Texts of installed packages: prose, code, data, several languages. */
function* packageTexts(sizeMax: number): Generator<string> {
  let size = 0;
  const folders = [modules];
  for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
    const perFolderMax = 4;
    let taken = 0;
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.isDirectory()) folders.push(path);
      else if (taken < perFolderMax && /\.(md|ts|js|json|txt|html|css|yml)$/i.test(entry.name)) {
        const text = readFileSync(path, "utf8").slice(0, 40_000);
        taken++;
        size += text.length;
        yield text;
        if (size >= sizeMax) return;
      }
    }
  }
}

/** Words over the alphabets of many scripts, glued with every kind of boundary. */
function* mixedScripts(count: number): Generator<string> {
  const random = new SeededRandom(20_240);
  const ranges: readonly (readonly [number, number])[] = [
    [0x20, 0x7f], [0x20, 0x7f], [0xa0, 0x250], [0x300, 0x36f], [0x370, 0x530], [0x590, 0x700],
    [0x900, 0xe80], [0x1100, 0x1200], [0x1e00, 0x2100], [0x2000, 0x2070], [0x3000, 0x3100],
    [0x4e00, 0x9fff], [0xac00, 0xd7a3], [0xfb00, 0xfe00], [0x1f300, 0x1f700], [0x1d400, 0x1d800],
    [0x10000, 0x11000], [0x20000, 0x20500],
  ]; // prettier-ignore
  for (let i = 0; i < count; i++) {
    let text = "";
    for (let run = random.int(30); run >= 0; run--) {
      const [from, to] = ranges[random.int(ranges.length)] as readonly [number, number];
      for (let length = random.int(12); length >= 0; length--) {
        text += String.fromCodePoint(from + random.int(to - from));
      }
      text +=
        ["", "", " ", "  ", "\n", "\r\n", "\t", "<|im_end|>", "7", "'s"][random.int(10)] ?? "";
    }
    yield text;
  }
}

describe.each([
  ["Qwen3", qwen3Json()],
  [
    "Llama 3 rules",
    qwen3Json({
      root: { normalizer: null, pre_tokenizer: preTokenizerOf(llama3Pattern) },
      model: { ignore_merges: true },
    }),
  ],
  [
    "o200k rules",
    qwen3Json({
      root: { normalizer: null, pre_tokenizer: preTokenizerOf(o200kPattern) },
      model: { ignore_merges: true },
    }),
  ],
])("%s", (_, json) => {
  const ours = buildTokenizer(json);
  const oracle = new TokenizerOracle(json);

  test("gives the reference's ids for 250 000 tokens of package texts", async () => {
    let tokens = 0;
    for (const text of packageTexts(1_100_000)) tokens += await oracle.check(ours, text);
    expect(tokens).toBeGreaterThan(250_000);
  });

  test("gives the reference's ids for mixed scripts", async () => {
    let tokens = 0;
    for (const text of mixedScripts(1_000)) tokens += await oracle.check(ours, text);
    expect(tokens).toBeGreaterThan(100_000);
  });
});

describe("the Unicode data agree with the reference's", () => {
  const file = new TextDecoder().decode(qwen3Json());
  const preTokenizer = NativeTokenizer.fromString(file).getPreTokenizer();
  const normaliser = NativeTokenizer.fromString(file).getNormalizer();
  const codes = Array.from({ length: 0x4_0000 }, (_, code) => code).filter(
    (code) => code < 0xd800 || code >= 0xe000,
  );

  test("on the class of every code point", () => {
    const pieces = (text: string): number => preTokenizer?.preTokenizeString(text).length ?? 0;
    const classOf = (char: string): number => {
      const count = pieces(`ab${char}ab`);
      if (count === 1) return CharClass.letter;
      if (count === 3)
        return pieces(`${char}\n${char}`) === 1 ? CharClass.newline : CharClass.number;
      return pieces(`!${char}`) === 1 ? CharClass.other : CharClass.space;
    };
    const table = buildClassTable();
    const different = codes.filter((code) => {
      // "!\n" is one piece, so line ends are told apart from numbers above.
      return classOf(String.fromCodePoint(code)) !== ((table[code] as number) & classMask);
    });
    expect(different.map((code) => code.toString(16))).toEqual([]);
  });

  test("on the letter case of every code point", () => {
    const o200k = NativeTokenizer.fromString(
      new TextDecoder().decode(
        qwen3Json({ root: { normalizer: null, pre_tokenizer: preTokenizerOf(o200kPattern) } }),
      ),
    ).getPreTokenizer();
    const isOneWord = (text: string): boolean => o200k?.preTokenizeString(text).length === 1;
    const table = buildClassTable();
    const different = [...codes, ...Array.from({ length: 0x100 }, (_, i) => 0xe0100 + i)].filter(
      (code) => {
        const char = String.fromCodePoint(code);
        // Above the table, variation selectors are marks.
        const entry = table[code] ?? (code <= 0xe01ef ? upperCase | lowerCase : 0);
        const isSmall = isOneWord(`a${char}`);
        const isCapital = isOneWord(`A${char}Ab`);
        return isSmall !== (entry & lowerCase) > 0 || isCapital !== (entry & upperCase) > 0;
      },
    );
    expect(different.map((code) => code.toString(16))).toEqual([]);
  });

  test("on the NFC form of every code point, alone and between marks of other classes", () => {
    const different = codes.filter((code) => {
      const char = String.fromCodePoint(code);
      const texts = [char, char.normalize("NFD")];
      if (/\p{M}/u.test(char)) {
        texts.push(`\u0345${char}`, `${char}\u0334`, `\u0301${char}\u0316${char}`);
      }
      return texts.some(
        (text) => normaliser?.normalizeString(text) !== normaliseLikeReference(text),
      );
    });
    expect(different.map((code) => code.toString(16))).toEqual([]);
  });

  test("and only flagged code points can change under NFC", () => {
    const table = buildClassTable();
    const random = new SeededRandom(3);
    const plain = codes.filter((code) => ((table[code] as number) & nfcSensitive) === 0);
    for (let i = 0; i < 20_000; i++) {
      const text = String.fromCodePoint(
        ...Array.from({ length: 40 }, () => plain[random.int(plain.length)] as number),
      );
      expect(normaliseLikeReference(text)).toBe(text);
    }
  });
});
