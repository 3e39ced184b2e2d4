import { encodingCost } from "./encoding-cost.ts";
import type { AddedToken, EncodedText, PromptTokenizer } from "./model-runtime.ts";

/**
 * Text of one prompt that may be encoded at once, in bytes of ordinary text (see `encodingCost`): 5 ms of work at most,
 * more of which would keep other requests waiting.
 */
export const inlineCostMax = 40 << 10;

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
  }

  /** The text that is to be encoded elsewhere, as UTF-8, after `TokensAwaited`. */
  takeDeferred(): Uint8Array<ArrayBuffer> | undefined {
    const deferred = this.#deferred;
    this.begin();
    return deferred;
  }

  encode(text: string | Uint8Array): Uint32Array {
    return this.#encode(text, (inline) => inline.encode(text));
  }

  encodeScratch(text: Uint8Array): Uint32Array {
    return this.#encode(text, (inline) => inline.encodeScratch?.(text) ?? inline.encode(text));
  }

  #encode(
    text: string | Uint8Array,
    encode: (inline: PromptTokenizer) => Uint32Array,
  ): Uint32Array {
    if (text.length === 0) return new Uint32Array(0);
    const left = this.#costMax - this.#cost;
    if (this.#inline !== undefined && left > 0) {
      const cost = encodingCost(text, left);
      if (cost <= left) {
        this.#cost += cost;
        return encode(this.#inline);
      }
    }
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
