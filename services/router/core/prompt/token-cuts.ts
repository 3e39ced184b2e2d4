import type { AddedToken } from "./model-runtime.ts";
import { LiteralText } from "./rendered-parts.ts";

/**
 * Where a prompt may be cut so that its pieces have the tokens that they have in the whole. Added tokens are found from left to
 * right, the longest at each place, and text between two of them is tokenised by itself. So a prompt can be cut at an
 * added token, provided that no other added token can reach over its start or begin with it: then wherever its text stands,
 * it is that token. Only such tokens are used.
 */
export class TokenCuts {
  readonly #usable: readonly AddedToken[];
  readonly #pattern: RegExp | undefined;
  readonly #ids = new Map<string, number>();

  constructor(tokens: readonly AddedToken[]) {
    this.#usable = tokens.filter(
      (token) =>
        token.text.isWellFormed() && !tokens.some((other) => overlaps(other.text, token.text)),
    );
    for (const { id, text } of this.#usable) this.#ids.set(text, id);
    const sources = this.#usable.map(({ text }) => text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"));
    this.#pattern = sources.length === 0 ? undefined : new RegExp(sources.join("|"), "gu");
  }

  /** How many of the tokens are used. */
  get size(): number {
    return this.#usable.length;
  }

  /** A text cut at each of these tokens; undefined when it has none. */
  cut(text: string): LiteralText | undefined {
    if (this.#pattern === undefined) return undefined;
    const texts: string[] = [];
    const tokens: number[] = [];
    let from = 0;
    for (const match of text.matchAll(this.#pattern)) {
      texts.push(text.slice(from, match.index));
      tokens.push(this.#ids.get(match[0]) ?? -1);
      from = match.index + match[0].length;
    }
    if (tokens.length === 0) return undefined;
    texts.push(text.slice(from));
    return new LiteralText(text, texts, tokens);
  }
}

/**
 * Whether `other`, which may be the token itself, can be found where it hides a `token`: it reaches over its start, or is
 * longer and begins with it.
 */
function overlaps(other: string, token: string): boolean {
  if (other !== token && other.includes(token)) return true;
  for (let length = Math.min(other.length, token.length) - 1; length > 0; length--) {
    if (other.endsWith(token.slice(0, length))) return true;
  }
  return false;
}
