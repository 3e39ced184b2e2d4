import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { TokenCuts } from "./token-cuts.ts";

const cuts = (...texts: string[]): TokenCuts =>
  new TokenCuts(texts.map((text, id) => ({ id, text })));

describe("cutting texts at added tokens", () => {
  test("cuts at every token, wherever it stands", () => {
    const literal = cuts("<a>", "<b>").cut("<a>x<b><a>y");
    expect(literal).toMatchObject({ texts: ["", "x", "", "y"], tokens: [0, 1, 0] });
    expect(cuts("<a>").cut("no token < a>")).toBeUndefined();
    expect(cuts().cut("<a>")).toBeUndefined();
  });

  test.each([
    ["is part of a longer one", ["<a>", "x<a>y"]],
    ["begins a longer one", ["<a>", "<a>b"]],
    ["ends a longer one", ["<a>", "b<a>"]],
    ["begins as another ends", ["<a>", "b<a"]],
    ["begins as it ends itself", ["aba"]],
  ])("does not use a token that %s", (_name, texts) => {
    expect(cuts(...texts).cut(texts[0] ?? "")).toBeUndefined();
  });

  test("characters of regular expressions stand for themselves", () => {
    expect(cuts("[.*]").cut("x[.*]y")).toMatchObject({ texts: ["x", "y"] });
    expect(cuts("[.*]").cut("x.y")).toBeUndefined();
  });

  test("pieces have the tokens that they have in the whole, for any tokens and texts", () => {
    const letters = fc.constantFrom("a", "b", "<");
    const word = fc.array(letters, { minLength: 1, maxLength: 4 }).map((l) => l.join(""));
    const long = fc.array(letters, { maxLength: 12 }).map((l) => l.join(""));
    fc.assert(
      fc.property(fc.uniqueArray(word, { maxLength: 4 }), long, long, word, (tokens, a, b, c) => {
        const literal = cuts(...tokens).cut(c);
        if (literal === undefined) return;
        const pieces = [...literal.texts];
        // Text of anybody before and behind what the template spells.
        pieces[0] = a + (pieces[0] ?? "");
        pieces.push((pieces.pop() ?? "") + b);
        const got = pieces.flatMap((piece, i) => [
          ...scan(tokens, piece),
          ...(i < literal.tokens.length ? [tokens[literal.tokens[i] ?? -1]] : []),
        ]);
        expect(got).toEqual(scan(tokens, a + c + b));
      }),
      { numRuns: 5_000 },
    );
  });
});

/** Tokens from left to right, the longest at each place; other characters stand for themselves in lower case. */
function scan(tokens: readonly string[], text: string): string[] {
  const found: string[] = [];
  for (let at = 0; at < text.length;) {
    const here = tokens.filter((token) => text.startsWith(token, at));
    const longest = here.reduce((long, token) => (token.length > long.length ? token : long), "");
    found.push(longest === "" ? `char ${text.charAt(at)}` : longest);
    at += longest.length || 1;
  }
  return found;
}
