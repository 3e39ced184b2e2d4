import type { SeededRandom } from "../../services/shared/core/random.ts";

/** Code points of many scripts: Latin, marks, Greek, Cyrillic, Hebrew, Arabic, Indic, Hangul, kana, CJK, emoji. */
const ranges: readonly (readonly [number, number])[] = [
  [0x20, 0x7f], [0x20, 0x7f], [0xa0, 0x250], [0x300, 0x36f], [0x370, 0x530], [0x590, 0x700],
  [0x900, 0xe80], [0x1100, 0x1200], [0x1e00, 0x2100], [0x2000, 0x2070], [0x3000, 0x3100],
  [0x4e00, 0x9fff], [0xac00, 0xd7a3], [0xfb00, 0xfe00], [0x1f300, 0x1f700], [0x1d400, 0x1d800],
  [0x10000, 0x11000], [0x20000, 0x20500], [0xe0100, 0xe01f0],
]; // prettier-ignore

/** What stands between runs: each kind of boundary, and texts that matter to a tokenizer. */
const glue = [
  "", "", "", " ", "  ", "\n", "\r\n", "\n\n  ", "\t", "7", "1234", "'s", "'LL", "/", "//\n", "\u3000",
  "<|im_end|>", "<|im_start|>user\n", "<|endoftext|>", "<think>", "<|im_", "👨‍👩‍👧‍👦", "❤️", "🇩🇪", "e\u0301", "ﬁ",
]; // prettier-ignore

/** `runs` short runs of one script each with boundaries between them. */
export function hardText(random: SeededRandom, runs: number): string {
  let text = "";
  for (let run = 0; run < runs; run++) {
    const [from, to] = ranges[random.int(ranges.length)] as readonly [number, number];
    for (let length = random.int(12); length >= 0; length--) {
      text += String.fromCodePoint(from + random.int(to - from));
    }
    text += glue[random.int(glue.length)] ?? "";
  }
  return text;
}
