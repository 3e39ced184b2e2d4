import { randomBytes } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Clock } from "../../shared/core/clock.ts";
import { parseTraceparent, type TraceContext, type Tracing } from "../../shared/edge/tracing.ts";
import type {
  EngineSequence,
  HashScope,
  KvLoadResult,
  StepEnd,
} from "../core/engine/engine-types.ts";
import {
  JsonAnswer,
  StreamAnswer,
  type Answer,
  type AnswerExtras,
  type AnswerUsage,
} from "./answer.ts";
import type { EngineDriver } from "./engine-driver.ts";
import type { EngineMetrics } from "./engine-metrics.ts";
import type { KvConnector, LoadListener, PullRecord } from "./kv/kv-connector.ts";
import type { PrefillLeg, TransferProtocol, TransferRole } from "./kv/transfer-role.ts";
import type { PromptTokens } from "./prompt-tokens.ts";
import {
  parseJson,
  parsePrompts,
  parseSampling,
  tokenList,
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
  /** See `AnswerHead.flatErrors`. */
  readonly flatErrors: boolean;
  /** Body field that names a request. */
  readonly idField: string;
}

/** KV transfer as the service sees it. */
export interface CompletionTransfer {
  readonly connector: KvConnector;
  readonly protocol: TransferProtocol;
  /** Ends the engine core, as a body that the real engine does not survive. */
  readonly die: () => void;
}

/** What the service works with. */
export interface CompletionParts {
  readonly driver: EngineDriver;
  readonly clock: Clock;
  readonly vocabulary: Vocabulary;
  readonly prompts: PromptTokens;
  readonly metrics: EngineMetrics;
  readonly tracing: Tracing;
  /** Engines with a KV connector alone. */
  readonly transfer?: CompletionTransfer | undefined;
}

const whole: TransferRole = { kind: "whole" };

/** One HTTP request in progress. */
interface Generation {
  readonly id: string;
  readonly body: SamplingBody;
  readonly answer: Answer;
  readonly parent: TraceContext | undefined;
  readonly usage: AnswerUsage;
  readonly choices: Choice[];
  openChoices: number;
  readonly role: TransferRole;
  readonly response: ServerResponse;
  readonly extras: { top?: AnswerExtras["top"]; choice?: AnswerExtras["choice"] };
  /** Prefill legs: finish reason that the answer shows instead of the engine's. */
  shownReason: string | undefined;
  /** The hand-off that the answer names. */
  handoffKey: string | undefined;
}

/** One sequence of a request. */
interface Choice {
  readonly index: number;
  readonly generation: Generation;
  readonly sequence: EngineSequence;
  readonly stops: StopMatcher;
  /** Undefined before the first token. */
  previousTokenAt: number | undefined;
  /** Cached tokens as `usage` shows them; undefined: the engine's own number. */
  cachedTokens: number | undefined;
}

