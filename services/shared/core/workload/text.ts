import { spacedWords, wordCount } from "./words.ts";
import type { Workload, WorkloadRequest } from "./workload.ts";

const wordMask = wordCount - 1;

/** Finaliser of MurmurHash3: one-to-one on 32 bits, every input bit reaches every output bit. */
function mix(value: number): number {
  let x = value | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * `count` words of the stream named by (`lane`, `ordinal`), 12 bits each. The first three words carry
 * the 32 bits of `mix(ordinal ^ lane)`, so two ordinals of one lane always differ there, and so do two
 * ordinals below 2^30 of the two lanes; the words after them come from a second sequence, so that
 * eight words hold 96 mixed bits.
 */
function streamWords(lane: number, ordinal: number, count: number): string {
  const first = mix(ordinal ^ lane);
  let text = "";
  let state = mix(ordinal + Math.imul(lane, 0x9e3779b1)) ^ 0x7f4a7c15;
  for (let i = 0; i < count; i++) {
    let bits: number;
    if (i === 0) bits = first >>> 20;
    else if (i === 1) bits = first >>> 8;
    else {
      state = (state + 0x6d2b79f5) | 0;
      const drawn = mix(state ^ Math.imul(first, 0x27d4eb2f));
      bits = i === 2 ? ((first & 0xff) << 4) | (drawn >>> 28) : drawn >>> 20;
    }
    text += spacedWords[bits & wordMask] as string;
  }
  return text;
}

const blockLane = 0x3c6ef372;
const ownLane = 0x78dde6e4;

/** Words kept ready, all blocks together: about 10 MB of text in two generations. */
const cachedWordsMax = 1_048_576;

/**
 * Turns a workload into prompts. The text of a block depends on when its id first appears in the
 * workload, never on the id, so renumbering the ids changes no byte; equal ids give equal text, and
 * different ids different text (from three tokens per block on). Tokens past the named blocks are
 * words of that request alone.
 *
 * A prompt is exactly `inputTokens` tokens under the Qwen3 vocabulary, block boundaries included; under
 * another vocabulary the sharing stays and the counts shift. A partial last block is the beginning of
 * the same block in full. O(tokens) per prompt; blocks used lately are kept ready, within a fixed bound.
 */
export class PromptText {
  readonly #blockTokens: number;
  readonly #ordinals = new Map<number, number>();
  readonly #requests: readonly WorkloadRequest[];
  readonly #generationMax: number;
  #young = new Map<number, string>();
  #old = new Map<number, string>();

  constructor(workload: Workload) {
    this.#blockTokens = workload.blockTokens;
    this.#generationMax = Math.max(16, Math.floor(cachedWordsMax / workload.blockTokens));
    this.#requests = workload.requests;
    for (const { blockIds } of workload.requests) {
      for (let b = 0; b < blockIds.length; b++) {
        const id = blockIds[b] as number;
        if (!this.#ordinals.has(id)) this.#ordinals.set(id, this.#ordinals.size);
      }
    }
  }

  /** The prompt of the request at `index` of the workload; throws `RangeError` where there is none. */
  prompt(index: number): string {
    const request = this.#requests[index];
    if (request === undefined) throw new RangeError(`no request ${String(index)} in the workload`);
    const { blockIds } = request;
    const blockTokens = this.#blockTokens;
    let left = request.inputTokens;
    let text = "";
    for (let b = 0; b < blockIds.length && left > 0; b++) {
      const block = this.#ordinals.get(blockIds[b] as number) as number;
      text += left >= blockTokens ? this.#fullBlock(block) : streamWords(blockLane, block, left);
      left -= Math.min(left, blockTokens);
    }
    return left > 0 ? text + streamWords(ownLane, index, left) : text;
  }

  /** Two generations: a hit in the old one moves up, and a full young one becomes the old one. */
  #fullBlock(ordinal: number): string {
    const young = this.#young.get(ordinal);
    if (young !== undefined) return young;
    const text = this.#old.get(ordinal) ?? streamWords(blockLane, ordinal, this.#blockTokens);
    if (this.#young.size >= this.#generationMax) {
      this.#old = this.#young;
      this.#young = new Map();
    }
    this.#young.set(ordinal, text);
    return text;
  }
}
