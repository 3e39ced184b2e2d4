import type { ServerResponse } from "node:http";
import type { SamplingBody } from "./request-body.ts";

/** One token's worth of output of one choice. */
export interface AnswerPiece {
  readonly index: number;
  readonly text: string;
  /** Token ids behind the text; empty when only held-back text is given out. */
  readonly tokens: readonly number[];
  /** Set on the last piece of the choice. */
  readonly finishReason: string | undefined;
  /** Stop string or stop token that ended it; null otherwise. */
  readonly stopReason: string | number | null;
}

/** Token counts of an answer. */
export interface AnswerUsage {
  promptTokens: number;
  completionTokens: number;
  cachedTokens: number;
}

/** Fields beyond vLLM's usual ones, at the top and in each choice, of whole answers alone. */
export interface AnswerExtras {
  readonly top?: Readonly<Record<string, unknown>> | undefined;
  readonly choice?: Readonly<Record<string, unknown>> | undefined;
}

/** What all answers to one HTTP request have in common. */
export interface AnswerHead {
  readonly chat: boolean;
  /** `cmpl-…` or `chatcmpl-…`. */
  readonly id: string;
  readonly createdS: number;
  readonly model: string;
  readonly fingerprint: string;
  readonly body: SamplingBody;
  /** Prompt tokens by prompt, for `return_token_ids`. */
  readonly prompts: readonly Uint32Array[];
  /** Whole error answers are the error object itself (SGLang, TensorRT-LLM) instead of `{"error": …}`. */
  readonly flatErrors: boolean;
}

/** Receives the pieces of all choices and writes the HTTP answer. */
export interface Answer {
  piece(piece: AnswerPiece, usage: AnswerUsage): void;
  /** All choices ended. */
  finish(usage: AnswerUsage, extras?: AnswerExtras): void;
  /** The engine or the request failed: what vLLM sends then. */
  fail(message: string): void;
}

function usageJson(usage: AnswerUsage, extra: string): string {
  const { promptTokens, completionTokens } = usage;
  return (
    `{"prompt_tokens":${String(promptTokens)},"total_tokens":${String(promptTokens + completionTokens)},` +
    `"completion_tokens":${String(completionTokens)}${extra}}`
  );
}

/** A piece that waits for a slow client, merged from the pieces since. */
interface PendingPiece {
  index: number;
  text: string;
  tokens: number[];
  finishReason: string | undefined;
  stopReason: string | number | null;
}

/**
 * Server-sent events in vLLM's shape. When the client reads too slowly, pieces are merged per choice until the
 * socket drains, as vLLM's output collector does: the buffer never holds more than the answer itself.
 */
export class StreamAnswer implements Answer {
  readonly #response: ServerResponse;
  readonly #head: AnswerHead;
  readonly #prefix: string;
  readonly #introduced = new Set<number>();
  #blocked = false;
  readonly #pending = new Map<number, PendingPiece>();
  #usage: AnswerUsage = { promptTokens: 0, completionTokens: 0, cachedTokens: 0 };
  #finished = false;
  #truncateAfter: number | undefined;

  /** Sends the response head at once, as vLLM does, long before the first token. */
  constructor(response: ServerResponse, head: AnswerHead) {
    this.#response = response;
    this.#head = head;
    const object = head.chat ? "chat.completion.chunk" : "text_completion";
    this.#prefix =
      `data: {"id":${JSON.stringify(head.id)},"object":"${object}","created":${String(head.createdS)},` +
      `"model":${JSON.stringify(head.model)},"choices":[`;
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
    response.flushHeaders();
  }

  /** Fault: after this many chunks the connection is cut inside one. */
  truncateAfter(chunks: number): void {
    this.#truncateAfter = chunks;
  }

  piece(piece: AnswerPiece, usage: AnswerUsage): void {
    this.#usage = usage;
    if (this.#blocked) {
      this.#merge(piece);
      return;
    }
    this.#write(this.#chunk(piece));
  }

