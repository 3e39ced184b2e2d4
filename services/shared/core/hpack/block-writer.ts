import { encodeHuffman, huffmanBytes } from "./huffman.ts";
import { staticTable } from "./static-table.ts";

const exactIndex = new Map<string, number>();
const nameIndex = new Map<string, number>();
staticTable.forEach(([name, value], at) => {
  exactIndex.set(`${name}\n${value}`, at + 1);
  if (!nameIndex.has(name)) nameIndex.set(name, at + 1);
});

function writeInteger(out: number[], first: number, prefix: number, value: number): void {
  if (value < prefix) {
    out.push(first | value);
    return;
  }
  out.push(first | prefix);
  let rest = value - prefix;
  while (rest >= 0x80) {
    out.push((rest & 0x7f) | 0x80);
    rest >>>= 7;
  }
  out.push(rest);
}

function writeString(out: number[], text: string): void {
  const coded = huffmanBytes(text);
  if (coded < text.length) {
    writeInteger(out, 0x80, 0x7f, coded);
    const bytes = new Uint8Array(coded);
    encodeHuffman(text, bytes, 0);
    out.push(...bytes);
    return;
  }
  writeInteger(out, 0, 0x7f, text.length);
  for (let i = 0; i < text.length; i++) out.push(text.charCodeAt(i) & 255);
}

/**
 * Encodes a header block without the dynamic table: static entries by index, all else as literals that nobody
 * indexes. Such a block can be written once and sent on any connection, which is how responses are sent. Strings
 * hold one octet per character.
 */
export function encodeHeaderBlock(
  fields: readonly (readonly [name: string, value: string])[],
): Uint8Array {
  const out: number[] = [];
  for (const [name, value] of fields) {
    const exact = exactIndex.get(`${name}\n${value}`);
    if (exact !== undefined) {
      writeInteger(out, 0x80, 0x7f, exact);
      continue;
    }
    const index = nameIndex.get(name) ?? 0;
    writeInteger(out, 0, 0x0f, index);
    if (index === 0) writeString(out, name);
    writeString(out, value);
  }
  return Uint8Array.from(out);
}
