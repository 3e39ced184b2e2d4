import { PromptText, type PiecePart } from "./prompt-text.ts";
import type { PromptTokenizer } from "./model-runtime.ts";

/** Most variants of a piece that are remembered with one text. */
const piecesPerTextMax = 16;
/** Most pieces without a text of a request that are remembered, and the largest of them together, UTF-16 units. */
const plainPiecesMax = 4096;
const plainSizeMax = 8 << 20;

/**
 * Token ids of pieces: what lies between two added tokens. They are remembered with the first text of a request in them,
 * or by themselves when they have none.
 */
export class PromptPieces {
  readonly #tokenizer: PromptTokenizer;
  readonly #encoder = new TextEncoder();
  readonly #plain = new Map<string, Uint32Array>();
  #plainSize = 0;
  #scratch = new Uint8Array(1 << 16);

  constructor(tokenizer: PromptTokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** Token ids of a piece, given as parts without added tokens that the template spells. */
  ids(parts: readonly (PromptText | string)[]): Uint32Array {
    const anchor = parts.find((part) => part instanceof PromptText);
    if (anchor === undefined) return this.#plainIds(parts as readonly string[]);
    const known = anchor.pieces.find((piece) => sameParts(piece.parts, parts));
    if (known !== undefined) return known.ids;
    const ids = this.#encode(parts);
    if (anchor.pieces.length < piecesPerTextMax) anchor.learn({ parts: [...parts], ids });
    return ids;
  }

  #plainIds(parts: readonly string[]): Uint32Array {
    const text = parts.length === 1 ? (parts[0] as string) : parts.join("");
    const known = this.#plain.get(text);
    if (known !== undefined) return known;
    const ids = this.#tokenizer.encode(text);
    if (this.#plain.size >= plainPiecesMax || this.#plainSize + text.length > plainSizeMax) {
      this.#plain.clear();
      this.#plainSize = 0;
    }
    if (text.length <= plainSizeMax) {
      this.#plain.set(text, ids);
      this.#plainSize += text.length;
    }
    return ids;
  }

  #encode(parts: readonly (PromptText | string)[]): Uint32Array {
    let at = 0;
    for (const part of parts) {
      if (typeof part === "string") {
        this.#grow(at, 3 * part.length);
        at += this.#encoder.encodeInto(part, this.#scratch.subarray(at)).written;
        continue;
      }
      const bytes = part.utf8();
      if (bytes === undefined) return this.#tokenizer.encode(parts.map(characters).join(""));
      this.#grow(at, bytes.length);
      this.#scratch.set(bytes, at);
      at += bytes.length;
    }
    return this.#tokenizer.encode(this.#scratch.subarray(0, at));
  }

  #grow(used: number, more: number): void {
    if (used + more <= this.#scratch.length) return;
    const larger = new Uint8Array(Math.max(used + more, 2 * this.#scratch.length));
    larger.set(this.#scratch.subarray(0, used));
    this.#scratch = larger;
  }
}

function characters(part: PromptText | string): string {
  return typeof part === "string" ? part : part.string();
}

function sameParts(left: readonly PiecePart[], right: readonly PiecePart[]): boolean {
  if (left.length !== right.length) return false;
  for (let i = 0; i < left.length; i++) if (left[i] !== right[i]) return false;
  return true;
}
