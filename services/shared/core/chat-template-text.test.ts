import { describe, expect, test } from "vitest";
import { strip } from "./chat-template-text.ts";

describe("stripping as Python does", () => {
  // Expected values from CPython 3.11.
  test.each([
    ["\t\n a b \u3000\u0085", "strip", undefined, "a b"],
    ["\ufeff a", "strip", undefined, "\ufeff a"],
    ["\u001c\u001fa\u001d", "strip", undefined, "a"],
    ["\u200ba", "strip", undefined, "\u200ba"],
    [" a ", "lstrip", undefined, "a "],
    [" a ", "rstrip", undefined, " a"],
    ["\n  a\n", "lstrip", "\n", "  a\n"],
    ["\n  a\n", "rstrip", "\n", "\n  a"],
    ["xxaxbxx", "strip", "x", "axb"],
    ["abcba", "strip", "ab", "c"],
    ["abc", "strip", "", "abc"],
    ["   ", "strip", undefined, ""],
    ["", "rstrip", "x", ""],
    ["👧a👧👧", "strip", "👧", "a"],
    ["👧a", "lstrip", "\ud83d", "👧a"],
  ] as const)("%j.%s(%j) is %j", (text, ends, characters, expected) => {
    expect(strip(text, ends, characters)).toBe(expected);
  });

  test("long runs of white space cost no more than their length", () => {
    const text = `${" ".repeat(200_000)}a${" ".repeat(200_000)}a`;
    const startedAt = performance.now();
    expect(strip(text, "strip")).toBe(text.trimStart());
    expect(performance.now() - startedAt).toBeLessThan(2_000);
  });
});
