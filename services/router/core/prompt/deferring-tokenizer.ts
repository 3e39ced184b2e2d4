import { encodingCost } from "./encoding-cost.ts";
import type { AddedToken, EncodedText, PromptTokenizer } from "./model-runtime.ts";

/**
 * Text of one prompt that may be encoded at once, in bytes of ordinary text (see `encodingCost`), and words in it that may have to
 * be merged: about 5 ms of work together, more of which would keep other requests waiting.
 */
export const inlineCostMax = 128 << 10;
export const inlineMergesMax = 3_000;

/** Thrown when a prompt cannot be read yet: one of its texts is to be encoded elsewhere first. */
export class TokensAwaited extends Error {}

const tokensAwaited = new TokensAwaited("a text is encoded elsewhere first");

/**
 * A tokenizer that encodes at once what costs little and puts off the rest, to be encoded elsewhere. Reading a prompt then
 * fails with `TokensAwaited`; it is read again when the ids have come, given to `begin`. A prompt with several such texts
 * is read once more for each.
 */
export class DeferringTokenizer implements PromptTokenizer {
  readonly tokenSizeMax: number;
  readonly addedTokens?: () => readonly AddedToken[];
  readonly #inline: PromptTokenizer | undefined;
  readonly #costMax: number;
  readonly #encoder = new TextEncoder();
  #given: readonly EncodedText[] = [];
  #deferred: Uint8Array<ArrayBuffer> | undefined;
  #cost = 0;
  #merges = 0;

  /** `inline` encodes at once; without it every text is encoded elsewhere. */
  constructor(inline: PromptTokenizer | undefined, costMax = inlineCostMax) {
    this.#inline = inline;
    this.#costMax = costMax;
    this.tokenSizeMax = inline?.tokenSizeMax ?? 0;
    const added = inline?.addedTokens?.bind(inline);
    if (added !== undefined) this.addedTokens = added;
  }

  /** Begins another prompt; `given` are those of its texts that have been encoded elsewhere. */
  begin(given: readonly EncodedText[] = []): void {
    this.#given = given;
    this.#deferred = undefined;
    this.#cost = 0;
    this.#merges = 0;
  }

  /** The text that is to be encoded elsewhere, as UTF-8, after `TokensAwaited`. */
  takeDeferred(): Uint8Array<ArrayBuffer> | undefined {
    const deferred = this.#deferred;
    this.begin();
    return deferred;
  }

  encode(text: string | Uint8Array): Uint32Array {
    return this.#inlined(text)?.slice() ?? this.#givenOrDeferred(text);
  }

  encodeScratch(text: string | Uint8Array): Uint32Array {
    return this.#inlined(text) ?? this.#givenOrDeferred(text);
  }

  /** The ids of a text that is encoded at once. */
  #inlined(text: string | Uint8Array): Uint32Array | undefined {
    if (text.length === 0) return new Uint32Array(0);
    const inline = this.#inline;
    const left = this.#costMax - this.#cost;
    const merges = inlineMergesMax - this.#merges;
    if (inline === undefined || left <= 0 || merges <= 0) return undefined;
    const cost = encodingCost(text, left);
    if (cost > left) return undefined;
    this.#cost += cost;
    if (inline.encodeScratch === undefined) return inline.encode(text);
    const before = inline.mergedWords ?? 0;
    const ids = inline.encodeScratch(text, merges);
    this.#merges += (inline.mergedWords ?? 0) - before;
    return ids;
  }

  #givenOrDeferred(text: string | Uint8Array): Uint32Array {
    // A copy: the caller's bytes lie in memory that is used again.
    const bytes = typeof text === "string" ? this.#encoder.encode(text) : new Uint8Array(text);
    const given = this.#given.find((one) => isSame(one.text, bytes));
    if (given !== undefined) return given.ids;
    this.#deferred = bytes;
    throw tokensAwaited;
  }
}

/** Compared by words of four bytes; both lie at the start of buffers of their own. */
function isSame(left: Uint8Array, right: Uint8Array): boolean {
  const { length } = left;
  if (length !== right.length) return false;
  const count = length >> 2;
  const a = new Int32Array(left.buffer, left.byteOffset, count);
  const b = new Int32Array(right.buffer, right.byteOffset, count);
  for (let i = 0; i < count; i++) if (a[i] !== b[i]) return false;
  for (let i = 4 * count; i < length; i++) if (left[i] !== right[i]) return false;
  return true;
}
