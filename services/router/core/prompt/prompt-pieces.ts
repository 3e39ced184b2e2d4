import { PromptText, type PiecePart } from "./prompt-text.ts";
import type { PromptTokenizer } from "./model-runtime.ts";
import type { TokenRing } from "./token-ring.ts";

/** Most variants of a piece that are remembered with one text. */
const piecesPerTextMax = 16;
/** Most pieces without a text of a request that are remembered, and the largest of them together, UTF-16 units. */
const plainPiecesMax = 4096;
const plainSizeMax = 8 << 20;
/** Most strings of templates whose bytes are remembered, and the longest of them, UTF-16 units. */
const spelledMax = 512;
const spelledSizeMax = 256;

/**
 * Token ids of pieces: what lies between two added tokens. They are remembered with the first text of a request in them,
 * or by themselves when they have none. Ids are given in memory that is used again.
 */
export class PromptPieces {
  readonly #tokenizer: PromptTokenizer;
  readonly #tokens: TokenRing;
  readonly #encoder = new TextEncoder();
  readonly #plain = new Map<string, Uint32Array>();
  #plainSize = 0;
  readonly #spelled = new Map<string, Uint8Array>();
  #scratch = new Uint8Array(1 << 16);

  /** `tokens`: where the ids of texts are kept. */
  constructor(tokenizer: PromptTokenizer, tokens: TokenRing) {
    this.#tokenizer = tokenizer;
    this.#tokens = tokens;
  }

  /** Token ids of a piece, given as parts without added tokens that the template spells. */
  ids(parts: readonly PiecePart[]): Uint32Array {
    for (const part of parts) if (part instanceof PromptText) return this.#idsOf(part, parts);
    return this.#plainIds(parts as readonly string[]);
  }

  #idsOf(anchor: PromptText, parts: readonly PiecePart[]): Uint32Array {
    for (const piece of anchor.pieces) {
      if (!sameParts(piece.parts, parts)) continue;
      const known = this.#tokens.get(piece.place, piece.count);
      if (known !== undefined) return known;
      const ids = this.#encode(parts);
      piece.place = this.#tokens.put(ids);
      return ids;
    }
    const ids = this.#encode(parts);
    if (anchor.pieces.length < piecesPerTextMax) {
      anchor.learn({ parts: [...parts], place: this.#tokens.put(ids), count: ids.length });
    }
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

  #encode(parts: readonly PiecePart[]): Uint32Array {
    const tokenizer = this.#tokenizer;
    let at = 0;
    for (const part of parts) {
      const bytes = typeof part === "string" ? this.#bytesOf(part) : part.utf8();
      // Half a surrogate pair has no UTF-8.
      if (bytes === undefined) return tokenizer.encode(parts.map(characters).join(""));
      // By itself it is not copied.
      if (parts.length === 1) return encoded(tokenizer, bytes);
      this.#grow(at, bytes.length);
      this.#scratch.set(bytes, at);
      at += bytes.length;
    }
    return encoded(tokenizer, this.#scratch.subarray(0, at));
  }

  #bytesOf(text: string): Uint8Array {
    const known = this.#spelled.get(text);
    if (known !== undefined) return known;
    const bytes = this.#encoder.encode(text);
    if (text.length <= spelledSizeMax && this.#spelled.size < spelledMax) {
      this.#spelled.set(text, bytes);
    }
    return bytes;
  }

  #grow(used: number, more: number): void {
    if (used + more <= this.#scratch.length) return;
    const larger = new Uint8Array(Math.max(used + more, 2 * this.#scratch.length));
    larger.set(this.#scratch.subarray(0, used));
    this.#scratch = larger;
  }
}

function encoded(tokenizer: PromptTokenizer, bytes: Uint8Array): Uint32Array {
  return tokenizer.encodeScratch?.(bytes) ?? tokenizer.encode(bytes);
}

function characters(part: PiecePart): string {
  return typeof part === "string" ? part : part.string();
}

function sameParts(left: readonly PiecePart[], right: readonly PiecePart[]): boolean {
  if (left.length !== right.length) return false;
  for (let i = 0; i < left.length; i++) if (left[i] !== right[i]) return false;
  return true;
}
