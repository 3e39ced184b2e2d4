import { MeshError } from "../../../shared/core/errors.ts";
import {
  isObject,
  isTokenList,
  optionalCount,
  optionalFlag,
  readChoices,
  readModel,
  readSession,
  readStream,
  refuse,
  type Body,
} from "./body-fields.ts";
import { readEmbeddingsInput } from "./embeddings-input.ts";
import { reservedFields } from "../../../shared/core/reserved-fields.ts";
import type { OpenAiPrompt } from "./openai-prompt.ts";
import { readResponsesInput } from "./responses-input.ts";
import type { ChatPrompt } from "./scanned-body.ts";

/** What a path asks for. */
export type RequestKind = "chat" | "completions" | "responses" | "embeddings" | "other";

/** What a request asks, as far as placement needs it. */
export interface OpenAiRequest {
  readonly kind: RequestKind;
  /** Model or adapter name; `undefined` when the body names none (other paths only). */
  readonly model: string | undefined;
  /** Limit of the answer, tokens; `undefined` when not limited. */
  readonly tokensMax: number | undefined;
  /** Conversation that the request belongs to: `prompt_cache_key`, else `user`; absent when it names none. */
  readonly session?: string;
  /** Whether the answer is to come token by token; absent when the body does not say so for certain. */
  readonly stream?: boolean;
  /** How many answers are asked for, each with a decode of its own; absent means one. */
  readonly choices?: number;
  readonly prompt: OpenAiPrompt;
}

/** Deepest nesting of a body. Deeper ones are refused before anything walks them. */
const depthMax = 64;

const chatPath = /\/v1\/chat\/completions\/?$/;
const completionsPath = /\/v1\/completions\/?$/;
const responsesPath = /\/v1\/responses\/?$/;
const embeddingsPath = /\/v1\/embeddings\/?$/;

/** Bodies that engines read as JSON: by their type, or when they name none. */
const jsonType = /^[^;]*\bjson\b/i;

/** Index of the quote that ends the string begun at `from`, or −1. Jumps from quote to quote: text is long, quotes few. */
function stringEnd(text: string, from: number): number {
  for (let end = text.indexOf('"', from + 1); end >= 0; end = text.indexOf('"', end + 1)) {
    let backslashes = 0;
    while (text.charCodeAt(end - 1 - backslashes) === 92) backslashes++;
    if (backslashes % 2 === 0) return end;
  }
  return -1;
}

/** Whether brackets nest deeper than `depthMax` outside strings; linear, so that JSON.parse never recurses far. */
function nestsTooDeep(text: string): boolean {
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c === 34) {
      i = stringEnd(text, i);
      if (i < 0) return false;
    } else if (c === 123 || c === 91) {
      if (++depth > depthMax) return true;
    } else if (c === 125 || c === 93) depth--;
  }
  return false;
}

function decodeUtf8(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (error) {
    throw new MeshError("invalid_request", "the body is not valid UTF-8", { cause: error });
  }
}

