import { randomBytes } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Clock } from "../../shared/core/clock.ts";
import { parseTraceparent, type TraceContext, type Tracing } from "../../shared/edge/tracing.ts";
import type { EngineSequence, HashScope, StepEnd } from "../core/engine/engine-types.ts";
import { JsonAnswer, StreamAnswer, type Answer, type AnswerUsage } from "./answer.ts";
import type { EngineDriver } from "./engine-driver.ts";
import type { EngineMetrics } from "./engine-metrics.ts";
import type { PromptTokens } from "./prompt-tokens.ts";
import {
  parseJson,
  parsePrompts,
  parseSampling,
  type CompletionPrompt,
  type JsonObject,
  type SamplingBody,
} from "./request-body.ts";
import { StopMatcher } from "./stop-matcher.ts";
import { badRequest, promptTooLong, queueFull, VllmError } from "./vllm-error.ts";
import type { Vocabulary } from "./vocabulary.ts";

/** Which of the two endpoints. */
export type CompletionKind = "chat" | "completion";

/** Limits and names of the service. */
export interface CompletionOptions {
  /** Served names, the main one first. */
  readonly served: readonly string[];
  readonly contextTokensMax: number;
  readonly choicesMax: number;
  readonly queuedRequestsMax: number;
  readonly requestIdHeaders: boolean;
  readonly fingerprint: string;
  readonly endToken: number;
}

/** What the service works with. */
export interface CompletionParts {
  readonly driver: EngineDriver;
  readonly clock: Clock;
  readonly vocabulary: Vocabulary;
  readonly prompts: PromptTokens;
  readonly metrics: EngineMetrics;
  readonly tracing: Tracing;
}

/** One HTTP request in progress. */
interface Generation {
  readonly id: string;
  readonly body: SamplingBody;
  readonly answer: Answer;
  readonly parent: TraceContext | undefined;
  readonly usage: AnswerUsage;
  readonly choices: Choice[];
  openChoices: number;
}

/** One sequence of a request. */
interface Choice {
  readonly index: number;
  readonly generation: Generation;
  readonly sequence: EngineSequence;
  readonly stops: StopMatcher;
  previousTokenAt: number;
}

/** Serves chat and text completions from the engine: admission, submission, output, abort on disconnect. */
export class CompletionService {
  readonly #options: CompletionOptions;
  readonly #parts: CompletionParts;
  /** Live sequences by engine id; bounded by `queuedRequestsMax` plus one request's choices. */
  readonly #choices = new Map<string, Choice>();
  #submitted = 0;
  #errorsLeft = 0;
  #truncationsLeft = 0;
  #draining = false;

  constructor(options: CompletionOptions, parts: CompletionParts) {
    this.#options = options;
    this.#parts = parts;
  }

  get liveSequences(): number {
    return this.#choices.size;
  }

  /** Fault: the next `count` requests get a 500. */
  failNext(count: number): void {
    this.#errorsLeft = count;
  }

  /** Fault: the next `count` streams are cut inside their third chunk. */
  truncateNext(count: number): void {
    this.#truncationsLeft = count;
  }

  /** From now on new requests get the 500 of a vLLM that drains. */
  drain(): void {
    this.#draining = true;
  }

