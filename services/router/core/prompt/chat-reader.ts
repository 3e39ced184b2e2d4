import type { HashRoot } from "../../../shared/core/block-hash.ts";
import {
  normaliseToolCall,
  normaliseTools,
  type ContentFormat,
} from "../../../shared/core/chat-messages.ts";
import type { SpecialTokens, TemplateSyntax } from "../../../shared/core/chat-template.ts";
import { MeshError } from "../../../shared/core/errors.ts";
import {
  isScannedText,
  spelled,
  type BodyTexts,
  type ScannedChat,
  type ScannedMessage,
  type ScannedText,
  type ScannedValue,
} from "../openai/scanned-body.ts";
import type { AddedToken, PromptTokenizer } from "./model-runtime.ts";
import type { PromptCache } from "./prompt-cache.ts";
import { PromptChain, type HashedPrompt } from "./prompt-chain.ts";
import type { PromptText } from "./prompt-text.ts";
import { TemplateProgram, templateFunctions } from "./template-program.ts";
import { NotRendered, type Value } from "./template-values.ts";
import { TokenCuts } from "./token-cuts.ts";

/** Texts up to this size are plain values and not remembered by themselves, bytes. */
const plainSizeMax = 32;
/** Memory of parsed JSON, by its size; an estimate. */
const valueBytesPerByte = 6;

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** What a chat template is given, and who remembers. */
export interface ChatReaderOptions {
  readonly syntax: TemplateSyntax;
  readonly contentFormat: ContentFormat;
  readonly specialTokens: SpecialTokens;
  readonly tokenizer: PromptTokenizer;
  readonly addedTokens: readonly AddedToken[];
  readonly cache: PromptCache;
  /** Memory for hashes of prompt beginnings, bytes. */
  readonly chainBytesMax: number;
  /** Tells what this reader remembers from what others do; every reader of a cache has another. */
  readonly domain: number;
}

/** What a reader has done so far. */
export interface ChatReaderFigures {
  readonly read: number;
  /** Chats that were left to the template library. */
  readonly left: number;
}

/**
 * Reads chats as block hashes without rendering them: the template's own parts and the texts of the request are put in a
 * row, cut at added tokens, and the tokens of pieces and the hashes of beginnings that have been seen are remembered. The
 * tokens are those of the rendered prompt; a chat for which that is not certain is left to the caller.
 */
export class ChatReader {
  readonly #options: ChatReaderOptions;
  readonly #program: TemplateProgram;
  readonly #chain: PromptChain;
  #bound: PromptText[] = [];
  #read = 0;
  #left = 0;

  constructor(options: ChatReaderOptions) {
    this.#options = options;
    const { bos, eos, pad, unk } = options.specialTokens;
    const cuts = new TokenCuts(options.addedTokens);
    const texts = [bos, eos, pad, unk].filter((text) => text !== undefined);
    this.#program = new TemplateProgram(options.syntax, (text) => cuts.cut(text), texts);
    this.#chain = new PromptChain(options.tokenizer, { bytesMax: options.chainBytesMax });
    const named = { bos_token: bos, eos_token: eos, pad_token: pad, unk_token: unk };
    const given = Object.entries(named).filter(([, text]) => text !== undefined);
    this.#program.setConstants(Object.fromEntries(given), templateFunctions);
  }