function parseJson(text: string): Body {
  if (nestsTooDeep(text)) {
    throw new MeshError("invalid_request", `the body nests deeper than ${depthMax} levels`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    const detail = error instanceof Error ? error.message : "";
    throw new MeshError("invalid_request", `the body is not valid JSON: ${detail}`, {
      cause: error,
    });
  }
  if (!isObject(value)) throw new MeshError("invalid_request", "the body must be a JSON object");
  return value;
}

/** A content part that is not text, or `undefined`; wrong types are refused. */
function checkContent(content: unknown, field: string): "multimodal" | undefined {
  if (content === undefined || content === null || typeof content === "string") return undefined;
  if (!Array.isArray(content)) refuse(field, "must be a string or a list of parts");
  const kinds = content.map((part: unknown, i) => {
    if (typeof part === "string") return undefined;
    if (!isObject(part) || typeof part["type"] !== "string") {
      refuse(`${field}[${i}]`, "must be an object with a type");
    }
    if (part["type"] === "text" || part["type"] === "input_text" || part["type"] === "refusal") {
      const text = part[part["type"] === "refusal" ? "refusal" : "text"];
      if (typeof text !== "string") refuse(`${field}[${i}].text`, "must be a string");
      return undefined;
    }
    return "multimodal" as const;
  });
  return kinds.includes("multimodal") ? "multimodal" : undefined;
}

function readChat(body: Body): OpenAiPrompt {
  const messages: unknown = body["messages"];
  if (!Array.isArray(messages)) refuse("messages", "must be a list of messages");
  if (messages.length === 0) refuse("messages", "must hold at least one message");
  const read = messages.map((message: unknown, i) => {
    if (!isObject(message)) refuse(`messages[${i}]`, "must be an object");
    if (typeof message["role"] !== "string") refuse(`messages[${i}].role`, "must be a string");
    return message;
  });
  const multimodal = read
    .map((message, i) => checkContent(message["content"], `messages[${i}].content`))
    .includes("multimodal");
  const tools = body["tools"];
  if (tools !== undefined && tools !== null && !Array.isArray(tools)) {
    refuse("tools", "must be a list");
  }
  const kwargs = body["chat_template_kwargs"];
  if (kwargs !== undefined && kwargs !== null && !isObject(kwargs)) {
    refuse("chat_template_kwargs", "must be an object");
  }
  const chat: ChatPrompt = {
    messages: read,
    tools: Array.isArray(tools) && tools.length > 0 ? (tools as readonly unknown[]) : undefined,
    addGenerationPrompt: optionalFlag(body, "add_generation_prompt", true),
    continueFinalMessage: optionalFlag(body, "continue_final_message", false),
    templateKwargs: isObject(kwargs) ? kwargs : {},
  };
  if (multimodal) return { kind: "load_only", reason: "multimodal" };
  if (typeof body["chat_template"] === "string")
    return { kind: "load_only", reason: "custom_template" };
  return { kind: "chat", chat };
}

function readPrompt(body: Body): OpenAiPrompt {
  const prompt: unknown = body["prompt"];
  if (prompt === undefined || prompt === null) {
    if (body["prompt_embeds"] !== undefined)
      return { kind: "load_only", reason: "prompt_embeddings" };
    refuse("prompt", "is required");
  }
  if (typeof prompt === "string") return { kind: "text", text: prompt };
  if (!Array.isArray(prompt) || prompt.length === 0) {
    refuse("prompt", "must be a string, a list of strings, a list of token ids or a list of those");
  }
  const list = prompt as readonly unknown[];
  const first = list[0];
  // Several prompts in one request share a worker; the first one decides which.
  if (list.every((item) => typeof item === "string"))
    return { kind: "text", text: first as string };
  if (isTokenList(list)) return { kind: "tokens", ids: list };
  if (list.every((item) => Array.isArray(item) && isTokenList(item))) {
    return { kind: "tokens", ids: first as readonly number[] };
  }
  refuse("prompt", "must be a string, a list of strings, a list of token ids or a list of those");
}

function checkReserved(body: Body): void {
  for (const field of Object.keys(body)) {
    if (reservedFields.has(field)) {
      refuse(field, "is reserved for the mesh itself and cannot be set by a client; leave it out");
    }
  }
}

/** Kinds of paths asked for lately: a service gets the same few again and again. */
const knownKinds = new Map<string, RequestKind>();
const knownKindsMax = 64;
const knownPathLengthMax = 128;

/** What a path asks for. */
export function kindOf(path: string): RequestKind {
  const known = knownKinds.get(path);
  if (known !== undefined) return known;
  const kind = readKind(path);
  if (path.length > knownPathLengthMax) return kind;
  if (knownKinds.size >= knownKindsMax) knownKinds.clear();
  knownKinds.set(path, kind);
  return kind;
}

function readKind(path: string): RequestKind {
  const route = path.split("?", 1)[0] ?? "";
  if (chatPath.test(route)) return "chat";
  if (completionsPath.test(route)) return "completions";
  if (responsesPath.test(route)) return "responses";
  return embeddingsPath.test(route) ? "embeddings" : "other";
}

/**
 * Reads a body for placement. Throws `invalid_request` with the field for anything that could not be served:
 * bad UTF-8, malformed JSON, wrong types, reserved fields. Unknown fields pass. Paths that are not known here may
 * carry something else than JSON, such as an audio upload, if `contentType` says so; it is not looked into.
 */
export function readOpenAiRequest(
  path: string,
  bytes: Uint8Array,
  contentType?: string,
): OpenAiRequest {
  const kind = kindOf(path);
  if (bytes.length === 0 && kind === "other") {
    return {
      kind,
      model: undefined,
      tokensMax: undefined,
      prompt: { kind: "load_only", reason: "no_body" },
    };
  }
  if (kind === "other" && contentType !== undefined && !jsonType.test(contentType)) {
    return {
      kind,
      model: undefined,
      tokensMax: undefined,
      prompt: { kind: "load_only", reason: "other_path" },
    };
  }
  const body = parseJson(decodeUtf8(bytes));
  checkReserved(body);
  const model = readModel(body, kind === "chat" || kind === "completions");
  const hints = { ...readSession(body), ...readStream(body), ...readChoices(body) };
  switch (kind) {
    case "chat":
      return { kind, model, tokensMax: chatTokensMax(body), ...hints, prompt: readChat(body) };
    case "completions":
      return { kind, model, tokensMax: chatTokensMax(body), ...hints, prompt: readPrompt(body) };
    case "responses": {
      const tokensMax = optionalCount(body, "max_output_tokens");
      return { kind, model, tokensMax, ...hints, prompt: readResponsesInput(body) };
    }
    case "embeddings": {
      // Nothing is decoded.
      const prompt = "messages" in body ? readChat(body) : readEmbeddingsInput(body);
      return { kind, model, tokensMax: 1, ...readSession(body), prompt };
    }
    case "other":
      return {
        kind,
        model,
        tokensMax: undefined,
        prompt: { kind: "load_only", reason: "other_path" },
      };
  }
}

function chatTokensMax(body: Body): number | undefined {
  return optionalCount(body, "max_completion_tokens") ?? optionalCount(body, "max_tokens");
}
