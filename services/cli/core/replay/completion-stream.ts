/** Token counts as the endpoint reports them in the last chunk of a stream. */
export interface StreamUsage {
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Prompt tokens served from the engine's cache; `undefined` when the endpoint does not say. */
  readonly cachedTokens: number | undefined;
}

/** What happened on one stream so far. Times are the `nowMs` given to `push`. */
export interface StreamState {
  /** When the first chunk with text or a token came. */
  readonly firstTokenMs: number | undefined;
  /** When the last chunk with text, a token or the finish reason came. */
  readonly lastTokenMs: number | undefined;
  /** Chunks that carry a part of the answer. */
  readonly chunkCount: number;
  readonly finishReason: string | undefined;
  /** Whether `[DONE]` came. */
  readonly isDone: boolean;
  readonly usage: StreamUsage | undefined;
  /** Message of an error event inside the stream. */
  readonly error: string | undefined;
  /** Why the stream is not one of the OpenAI API. */
  readonly malformed: string | undefined;
  /** Text of the answer; kept only when the stream is read in full. */
  readonly text: string;
  /** Token ids of the answer, where the endpoint gives them; kept only when read in full. */
  readonly tokenIds: readonly number[];
}

/** Longest line taken; a chunk of a stream is some hundred bytes, one with logprobs some thousand. */
const lineBytesMax = 1_048_576;

const newline = 0x0a;
const dataField = Uint8Array.from("data:", (c) => c.charCodeAt(0));
const doneMark = Uint8Array.from("[DONE]", (c) => c.charCodeAt(0));
const finishKey = Uint8Array.from('"finish_reason"', (c) => c.charCodeAt(0));
const nullWord = Uint8Array.from("null", (c) => c.charCodeAt(0));

function matchesAt(bytes: Uint8Array, at: number, end: number, word: Uint8Array): boolean {
  if (at + word.length > end) return false;
  for (let i = 0; i < word.length; i++) if (bytes[at + i] !== word[i]) return false;
  return true;
}

function skipBlanks(bytes: Uint8Array, at: number, end: number): number {
  let next = at;
  while (next < end && (bytes[next] === 0x20 || bytes[next] === 0x09)) next++;
  return next;
}

/**
 * Whether a chunk has `"finish_reason": null`, which is every chunk in the middle of a stream. Such a
 * quote cannot come from the answer's text, where quotes are escaped. Looks from the end, where the key is.
 */
function isMiddleChunk(bytes: Uint8Array, start: number, end: number): boolean {
  for (let at = end - finishKey.length; at >= start; at--) {
    if (bytes[at + 1] !== 0x66 || !matchesAt(bytes, at, end, finishKey)) continue;
    const colon = skipBlanks(bytes, at + finishKey.length, end);
    if (bytes[colon] !== 0x3a) return false;
    return matchesAt(bytes, skipBlanks(bytes, colon + 1, end), end, nullWord);
  }
  return false;
}

type Json = Readonly<Record<string, unknown>>;

function asObject(value: unknown): Json | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? (value as Json)
    : undefined;
}

function asCount(value: unknown): number | undefined {
  return typeof value === "number" && value >= 0 ? value : undefined;
}

/**
 * Reads a streamed answer of the OpenAI completions or chat API as bytes arrive, split anywhere.
 * Only the chunks up to the first token, the finishing one and those without a finish reason are parsed
 * as JSON; the rest are recognised by their bytes, because a generator shares the machine with what
 * it measures. `readInFull` parses every chunk and keeps text and token ids.
 */
export class CompletionStream implements StreamState {
  firstTokenMs: number | undefined;
  lastTokenMs: number | undefined;
  chunkCount = 0;
  finishReason: string | undefined;
  isDone = false;
  usage: StreamUsage | undefined;
  error: string | undefined;
  malformed: string | undefined;
  text = "";
  readonly tokenIds: number[] = [];
  readonly #readInFull: boolean;
  readonly #decoder = new TextDecoder();
  #carry: Uint8Array | undefined;

  constructor({ readInFull }: { readInFull: boolean }) {
    this.#readInFull = readInFull;
  }