  /** Answers one request. Throws `VllmError` while nothing has been written. */
  handle(
    kind: CompletionKind,
    request: IncomingMessage,
    response: ServerResponse,
    bytes: Buffer,
  ): void {
    if (this.#errorsLeft > 0) {
      this.#errorsLeft--;
      throw new VllmError(500, "InternalServerError", "Internal server error");
    }
    if (this.#draining) {
      throw new VllmError(500, "InternalServerError", "cannot schedule new futures after shutdown");
    }
    const json = parseJson(bytes);
    const chat = kind === "chat";
    const body = parseSampling(json, {
      served: this.#options.served,
      chat,
      sessionHeader: header(request, "x-session-id"),
    });
    checkRank(header(request, "x-data-parallel-rank"));
    const prompts = chat
      ? [this.#parts.prompts.encodeChat(json)]
      : parsePrompts(json).map((prompt) => this.#encode(prompt, json));
    this.#check(prompts, body);
    this.#submit({ kind, request, response, body, prompts });
  }

  /** Gives the tokens of a step to their requests. */
  stepEnded(end: StepEnd): void {
    for (const sequence of end.advanced) {
      const choice = this.#choices.get(sequence.request.id);
      if (choice !== undefined) this.#advance(choice, end.endedAt);
    }
    for (const sequence of end.finished) this.#choices.delete(sequence.request.id);
  }

  /** Ends every request as a dead engine core does. */
  failAll(message: string): void {
    const generations = new Set([...this.#choices.values()].map((choice) => choice.generation));
    this.#choices.clear();
    for (const generation of generations) generation.answer.fail(message);
  }

  /** Aborts every sequence without a word to the clients. */
  abortAll(): void {
    for (const id of this.#choices.keys()) this.#parts.driver.abort(id);
    this.#choices.clear();
  }

  #encode(prompt: CompletionPrompt, json: JsonObject): Uint32Array {
    if (typeof prompt === "string") {
      return this.#parts.prompts.encode(prompt, json["add_special_tokens"] !== false);
    }
    for (const token of prompt) {
      if (token >= this.#parts.vocabulary.size) {
        throw badRequest(`Token id ${String(token)} is out of vocabulary`);
      }
    }
    return Uint32Array.from(prompt);
  }

  #check(prompts: readonly Uint32Array[], body: SamplingBody): void {
    const { contextTokensMax, choicesMax, queuedRequestsMax } = this.#options;
    for (const prompt of prompts) {
      if (prompt.length >= contextTokensMax) throw promptTooLong(contextTokensMax, prompt.length);
    }
    const choices = prompts.length * body.n;
    if (choices > choicesMax) {
      throw badRequest(`at most ${String(choicesMax)} choices (prompts × n) are accepted.`, "n");
    }
    if (this.#choices.size >= queuedRequestsMax) {
      this.#parts.metrics.rejected();
      throw queueFull(queuedRequestsMax);
    }
  }

  #submit(work: {
    kind: CompletionKind;
    request: IncomingMessage;
    response: ServerResponse;
    body: SamplingBody;
    prompts: readonly Uint32Array[];
  }): void {
    const { request, response, body, prompts } = work;
    const { driver, clock } = this.#parts;
    const chat = work.kind === "chat";
    const named = header(request, "x-request-id");
    const own = randomBytes(16).toString("hex");
    const id = `${chat ? "chatcmpl" : "cmpl"}-${named ?? body.requestId ?? own.slice(0, 16)}`;
    if (this.#options.requestIdHeaders) response.setHeader("x-request-id", named ?? own);
    this.#setLoadHeader(request, response);
    const head = {
      chat,
      id,
      createdS: Math.floor(clock.wallUnixUs() / 1_000_000),
      model: body.model,
      fingerprint: this.#options.fingerprint,
      body,
      prompts,
    };
    const answer = body.stream ? new StreamAnswer(response, head) : new JsonAnswer(response, head);
    if (this.#truncationsLeft > 0 && answer instanceof StreamAnswer) {
      this.#truncationsLeft--;
      answer.truncateAfter(2);
    }
    const generation: Generation = {
      id,
      body,
      answer,
      parent: parseTraceparent(header(request, "traceparent"), header(request, "tracestate")),
      usage: { promptTokens: 0, completionTokens: 0, cachedTokens: 0 },
      choices: [],
      openChoices: prompts.length * body.n,
    };
    const scope: HashScope = body.cacheSalt === undefined ? {} : { cacheSalt: body.cacheSalt };
    const fallbackMax = chat ? Infinity : 16;
    for (const [promptIndex, promptTokens] of prompts.entries()) {
      generation.usage.promptTokens += promptTokens.length;
      for (let k = 0; k < body.n; k++) {
        const sequence = driver.submit({
          id: `${id}-${String(promptIndex * body.n + k)}-${String(this.#submitted++)}`,
          promptTokens,
          outputTokensMax: body.outputTokensMax ?? fallbackMax,
          outputTokensMin: body.outputTokensMin,
          seed: body.seed + k,
          ignoreEnd: body.ignoreEnd,
          stopTokens: body.stopTokens,
          scope,
          ...(body.sessionId === undefined ? {} : { sessionId: body.sessionId }),
        });
        const choice: Choice = {
          index: promptIndex * body.n + k,
          generation,
          sequence,
          stops: new StopMatcher(body.stop),
          previousTokenAt: 0,
        };
        generation.choices.push(choice);
        this.#choices.set(sequence.request.id, choice);
      }
    }
    response.once("close", () => {
      if (generation.openChoices > 0) this.#disconnect(generation);
    });
  }

  #disconnect(generation: Generation): void {
    for (const choice of generation.choices) {
      if (this.#choices.delete(choice.sequence.request.id)) {
        this.#parts.driver.abort(choice.sequence.request.id);
      }
    }
  }

  #advance(choice: Choice, at: number): void {
    const { generation, sequence } = choice;
    const { metrics, vocabulary, driver } = this.#parts;
    if (sequence.generatedTokens === 1) {
      const seconds = (at - sequence.submittedAt) / 1_000;
      metrics.firstToken(seconds, sequence.request.promptTokens.length, sequence.cachedTokens);
      generation.usage.cachedTokens += sequence.cachedTokens;
    } else {
      metrics.nextToken((at - choice.previousTokenAt) / 1_000);
    }
    choice.previousTokenAt = at;
    generation.usage.completionTokens++;
    const token = sequence.lastToken;
    const isEnd = token === this.#options.endToken;
    const match = choice.stops.push(isEnd ? "" : vocabulary.textOf(token));
    let reason: string | undefined = sequence.finishReason;
    let stopReason: string | number | null = null;
    let text = match.text;
    if (match.stopped !== undefined) {
      reason = "stop";
      stopReason = match.stopped;
      driver.abort(sequence.request.id);
    } else if (reason !== undefined) {
      text += choice.stops.flush();
      if (reason === "stop" && !isEnd) stopReason = token;
    }
    generation.answer.piece(
      { index: choice.index, text, tokens: [token], finishReason: reason, stopReason },
      generation.usage,
    );
    if (reason !== undefined) this.#end(choice, reason);
  }

