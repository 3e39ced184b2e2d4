import { describe, expect, test } from "vitest";
import type { BodyTexts, ScannedText } from "../openai/scanned-body.ts";
import { PromptCache } from "./prompt-cache.ts";

/** A text named by a number. */
const scanned = (n: number, over: Partial<ScannedText> = {}): ScannedText => ({
  start: 0,
  end: 8,
  escaped: false,
  surrogates: false,
  lo: n,
  hi: n,
  check: n,
  ...over,
});
const texts = (text = "abcdefgh"): BodyTexts => ({
  bytes: new TextEncoder().encode(text),
  unescape: () => new Uint8Array(0),
  holds: () => true,
});

describe("texts seen before", () => {
  test("are the same object again, until one of hash, length or domain differs", () => {
    const cache = new PromptCache({ bytesMax: 1 << 20 });
    const text = cache.text(scanned(1), 0);
    expect(cache.text(scanned(1), 0)).toBe(text);
    expect(cache.text(scanned(1), 1)).not.toBe(text);
    for (const other of [{ lo: 2 }, { hi: 2 }, { check: 2 }, { end: 7 }]) {
      expect(new PromptCache({ bytesMax: 1 << 20 }).text(scanned(1, other), 0)).not.toBe(text);
      expect(cache.text(scanned(1, other), 0)).not.toBe(text);
    }
    expect(cache.figures).toMatchObject({ hits: 1, misses: 6 });
  });

  test("are read where the request at hand has them, and let go of", () => {
    const cache = new PromptCache({ bytesMax: 1 << 20 });
    cache.text(scanned(1), 0).bind(texts("first..."), scanned(1));
    const text = cache.text(scanned(1), 0);
    text.bind(texts("second.."), scanned(1));
    expect(text.string()).toBe("second..");
    text.unbind();
    expect(() => text.string()).toThrow("of no request");
  });

  test("not used for a while go when memory is short, with all that they hold", () => {
    const cache = new PromptCache({ bytesMax: 20_000 });
    const first = cache.text(scanned(1), 0);
    for (let n = 2; n <= 40; n++) {
      const text = cache.text(scanned(n), 0);
      text.learn({ parts: Array.from({ length: 50 }, () => text), place: 0, count: 0 });
      cache.trim();
      expect(cache.figures.bytes).toBeLessThanOrEqual(20_000);
      expect(cache.text(scanned(1), 0)).toBe(first);
    }
    const { entries, evicted } = cache.figures;
    expect(evicted).toBeGreaterThan(20);
    expect(entries + evicted).toBe(40);
    const before = cache.figures.misses;
    cache.text(scanned(2), 0);
    expect(cache.figures.misses).toBe(before + 1);
  });

  test("that grow after they are forgotten cost nothing", () => {
    const cache = new PromptCache({ bytesMax: 0 });
    const before = cache.figures.bytes;
    const text = cache.text(scanned(1), 0);
    cache.trim();
    text.learn({ parts: [text], place: 0, count: 0 });
    expect(cache.figures).toMatchObject({ entries: 0, bytes: before });
  });

  test("values are made once", () => {
    const cache = new PromptCache({ bytesMax: 1 << 20 });
    let made = 0;
    const make = () => ({ value: { n: ++made }, bytes: 1_000 });
    const value = cache.value(scanned(1), 1, make);
    expect(cache.value(scanned(1), 1, make)).toBe(value);
    expect(cache.value(scanned(1), 2, make)).toEqual({ n: 2 });
    expect(cache.figures.bytes).toBeGreaterThan(2_000);
  });
});
