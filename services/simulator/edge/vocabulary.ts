/** What of `tokenizer.json` (Hugging Face, byte-level BPE) is needed to turn ids into text. */
interface TokenizerJson {
  readonly model: { readonly type: string; readonly vocab: Readonly<Record<string, number>> };
  readonly added_tokens: readonly { readonly id: number; readonly content: string }[];
}

/** Byte of each character that byte-level BPE writes bytes as (GPT-2's table). */
function byteOfCharacter(): Map<number, number> {
  const table = new Map<number, number>();
  let extra = 0;
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
    table.set(printable ? byte : 256 + extra++, byte);
  }
  return table;
}

const wordPattern = /^Ġ[a-z]{2,10}$/;

/** Ids of a vocabulary as bytes and text. Read-only after construction. */
export class Vocabulary {
  /** One more than the largest id. */
  readonly size: number;
  /** Ids that decode to a space and a lower-case English-looking word; what answers are made of. */
  readonly words: Uint32Array;
  /** Token strings as `tokenizer.json` writes them. */
  readonly #strings: string[] = [];
  readonly #ids: ReadonlyMap<string, number>;
  readonly #characters = byteOfCharacter();
  readonly #texts = new Map<number, string>();
  readonly #special = new Set<number>();

  /** Parses `tokenizer.json`. Throws for another model type than byte-level BPE. */
  constructor(json: Uint8Array) {
    const parsed = JSON.parse(Buffer.from(json).toString()) as TokenizerJson;
    if (parsed.model.type !== "BPE") {
      throw new Error(`tokenizer.json: model type ${parsed.model.type} is not supported, only BPE`);
    }
    const ids = new Map<string, number>();
    const words: number[] = [];
    for (const [text, id] of Object.entries(parsed.model.vocab)) {
      this.#strings[id] = text;
      ids.set(text, id);
      if (wordPattern.test(text)) words.push(id);
    }
    for (const { id, content } of parsed.added_tokens) {
      this.#strings[id] = content;
      ids.set(content, id);
      this.#special.add(id);
    }
    this.size = this.#strings.length;
    this.#ids = ids;
    this.words = Uint32Array.from(words.sort((a, b) => a - b));
  }

  /** Id of a token string, or undefined. */
  idOf(text: string): number | undefined {
    return this.#ids.get(text);
  }

  /** The token as `tokenizer.json` writes it; empty for an unused id. */
  stringOf(id: number): string {
    return this.#strings[id] ?? "";
  }

  /** The bytes of one token. */
  bytesOf(id: number): Buffer {
    const text = this.stringOf(id);
    if (this.#special.has(id)) return Buffer.from(text);
    const bytes = Buffer.alloc(text.length);
    let count = 0;
    for (let i = 0; i < text.length; i++) {
      const byte = this.#characters.get(text.charCodeAt(i));
      if (byte !== undefined) bytes[count++] = byte;
    }
    return bytes.subarray(0, count);
  }

  /** Text of one token on its own; U+FFFD for the bytes of an incomplete character. Remembered for `words`. */
  textOf(id: number): string {
    let text = this.#texts.get(id);
    if (text === undefined) {
      text = this.bytesOf(id).toString();
      // Answers draw from `words` alone, so this stays as small as that list.
      if (this.#texts.size < this.words.length) this.#texts.set(id, text);
    }
    return text;
  }

  /** Text of tokens, special tokens included; bytes that are no UTF-8 become U+FFFD. */
  decode(tokens: Iterable<number>): string {
    const parts: Buffer[] = [];
    for (const token of tokens) parts.push(this.bytesOf(token));
    return Buffer.concat(parts).toString();
  }
}
