import { MeshError } from "../errors.ts";

/**
 * How text is cut into words before byte pairs are merged, for the families of rules that began with
 * cl100k and o200k. Words never cross these cuts, so they must be exact.
 */
export interface SplitRules {
  /** Digits are grouped by at most this many: 1 (Qwen2 and later) or 3 (cl100k, Llama 3). */
  readonly digitsMax: 1 | 3;
  /** Whether a word also ends where a capital letter follows a small one (o200k). */
  readonly casedWords: boolean;
}

const contraction = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)`;
const cl100kContraction = String.raw`'(?i:[sdmt]|ll|ve|re)`;
/** Capitals and small letters of o200k; letters without case and marks are both. */
const capital = String.raw`[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`;
const small = String.raw`[\p{Ll}\p{Lm}\p{Lo}\p{M}]`;
const word = String.raw`|[^\r\n\p{L}\p{N}]?\p{L}+|`;
const rest = String.raw`| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;

/**
 * The patterns that mean these rules, as `tokenizer.json` files spell them. Spelled out, not
 * interpreted: a pattern that only looks similar would give other tokens.
 */
const patterns = new Map<string, SplitRules>([
  [`${contraction}${word}${String.raw`\p{N}`}${rest}`, { digitsMax: 1, casedWords: false }],
  [`${contraction}${word}${String.raw`\p{N}{1,3}`}${rest}`, { digitsMax: 3, casedWords: false }],
  [
    `${cl100kContraction}${word}${String.raw`\p{N}{1,3}`}${rest}`,
    { digitsMax: 3, casedWords: false },
  ],
  // Possessive quantifiers only save backtracking here; they match the same.
  [
    String.raw`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`,
    { digitsMax: 3, casedWords: false },
  ],
  [
    String.raw`[^\r\n\p{L}\p{N}]?${capital}*${small}+${contraction}?|[^\r\n\p{L}\p{N}]?${capital}+${small}*${contraction}?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    { digitsMax: 3, casedWords: true },
  ],
]);

/** The rules a `pre_tokenizer` pattern stands for. Throws `invalid_request` for other families. */
export function splitRulesOf(pattern: string): SplitRules {
  const rules = patterns.get(pattern);
  if (rules === undefined) {
    throw new MeshError(
      "invalid_request",
      `split pattern ${JSON.stringify(pattern)} is not supported; known are the patterns of Qwen2/Qwen3, of Llama 3/cl100k and of GPT-4o/o200k`,
      { field: "pre_tokenizer" },
    );
  }
  return rules;
}
