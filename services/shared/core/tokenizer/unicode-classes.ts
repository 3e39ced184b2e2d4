import { inertRanges, smallRanges, unassignedRanges } from "./reference-unicode.ts";

/** Class of a code point for word splitting; the low three bits of an entry of the class table. */
export const CharClass = {
  /** Punctuation, symbols, marks, controls, unassigned. */
  other: 0,
  /** Unicode general category L. */
  letter: 1,
  /** Unicode general category N. */
  number: 2,
  /** White space except carriage return and line feed. */
  space: 3,
  /** Carriage return or line feed. */
  newline: 4,
} as const;

/** Mask of the class in an entry of the class table. */
export const classMask = 7;

/**
 * Set on a code point that can make a text differ from its NFC form: it composes with what stands
 * before it, has another canonical form, or has a combining class and may have to be reordered. A text
 * without any is already in NFC (Unicode Annex 15, quick check).
 */
export const nfcSensitive = 8;

/** Set on what can be among the capital letters of an o200k word: categories Lu, Lt, Lm, Lo and M. */
export const upperCase = 16;

/** Set on what can be among the small letters of an o200k word: categories Ll, Lm, Lo and M. */
export const lowerCase = 32;

/** Code points covered: planes 0 to 3. Higher planes hold no letter, number, space or composition. */
export const classTableSize = 0x40000;

/**
 * White_Space of Unicode. JavaScript's `\s` has U+FEFF in addition and lacks U+0085; the regular
 * expression engines that define these vocabularies follow the property.
 */
const spaces = [
  0x09, 0x0b, 0x0c, 0x20, 0x85, 0xa0, 0x1680, 0x2000, 0x2001, 0x2002, 0x2003, 0x2004, 0x2005,
  0x2006, 0x2007, 0x2008, 0x2009, 0x200a, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000,
];

/** The class and NFC flag of each code point of planes 0 to 3, from the runtime's Unicode data, as
 * old as the reference's; ≈ 50 ms. */
export function buildClassTable(): Uint8Array<ArrayBuffer> {
  const table = new Uint8Array(classTableSize);
  for (let plane = 0; plane < classTableSize; plane += 0x10000) {
    let text = "";
    for (let at = plane; at < plane + 0x10000; at += 0x1000) {
      const codes = Array.from({ length: 0x1000 }, (_, i) => (isSurrogate(at + i) ? 0 : at + i));
      text += String.fromCodePoint(...codes);
    }
    const unitsPerCode = plane === 0 ? 1 : 2;
    const both = upperCase | lowerCase;
    const classes = [
      [/\p{N}+/gu, CharClass.number],
      [/[\p{Lu}\p{Lt}]+/gu, CharClass.letter | upperCase],
      [/\p{Ll}+/gu, CharClass.letter | lowerCase],
      [/[\p{Lm}\p{Lo}]+/gu, CharClass.letter | both],
      [/\p{M}+/gu, CharClass.other | both],
    ] as const;
    for (const [pattern, value] of classes) {
      mark(table, text, pattern, { plane, unitsPerCode, value });
    }
  }
  for (const [from, to] of unassignedRanges) table.fill(CharClass.other, from, to + 1);
  for (const [from, to] of smallRanges) table.fill(CharClass.letter | lowerCase, from, to + 1);
  for (const code of spaces) table[code] = CharClass.space;
  table[0x0a] = CharClass.newline;
  table[0x0d] = CharClass.newline;
  markNfcSensitive(table);
  for (const [from, to] of inertRanges) {
    for (let code = from; code <= to; code++) table[code] = (table[code] as number) & ~nfcSensitive;
  }
  return table;
}

function isSurrogate(code: number): boolean {
  return code >= 0xd800 && code < 0xe000;
}

function mark(
  table: Uint8Array,
  text: string,
  pattern: RegExp,
  where: { plane: number; unitsPerCode: number; value: number },
): void {
  for (const match of text.matchAll(pattern)) {
    const from = where.plane + match.index / where.unitsPerCode;
    table.fill(where.value, from, from + match[0].length / where.unitsPerCode);
  }
}

function markNfcSensitive(table: Uint8Array): void {
  const flag = (code: number): void => {
    table[code] = (table[code] as number) | nfcSensitive;
  };
  for (let page = 0; page < classTableSize; page += 0x100) {
    if (isSurrogate(page)) continue;
    const codes = Array.from({ length: 0x100 }, (_, i) => page + i);
    const text = String.fromCodePoint(...codes);
    // A page without decompositions, reorderings and marks has nothing to flag by itself.
    if (text.normalize("NFD") === text && !/\p{M}/u.test(text)) continue;
    for (const code of codes) {
      const char = String.fromCodePoint(code);
      const decomposed = char.normalize("NFD");
      if (char.normalize("NFC") !== char || hasCombiningClass(char, decomposed)) flag(code);
      if (decomposed === char) continue;
      // Everything but the first part of a composition may compose with what stands before it.
      for (const part of Array.from(decomposed).slice(1)) flag(part.codePointAt(0) as number);
    }
  }
}

/** Whether canonical ordering moves `char` past a mark of class 1 or one of class 240. */
function hasCombiningClass(char: string, decomposed: string): boolean {
  if (!/\p{M}/u.test(char)) return false;
  return (
    (char + "\u0334").normalize("NFD") !== decomposed + "\u0334" ||
    ("\u0345" + char).normalize("NFD") !== "\u0345" + decomposed
  );
}
