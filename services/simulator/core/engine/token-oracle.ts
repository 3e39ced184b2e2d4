import type { SamplerState, TokenSampler } from "./engine-types.ts";

/** How answers are drawn. */
export interface TokenOracleOptions {
  /** Ids an answer is made of, e.g. those that decode to a space and a word; at least one. */
  readonly words: Uint32Array;
  /** The end-of-sequence id, or −1 for answers that end by length alone. */
  readonly endToken: number;
  /** Mean tokens before the end token is drawn, ≥ 1; lengths are geometric. */
  readonly answerTokensMean: number;
}

/**
 * Deterministic stand-in for a model's sampling: each token is a pure function of the seed and all tokens before
 * it (prompt and answer alike: where the prompt ends plays no part), like a real model's at a fixed seed. Hence
 * token i of an answer is a pure function of (prompt, seed, i), and an answer that is continued elsewhere from
 * prompt + tokens so far, with limits reduced by what was given and the same seed (choice k of a request has
 * seed + k), goes on with exactly the same tokens. Temperature, penalties and top-p change nothing.
 */
export class TokenOracle implements TokenSampler {
  readonly endToken: number;
  readonly #words: Uint32Array;
  /** The end is drawn when a 32-bit draw is below this. */
  readonly #endBelow: number;

  constructor(options: TokenOracleOptions) {
    if (options.words.length === 0) throw new RangeError("words: at least one token id is needed");
    this.#words = options.words;
    this.endToken = options.endToken;
    this.#endBelow =
      options.endToken < 0 ? 0 : 0x1_0000_0000 / Math.max(1, options.answerTokensMean);
  }

  start(tokens: Uint32Array, length: number, seed: number): SamplerState {
    const state = {
      a: (0x9e3779b9 ^ seed) | 0,
      b: (0x85ebca6b ^ Math.floor(seed / 0x1_0000_0000)) | 0,
    };
    for (let i = 0; i < length; i++) fold(state, tokens[i] as number);
    return state;
  }

  next(state: SamplerState, endAllowed: boolean): number {
    const end = mix(state.a ^ Math.imul(state.b, 0x27d4eb2f));
    let token: number;
    if (endAllowed && end < this.#endBelow) {
      token = this.endToken;
    } else {
      const draw = mix(state.b ^ Math.imul(state.a, 0x165667b1));
      token = this.#words[draw % this.#words.length] as number;
    }
    fold(state, token);
    return token;
  }

  take(state: SamplerState, token: number): void {
    fold(state, token);
  }

  /** The first `count` tokens of the answer to a prompt; shorter when the end token is drawn before. */
  answer(prompt: Uint32Array, seed: number, count: number, ignoreEnd = false): number[] {
    const state = this.start(prompt, prompt.length, seed);
    const tokens: number[] = [];
    while (tokens.length < count) {
      const token = this.next(state, !ignoreEnd);
      tokens.push(token);
      if (token === this.endToken) break;
    }
    return tokens;
  }
}

function fold(state: SamplerState, token: number): void {
  const a = Math.imul(state.a ^ token, 0x85ebca6b);
  const b = Math.imul(state.b + token, 0xc2b2ae35);
  state.a = ((a << 13) | (a >>> 19)) + b;
  state.b = (b ^ (b >>> 15)) + Math.imul(a, 5) + 1;
  state.a |= 0;
  state.b |= 0;
}

/** Final mix of murmur3: every input bit reaches every output bit. */
function mix(value: number): number {
  let x = value;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}
