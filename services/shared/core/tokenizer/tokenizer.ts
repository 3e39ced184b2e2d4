/** Text to token ids and back, for one vocabulary. Not safe to share between threads. */
export interface Tokenizer {
  /** One more than the largest token id, added tokens included. */
  readonly vocabularySize: number;
  /**
   * Ids that the vocabulary's post-processor puts before a plain prompt (a begin-of-text token), empty
   * for most. `encode` does not add them: a chat template writes its own.
   */
  readonly prefixIds: readonly number[];
  /**
   * Token ids of `text` (a string, or its UTF-8 bytes; malformed bytes read as U+FFFD, as engines do
   * after parsing JSON). Lone surrogates of a string read as U+FFFD too.
   *
   * `special` (default true, as engines do) recognises control tokens such as `<|im_end|>` in the text;
   * false reads them as ordinary text. Added tokens that are not control tokens are recognised always.
   */
  encode(text: string | Uint8Array, options?: EncodeOptions): Uint32Array;
  /** UTF-8 bytes of `ids`, control tokens included. Throws `invalid_request` for an id without a token. */
  decode(ids: ArrayLike<number>): Uint8Array;
}

/** Options of one `encode` call. */
export interface EncodeOptions {
  /** Whether control tokens in the text are recognised; default true. */
  readonly special?: boolean;
}
