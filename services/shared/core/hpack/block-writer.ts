import { encodeHuffman, huffmanBytes } from "./huffman.ts";
import { staticTable } from "./static-table.ts";

const exactIndex = new Map<string, number>();
const nameIndex = new Map<string, number>();
staticTable.forEach(([name, value], at) => {
  exactIndex.set(`${name}\n${value}`, at + 1);
  if (!nameIndex.has(name)) nameIndex.set(name, at + 1);
});

/** Most octets that an integer below 2^28 takes. */
const integerOctetsMax = 5;

class BlockWriter {
  readonly #bytes: Uint8Array;
  #length = 0;

  constructor(bytesMax: number) {
    this.#bytes = new Uint8Array(bytesMax);
  }

  /** An integer whose prefix has the bits of `prefix`, the other bits of its first octet being `first`. */
  integer(first: number, prefix: number, value: number): void {
    if (value < prefix) {
      this.#bytes[this.#length++] = first | value;
      return;
    }
    this.#bytes[this.#length++] = first | prefix;
    let rest = value - prefix;
    for (; rest >= 0x80; rest >>>= 7) this.#bytes[this.#length++] = (rest & 0x7f) | 0x80;
    this.#bytes[this.#length++] = rest;
  }

  /** A string, Huffman-coded where that is shorter. */
  string(text: string): void {
    const coded = huffmanBytes(text);
    if (coded < text.length) {
      this.integer(0x80, 0x7f, coded);
      this.#length = encodeHuffman(text, this.#bytes, this.#length);
      return;
    }
    this.integer(0, 0x7f, text.length);
    for (let i = 0; i < text.length; i++) this.#bytes[this.#length++] = text.charCodeAt(i);
  }

  take(): Uint8Array {
    return this.#bytes.slice(0, this.#length);
  }
}

/**
 * Encodes a header block without the dynamic table: static entries by index, all else as literals that nobody
 * indexes. Such a block can be written once and sent on any connection, which is how responses are sent. Strings
 * hold one octet per character.
 */
export function encodeHeaderBlock(
  fields: readonly (readonly [name: string, value: string])[],
): Uint8Array {
  let bytesMax = 0;
  for (const [name, value] of fields) bytesMax += name.length + value.length + 3 * integerOctetsMax;
  const writer = new BlockWriter(bytesMax);
  for (const [name, value] of fields) {
    const exact = exactIndex.get(`${name}\n${value}`);
    if (exact !== undefined) {
      writer.integer(0x80, 0x7f, exact);
      continue;
    }
    const index = nameIndex.get(name) ?? 0;
    writer.integer(0, 0x0f, index);
    if (index === 0) writer.string(name);
    writer.string(value);
  }
  return writer.take();
}
