import { expect, test } from "vitest";
import { respelled, WordCounts } from "./respelling.ts";

const frequent = "const value = other;\n".repeat(30);
const text = `${frequent}// Zanzibar is seldom named: zanzibar42\n`;
const words = new WordCounts();
words.add(text);

test("spells rare words anew, the same way wherever they occur, and leaves everything else", () => {
  const first = respelled(text, words, 1);
  expect(first).toHaveLength(text.length);
  expect(first.startsWith(frequent)).toBe(true);
  const [, capital = "", small = ""] =
    /^\/\/ ([A-Z][a-z]{7}) is [a-z]{6} [a-z]{5}: ([a-z]{8})42$/m.exec(first) ?? [];
  expect(small).not.toBe("zanzibar");
  expect(capital.toLowerCase()).toBe(small);
});

test("spells each edition in another way", () => {
  const editions = Array.from({ length: 20 }, (_, i) => respelled("seldom", words, i + 1));
  expect(new Set([...editions, "seldom"]).size).toBe(21);
});