  finish(usage: AnswerUsage): void {
    this.#usage = usage;
    this.#finished = true;
    if (!this.#blocked) this.#end();
  }

  fail(message: string): void {
    const error = { message, type: "InternalServerError", param: null, code: 500 };
    this.#response.end(`data: ${JSON.stringify({ error })}\n\ndata: [DONE]\n\n`);
  }

  #chunk(piece: AnswerPiece): string {
    const { body, chat } = this.#head;
    let out = "";
    const index = String(piece.index);
    const first = !this.#introduced.has(piece.index);
    if (first) this.#introduced.add(piece.index);
    if (first && chat) out += this.#roleChunk(index);
    const finish = piece.finishReason === undefined ? "null" : `"${piece.finishReason}"`;
    const ids = body.returnTokenIds ? `[${piece.tokens.join(",")}]` : "null";
    const text = JSON.stringify(piece.text);
    if (chat) {
      const stop =
        piece.finishReason === undefined
          ? ""
          : `,"stop_reason":${JSON.stringify(piece.stopReason)}`;
      out += `${this.#prefix}{"index":${index},"delta":{"content":${text}},"logprobs":null,"finish_reason":${finish}${stop},"token_ids":${ids}}]`;
    } else {
      const prompt = first ? this.#promptIds(piece.index) : "null";
      out += `${this.#prefix}{"index":${index},"text":${text},"logprobs":null,"finish_reason":${finish},"stop_reason":${JSON.stringify(piece.stopReason)},"prompt_token_ids":${prompt},"token_ids":${ids}}]`;
    }
    return `${out}${this.#continuousUsage()}}\n\n`;
  }

  #roleChunk(index: string): string {
    return (
      `${this.#prefix}{"index":${index},"delta":{"role":"assistant","content":""},"logprobs":null,` +
      `"finish_reason":null}],"prompt_token_ids":${this.#promptIds(0)},"prompt_text":null${this.#continuousUsage()}}\n\n`
    );
  }

  #promptIds(index: number): string {
    const { body, prompts } = this.#head;
    if (!body.returnTokenIds) return "null";
    const prompt = prompts[Math.floor(index / body.n)];
    return prompt === undefined ? "null" : `[${prompt.join(",")}]`;
  }

  #continuousUsage(): string {
    const { body } = this.#head;
    const wanted = body.includeUsage && body.continuousUsage;
    return wanted ? `,"usage":${usageJson(this.#usage, "")}` : "";
  }

  #merge(piece: AnswerPiece): void {
    const pending = this.#pending.get(piece.index);
    if (pending === undefined) {
      this.#pending.set(piece.index, { ...piece, tokens: [...piece.tokens] });
      return;
    }
    pending.text += piece.text;
    pending.tokens.push(...piece.tokens);
    pending.finishReason = piece.finishReason;
    pending.stopReason = piece.stopReason;
  }

  #write(text: string): void {
    if (this.#truncateAfter !== undefined) {
      if (this.#truncateAfter === 0) {
        this.#response.write(text.slice(0, text.length >> 1), () => this.#response.destroy());
        this.#truncateAfter = -1;
      }
      if (this.#truncateAfter < 0) return;
      this.#truncateAfter--;
    }
    if (this.#response.write(text)) return;
    this.#blocked = true;
    this.#response.once("drain", () => {
      this.#drained();
    });
  }

  #drained(): void {
    this.#blocked = false;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    // A write may block the stream again; what is left is then merged as before.
    for (const piece of pending) this.piece(piece, this.#usage);
    if (this.#finished && !this.#isBlocked()) this.#end();
  }

  #isBlocked(): boolean {
    return this.#blocked;
  }

  #end(): void {
    let tail = "";
    if (this.#head.body.includeUsage) {
      const cached = String(this.#usage.cachedTokens);
      const created = this.#head.chat ? `,"created_cache_tokens":0` : "";
      const details = `,"prompt_tokens_details":{"cached_tokens":${cached}${created}}`;
      tail =
        `${this.#prefix}],"usage":${usageJson(this.#usage, details)},` +
        `"system_fingerprint":${JSON.stringify(this.#head.fingerprint)}}\n\n`;
    }
    this.#response.end(`${tail}data: [DONE]\n\n`);
  }
}

