import { PromptText, type Part } from "./prompt-text.ts";
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
    if (parts.some((part) => part instanceof PromptText && !isReadAsBytes(part))) {
      return this.#tokenizer.encode(parts.map(characters).join(""));
    }
    let at = 0;
    for (const part of parts) {
      if (part instanceof PromptText) {
        const { spelled } = part;
        if (spelled === undefined) throw new Error("the text is of no request");
        this.#grow(at, spelled.at.end - spelled.at.start);
        at = unescape(spelled.bytes, spelled.at.start, spelled.at.end, this.#scratch, at);
      } else {
        this.#grow(at, 3 * part.length);
        at += this.#encoder.encodeInto(part, this.#scratch.subarray(at)).written;
      }
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

/** Whether a text can be taken from the body as bytes: it is spelled there, and no half surrogate pair is. */
function isReadAsBytes(text: PromptText): boolean {
  const { spelled } = text;
  return spelled !== undefined && !spelled.at.surrogates;
}

function sameParts(left: readonly Part[], right: readonly Part[]): boolean {
  if (left.length !== right.length) return false;
  for (let i = 0; i < left.length; i++) if (left[i] !== right[i]) return false;
  return true;
}

/** What stands for an escaped byte; others, such as a slash, stand for themselves. */
const unescaped = new Uint8Array(256).map((_, byte) => byte);
unescaped[0x62] = 0x08;
unescaped[0x66] = 0x0c;
unescaped[0x6e] = 0x0a;
unescaped[0x72] = 0x0d;
unescaped[0x74] = 0x09;

/**
 * Writes the text of a JSON string literal `[from, to)` as UTF-8 to `out` at `at`; returns where it ends. The literal is
 * well formed and spells no surrogates.
 */
export function unescape(
  bytes: Uint8Array,
  from: number,
  to: number,
  out: Uint8Array,
  at: number,
): number {
  let read = from;
  let write = at;
  while (read < to) {
    const byte = bytes[read++] as number;
    if (byte !== 0x5c) {
      out[write++] = byte;
      continue;
    }
    const escape = bytes[read++] as number;
    if (escape !== 0x75) {
      out[write++] = unescaped[escape] as number;
      continue;
    }
    let code = 0;
    for (let i = 0; i < 4; i++) code = 16 * code + hexDigit(bytes[read++] as number);
    if (code < 0x80) out[write++] = code;
    else if (code < 0x800) {
      out[write++] = 0xc0 | (code >> 6);
      out[write++] = 0x80 | (code & 0x3f);
    } else {
      out[write++] = 0xe0 | (code >> 12);
      out[write++] = 0x80 | ((code >> 6) & 0x3f);
      out[write++] = 0x80 | (code & 0x3f);
    }
  }
  return write;
}

function hexDigit(byte: number): number {
  return byte <= 0x39 ? byte - 0x30 : (byte | 0x20) - 0x57;
}
