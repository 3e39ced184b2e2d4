import { StringDecoder } from "node:string_decoder";

const words = ["The", " sky", " is", " blue", ",", " and", " so", " on", ".", "\n", ' "q"', " \\"];
const endId = 2_000;
const wordBase = 256;
/** Characters whose bytes are split over two tokens. */
const split = ["😀", "é́", "漢", "ß", "👩‍🚀"].map((text) => {
  const bytes = Buffer.from(text);
  const half = Math.max(1, Math.floor(bytes.length / 2) - 1);
  return [bytes.subarray(0, half), bytes.subarray(half)] as const;
});
const splitBase = 1_000;

/** Bytes that a token stands for; none for the end of the answer. */
export function bytesOf(id: number): Buffer {
  if (id < 256) return Buffer.of(id);
  if (id >= splitBase && id < splitBase + 2 * split.length) {
    const at = id - splitBase;
    return split[at >> 1]?.[at & 1] ?? Buffer.alloc(0);
  }
  return Buffer.from(words[id - wordBase] ?? "");
}

/** Ids of a text: its bytes. */
export function idsOf(text: string): number[] {
  return [...Buffer.from(text)];
}

/** What is asked of a model. */
export interface OracleAsk {
  readonly promptIds: readonly number[];
  readonly tokensMax: number;
  readonly tokensMin?: number;
  readonly stop?: readonly string[];
  readonly stopTokenIds?: readonly number[];
  readonly ignoreEos?: boolean;
}

/** One step of an answer as vLLM streams it. */
export interface OracleStep {
  readonly id: number;
  readonly text: string;
  readonly finishReason: "stop" | "length" | null;
}

/**
 * A model that is a function: the next token depends on all ids before it and on nothing else, so that prompt and
 * generated ids together go on as one uncut answer does. About one answer in three ends by itself within 64 tokens.
 */
export function* generate(ask: OracleAsk): Generator<OracleStep> {
  let state = 2_166_136_261;
  let last = -1;
  const eat = (id: number): void => {
    state = Math.imul(state ^ id, 16_777_619) >>> 0;
    state = (state ^ (state >>> 13)) >>> 0;
    last = id;
  };
  for (const id of ask.promptIds) eat(id);
  const detokenizer = new StringDecoder("utf8");
  // Bytes of a character that the prompt began are context, not answer; what completes it is answer.
  const stop = ask.stop ?? [];
  const holdMax = Math.max(0, ...stop.map((text) => text.length - 1));
  let text = "";
  let sent = 0;
  for (let count = 1; ; count++) {
    const id = next(state, last, ask.ignoreEos === true || count <= (ask.tokensMin ?? 0));
    eat(id);
    const before = text.length;
    text += detokenizer.write(bytesOf(id));
    let finishReason: OracleStep["finishReason"] = null;
    if (id === endId || ask.stopTokenIds?.includes(id) === true) finishReason = "stop";
    else if (count > (ask.tokensMin ?? 0)) {
      const found = stop
        .map((one) => text.indexOf(one, Math.max(0, before - one.length + 1)))
        .filter((at) => at >= 0);
      const cut = found[0] ?? Infinity;
      if (cut !== Infinity) {
        text = text.slice(0, cut);
        finishReason = "stop";
      }
    }
    if (finishReason === null && count >= ask.tokensMax) finishReason = "length";
    const until = finishReason === null ? Math.max(sent, text.length - holdMax) : text.length;
    const piece = text.slice(sent, until);
    sent = Math.max(sent, until);
    yield { id, text: piece, finishReason };
    if (finishReason !== null) return;
  }
}

function next(state: number, last: number, noEnd: boolean): number {
  if (last >= splitBase && last < splitBase + 2 * split.length && (last & 1) === 0) return last + 1;
  const draw = state % 1_000;
  if (draw < 12 && !noEnd) return endId;
  if (draw < 300) return splitBase + 2 * (Math.floor(state / 1_000) % split.length);
  return wordBase + (Math.floor(state / 1_000) % words.length);
}
