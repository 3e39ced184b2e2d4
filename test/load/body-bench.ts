/**
 * `npm run bench -- body [--sizes 4,64,220,512 (KB)] [--rounds 7] [--json]`: CPU from the bytes of a chat to its tokens
 * and block hashes, µs per body, in turns with what it replaces, in one process. Bodies are those of the router's
 * benchmark: most of their bytes have been in an earlier one, a fifth is new.
 *
 * "new" takes each body once, in order, as a router meets it that has run for a while; "seen" takes the same ones again, so
 * that nothing is rendered or tokenised; "scan" is the part of both that reads the bytes. "parsed and rendered" is the path
 * through the full parser and the template library. Besides the median the best round is told: it has the fewest of the
 * disturbances that other programs cause.
 */
import { isUtf8 } from "node:buffer";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { BodyReader } from "../../services/router/core/openai/body-reader.ts";
import { readOpenAiRequest } from "../../services/router/core/openai/openai-request.ts";
import { ChatReader } from "../../services/router/core/prompt/chat-reader.ts";
import type { ModelRuntime } from "../../services/router/core/prompt/model-runtime.ts";
import { PromptCache } from "../../services/router/core/prompt/prompt-cache.ts";
import { readPrompt } from "../../services/router/core/prompt/read-prompt.ts";
import { hashRoot } from "../../services/shared/core/block-hash.ts";
import { ChatTemplate } from "../../services/shared/core/chat-template.ts";
import { buildTokenizer } from "../../services/shared/core/tokenizer/build-tokenizer.ts";
import { ChatPrompts } from "./chat-prompts.ts";
import { describeMachine, machineFacts, median, repositoryRoot, shown } from "./figures.ts";
import { NaturalText } from "./natural-text.ts";
import { modelFolder, modelTokens, readChatTemplate } from "./scripted-members.ts";

const options = parseArgs({
  options: {
    sizes: { type: "string", default: "4,64,220,512" },
    rounds: { type: "string", default: "7" },
    json: { type: "boolean", default: false },
  },
}).values;
const rounds = Number(options.rounds);
const path = "/v1/chat/completions";
const blockSizeTokens = 32;
/** Bytes of bodies per size and round. */
const bytesPerRound = 6e6;
/** The replaced path takes one of so many bodies. */
const replacedEvery = 8;

const machine = machineFacts();
const tokenizer = buildTokenizer(readFileSync(join(modelFolder, "tokenizer.json")));
const template = new ChatTemplate(readChatTemplate(), modelTokens);
const text = new NaturalText(join(repositoryRoot, "node_modules"), 7);
const key = crypto.getRandomValues(new Int32Array(8));
const bodies = new BodyReader({ key, isUtf8 });
const cache = new PromptCache({ bytesMax: 48 << 20 });
const rendering: ModelRuntime = {
  tokenizer,
  unsupported: false,
  template,
  addsSpecialTokens: false,
  root: hashRoot(new Uint8Array(32).fill(1), { model: "m" }),
};
/** Bytes of bodies that warm the code up, and the caches. */
const bytesBefore = 24e6;
/** Another domain of the cache for each size, so that it begins with nothing seen. */
let domains = 0;

function freshRuntime(): { readonly runtime: ModelRuntime; readonly chats: ChatReader } {
  const chats = new ChatReader({
    syntax: template.syntax,
    contentFormat: template.contentFormat,
    specialTokens: template.specialTokens,
    tokenizer,
    addedTokens: tokenizer.addedTokens(),
    cache,
    chainBytesMax: 16 << 20,
    domain: domains++,
  });
  return { runtime: { ...rendering, chats }, chats };
}

/** µs of CPU per call, over all items. */
function cost<T>(items: readonly T[], run: (item: T) => void): number {
  const before = process.cpuUsage();
  for (const item of items) run(item);
  const { user, system } = process.cpuUsage(before);
  return (user + system) / items.length;
}

const columns = ["scan", "seen", "new", "JSON.parse", "parse", "parsed and rendered"] as const;
type Figures = Record<(typeof columns)[number], number>;

interface Sizes {
  readonly messages: number;
  readonly unseenShare: number;
}

function measure(kilobytes: number): { median: Figures; best: Figures } & Sizes {
  const bodyBytes = kilobytes * 1024;
  const prompts = new ChatPrompts(text, { bodyBytes, seed: 1 });
  const { runtime, chats } = freshRuntime();
  const read = (body: Uint8Array): number => {
    const { prompt } = bodies.read(path, body);
    return readPrompt(prompt, body.length, runtime, blockSizeTokens).tokens;
  };
  for (let bytes = 0; bytes < bytesBefore; bytes += bodyBytes) read(prompts.next().body);
  const samples: Figures[] = [];
  let messages = 0;
  let unseenBytes = 0;
  let allBytes = 0;
  for (let round = 0; round < rounds; round++) {
    const count = Math.max(12, Math.round(bytesPerRound / bodyBytes));
    const all = Array.from({ length: count }, () => prompts.next());
    messages = median(all.map((prompt) => prompt.turns.length));
    for (const prompt of all) {
      unseenBytes += prompt.unseenBytes;
      allBytes += prompt.body.length;
    }
    const items = all.map((prompt) => prompt.body);
    const some = items.filter((_, i) => i % replacedEvery === 0);
    samples.push({
      new: cost(items, read),
      seen: cost(items, read),
      scan: cost(items, (body) => bodies.read(path, body)),
      "JSON.parse": cost(some, (body) => JSON.parse(body.toString()) as unknown),
      parse: cost(some, (body) => readOpenAiRequest(path, body)),
      "parsed and rendered": cost(some, (body) => {
        const { prompt } = readOpenAiRequest(path, body);
        readPrompt(prompt, body.length, rendering, blockSizeTokens);
      }),
    });
  }
  if (chats.figures.left > 0) throw new Error("chats were left to the template library");
  const over = (pick: (values: readonly number[]) => number): Figures =>
    Object.fromEntries(
      columns.map((name) => [name, pick(samples.map((sample) => sample[name]))]),
    ) as Figures;
  const best = over((values) => Math.min(...values));
  return { median: over(median), best, messages, unseenShare: unseenBytes / allBytes };
}

const results = options.sizes.split(",").map((size) => ({
  kilobytes: Number(size),
  ...measure(Number(size)),
}));
if (options.json) console.log(JSON.stringify({ machine, results }));
else {
  console.log(describeMachine(machine));
  console.log(`µs of CPU per body, medians of ${String(rounds)} rounds (best round)\n`);
  console.log(["size", "messages", "never seen", ...columns].join(" | "));
  for (const result of results) {
    const cells = columns.map(
      (name) => `${shown(result.median[name])} (${shown(result.best[name])})`,
    );
    const share = `${(100 * result.unseenShare).toFixed(0)} %`;
    console.log([`${result.kilobytes} KB`, result.messages, share, ...cells].join(" | "));
  }
}
