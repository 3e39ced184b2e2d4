import { shareInPieces } from "./tokenizer-loader.ts";
import type { NativeTokenizerJob } from "./tokenizer-native-worker.ts";
import { TokenizerThread, type TokenizerThreadLimits } from "./tokenizer-thread.ts";

/**
 * Any tokenizer that the native `tokenizers` package reads, in one thread of its own: for vocabularies without a fused
 * tokenizer. Some 2 MB of text a second.
 */
export class NativeTokenizer extends TokenizerThread {
  /**
   * Opens the tokenizer of a `tokenizer.json`. Rejects with `invalid_request` when the package cannot
   * read it or is not installed, `cancelled` when `signal` aborts, `deadline_exceeded` after 60 s.
   */
  static async open(
    json: Uint8Array,
    options: {
      readonly signal?: AbortSignal;
      readonly limits?: Partial<TokenizerThreadLimits>;
    } = {},
  ): Promise<NativeTokenizer> {
    const job: NativeTokenizerJob = { json: await shareInPieces(json) };
    const module = new URL("./tokenizer-native-worker.ts", import.meta.url);
    const tokenizer = new NativeTokenizer(
      { module, job, name: "tokenizer-native" },
      options.limits,
    );
    await tokenizer.start(options.signal);
    return tokenizer;
  }
}
