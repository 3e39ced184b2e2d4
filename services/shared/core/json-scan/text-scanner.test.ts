import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { notScanned, TextScanner } from "./text-scanner.ts";

const key = Int32Array.from({ length: 8 }, (_, i) => Math.imul(i + 1, 0x9e3779b1));
const scanners = [new TextScanner(key), new TextScanner(key, 0)] as const;
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Literals, most of them well formed, of all sizes around the steps that vector instructions take. */
const unit = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.constantFrom("a", "bc", "defghijklmnopq", " ", "/", "u", "é", "日", "👧"),
  },
  {
    weight: 4,
    arbitrary: fc.constantFrom("\\n", "\\\\", '\\"', "\\/", "\\u0041", "\\u00e9", "\\u65E5", "\\t"),
  },
  { weight: 1, arbitrary: fc.constantFrom("\\ud83d\\udc67", "\\udc67", "\\uD800") },
);
const broken = fc.constantFrom("\n", "\u0000", "\\x", "\\u12", "\\u00g0", "\\");
const literal = fc.array(unit, { maxLength: 30 }).map((parts) => parts.join(""));
const anyLiteral = fc.oneof(
  { weight: 5, arbitrary: literal },
  {
    weight: 1,
    arbitrary: fc.tuple(literal, broken, literal).map((parts) => parts.join("")),
  },
);

/** Where the literal at `from` ends, by the language's own parser. */
function endByParser(bytes: Uint8Array, from: number): number {
  for (let end = bytes.indexOf(0x22, from); end >= 0; end = bytes.indexOf(0x22, end + 1)) {
    try {
      JSON.parse(`"${decoder.decode(bytes.subarray(from, end))}"`);
      return end;
    } catch {
      // A quote that belongs to the literal, or a malformed one.
    }
  }
  return notScanned;
}

describe.each([
  ["vector instructions", 0],
  ["plain code", 1],
] as const)("reading literals with %s", (_name, index) => {
  const scanner = scanners[index];

  test("ends where a parser ends, and refuses what it refuses", () => {
    fc.assert(
      fc.property(anyLiteral, fc.nat(40), fc.boolean(), (spelled, before, closed) => {
        const bytes = encoder.encode(`${"x".repeat(before)}"${spelled}${closed ? '"' : ""}`);
        scanner.load(bytes);
        const from = before + 1;
        const end = endByParser(bytes, from);
        expect(scanner.text(from)).toBe(end);
        if (end >= 0) expect(scanner.escaped).toBe(bytes.subarray(from, end).includes(0x5c));
        expect(scanner.hashedText(from)).toBe(end);
        if (end < 0) return;
        const text = decoder.decode(bytes.subarray(from, end));
        expect(scanner.escaped).toBe(text.includes("\\"));
        expect(scanner.surrogates).toBe(/\\u[dD][89a-fA-F]/.test(text.replaceAll("\\\\", "")));
      }),
      { numRuns: 2_000 },
    );
  });

  test("unescapes as a parser does", () => {
    fc.assert(
      fc.property(literal, fc.nat(40), (spelled, before) => {
        const bytes = encoder.encode(`${"x".repeat(before)}"${spelled}"`);
        scanner.load(bytes);
        const end = scanner.hashedText(before + 1);
        if (scanner.surrogates) return;
        const got = decoder.decode(scanner.unescape(before + 1, end));
        expect(got).toBe(JSON.parse(`"${spelled}"`));
      }),
      { numRuns: 1_000 },
    );
  });

  test("finds bytes where they are, and only between the limits", () => {
    const few = fc.array(fc.constantFrom("a", "b", "<"), { maxLength: 60 });
    const needles = fc.array(fc.constantFrom("a", "b", "<"), { minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(few, needles, fc.nat(20), fc.nat(20), (letters, needle, skip, drop) => {
        const text = letters.join("");
        scanner.load(encoder.encode(`${text}<<<<<<aaaaaabbbbbb`));
        const from = Math.min(skip, text.length);
        const to = Math.max(from, text.length - drop);
        const wanted = needle.join("");
        expect(scanner.holds(from, to, encoder.encode(wanted))).toBe(
          text.slice(from, to).includes(wanted),
        );
      }),
      { numRuns: 2_000 },
    );
  });

  test("equal texts have one hash wherever they stand, different ones have others", () => {
    const seen = new Map<string, string>();
    fc.assert(
      fc.property(literal, fc.nat(40), (spelled, before) => {
        const bytes = encoder.encode(`${"x".repeat(before)}"${spelled}"`);
        scanner.load(bytes);
        scanner.hashedText(before + 1);
        const { lo, hi, check } = scanner;
        const hash = `${lo} ${hi} ${check}`;
        const other = seen.get(hash);
        expect(other ?? spelled).toBe(spelled);
        seen.set(hash, spelled);
        // The same bytes as a range.
        scanner.hashRange(before + 1, bytes.length - 1);
        expect([scanner.lo, scanner.hi, scanner.check]).toEqual([lo, hi, check]);
      }),
      { numRuns: 3_000 },
    );
    const lanes = [...seen.keys()].map((hash) => hash.split(" "));
    expect(seen.size).toBeGreaterThan(1_000);
    // No lane gives the difference away for most texts.
    for (const lane of [0, 1, 2]) {
      expect(new Set(lanes.map((hash) => hash[lane])).size).toBeGreaterThan(seen.size - 5);
    }
  });
});

test("keys give other hashes", () => {
  const other = new TextScanner(key.map((x) => x ^ 0x5bd1e995));
  for (const scanner of [scanners[0], other]) {
    scanner.load(encoder.encode('"some text of a prompt"'));
    scanner.hashedText(1);
  }
  expect([other.lo, other.hi, other.check]).not.toEqual([
    scanners[0].lo,
    scanners[0].hi,
    scanners[0].check,
  ]);
});
