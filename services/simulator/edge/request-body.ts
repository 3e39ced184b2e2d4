import { badRequest, invalidBody, modelNotFound, VllmError } from "./vllm-error.ts";

/** What both completion endpoints take, validated. Fields that change nothing here are left out. */
export interface SamplingBody {
  readonly model: string;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  readonly continuousUsage: boolean;
  /** Undefined: as much as the endpoint's default allows. */
  readonly outputTokensMax: number | undefined;
  readonly outputTokensMin: number;
  readonly ignoreEnd: boolean;
  readonly stop: readonly string[];
  readonly stopTokens: readonly number[];
  readonly seed: number;
  readonly n: number;
  readonly temperature: number | undefined;
  readonly topP: number;
  readonly returnTokenIds: boolean;
  readonly cacheSalt: string | undefined;
  readonly requestId: string | undefined;
  readonly sessionId: string | undefined;
}

/** JSON object of a body, unknown inside. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** Parses a body as a JSON object, or throws the 400 that vLLM gives. */
export function parseJson(bytes: Buffer): JsonObject {
  let parsed: unknown;
  try {
    parsed = JSON.parse(utf8.decode(bytes));
  } catch {
    throw new VllmError(
      400,
      "Bad Request",
      "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.1', 'msg': 'JSON decode error'}",
      "body.1",
    );
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw invalidBody("", "model_attributes_type", "Input should be a valid dictionary", parsed);
  }
  return parsed as JsonObject;
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** Reads what the endpoints share. `chat` also takes `max_completion_tokens`. */
export function parseSampling(
  body: JsonObject,
  options: {
    served: readonly string[];
    chat: boolean;
    sessionHeader: string | undefined;
    /** Field that names the request: `request_id`, in SGLang `rid`. */
    idField: string;
  },
): SamplingBody {
  const model = text(body, "model") ?? options.served[0] ?? "";
  if (!options.served.includes(model)) throw modelNotFound(model, options.served);
  const streamOptions = object(body, "stream_options");
  const temperature = number(body, "temperature");
  const n = whole(body, "n") ?? 1;
  if (n < 1) throw badRequest(`n must be at least 1, got ${String(n)}.`, "n", n);
  if (n > 1 && temperature === 0) {
    throw badRequest(`n must be 1 when using greedy sampling, got ${String(n)}.`);
  }
  if (temperature !== undefined && temperature < 0) {
    throw badRequest(
      `temperature must be non-negative, got ${String(temperature)}.`,
      "temperature",
    );
  }
  const stream = flag(body, "stream");
  if (!stream && Object.keys(streamOptions).length > 0) {
    throw badRequest("Stream options can only be defined when `stream=True`.", "stream_options");
  }
  const chatMax = options.chat ? whole(body, "max_completion_tokens") : undefined;
  const outputTokensMax = chatMax ?? whole(body, "max_tokens");
  if (outputTokensMax !== undefined && outputTokensMax < 1) {
    throw badRequest(
      `max_tokens must be at least 1, got ${String(outputTokensMax)}.`,
      "max_tokens",
      outputTokensMax,
    );
  }
  return {
    model,
    stream,
    includeUsage: flag(streamOptions, "include_usage"),
    continuousUsage: flag(streamOptions, "continuous_usage_stats"),
    outputTokensMax,
    outputTokensMin: whole(body, "min_tokens") ?? 0,
    ignoreEnd: flag(body, "ignore_eos"),
    stop: stopStrings(body),
    stopTokens: tokenList(body["stop_token_ids"] ?? [], "stop_token_ids"),
    seed: whole(body, "seed") ?? 0,
    n,
    temperature,
    topP: number(body, "top_p") ?? 1,
    returnTokenIds: flag(body, "return_token_ids"),
    cacheSalt: text(body, "cache_salt"),
    requestId: text(body, options.idField),
    sessionId: text(body, "session_id") ?? options.sessionHeader,
  };
}

/** One prompt of a completion: text, or the tokens themselves. */
export type CompletionPrompt = string | readonly number[];

/** `prompt` of a completion body: a string, tokens, or a list of either. */
export function parsePrompts(body: JsonObject): readonly CompletionPrompt[] {
  const { prompt } = body as { prompt?: unknown };
  if (typeof prompt === "string" && prompt !== "") return [prompt];
  if (Array.isArray(prompt) && prompt.length > 0) {
    const items = prompt as readonly unknown[];
    if (typeof items[0] === "number") return [tokenList(items, "prompt")];
    return items.map((item) => {
      if (typeof item === "string" && item !== "") return item;
      if (Array.isArray(item) && item.length > 0) return tokenList(item, "prompt");
      throw invalidBody("prompt", "string_type", "Input should be a valid string", item);
    });
  }
  if (prompt === undefined || prompt === null || prompt === "" || Array.isArray(prompt)) {
    throw badRequest("Either prompt or prompt_embeds must be provided and non-empty.", "prompt");
  }
  throw invalidBody("prompt", "string_type", "Input should be a valid string", prompt);
}

/** A list of token ids, or a 400. */
export function tokenList(value: unknown, field: string): readonly number[] {
  if (!Array.isArray(value)) {
    throw invalidBody(field, "list_type", "Input should be a valid list", value);
  }
  for (const item of value as readonly unknown[]) {
    if (typeof item !== "number" || !Number.isInteger(item) || item < 0) {
      throw invalidBody(field, "int_type", "Input should be a valid integer", item);
    }
  }
  return value as readonly number[];
}

function stopStrings(body: JsonObject): readonly string[] {
  const { stop } = body as { stop?: unknown };
  if (stop === undefined || stop === null) return [];
  const list = (Array.isArray(stop) ? stop : [stop]) as readonly unknown[];
  if (list.length > 64) throw badRequest("at most 64 stop strings are accepted.", "stop");
  return list.map((item) => {
    if (typeof item !== "string") {
      throw invalidBody("stop", "string_type", "Input should be a valid string", item);
    }
    if (item === "") throw badRequest("stop cannot contain an empty string.", "stop");
    return item;
  });
}

/** A string field, or undefined when absent or null. */
export function text(body: JsonObject, field: string): string | undefined {
  const value = body[field];
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "string") {
    throw invalidBody(field, "string_type", "Input should be a valid string", value);
  }
  return value;
}

function number(body: JsonObject, field: string): number | undefined {
  const value = body[field];
  if (value === undefined || value === null) return undefined;
  if (typeof value === "string" && value.trim() !== "" && Number.isFinite(Number(value))) {
    return Number(value);
  }
  if (typeof value !== "number") {
    throw invalidBody(
      field,
      "float_parsing",
      "Input should be a valid number, unable to parse string as a number",
      value,
    );
  }
  return value;
}

/** A whole number, or undefined when absent or null. */
export function whole(body: JsonObject, field: string): number | undefined {
  const value = number(body, field);
  if (value !== undefined && !Number.isSafeInteger(value)) {
    throw invalidBody(field, "int_from_float", "Input should be a valid integer", value);
  }
  return value;
}

/** A boolean, false when absent or null. */
export function flag(body: JsonObject, field: string): boolean {
  const value = body[field];
  if (value === undefined || value === null) return false;
  if (typeof value !== "boolean") {
    throw invalidBody(field, "bool_parsing", "Input should be a valid boolean", value);
  }
  return value;
}

function object(body: JsonObject, field: string): JsonObject {
  const value = body[field];
  if (value === undefined || value === null) return {};
  if (typeof value !== "object" || Array.isArray(value)) {
    throw invalidBody(field, "model_type", "Input should be a valid dictionary", value);
  }
  return value as JsonObject;
}
