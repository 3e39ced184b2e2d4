import { FusedBpe } from "./fused-bpe.ts";
import { parseTokenizerJson } from "./tokenizer-json.ts";

/**
 * Builds a tokenizer from the bytes of a Hugging Face `tokenizer.json`. Takes a few hundred ms for a
 * vocabulary of 150 000: servers build the tables in a worker thread instead (`loadTokenizer`).
 * Throws `invalid_request` naming what is malformed or unsupported.
 */
export function buildTokenizer(tokenizerJson: Uint8Array): FusedBpe {
  return new FusedBpe(parseTokenizerJson(tokenizerJson));
}