  /** Takes the next bytes of the answer, which came at `nowMs`. */
  push(bytes: Uint8Array, nowMs: number): void {
    let start = 0;
    if (this.#carry !== undefined) {
      const end = bytes.indexOf(newline);
      const rest = end === -1 ? bytes : bytes.subarray(0, end);
      const line = new Uint8Array(this.#carry.length + rest.length);
      line.set(this.#carry);
      line.set(rest, this.#carry.length);
      if (end === -1) {
        this.#keep(line);
        return;
      }
      this.#carry = undefined;
      this.#line(line, 0, line.length, nowMs);
      start = end + 1;
    }
    for (;;) {
      const end = bytes.indexOf(newline, start);
      if (end === -1) break;
      this.#line(bytes, start, end, nowMs);
      start = end + 1;
    }
    if (start < bytes.length) this.#keep(bytes.slice(start));
  }

  #keep(line: Uint8Array): void {
    if (line.length > lineBytesMax) {
      this.malformed ??= `a line has more than ${lineBytesMax} bytes`;
      this.#carry = undefined;
    } else {
      this.#carry = line;
    }
  }

  #line(bytes: Uint8Array, start: number, lineEnd: number, nowMs: number): void {
    if (!matchesAt(bytes, start, lineEnd, dataField)) return;
    const end = bytes[lineEnd - 1] === 0x0d ? lineEnd - 1 : lineEnd;
    const at = skipBlanks(bytes, start + dataField.length, end);
    if (at >= end) return;
    if (matchesAt(bytes, at, end, doneMark)) {
      this.isDone = true;
      return;
    }
    if (this.firstTokenMs !== undefined && !this.#readInFull && isMiddleChunk(bytes, at, end)) {
      this.chunkCount++;
      this.lastTokenMs = nowMs;
      return;
    }
    let value: unknown;
    try {
      value = JSON.parse(this.#decoder.decode(bytes.subarray(at, end)));
    } catch (error) {
      this.malformed ??= `a chunk is not JSON: ${(error as Error).message}`;
      return;
    }
    const chunk = asObject(value);
    if (chunk === undefined) {
      this.malformed ??= "a chunk is not a JSON object";
    } else {
      this.#chunk(chunk, nowMs);
    }
  }

  #chunk(chunk: Json, nowMs: number): void {
    const error = chunk["error"];
    if (error !== undefined && error !== null) {
      const message = asObject(error)?.["message"];
      this.error ??= typeof message === "string" ? message : JSON.stringify(error);
      return;
    }
    const usage = asObject(chunk["usage"]);
    if (usage !== undefined) this.#usage(usage);
    const choices = chunk["choices"];
    if (!Array.isArray(choices)) {
      this.malformed ??= "a chunk has no choices";
      return;
    }
    const choice = asObject(choices[0]);
    if (choice !== undefined) this.#choice(choice, nowMs);
  }

  #usage(usage: Json): void {
    const promptTokens = asCount(usage["prompt_tokens"]);
    const completionTokens = asCount(usage["completion_tokens"]);
    if (promptTokens === undefined || completionTokens === undefined) {
      this.malformed ??= "usage has no prompt_tokens and completion_tokens";
      return;
    }
    const details = asObject(usage["prompt_tokens_details"]);
    this.usage = {
      promptTokens,
      completionTokens,
      cachedTokens: asCount(details?.["cached_tokens"]),
    };
  }

  #choice(choice: Json, nowMs: number): void {
    const delta = asObject(choice["delta"]);
    const texts = [choice["text"], delta?.["content"], delta?.["reasoning_content"]];
    const text = texts.find((value) => typeof value === "string" && value !== "");
    const ids = choice["token_ids"];
    const hasToken =
      text !== undefined ||
      (Array.isArray(ids) && ids.length > 0) ||
      (Array.isArray(delta?.["tool_calls"]) && delta["tool_calls"].length > 0);
    if (this.#readInFull) {
      if (typeof text === "string") this.text += text;
      if (Array.isArray(ids)) {
        for (const id of ids) if (typeof id === "number") this.tokenIds.push(id);
      }
    }
    if (hasToken) this.firstTokenMs ??= nowMs;
    if (typeof choice["finish_reason"] === "string") this.finishReason = choice["finish_reason"];
    if (hasToken || this.finishReason !== undefined || this.firstTokenMs !== undefined) {
      this.chunkCount++;
      this.lastTokenMs = nowMs;
    }
  }
}
