import { SeededRandom } from "../../services/shared/core/random.ts";
import type { AnswerOracle } from "./answer-oracle.ts";
import { readTokenStream, type StreamEnd } from "./stream-client.ts";
import { judgeTokens, type TokenVerdict } from "./token-judge.ts";

/** Streams of which `concurrency` are open at any time. */
export interface StreamLoadOptions {
  readonly oracle: AnswerOracle;
  readonly url: string;
  readonly model: string;
  readonly concurrency: number;
  readonly seed: number;
  /** Least and greatest lengths, tokens. */
  readonly promptTokens: readonly [number, number];
  readonly answerTokens: readonly [number, number];
  /** Whether clients go on with streams that break off; default false. */
  readonly resumes?: boolean;
  readonly headers?: Readonly<Record<string, string>>;
}

/** A stream that ended, and how right it was. */
export interface JudgedStream extends StreamEnd {
  readonly verdict: TokenVerdict;
  /** When it was sent and when it ended, ms of performance.now(). */
  readonly sentAt: number;
  readonly endedAt: number;
  /** Length that it was to have. */
  readonly tokensMax: number;
}

/** Ids that prompts are made of: words of the vocabulary that engines bring. */
const promptIds = { from: 1_000, count: 50_000 };

/**
 * Keeps streams open, each with a prompt of its own, and judges every one by what a simulated engine must answer: token i is a
 * function of the prompt and of i alone, whichever engines drew it.
 */
export class StreamLoad {
  readonly ended: JudgedStream[] = [];
  readonly #options: StreamLoadOptions;
  readonly #random: SeededRandom;
  readonly #lanes: Promise<void>[];
  #open = 0;
  #stopped = false;

  constructor(options: StreamLoadOptions) {
    this.#options = options;
    this.#random = new SeededRandom(options.seed).fork("streams");
    this.#lanes = Array.from({ length: options.concurrency }, () => this.#run());
  }

  /** Streams that have not ended. */
  get openCount(): number {
    return this.#open;
  }

  /** Begins no more, and resolves when all have ended. */
  async stop(): Promise<readonly JudgedStream[]> {
    this.#stopped = true;
    await Promise.all(this.#lanes);
    return this.ended;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      this.#open++;
      try {
        this.ended.push(await this.#stream());
      } finally {
        this.#open--;
      }
    }
  }

  async #stream(): Promise<JudgedStream> {
    const { oracle, url, model, resumes = false, headers = {} } = this.#options;
    const prompt = Array.from(
      { length: this.#between(this.#options.promptTokens) },
      () => promptIds.from + this.#random.int(promptIds.count),
    );
    const tokensMax = this.#between(this.#options.answerTokens);
    const body = JSON.stringify({
      model,
      prompt,
      max_tokens: tokensMax,
      ignore_eos: true,
      temperature: 0,
      stream: true,
      return_token_ids: true,
    });
    const sentAt = performance.now();
    const end = await readTokenStream({ url, body, resumes, headers });
    const endedAt = performance.now();
    const expected = oracle.answer(prompt, tokensMax);
    const verdict = judgeTokens(expected, end.tokens, end.kind === "done");
    return { ...end, verdict, sentAt, endedAt, tokensMax };
  }

  #between([min, max]: readonly [number, number]): number {
    return min + this.#random.int(max - min + 1);
  }
}

/** What a campaign's streams came to. */
export interface StreamTally extends TokenVerdict {
  readonly streams: number;
  readonly tokens: number;
  readonly complete: number;
  /** Complete, though nobody guarded them. */
  readonly unguarded: number;
  readonly resumes: number;
  readonly resends: number;
}

/** Adds streams up. */
export function tallyStreams(streams: readonly JudgedStream[]): StreamTally {
  const sum = (of: (stream: JudgedStream) => number): number =>
    streams.reduce((total, stream) => total + of(stream), 0);
  return {
    streams: streams.length,
    tokens: sum(({ tokens }) => tokens.length),
    complete: sum(({ kind }) => (kind === "done" ? 1 : 0)),
    unguarded: sum(({ kind, guard }) => (kind === "done" && guard !== "on" ? 1 : 0)),
    lost: sum(({ verdict }) => verdict.lost),
    doubled: sum(({ verdict }) => verdict.doubled),
    reordered: sum(({ verdict }) => verdict.reordered),
    foreign: sum(({ verdict }) => verdict.foreign),
    resumes: sum(({ resumes }) => resumes),
    resends: sum(({ resends }) => resends),
  };
}

/**
 * The longest gaps of the `count` streams that had the longest ones: of streams of which so many were interrupted, no
 * quantile of the interruptions is above the same one of these.
 */
export function longestGaps(streams: readonly JudgedStream[], count: number): readonly number[] {
  return streams
    .map(({ gapMsMax }) => gapMsMax)
    .toSorted((a, b) => b - a)
    .slice(0, count);
}

/** The value that this share of the values does not exceed; 0 of none. */
export function quantileOf(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)] ?? 0;
}

/** Lines for a failure message, at most 12: the streams that are not as they should be. */
export function describeStreams(streams: readonly JudgedStream[]): string {
  const wrong = streams.filter(
    ({ kind, verdict }) =>
      kind !== "done" || verdict.lost + verdict.doubled + verdict.reordered + verdict.foreign > 0,
  );
  return wrong
    .slice(0, 12)
    .map(
      ({ requestId, kind, why, tokens, tokensMax, verdict, guard, resumes, resends }) =>
        `${requestId} ${kind} ${why.slice(0, 300)} ${String(tokens.length)}/${String(tokensMax)} tokens, ` +
        `guard ${guard}, resumed ${String(resumes)}, sent again ${String(resends)}, ${JSON.stringify(verdict)}`,
    )
    .join("\n");
}
