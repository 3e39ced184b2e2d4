import { describe, expect, test } from "vitest";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { buildTokenizer } from "../../services/shared/core/tokenizer/build-tokenizer.ts";
import type { Tokenizer } from "../../services/shared/core/tokenizer/tokenizer.ts";
import {
  o200kPattern,
  preTokenizerOf,
  qwen3Json,
  TokenizerOracle,
} from "../support/tokenizer-oracle.ts";

/** How long each family is fuzzed, s; a nightly run sets more. */
const seconds = Number(process.env["KVMESH_FUZZ_SECONDS"] ?? "5") / 2;
const seed = Number(process.env["KVMESH_FUZZ_SEED"] ?? "1");

const controlTokens = [
  "<|im_start|>",
  "<|im_end|>",
  "<|endoftext|>",
  "<think>",
  "</think>",
  "<|im_",
];
/** UTF-8 that is cut, overlong, a surrogate or too large. */
const malformed = [
  [0xc3], [0xe2, 0x82], [0xf0, 0x9f, 0x98], [0x80], [0xbf, 0xbf], [0xc0, 0xaf], [0xe0, 0x80, 0xaf],
  [0xed, 0xa0, 0x80], [0xed, 0xbf, 0xbf], [0xf4, 0x90, 0x80, 0x80], [0xf8, 0x88], [0xff], [0xfe],
] as const; // prettier-ignore

/** A piece of text as UTF-16 units, lone surrogates among them. */
function randomUnits(random: SeededRandom): string {
  const length = random.int(40);
  let text = "";
  const kind = random.int(6);
  for (let i = 0; i < length; i++) {
    if (kind === 0) text += String.fromCharCode(random.int(0x1_0000));
    else if (kind === 1) text += String.fromCodePoint(random.int(0x11_0000));
    else if (kind === 2) text += " \n\r\t'/!aAbBsS10".charAt(random.int(15));
    else if (kind === 3) text += String.fromCharCode(0x20 + random.int(0x5f));
    else if (kind === 4)
      text += String.fromCharCode(0x300 + random.int(0x70), 0x41 + random.int(60));
    else text += String.fromCodePoint(0xd7f0 + random.int(0x20) + 0x800 * random.int(2));
  }
  return text;
}

function randomBytes(random: SeededRandom): Uint8Array {
  const encoder = new TextEncoder();
  const parts: Uint8Array[] = [];
  for (let count = random.int(8); count >= 0; count--) {
    const kind = random.int(5);
    if (kind === 0) parts.push(Uint8Array.from({ length: random.int(30) }, () => random.int(256)));
    else if (kind === 1) parts.push(Uint8Array.from(malformed[random.int(malformed.length)] ?? []));
    else if (kind === 2)
      parts.push(encoder.encode(controlTokens[random.int(controlTokens.length)]));
    else parts.push(encoder.encode(randomUnits(random)));
  }
  return Buffer.concat(parts);
}

const qwen3 = qwen3Json();
const o200k = qwen3Json({
  root: { normalizer: null, pre_tokenizer: preTokenizerOf(o200kPattern) },
  model: { ignore_merges: true },
});

/** A campaign of any length, on a machine that is busy. */
const timeout = seconds * 2_000 + 60_000;

describe.each([
  ["Qwen3", qwen3],
  ["o200k rules", o200k],
])("%s", (_, json) => {
  test(
    "gives the reference's ids for any bytes and any string, control tokens on or off",
    { timeout },
    async () => {
      const ours: Tokenizer = buildTokenizer(json);
      const oracle = new TokenizerOracle(json);
      const ordinaryOracle = oracle.withoutControlTokens();
      const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
      const endAt = performance.now() + seconds * 1_000;
      let cases = 0;
      for (; performance.now() < endAt; cases++) {
        const random = new SeededRandom(seed * 1_000_003 + cases);
        const special = random.int(2) === 0;
        const asString = random.int(3) === 0;
        const bytes = randomBytes(random);
        const text = asString ? decoder.decode(bytes) + randomUnits(random) : decoder.decode(bytes);
        // Bytes lie at any place of a larger buffer, whose rest must not count.
        const before = random.int(9);
        const buffer = new Uint8Array(before + bytes.length + 9).fill(0x61);
        buffer.set(bytes, before);
        const input = asString ? text : buffer.subarray(before, before + bytes.length);
        const expected = await (special ? oracle : ordinaryOracle).encode(text.toWellFormed());
        const what = `case ${String(cases)} of seed ${String(seed)}: ${JSON.stringify(text)}`;
        expect(Array.from(ours.encode(input, { special })), what).toEqual(expected);
        // What it has learned gives the same.
        expect(Array.from(ours.encode(input, { special })), what).toEqual(expected);
      }
      expect(cases).toBeGreaterThan(100);
    },
  );
});
