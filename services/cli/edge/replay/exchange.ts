import type { Dispatcher } from "undici";
import { CompletionStream } from "../../core/replay/completion-stream.ts";
import { judge, type RequestErrorKind, type RequestRecord } from "../../core/replay/outcome.ts";

/** A finished answer, for a check of its tokens. */
export interface Answer {
  /** Index of the request in the workload. */
  readonly index: number;
  readonly prompt: string;
  readonly outputTokens: number;
  readonly text: string;
  /** Empty when the endpoint gives no token ids. */
  readonly tokenIds: readonly number[];
  readonly completionTokens: number | undefined;
}

/** Says what is wrong with an answer, or `undefined`. */
export type AnswerCheck = (answer: Answer) => string | undefined;

/** The check that every endpoint can pass: as many token ids as the usage says and as were asked for. */
export const checkTokenCount: AnswerCheck = ({ tokenIds, completionTokens, outputTokens }) => {
  if (completionTokens === undefined) return "no usage, so tokens cannot be counted";
  if (completionTokens !== outputTokens) {
    return `${completionTokens} tokens by usage, ${outputTokens} asked for`;
  }
  if (tokenIds.length !== 0 && tokenIds.length !== completionTokens) {
    return `${tokenIds.length} token ids came, ${completionTokens} by usage`;
  }
  return undefined;
};

/** What an exchange needs to know of its request. */
export interface ExchangeOptions {
  readonly index: number;
  readonly dueMs: number;
  readonly sentMs: number;
  readonly isWarmup: boolean;
  readonly outputTokens: number;
  readonly prompt: string;
  readonly check: AnswerCheck | undefined;
  readonly now: () => number;
  readonly onEnd: (record: RequestRecord) => void;
}

const errorBodyBytesMax = 2_048;

const connectCodes = new Set([
  "ECONNREFUSED",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ENOTFOUND",
  "EAI_AGAIN",
  "ETIMEDOUT",
  "EADDRNOTAVAIL",
  "EMFILE",
  "UND_ERR_CONNECT_TIMEOUT",
]);

function headerText(value: string | string[] | undefined): string | undefined {
  const text = Array.isArray(value) ? value[0] : value;
  return text === undefined || text === "" ? undefined : text;
}

/** One request and its streamed answer, as undici reports it; ends in exactly one record. */
export class Exchange implements Dispatcher.DispatchHandler {
  readonly #options: ExchangeOptions;
  readonly #stream: CompletionStream;
  #controller: Dispatcher.DispatchController | undefined;
  #status: number | undefined;
  #worker: string | undefined;
  #decision: string | undefined;
  #errorBody = "";
  #isEnded = false;
  /** When bytes last came, or the request was sent; silence is measured from it. */
  lastByteMs: number;

  constructor(options: ExchangeOptions) {
    this.#options = options;
    this.#stream = new CompletionStream({ readInFull: options.check !== undefined });
    this.lastByteMs = options.sentMs;
  }

  /** Whether the first token is still to come. */
  get isWaiting(): boolean {
    return this.#stream.firstTokenMs === undefined;
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller;
    if (this.#isEnded) controller.abort(new Error("ended before it was sent"));
  }

  onResponseStart(
    _controller: Dispatcher.DispatchController,
    status: number,
    headers: Readonly<Record<string, string | string[] | undefined>>,
  ): void {
    if (status < 200) return;
    this.#status = status;
    this.#decision = headerText(headers["x-kvmesh-decision"]);
    this.#worker = headerText(headers["x-gateway-destination-endpoint-served"]);
    this.lastByteMs = this.#options.now();
  }

  onResponseData(_controller: Dispatcher.DispatchController, bytes: Buffer): void {
    if (this.#isEnded) return;
    const nowMs = this.#options.now();
    this.lastByteMs = nowMs;
    if (this.#status === 200) {
      this.#stream.push(bytes, nowMs);
    } else if (this.#errorBody.length < errorBodyBytesMax) {
      this.#errorBody += bytes.toString("utf8").slice(0, errorBodyBytesMax);
    }
  }

  onResponseEnd(): void {
    this.#end(undefined);
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    const code = "code" in error && typeof error.code === "string" ? error.code : error.name;
    const detail = `${code}: ${error.message}`;
    if (connectCodes.has(code)) this.#end({ kind: "connect", detail });
    else if (this.#status === undefined) this.#end({ kind: "reset", detail });
    else this.#end({ kind: "truncated", detail });
  }

  /** Ends the exchange from our side: its connection closes, so that the engine aborts. */
  cancel(kind: RequestErrorKind, detail: string): void {
    this.#end({ kind, detail });
    this.#controller?.abort(new Error(detail));
  }

  #end(failure: { kind: RequestErrorKind; detail: string } | undefined): void {
    if (this.#isEnded) return;
    this.#isEnded = true;
    const { index, dueMs, sentMs, isWarmup, outputTokens, prompt, check, now, onEnd } =
      this.#options;
    const stream = this.#stream;
    const verdict = check?.({
      index,
      prompt,
      outputTokens,
      text: stream.text,
      tokenIds: stream.tokenIds,
      completionTokens: stream.usage?.completionTokens,
    });
    const judged = judge(stream, {
      dueMs,
      status: this.#status,
      failure,
      errorBody: this.#errorBody,
      answerProblem: verdict,
    });
    onEnd({
      index,
      dueMs,
      lateMs: sentMs - dueMs,
      isWarmup,
      ...judged,
      status: this.#status,
      endMs: now(),
      promptTokens: stream.usage?.promptTokens,
      cachedTokens: stream.usage?.cachedTokens,
      outputTokensAsked: outputTokens,
      chunkCount: stream.chunkCount,
      worker: this.#worker,
      decision: this.#decision,
    });
  }
}
