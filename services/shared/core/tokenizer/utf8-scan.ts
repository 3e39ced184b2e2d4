import { nfcSensitive } from "./unicode-classes.ts";

/** What a text needs before it can be split. */
export type TextForm = "ascii" | "plain" | "malformed" | "nfc_sensitive";

/**
 * Looks at UTF-8 bytes `[from, to)` once: only ASCII; well-formed; not well-formed (RFC 3629: overlong
 * forms, surrogates, code points past U+10FFFF, cut sequences); or well-formed with code points that
 * may differ from their NFC form. `words` is the same memory as `bytes`, four bytes at a time.
 */
export function scanUtf8(
  text: { readonly bytes: Uint8Array; readonly words: Int32Array },
  from: number,
  to: number,
  classTable: Uint8Array,
): TextForm {
  const { bytes, words } = text;
  let flags = 0;
  let ascii = true;
  let at = from;
  while (at < to) {
    if ((at & 3) === 0) {
      const wordsEnd = to >> 2;
      let word = at >> 2;
      while (word < wordsEnd && ((words[word] as number) & 0x80808080) === 0) word++;
      at = word << 2;
      if (at >= to) break;
    }
    const lead = bytes[at] as number;
    if (lead < 0x80) {
      at++;
      continue;
    }
    ascii = false;
    const size = sequenceSize(bytes, at, to);
    if (size === 0) return "malformed";
    const code = decodeAt(bytes, at);
    if (code < classTable.length) flags |= classTable[code] as number;
    at += size;
  }
  if (ascii) return "ascii";
  return (flags & nfcSensitive) === 0 ? "plain" : "nfc_sensitive";
}

/** Size of the well-formed sequence at a byte ≥ 0x80, or 0 (Unicode table 3-7). */
function sequenceSize(bytes: Uint8Array, at: number, to: number): number {
  const lead = bytes[at] as number;
  const size = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  if (size === 0 || at + size > to) return 0;
  const second = bytes[at + 1] as number;
  const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
  const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
  if (second < low || second > high) return 0;
  for (let i = 2; i < size; i++) if (((bytes[at + i] as number) & 0xc0) !== 0x80) return 0;
  return size;
}

/** The code point of the well-formed multi-byte sequence at `at`. */
export function decodeAt(bytes: Uint8Array, at: number): number {
  const lead = bytes[at] as number;
  const second = (bytes[at + 1] as number) & 0x3f;
  if (lead < 0xe0) return ((lead & 0x1f) << 6) | second;
  const third = (bytes[at + 2] as number) & 0x3f;
  if (lead < 0xf0) return ((lead & 0x0f) << 12) | (second << 6) | third;
  return ((lead & 0x07) << 18) | (second << 12) | (third << 6) | ((bytes[at + 3] as number) & 0x3f);
}

/** Size of the sequence a lead byte ≥ 0x80 starts, for well-formed text. */
export function sizeFromLead(lead: number): number {
  return lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
}
