import { charsByByte } from "../../shared/core/tokenizer/byte-level.ts";
import type { Tokenizer } from "../../shared/core/tokenizer/tokenizer.ts";

const wordPattern = /^ [a-z]{2,10}$/;

/** Ids of a vocabulary as bytes and text. Read-only after construction. */
export class Vocabulary {
  /** One more than the largest id. */
  readonly size: number;
  /** Ids that decode to a space and a lower-case word; what answers are made of. Never cut inside a character. */
  readonly words: Uint32Array;
  readonly #tokenizer: Tokenizer;
  readonly #texts = new Map<number, string>();

  /** Decodes every id once, about 50 ms for 150,000. */
  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
    this.size = tokenizer.vocabularySize;
    const words: number[] = [];
    for (let id = 0; id < this.size; id++) {
      const text = this.decode([id]);
      if (!wordPattern.test(text)) continue;
      words.push(id);
      this.#texts.set(id, text);
    }
    this.words = Uint32Array.from(words);
  }

  /** Id of a control token, or −1 when the text is not exactly one token. */
  idOf(text: string): number {
    const ids = this.#tokenizer.encode(text);
    return ids.length === 1 ? (ids[0] as number) : -1;
  }

  /** The token as `tokenizer.json` writes it, bytes as characters; empty for an unused id. */
  stringOf(id: number): string {
    let out = "";
    for (const byte of this.#bytesOf([id])) out += characters[byte] as string;
    return out;
  }

  /** Text of one token on its own; U+FFFD for the bytes of an incomplete character. */
  textOf(id: number): string {
    return this.#texts.get(id) ?? this.decode([id]);
  }

  /** Text of tokens, special tokens included; bytes that are no UTF-8 become U+FFFD, unused ids nothing. */
  decode(ids: readonly number[]): string {
    return Buffer.from(this.#bytesOf(ids)).toString();
  }

  #bytesOf(ids: readonly number[]): Uint8Array {
    try {
      return this.#tokenizer.decode(ids);
    } catch {
      // Vocabularies have gaps; an id without a token is nothing, as in the engine's own tokenizer.
      return ids.length === 1 ? nothing : Buffer.concat(ids.map((id) => this.#bytesOf([id])));
    }
  }
}

const nothing = new Uint8Array(0);
const characters = charsByByte();