  #end(choice: Choice, reason: string): void {
    const { generation, sequence } = choice;
    this.#choices.delete(sequence.request.id);
    this.#record(generation, sequence, reason);
    generation.openChoices--;
    if (generation.openChoices === 0) generation.answer.finish(generation.usage);
  }

  #record(generation: Generation, sequence: EngineSequence, reason: string): void {
    const { clock, metrics, tracing } = this.#parts;
    const { request, submittedAt } = sequence;
    const scheduledAt = sequence.scheduledAt ?? submittedAt;
    const firstTokenAt = sequence.firstTokenAt ?? scheduledAt;
    const lastTokenAt = sequence.lastTokenAt ?? firstTokenAt;
    const timeOf = {
      endToEndS: (lastTokenAt - submittedAt) / 1_000,
      queueS: (scheduledAt - submittedAt) / 1_000,
      prefillS: (firstTokenAt - scheduledAt) / 1_000,
      decodeS: (lastTokenAt - firstTokenAt) / 1_000,
    };
    const maxTokens = Math.min(
      request.outputTokensMax,
      this.#options.contextTokensMax - request.promptTokens.length,
    );
    metrics.finished({
      reason,
      promptTokens: request.promptTokens.length,
      generatedTokens: sequence.generatedTokens,
      cachedTokens: sequence.cachedTokens,
      preemptions: sequence.preemptions,
      n: generation.body.n,
      maxTokens,
      ...timeOf,
    });
    // Written at the end, so an unsampled request costs nothing here.
    const wallOffsetUs = clock.wallUnixUs() - clock.now() * 1_000;
    const span = tracing.start("llm_request", {
      parent: generation.parent,
      kind: "server",
      startUnixUs: Math.round(wallOffsetUs + submittedAt * 1_000),
      attributes: {
        "gen_ai.latency.time_to_first_token": (firstTokenAt - submittedAt) / 1_000,
        "gen_ai.latency.e2e": timeOf.endToEndS,
        "gen_ai.latency.time_in_queue": timeOf.queueS,
        "gen_ai.usage.prompt_tokens": request.promptTokens.length,
        "gen_ai.usage.completion_tokens": sequence.generatedTokens,
        "gen_ai.latency.time_in_model_prefill": timeOf.prefillS,
        "gen_ai.latency.time_in_model_decode": timeOf.decodeS,
        "gen_ai.latency.time_in_model_inference": timeOf.prefillS + timeOf.decodeS,
        "gen_ai.request.id": `${generation.id}-${String(generation.choices.findIndex((choice) => choice.sequence === sequence))}`,
        "gen_ai.request.top_p": generation.body.topP,
        "gen_ai.request.max_tokens": maxTokens,
        "gen_ai.request.temperature": generation.body.temperature,
        "gen_ai.request.n": generation.body.n,
      },
    });
    span?.end(Math.round(wallOffsetUs + lastTokenAt * 1_000));
  }

  /** Load report in the response head for clients that ask for it (ORCA). */
  #setLoadHeader(request: IncomingMessage, response: ServerResponse): void {
    const format = header(request, "endpoint-load-metrics-format")?.toUpperCase();
    if (format !== "JSON" && format !== "TEXT") return;
    const stats = this.#parts.driver.core.stats();
    const waiting = stats.waitingSequences.toFixed(1);
    const usage = String(stats.referencedBlocks / stats.usableBlocks);
    response.setHeader(
      "endpoint-load-metrics",
      format === "JSON"
        ? `JSON {"named_metrics": {"num_requests_waiting": ${waiting}, "kv_cache_usage_perc": ${usage}}}`
        : `TEXT named_metrics.num_requests_waiting=${waiting}, named_metrics.kv_cache_usage_perc=${usage}`,
    );
  }
}

/** First value of a header, or undefined. */
export function header(request: IncomingMessage, name: string): string | undefined {
  const value = request.headers[name];
  return typeof value === "string" && value !== "" ? value : undefined;
}

/** This engine has data-parallel rank 0 only; what is no number is ignored, as vLLM does. */
function checkRank(value: string | undefined): void {
  if (value === undefined || !/^-?\d+$/.test(value) || Number(value) === 0) return;
  throw badRequest(`data_parallel_rank ${value} is out of range [0, 1).`);
}
