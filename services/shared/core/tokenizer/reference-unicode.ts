/**
 * Where the Unicode data of the reference implementation is older than the runtime's.
 *
 * Engines split and normalise with the `tokenizers` library. Its regular expressions know Unicode 16
 * and its NFC knows Unicode 10 (found by comparing every code point against release 0.23.2; facts of
 * the Unicode Character Database, https://www.unicode.org/ucd/). Text in scripts that are newer must be
 * cut as the engine cuts it, not as the newer standard says. The property tests compare again.
 */

function parse(ranges: string): readonly (readonly [number, number])[] {
  return ranges.split(" ").map((range) => {
    const [from = "", to = from] = range.split("-");
    return [Number.parseInt(from, 16), Number.parseInt(to, 16)] as const;
  });
}

/** Letters, numbers and marks added in Unicode 17: unassigned for the reference, so none of them. */
export const unassignedRanges = parse(
  "88f c5c cdc a7ce-a7cf a7d2 a7d4 a7f1 10940-10959 10ec5-10ec7 11db0-11ddb 11de0-11de9 " +
    "16ea0-16eb8 16ebb-16ed3 16ff2-16ff6 187f8-187ff 18d09-18d1e 18d80-18df2 1e6c0-1e6de " +
    "1e6e0-1e6e2 1e6e4-1e6e5 1e6e7-1e6ed 1e6f0-1e6f4 1e6fe-1e6ff 2b73a-2b73f 2cea2-2cead " +
    "323b0-33479 1acf-1add 1ae0-1aeb 10efa-10efb 11b60-11b67 1e6e3 1e6e6 1e6ee-1e6ef 1e6f5",
);

/** Letters that Unicode 17 made caseless; small ones for the reference. */
export const smallRanges = parse("295");

/**
 * Marks with a combining class, and parts and results of compositions, added after Unicode 10. For the
 * reference they have no class and compose with nothing.
 */
export const inertRanges = parse(
  "7fd 897-89f 8ca-8d3 9fe c3c d3b-d3c eba 1715 1abf-1add 1ae0-1aeb 1df6-1dfa a82c 105c9 105d2 " +
    "105da 105e4 10d24-10d27 10d69-10d6d 10eab-10eac 10efa-10efb 10efd-10eff 10f46-10f50 " +
    "10f82-10f85 11070 1133b 11380-113d0 1145e 11839-1183a 11930 11935 11938 1193d-1193e 11943 " +
    "119e0 11a34 11a47 11a99 11d42 11d44-11d45 11d97 11f41-11f42 1611e-1612f 16d63-16d6a " +
    "16ff0-16ff1 1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef 1e6e3 1e6e6 " +
    "1e6ee-1e6ef 1e6f5",
);

/** Longest stretches without an inert code point. */
const betweenInert = new RegExp(
  `[^${inertRanges.map(([from, to]) => `\\u{${from.toString(16)}}-\\u{${to.toString(16)}}`).join("")}]+`,
  "gu",
);

/** NFC as the reference implementation computes it. */
export function normaliseLikeReference(text: string): string {
  return text.replace(betweenInert, (part) => part.normalize("NFC"));
}
