/**
 * `npm run nightly:tokenizer [-- --tokens 5000000 --model <tokenizer.json>]`: compares token ids with the
 * native `tokenizers` package over natural text, code and generated hard text, for the split rules of Qwen3,
 * Llama 3 and o200k, or for the given file alone. Ends with code 1 and the place of the first difference.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { buildTokenizer } from "../../services/shared/core/tokenizer/build-tokenizer.ts";
import { hardText } from "../support/hard-text.ts";
import {
  llama3Pattern,
  o200kPattern,
  preTokenizerOf,
  qwen3Json,
  TokenizerOracle,
} from "../support/tokenizer-oracle.ts";
import { repositoryRoot } from "./figures.ts";
import { NaturalText } from "./natural-text.ts";

const options = parseArgs({
  options: {
    tokens: { type: "string", default: "5000000" },
    seed: { type: "string", default: "1" },
    model: { type: "string" },
  },
}).values;
const seed = Number(options.seed);
const tokensWanted = Number(options.tokens);

function withPattern(pattern: string): Uint8Array {
  return qwen3Json({
    root: { normalizer: null, pre_tokenizer: preTokenizerOf(pattern) },
    model: { ignore_merges: true },
  });
}

const families: readonly (readonly [string, () => Uint8Array])[] =
  options.model === undefined
    ? [
        ["Qwen3", () => qwen3Json()],
        ["Llama 3 rules", () => withPattern(llama3Pattern)],
        ["o200k rules", () => withPattern(o200kPattern)],
      ]
    : [[options.model, () => readFileSync(options.model ?? "")]];

/** Every fifth text is generated: scripts, marks, emoji, spaces and control tokens in all neighbourhoods. */
function* texts(): Generator<string> {
  const natural = new NaturalText(join(repositoryRoot, "node_modules"), seed);
  for (let index = 0; ; index++) {
    const random = new SeededRandom(seed * 1_000_003 + index);
    yield index % 5 === 0 ? hardText(random, 400) : natural.take(1 + random.int(40_000));
  }
}

for (const [name, json] of families) {
  const ours = buildTokenizer(json());
  const oracle = new TokenizerOracle(json());
  const ordinaryOracle = oracle.withoutControlTokens();
  const counts = { natural: 0, generated: 0, asText: 0 };
  let index = 0;
  for (const text of texts()) {
    const generated = index++ % 5 === 0;
    counts[generated ? "generated" : "natural"] += await oracle.check(ours, text);
    // Users' text: control tokens in it are text.
    if (generated) {
      counts.asText += await ordinaryOracle.check(ours, text, { special: false });
    }
    if (counts.natural + counts.generated + counts.asText >= tokensWanted) break;
  }
  const parts = Object.entries(counts).map(
    ([kind, count]) => `${kind} ${count.toLocaleString("en-US")}`,
  );
  console.log(`${name}: equal ids, tokens: ${parts.join(", ")}`);
}
