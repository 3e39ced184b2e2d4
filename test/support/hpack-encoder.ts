import { staticTable } from "../../services/shared/core/hpack/static-table.ts";
import { encodeHuffman, huffmanBytes } from "../../services/shared/core/hpack/huffman.ts";

/** How a field is written. `indexed` falls back to `incremental` when no table has the field. */
export type Representation = "indexed" | "incremental" | "unindexed" | "never";

/** One field and how to write it. */
export interface WrittenField {
  readonly name: string;
  readonly value: string;
  readonly as: Representation;
  readonly isHuffman: boolean;
  /** Whether a literal names a table entry when there is one. */
  readonly usesName: boolean;
}

/**
 * An encoder that uses everything HPACK has, with a dynamic table of its own kept as a plain list: the reference for
 * the decoder.
 */
export class ReferenceHpackEncoder {
  readonly #table: (readonly [name: string, value: string])[] = [];
  #sizeMax: number;

  constructor(sizeMax: number) {
    this.#sizeMax = sizeMax;
  }

  /** A block, with table size updates in front. */
  encode(fields: readonly WrittenField[], resizes: readonly number[] = []): Buffer {
    const out: number[] = [];
    for (const size of resizes) {
      this.#sizeMax = size;
      this.#evict();
      this.#integer(out, 0x20, 5, size);
    }
    for (const field of fields) this.#field(out, field);
    return Buffer.from(out);
  }

  #field(out: number[], { name, value, as, isHuffman, usesName }: WrittenField): void {
    const all = [...staticTable, ...this.#table];
    if (as === "indexed") {
      const exact = all.findIndex((entry) => entry[0] === name && entry[1] === value);
      if (exact >= 0) {
        this.#integer(out, 0x80, 7, exact + 1);
        return;
      }
    }
    const index = usesName ? all.findIndex((entry) => entry[0] === name) + 1 : 0;
    if (as === "unindexed") this.#integer(out, 0, 4, index);
    else if (as === "never") this.#integer(out, 0x10, 4, index);
    else this.#integer(out, 0x40, 6, index);
    if (index === 0) this.#string(out, name, isHuffman);
    this.#string(out, value, isHuffman);
    if (as === "unindexed" || as === "never") return;
    this.#table.unshift([name, value]);
    this.#evict();
  }

  #evict(): void {
    const size = (): number =>
      this.#table.reduce((sum, [n, v]) => sum + n.length + v.length + 32, 0);
    while (size() > this.#sizeMax) this.#table.pop();
  }

  #integer(out: number[], first: number, bits: number, value: number): void {
    const max = 2 ** bits - 1;
    if (value < max) {
      out.push(first | value);
      return;
    }
    out.push(first | max);
    let rest = value - max;
    for (; rest >= 128; rest = Math.floor(rest / 128)) out.push((rest % 128) | 128);
    out.push(rest);
  }

  #string(out: number[], text: string, isHuffman: boolean): void {
    if (isHuffman) {
      const coded = new Uint8Array(huffmanBytes(text));
      encodeHuffman(text, coded, 0);
      this.#integer(out, 0x80, 7, coded.length);
      out.push(...coded);
    } else {
      this.#integer(out, 0, 7, text.length);
      out.push(...Buffer.from(text, "latin1"));
    }
  }
}
