import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DeferringTokenizer, TokensAwaited } from "./deferring-tokenizer.ts";
import { encodingCost } from "./encoding-cost.ts";
import type { PromptTokenizer } from "./model-runtime.ts";

/** One token per byte. */
const bytewise: PromptTokenizer = {
  tokenSizeMax: 7,
  encode: (text) => Uint32Array.from(typeof text === "string" ? Buffer.from(text) : text),
};
const words = "word ".repeat(20);

describe("DeferringTokenizer", () => {
  test("encodes at once what costs little, in all of a prompt", () => {
    const tokenizer = new DeferringTokenizer(bytewise, 150);
    tokenizer.begin();
    expect(tokenizer.encode(words)).toHaveLength(100);
    expect(() => tokenizer.encode(words)).toThrow(TokensAwaited);
    expect(tokenizer.takeDeferred()).toEqual(new Uint8Array(Buffer.from(words)));
    expect(tokenizer.takeDeferred()).toBeUndefined();
    tokenizer.begin();
    expect(tokenizer.encode(words)).toHaveLength(100);
    expect(tokenizer.tokenSizeMax).toBe(7);
  });

  test("takes the ids that were given for the same text, as a string or bytes, and for no other", () => {
    const tokenizer = new DeferringTokenizer(undefined);
    const text = new Uint8Array(Buffer.from("long café!"));
    tokenizer.begin([{ text, ids: Uint32Array.of(5, 6) }]);
    expect(tokenizer.encode("long café!")).toEqual(Uint32Array.of(5, 6));
    expect(tokenizer.encode(text.subarray())).toEqual(Uint32Array.of(5, 6));
    for (const other of ["long cafe!", "long café?", "Long café!"]) {
      expect(() => tokenizer.encode(other)).toThrow(TokensAwaited);
    }
  });

  test("keeps what was put off although the caller's memory is used again", () => {
    const tokenizer = new DeferringTokenizer(undefined);
    const scratch = Buffer.from("first");
    expect(() => tokenizer.encode(scratch)).toThrow(TokensAwaited);
    scratch.fill(0);
    expect(Buffer.from(tokenizer.takeDeferred() ?? []).toString()).toBe("first");
  });

  test("puts off a text with too many new words, and then whatever else is new", () => {
    let mergedWords = 0;
    const merging: PromptTokenizer = {
      encode: () => Uint32Array.of(1),
      encodeScratch: (text, mergesMax = 0) => {
        mergedWords += Math.min(text.length, mergesMax);
        return text.length > mergesMax ? undefined : Uint32Array.of(2);
      },
      get mergedWords() {
        return mergedWords;
      },
    };
    const tokenizer = new DeferringTokenizer(merging);
    tokenizer.begin();
    expect(tokenizer.encode("a".repeat(1_000))).toEqual(Uint32Array.of(2));
    expect(() => tokenizer.encode("b".repeat(3_000))).toThrow(TokensAwaited);
    expect(() => tokenizer.encode("c")).toThrow(TokensAwaited);
    tokenizer.begin();
    expect(tokenizer.encode("c")).toEqual(Uint32Array.of(2));
  });

  test("encodes an empty text without help", () => {
    expect(new DeferringTokenizer(undefined).encode("")).toHaveLength(0);
  });
});

describe("encodingCost", () => {
  test.each([
    ["words", words.repeat(10), 1_000],
    ["one long word", "a".repeat(1_000), 16_000],
    ["white space", " ".repeat(1_000), 16_000],
    ["letters beyond ASCII", "é".repeat(1_000), 16_000],
  ])("counts %s", (_, text, cost) => {
    expect(encodingCost(text, 15_999)).toBe(cost);
  });

  test("counts each long word of any text, wherever it stands", () => {
    const part = fc.tuple(
      fc.constantFrom("a", "7", " ", ".", "é"),
      fc.integer({ min: 1, max: 140 }),
    );
    fc.assert(
      fc.property(fc.array(part, { maxLength: 40 }), (parts) => {
        const text = parts.map(([sign, count]) => sign.repeat(count)).join("");
        const found = text.match(/[a-zé]+|7+| +|\.+/g) ?? [];
        const long = found.filter((word) => word.length > 64).join("").length;
        // Nothing is looked at where all of it may be one word.
        const costMax = Math.max(0, 16 * text.length - 1);
        expect(encodingCost(text, costMax)).toBe(text.length + 15 * long);
      }),
    );
  });

  test("is the same for bytes", () => {
    expect(encodingCost(Buffer.from(words.repeat(10)), 15_999)).toBe(1_000);
  });

  test("does not look at texts that fit or are too long in any case", () => {
    expect(encodingCost("a".repeat(1_000), 16_000)).toBe(1_000);
    expect(encodingCost(words, 50)).toBe(100);
  });
});
