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
  type ScannedChat,
  type ScannedMessage,
  type ScannedText,
  type ScannedValue,
} from "../openai/scanned-body.ts";
import { ChatShape, isList, plainSizeMax } from "./chat-shape.ts";
import type { AddedToken, PromptTokenizer } from "./model-runtime.ts";
import type { PromptCache } from "./prompt-cache.ts";
import { PromptChain, type HashedPrompt, type Link } from "./prompt-chain.ts";
import type { MadeText, PromptText } from "./prompt-text.ts";
import type { LiteralText, Part } from "./rendered-parts.ts";
import { answersAlike, RenderingPlans } from "./rendering-plan.ts";
import { templateFunctions } from "./template-functions.ts";
import { TemplateProgram } from "./template-program.ts";
import { Recording, TemplateText, TextQuestions } from "./template-text.ts";
import { NotRendered, type Value } from "./template-values.ts";
import { TokenCuts } from "./token-cuts.ts";

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
  /** Of these, chats of a shape that had been rendered before, without running the template. */
  readonly planned: number;
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
  readonly #shape: ChatShape;
  readonly #plans = new RenderingPlans();
  readonly #questions = new TextQuestions();
  /** The texts of the chat at hand, then what was made of them. */
  readonly #texts: PromptText[] = [];
  #chat: ScannedChat | undefined;
  /** Texts that can be read in the chat at hand. */
  readonly #bound: PromptText[] = [];
  readonly #bind = (): void => {
    this.#bindTexts();
  };
  #read = 0;
  #planned = 0;
  #left = 0;

  constructor(options: ChatReaderOptions) {
    this.#options = options;
    this.#shape = new ChatShape(options.contentFormat);
    const { bos, eos, pad, unk } = options.specialTokens;
    const cuts = new TokenCuts(options.addedTokens);
    const texts = [bos, eos, pad, unk].filter((text) => text !== undefined);
    this.#program = new TemplateProgram(options.syntax, (text) => cuts.cut(text), texts);
    this.#chain = new PromptChain(options.tokenizer, {
      bytesMax: options.chainBytesMax,
      tokens: options.cache.tokens,
    });
    const named = { bos_token: bos, eos_token: eos, pad_token: pad, unk_token: unk };
    const given = Object.entries(named).filter(([, text]) => text !== undefined);
    this.#program.setConstants(Object.fromEntries(given), templateFunctions);
  }

  get figures(): ChatReaderFigures {
    return { read: this.#read, planned: this.#planned, left: this.#left };
  }

  /**
   * Length and block hashes of a chat; `undefined` when the template library has to render it, or to say what is wrong
   * with it.
   */
  read(chat: ScannedChat, root: HashRoot, blockSizeTokens: number): HashedPrompt | undefined {
    // Where the last message ends in the rendered text is for the library to find.
    if (chat.continueFinalMessage) return undefined;
    this.#chat = chat;
    try {
      const chain = { root, blockSizeTokens, bind: this.#bind };
      const hasShape = this.#shape.take(chat);
      const prompt =
        (hasShape ? this.#known(chain) : undefined) ?? this.#render(chat, hasShape, chain);
      if (prompt !== undefined) this.#read++;
      return prompt;
    } catch (error) {
      // A range error is a template that calls itself without end.
      const isJudged =
        error instanceof NotRendered || error instanceof MeshError || error instanceof RangeError;
      if (!isJudged) throw error;
      this.#left++;
      return undefined;
    } finally {
      this.#unbindTexts();
      this.#chat = undefined;
      this.#options.cache.trim();
    }
  }

  /** Reads a chat of a shape that has been rendered before, if its texts answer as those did. */
  #known(chain: ChainOptions): HashedPrompt | undefined {
    const { cells, size, hash, texts: literals } = this.#shape;
    const plans = this.#plans.of(cells, size, hash);
    if (plans.length === 0) return undefined;
    const texts = this.#texts;
    const { cache, domain } = this.#options;
    texts.length = 0;
    for (const literal of literals) texts.push(cache.text(literal, textDomain(domain)));
    for (const { steps, links } of plans) {
      texts.length = literals.length;
      if (!answersAlike(steps, texts, this.#bind)) continue;
      this.#planned++;
      return this.#chain.read(links, texts, chain);
    }
    return undefined;
  }

  /** Has the template put a chat together; remembers how, when that is all told by its shape and the texts' answers. */
  #render(chat: ScannedChat, hasShape: boolean, chain: ChainOptions): HashedPrompt | undefined {
    // The library refuses to be told what this is.
    if (Object.hasOwn(chat.templateKwargs, "namespace")) return undefined;
    const { cells, size, hash, texts: literals } = this.#shape;
    const { cache, domain } = this.#options;
    this.#unbindTexts();
    this.#texts.length = 0;
    for (const literal of literals) this.#texts.push(cache.text(literal, textDomain(domain)));
    this.#bindTexts();
    const recording = new Recording(this.#questions, this.#texts);
    const parts = this.#program.run(chat.templateKwargs, this.#variables(chat, recording));
    const links = this.#links(parts);
    if (hasShape && recording.isComplete) {
      this.#plans.add({ shape: cells.slice(0, size), steps: recording.steps, links }, hash);
    }
    return this.#chain.read(links, recording.texts, chain);
  }

  #bindTexts(): void {
    const { texts: literals } = this.#shape;
    const chat = this.#chat;
    if (this.#bound.length > 0 || chat === undefined) return;
    for (let i = 0; i < literals.length; i++) {
      const text = this.#texts[i] as PromptText;
      text.bind(chat.texts, literals[i] as ScannedText);
      this.#bound.push(text);
    }
  }

  #unbindTexts(): void {
    for (const text of this.#bound) text.unbind();
    this.#bound.length = 0;
  }

  /** The parts of a prompt as texts and what stands behind each. */
  #links(parts: readonly Part[]): Link[] {
    const links: Link[] = [];
    let between: (string | LiteralText)[] = [];
    let text = -1;
    for (const part of parts) {
      if (!(part instanceof TemplateText)) between.push(part);
      else {
        if (text >= 0 || between.length > 0) {
          links.push({ text, connector: this.#chain.connector(between) });
        }
        text = part.slot;
        between = [];
      }
    }
    links.push({ text, connector: this.#chain.connector(between) });
    return links;
  }

  #variables(chat: ScannedChat, recording: Recording): Record<string, Value> {
    return {
      messages: chat.messages.map((message) => this.#message(chat, message, recording)),
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
  #message({ bytes }: ScannedChat, message: ScannedMessage, recording: Recording): Value {
    const { role, content, more } = message;
    const asText = this.#options.contentFormat === "string" || role === "tool";
    const result: Record<string, Value> = {
      role,
      content: asText ? this.#content(content, recording) : this.#parts(content, recording),
    };
    const short = (text: ScannedText): Value =>
      text.end - text.start <= plainSizeMax ? spelled(bytes, text) : this.#text(text, recording);
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
        result["reasoning"] = result["reasoning_content"] = short(reasoning);
      }
    }
    const callId = more.get("tool_call_id");
    if (role === "tool" && callId !== undefined) {
      result["tool_call_id"] = isScannedText(callId)
        ? short(callId)
        : (parse(bytes, callId) as Value);
    }
    const name = more.get("name");
    if (name !== undefined && isScannedText(name)) result["name"] = short(name);
    if (role === "developer") {
      const tools = more.get("tools");
      if (tools === undefined) result["tools"] = null;
      else if (isScannedText(tools)) result["tools"] = short(tools);
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

  #content(content: ScannedMessage["content"], recording: Recording): Value {
    if (content === undefined) return "";
    if (!isList(content)) return this.#text(content, recording);
    const [first, ...rest] = content.map((text) => this.#text(text, recording));
    if (first === undefined) return "";
    if (rest.length === 0) return first;
    // Such a text hangs on its first part.
    if (first === "") throw new NotRendered();
    const others = rest.map((text): MadeText => (text === "" ? text : text.text));
    return recording.foreign(first.text.joined(others, "\n"));
  }

  #parts(content: ScannedMessage["content"], recording: Recording): Value {
    if (content === undefined) return [];
    const list = isList(content) ? content : [content];
    return list.map((text) => ({ type: "text", text: this.#text(text, recording) }));
  }

  #text(literal: ScannedText, recording: Recording): TemplateText | "" {
    if (literal.end === literal.start) return "";
    const slot = this.#shape.texts.indexOf(literal);
    if (slot >= 0) return new TemplateText(recording, slot, recording.texts[slot] as PromptText);
    // The chat has no shape, whose texts end with the first thing that it could not have.
    const { cache, domain } = this.#options;
    const text = cache.text(literal, textDomain(domain));
    if (this.#chat !== undefined) text.bind(this.#chat.texts, literal);
    this.#bound.push(text);
    return recording.foreign(text);
  }
}

/** Where and how a chain begins. */
interface ChainOptions {
  readonly root: HashRoot;
  readonly blockSizeTokens: number;
  readonly bind: () => void;
}

/** What a reader remembers of texts, tools and calls is told apart by numbers. */
function textDomain(domain: number): number {
  return 4 * domain;
}

function parse(bytes: Uint8Array, value: ScannedValue): unknown {
  return JSON.parse(decoder.decode(bytes.subarray(value.start, value.end)));
}
