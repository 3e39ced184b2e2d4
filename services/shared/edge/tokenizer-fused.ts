import { randomFillSync } from "node:crypto";
import { shareInPieces } from "./tokenizer-loader.ts";
import { TokenizerThread, type TokenizerThreadLimits } from "./tokenizer-thread.ts";
import type { TokenizerJob } from "./tokenizer-worker.ts";

/**
 * The fused tokenizer of a `tokenizer.json` once more, in a thread for texts that would keep the event loop too long; gives
 * the same ids. The thread starts with its first text, within 0.2 s when its tables are in `cacheFolder`, else in about
 * a second. Memory: the file, and from its first text on about 60 MB more (tables, learned words, the thread).
 */
export async function fusedThread(
  json: Uint8Array,
  options: { readonly cacheFolder: string; readonly limits?: Partial<TokenizerThreadLimits> },
): Promise<TokenizerThread> {
  const job: TokenizerJob = {
    json: await shareInPieces(json),
    hashKey: randomFillSync(new Int32Array(4)),
    cacheFolder: options.cacheFolder,
  };
  const module = new URL("./tokenizer-fused-worker.ts", import.meta.url);
  return new TokenizerThread({ module, job, name: "tokenizer-fused" }, options.limits);
}