/** The whole answer as one JSON object in vLLM's shape. Holds the answer until all choices ended. */
export class JsonAnswer implements Answer {
  readonly #response: ServerResponse;
  readonly #head: AnswerHead;
  readonly #choices = new Map<number, PendingPiece>();

  constructor(response: ServerResponse, head: AnswerHead) {
    this.#response = response;
    this.#head = head;
  }

  piece(piece: AnswerPiece): void {
    const choice = this.#choices.get(piece.index);
    if (choice === undefined) {
      this.#choices.set(piece.index, { ...piece, tokens: [...piece.tokens] });
      return;
    }
    choice.text += piece.text;
    choice.tokens.push(...piece.tokens);
    choice.finishReason = piece.finishReason;
    choice.stopReason = piece.stopReason;
  }

  finish(usage: AnswerUsage, extras: AnswerExtras = {}): void {
    const { chat, body, id, createdS, model, fingerprint, prompts } = this.#head;
    const choices = [...this.#choices.values()].sort((a, b) => a.index - b.index);
    const promptIds = (index: number): number[] | null => {
      const prompt = body.returnTokenIds ? prompts[Math.floor(index / body.n)] : undefined;
      return prompt === undefined ? null : [...prompt];
    };
    const ends = (choice: PendingPiece): object => ({
      logprobs: null,
      finish_reason: choice.finishReason,
      stop_reason: choice.stopReason,
      token_ids: body.returnTokenIds ? choice.tokens : null,
    });
    const shaped = choices.map((choice) =>
      chat
        ? {
            index: choice.index,
            message: chatMessage(choice.text),
            ...ends(choice),
            routed_experts: null,
            ...extras.choice,
          }
        : {
            index: choice.index,
            text: choice.text,
            ...ends(choice),
            prompt_logprobs: null,
            prompt_token_ids: promptIds(choice.index),
            routed_experts: null,
            ...extras.choice,
          },
    );
    const chatOnly = chat
      ? { prompt_logprobs: null, prompt_token_ids: promptIds(0), prompt_text: null }
      : {};
    sendJsonText(
      this.#response,
      200,
      JSON.stringify({
        id,
        object: chat ? "chat.completion" : "text_completion",
        created: createdS,
        model,
        choices: shaped,
        service_tier: null,
        system_fingerprint: fingerprint,
        usage: {
          prompt_tokens: usage.promptTokens,
          total_tokens: usage.promptTokens + usage.completionTokens,
          completion_tokens: usage.completionTokens,
          prompt_tokens_details: {
            cached_tokens: usage.cachedTokens,
            created_cache_tokens: chat ? 0 : null,
            multimodal_tokens: null,
          },
          completion_tokens_details: null,
        },
        ...chatOnly,
        kv_transfer_params: null,
        ec_transfer_params: null,
        metrics: null,
        ...extras.top,
      }),
    );
  }

  fail(message: string): void {
    const error = { message, type: "InternalServerError", param: null, code: 500 };
    const body = this.#head.flatErrors ? { object: "error", ...error } : { error };
    sendJsonText(this.#response, 500, JSON.stringify(body));
  }
}

function chatMessage(content: string): object {
  return {
    role: "assistant",
    content,
    refusal: null,
    annotations: null,
    audio: null,
    function_call: null,
    reasoning: null,
  };
}

/** Writes a whole JSON body; does nothing when the client has gone. */
export function sendJsonText(response: ServerResponse, status: number, body: string): void {
  if (response.headersSent || response.destroyed) return;
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(body),
  });
  response.end(body);
}