  get figures(): ChatReaderFigures {
    return { read: this.#read, left: this.#left };
  }

  /**
   * Length and block hashes of a chat; `undefined` when the template library has to render it, or to say what is wrong
   * with it.
   */
  read(chat: ScannedChat, root: HashRoot, blockSizeTokens: number): HashedPrompt | undefined {
    // Where the last message ends in the rendered text is for the library to find.
    if (chat.continueFinalMessage) return undefined;
    try {
      // The library refuses to be told what this is.
      if (Object.hasOwn(chat.templateKwargs, "namespace")) return undefined;
      const parts = this.#program.run(chat.templateKwargs, this.#variables(chat));
      const prompt = this.#chain.read(parts, root, blockSizeTokens);
      this.#read++;
      return prompt;
    } catch (error) {
      // A range error is a template that calls itself without end.
      const isJudged =
        error instanceof NotRendered || error instanceof MeshError || error instanceof RangeError;
      if (!isJudged) throw error;
      this.#left++;
      return undefined;
    } finally {
      for (const text of this.#bound) text.unbind();
      this.#bound.length = 0;
      this.#options.cache.trim();
    }
  }

  #variables(chat: ScannedChat): Record<string, Value> {
    const messages: Value[] = [];
    for (const message of chat.messages) messages.push(this.#message(chat.texts, message));
    return {
      messages,
      tools: this.#tools(chat),
      add_generation_prompt: chat.addGenerationPrompt,
    };
  }

  #tools({ bytes, tools }: ScannedChat): Value {
    if (tools === undefined) return null;
    return this.#options.cache.value(tools, 4 * this.#options.domain + 1, () => ({
      value: (normaliseTools(parse(bytes, tools)) ?? null) as Value,
      bytes: valueBytesPerByte * (tools.end - tools.start),
    }));
  }

  /** A message as `normaliseMessages` hands it to a template. */
  #message(texts: BodyTexts, message: ScannedMessage): Value {
    const { bytes } = texts;
    const { role, content, more } = message;
    const asText = this.#options.contentFormat === "string" || role === "tool";
    const result: Record<string, Value> = {
      role,
      content: asText ? this.#content(texts, content) : this.#parts(texts, content),
    };
    if (more === undefined) return result;
    if (role === "assistant") {
      const calls = more.get("tool_calls");
      if (calls !== undefined && !isScannedText(calls)) {
        const value = this.#toolCalls(bytes, calls);
        if (value !== null) result["tool_calls"] = value;
      }
      const given = more.get("reasoning");
      const isGiven = given !== undefined && (isScannedText(given) || bytes[given.start] !== 0x6e);
      const reasoning = isGiven ? given : more.get("reasoning_content");
      if (reasoning !== undefined && isScannedText(reasoning)) {
        result["reasoning"] = result["reasoning_content"] = this.#text(texts, reasoning);
      }
    }
    const callId = more.get("tool_call_id");
    if (role === "tool" && callId !== undefined) {
      result["tool_call_id"] = isScannedText(callId)
        ? this.#text(texts, callId)
        : (parse(bytes, callId) as Value);
    }
    const name = more.get("name");
    if (name !== undefined && isScannedText(name)) result["name"] = this.#text(texts, name);
    if (role === "developer") {
      const tools = more.get("tools");
      if (tools === undefined) result["tools"] = null;
      else if (isScannedText(tools)) result["tools"] = this.#text(texts, tools);
      else result["tools"] = parse(bytes, tools) as Value;
    }
    return result;
  }

  #toolCalls(bytes: Uint8Array, calls: ScannedValue): Value {
    return this.#options.cache.value(calls, 4 * this.#options.domain + 2, () => {
      const value = parse(bytes, calls);
      const list = Array.isArray(value) && value.length > 0;
      return {
        value: (list ? value.map(normaliseToolCall) : null) as Value,
        bytes: valueBytesPerByte * (calls.end - calls.start),
      };
    });
  }

  #content(texts: BodyTexts, content: ScannedMessage["content"]): Value {
    if (content === undefined) return "";
    if (!isList(content)) return this.#text(texts, content);
    const [first, ...rest] = content.map((text) => this.#long(texts, text));
    if (first === undefined) return "";
    if (rest.length === 0) return first;
    // Such a text hangs on its first part.
    if (first === "") throw new NotRendered();
    return first.joined(rest, "\n");
  }

  #parts(texts: BodyTexts, content: ScannedMessage["content"]): Value {
    if (content === undefined) return [];
    const list = isList(content) ? content : [content];
    return list.map((text) => ({ type: "text", text: this.#text(texts, text) }));
  }

  #text(texts: BodyTexts, text: ScannedText): PromptText | string {
    return text.end - text.start <= plainSizeMax
      ? spelled(texts.bytes, text)
      : this.#long(texts, text);
  }

  #long(texts: BodyTexts, text: ScannedText): PromptText | "" {
    if (text.end === text.start) return "";
    const found = this.#options.cache.text(texts, text, 4 * this.#options.domain);
    this.#bound.push(found);
    return found;
  }
}

function isList(content: ScannedText | readonly ScannedText[]): content is readonly ScannedText[] {
  return Array.isArray(content);
}

function parse(bytes: Uint8Array, value: ScannedValue): unknown {
  return JSON.parse(decoder.decode(bytes.subarray(value.start, value.end)));
}