/** Serves chat and text completions from the engine: admission, submission, output, abort on disconnect. */
export class CompletionService implements LoadListener {
  readonly #options: CompletionOptions;
  readonly #parts: CompletionParts;
  /** Live sequences by engine id; bounded by `queuedRequestsMax` plus one request's choices. */
  readonly #choices = new Map<string, Choice>();
  /** Requests whose answer is not finished. */
  readonly #live = new Set<Generation>();
  /** Ends engine-side ids, so that a name may be used again; begins elsewhere in every process. */
  #suffix = randomBytes(4).readUInt32BE(0);
  /** Requests whose blocks were handed over in the step whose end is being told. */
  readonly #handedOff = new Set<string>();
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
      idField: this.#options.idField,
    });
    checkRank(header(request, "x-data-parallel-rank"));
    const role = this.#parts.transfer?.protocol.read(json, bytes) ?? whole;
    if (role.kind === "lethal") {
      this.#parts.transfer?.die();
      throw new VllmError(500, "InternalServerError", engineDead);
    }
    const prompts = this.#prompts(json, chat, role);
    this.#check(prompts, body);
    if (role.kind !== "whole" && prompts.length * body.n !== 1) {
      throw badRequest("KV transfer needs one prompt and n = 1.", "n");
    }
    this.#submit({ kind, request, response, body, prompts, role });
  }

  /** The prompt of a request has been loaded, wholly or in part. */
  loaded(requestId: string, result: KvLoadResult, cachedTokens: number | undefined): void {
    const loaded = this.#parts.driver.finishLoad(requestId, result);
    const choice = this.#choices.get(requestId);
    if (loaded === undefined || choice === undefined) return;
    choice.cachedTokens = cachedTokens;
    for (const token of loaded.taken) this.#advance(choice, this.#parts.clock.now(), token);
  }

  /** Writes the hop of a pull into the trace of its request. */
  pullEnded(pull: PullRecord): void {
    const choice = this.#choices.get(pull.requestId);
    if (choice === undefined) return;
    const nowUs = this.#parts.clock.wallUnixUs();
    const span = this.#parts.tracing.start("kvmesh.kv.hop", {
      parent: choice.generation.parent,
      startUnixUs: Math.round(nowUs - pull.ms * 1_000),
      attributes: {
        "kvmesh.kv.bytes": pull.bytes,
        "kvmesh.kv.blocks": pull.blocks,
        "kvmesh.kv.asked_blocks": pull.askedBlocks,
        "kvmesh.kv.damaged_blocks": pull.damagedBlocks,
        "kvmesh.kv.source": `${pull.source.host}:${String(pull.source.port)}`,
        "kvmesh.kv.source_tier": "device",
        "kvmesh.kv.destination_tier": "device",
        "kvmesh.kv.transport": "tcp",
        "kvmesh.kv.gbps": pull.ms > 0 ? pull.bytes / pull.ms / 1_000_000 : 0,
        "kvmesh.kv.wait_ms": pull.waitMs,
        "kvmesh.kv.outcome": pull.failure ?? (pull.damagedBlocks > 0 ? "damaged" : "complete"),
      },
    });
    span?.end(nowUs);
  }

  /** The prompt of a request cannot be loaded, and is not to be computed here. */
  failed(requestId: string): void {
    const choice = this.#choices.get(requestId);
    this.#parts.driver.abort(requestId);
    if (choice !== undefined) this.#fail(choice.generation, "Internal server error");
  }

  /** Gives the tokens of a step to their requests. */
  stepEnded(end: StepEnd): void {
    for (const sequence of end.advanced) {
      const choice = this.#choices.get(sequence.request.id);
      if (choice !== undefined) this.#advance(choice, end.endedAt, sequence.lastToken);
    }
    for (const sequence of end.finished) {
      if (this.#choices.delete(sequence.request.id)) continue;
      // Whoever wanted these blocks is gone.
      if (!this.#handedOff.delete(sequence.request.id)) {
        this.#parts.driver.releaseKept(sequence.request.id);
      }
    }
  }

  /** Ends every request as a dead engine core does. */
  failAll(message: string): void {
    const generations = new Set([...this.#choices.values()].map((choice) => choice.generation));
    this.#choices.clear();
    for (const generation of generations) generation.answer.fail(message);
  }

  /** Aborts every sequence without a word to the clients. */
  abortAll(): void {
    for (const id of this.#choices.keys()) {
      this.#parts.driver.abort(id);
      this.#parts.transfer?.connector.cancel(id);
    }
    this.#choices.clear();
  }

  /** Ends the live requests with this id (all without one) as their clients' leaving would; returns how many. */
  abortRequests(requestId: string | undefined): number {
    let count = 0;
    for (const generation of this.#live) {
      if (requestId !== undefined && generation.body.requestId !== requestId) continue;
      this.#disconnect(generation);
      this.#fail(generation, "The request was aborted");
      count++;
    }
    return count;
  }

  #prompts(json: JsonObject, chat: boolean, role: TransferRole): Uint32Array[] {
    // TensorRT-LLM's generation leg brings the context leg's ids.
    const ids = role.kind === "decode" ? json["prompt_token_ids"] : undefined;
    if (Array.isArray(ids) && ids.length > 0) {
      return [this.#encode(tokenList(ids, "prompt_token_ids"), json)];
    }
    return chat
      ? [this.#parts.prompts.encodeChat(json)]
      : parsePrompts(json).map((prompt) => this.#encode(prompt, json));
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
    role: TransferRole;
  }): void {
    const { request, response, body, prompts, role } = work;
    const { clock } = this.#parts;
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
      flatErrors: this.#options.flatErrors,
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
      role,
      response,
      extras: {},
      shownReason: undefined,
      handoffKey: undefined,
    };
    // Who left before this has no `close` to come.
    if (response.destroyed) return;
    this.#live.add(generation);
    response.once("close", () => {
      this.#live.delete(generation);
      if (generation.openChoices > 0) {
        this.#disconnect(generation);
      } else if (generation.handoffKey !== undefined && !response.writableFinished) {
        // Nobody can come for a hand-off of which nobody was told.
        this.#parts.transfer?.connector.dropHandoff(generation.handoffKey);
      }
    });
    if (role.kind === "prefill" && role.room !== undefined) {
      this.#waitInRoom(generation, role.room, chat, prompts);
    } else {
      this.#begin(generation, chat, prompts);
    }
  }

  /** SGLang: the prefill begins when the decode engine is ready for it. */
  #waitInRoom(
    generation: Generation,
    room: string,
    chat: boolean,
    prompts: readonly Uint32Array[],
  ): void {
    const entered = this.#parts.transfer?.connector.enterRoom(room, {
      begin: () => {
        this.#begin(generation, chat, prompts);
      },
      sent: () => {
        this.#finish(generation);
      },
      failed: (reason) => {
        this.#disconnect(generation);
        this.#fail(generation, `Prefill transfer failed: ${reason}`);
      },
    });
    if (entered === true) return;
    this.#live.delete(generation);
    generation.openChoices = 0;
    throw badRequest("bootstrap_room is in use by another request.", "bootstrap_room");
  }

  /** Gives the sequences of a request to the engine. */
  #begin(generation: Generation, chat: boolean, prompts: readonly Uint32Array[]): void {
    const { driver } = this.#parts;
    const { body, id, role } = generation;
    const scope: HashScope = body.cacheSalt === undefined ? {} : { cacheSalt: body.cacheSalt };
    const fallbackMax = chat ? Infinity : 16;
    for (const [promptIndex, promptTokens] of prompts.entries()) {
      generation.usage.promptTokens += promptTokens.length;
      for (let k = 0; k < body.n; k++) {
        const requestId = `${id}-${String(promptIndex * body.n + k)}-${this.#nextSuffix()}`;
        const ownMax = role.kind === "prefill" ? role.outputTokensMax : undefined;
        const sequence = driver.submit({
          id: requestId,
          promptTokens,
          outputTokensMax: ownMax ?? body.outputTokensMax ?? fallbackMax,
          outputTokensMin: body.outputTokensMin,
          seed: body.seed + k,
          ignoreEnd: body.ignoreEnd,
          stopTokens: body.stopTokens,
          scope,
          ...(body.sessionId === undefined ? {} : { sessionId: body.sessionId }),
          ...(role.kind === "prefill" ? { keepBlocks: true } : {}),
          ...(role.kind === "decode" ? { remoteKv: { localHits: role.localHits } } : {}),
        });
        if (role.kind === "decode") this.#parts.transfer?.connector.expect(requestId, role);
        const choice: Choice = {
          index: promptIndex * body.n + k,
          generation,
          sequence,
          stops: new StopMatcher(body.stop),
          previousTokenAt: undefined,
          cachedTokens: role.kind === "decode" ? role.cachedTokens : undefined,
        };
        generation.choices.push(choice);
        this.#choices.set(sequence.request.id, choice);
      }
    }
  }

  #disconnect(generation: Generation): void {
    const transfer = this.#parts.transfer;
    const { role } = generation;
    for (const choice of generation.choices) {
      if (this.#choices.delete(choice.sequence.request.id)) {
        this.#parts.driver.abort(choice.sequence.request.id);
        transfer?.connector.cancel(choice.sequence.request.id);
      }
    }
    if (role.kind === "prefill" && role.room !== undefined) {
      transfer?.connector.leaveRoom(role.room, "the prefill leg left");
    }
  }

  /** Ends a request with a 500, or an error event when its answer has begun. */
  #fail(generation: Generation, message: string): void {
    for (const choice of generation.choices) this.#choices.delete(choice.sequence.request.id);
    if (generation.openChoices === 0) return;
    generation.openChoices = 0;
    generation.answer.fail(message);
  }

  #advance(choice: Choice, at: number, token: number): void {
    const { generation, sequence } = choice;
    const { metrics, vocabulary, driver } = this.#parts;
    if (choice.previousTokenAt === undefined) {
      const { cachedTokens, request } = sequence;
      const promptTokens = request.promptTokens.length;
      const externalTokens = request.remoteKv === undefined ? 0 : promptTokens - cachedTokens;
      const seconds = (at - sequence.submittedAt) / 1_000;
      metrics.firstToken({ seconds, promptTokens, cachedTokens, externalTokens });
      generation.usage.cachedTokens += choice.cachedTokens ?? cachedTokens;
    } else {
      metrics.nextToken((at - choice.previousTokenAt) / 1_000);
    }
    choice.previousTokenAt = at;
    generation.usage.completionTokens++;
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
    const { role } = generation;
    if (role.kind === "prefill" && reason !== undefined) {
      this.#handOver(choice, role, token, reason);
    }
    const finishReason = reason === undefined ? undefined : (generation.shownReason ?? reason);
    generation.answer.piece(
      { index: choice.index, text, tokens: [token], finishReason, stopReason },
      generation.usage,
    );
    if (reason !== undefined) this.#end(choice, reason);
  }

  #end(choice: Choice, reason: string): void {
    const { generation, sequence } = choice;
    this.#choices.delete(sequence.request.id);
    this.#record(choice, reason);
    // A prefill leg in a room answers when its blocks have arrived.
    if (generation.role.kind === "prefill" && generation.role.room !== undefined) return;
    if (--generation.openChoices === 0) this.#finish(generation);
  }

  #nextSuffix(): string {
    this.#suffix = (this.#suffix + 1) >>> 0;
    return this.#suffix.toString(16).padStart(8, "0");
  }

  #finish(generation: Generation): void {
    generation.openChoices = 0;
    generation.answer.finish(generation.usage, generation.extras);
  }

  /** The prefill ended: its blocks are held and offered, or sent to who waits for them. */
  #handOver(choice: Choice, leg: PrefillLeg, firstToken: number, finishReason: string): void {
    const transfer = this.#parts.transfer;
    const { generation, sequence } = choice;
    const requestId = sequence.request.id;
    // A stop string ends an answer while its sequence is still live: nothing is kept then.
    if (transfer === undefined || sequence.finishReason === undefined) return;
    this.#handedOff.add(requestId);
    const cachedTokens = sequence.cachedTokens;
    if (leg.room !== undefined) {
      transfer.connector.roomPrefilled(leg.room, requestId, { cachedTokens, tokens: [firstToken] });
      return;
    }
    const { promptTokens } = sequence.request;
    const key = leg.key ?? requestId;
    const handoff = transfer.connector.openHandoff({
      key,
      requestId,
      promptTokens: promptTokens.length,
      cachedTokens,
    });
    if (handoff === undefined) return;
    const fields = transfer.protocol.handoffFields({
      key,
      blocks: handoff.blocks,
      promptTokens: [...promptTokens],
      cachedTokens,
      firstToken,
      finishReason,
      outputTokensMax: generation.body.outputTokensMax,
      leg,
    });
    if (fields === undefined || generation.body.stream) {
      // A streamed prefill leg never shows the hand-off, so it stays until its lease ends, as in vLLM.
      if (fields === undefined) transfer.connector.dropHandoff(key);
      return;
    }
    generation.handoffKey = key;
    generation.shownReason = fields.finishReason;
    if (fields.top !== undefined) generation.extras.top = fields.top;
    if (fields.choice !== undefined) generation.extras.choice = fields.choice;
  }

  #record(choice: Choice, reason: string): void {
    const { generation, sequence } = choice;
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
      cachedTokens: choice.cachedTokens ?? sequence.cachedTokens,
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

/** What vLLM says when its engine core is gone. */
export const engineDead =
  "EngineCore encountered an issue. See stack trace (above) for the root cause.";

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
