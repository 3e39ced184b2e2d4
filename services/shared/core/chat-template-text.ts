/** White space as Python's `str.strip` has it: JavaScript's without U+FEFF, and five controls more. */
const pythonSpace = String.raw`[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+`;
const spaceAtStart = new RegExp(`^${pythonSpace}`, "u");
const spaceAtEnd = new RegExp(`${pythonSpace}$`, "u");

/** The ends of a text that are stripped. */
export type StrippedEnds = "strip" | "lstrip" | "rstrip";

/**
 * `text.strip(characters)` of Python, and its one-sided forms: without any of these characters, or without white space, at
 * both ends, the start or the end.
 */
export function strip(text: string, ends: StrippedEnds, characters?: string): string {
  let from = 0;
  let to = text.length;
  if (characters === undefined) {
    if (ends !== "rstrip") from = spaceAtStart.exec(text)?.[0].length ?? 0;
    // A run of white space in the middle is not looked at twice: the end is found backwards.
    if (ends !== "lstrip") while (to > from && spaceAtEnd.test(text.charAt(to - 1))) to--;
    return text.slice(from, to);
  }
  // Nothing outside the first plane has half of it stripped.
  const stripped = new Set(characters);
  if (ends !== "rstrip") {
    for (const character of text) {
      if (!stripped.has(character)) break;
      from += character.length;
    }
  }
  if (ends !== "lstrip") {
    while (to > from) {
      const character = lastCharacter(text, to);
      if (!stripped.has(character)) break;
      to -= character.length;
    }
  }
  return text.slice(from, to);
}

function lastCharacter(text: string, to: number): string {
  const pair = text.slice(Math.max(0, to - 2), to);
  return pair.length === 2 && (pair.codePointAt(0) ?? 0) > 0xffff ? pair : text.charAt(to - 1);
}
