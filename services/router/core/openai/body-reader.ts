import { BodyScanner, type ScannedFields } from "./body-scanner.ts";
import {
  choicesOf,
  isObject,
  optionalCount,
  optionalFlag,
  readModel,
  readSession,
  readStream,
} from "./body-fields.ts";
import type { OpenAiPrompt } from "./openai-prompt.ts";
import { kindOf, readOpenAiRequest, type OpenAiRequest } from "./openai-request.ts";
import { MeshError } from "../../../shared/core/errors.ts";
import type { TextScanner } from "../../../shared/core/json-scan/text-scanner.ts";
import {
  spelled,
  type BodyTexts,
  type ScannedChat,
  type ScannedPrompt,
  type ScannedText,
} from "./scanned-body.ts";

/** What a reader has done so far. */
export interface BodyReaderFigures {
  readonly scanned: number;
  /** Bodies that the full parser read, or refused. */
  readonly judged: number;
}

/**
 * Reads bodies as `readOpenAiRequest` does, mostly without parsing them. The prompts it gives are bound to the bytes: they
 * are to be read before those are used for something else.
 */
export class BodyReader {
  readonly #scanner: BodyScanner;
  /** The path asked for last, and its kind: most requests are for one. */
  #path = "";
  #kind = kindOf("");
  #scanned = 0;
  #judged = 0;

  /** `key`: eight secret 32-bit numbers for hashes of texts; `isUtf8`: whether bytes are well-formed UTF-8. */
  constructor(options: {
    readonly key: Int32Array;
    readonly isUtf8: (bytes: Uint8Array) => boolean;
    /** Larger bodies are scanned without vector instructions, bytes; default 16 MiB. */
    readonly simdSizeMax?: number;
  }) {
    this.#scanner = new BodyScanner(options.key, options.isUtf8, options.simdSizeMax);
  }

  get figures(): BodyReaderFigures {
    return { scanned: this.#scanned, judged: this.#judged };
  }

  /** Reads a body for placement; see `readOpenAiRequest`, which also says what is refused. */
  read(path: string, bytes: Uint8Array, contentType?: string): OpenAiRequest {
    if (path !== this.#path) {
      this.#path = path;
      this.#kind = kindOf(path);
    }
    const kind = this.#kind;
    if (kind === "chat" || kind === "completions") {
      const request = this.#scan(kind, bytes);
      if (request !== undefined) {
        this.#scanned++;
        return request;
      }
    }
    this.#judged++;
    return readOpenAiRequest(path, bytes, contentType);
  }

  #scan(kind: "chat" | "completions", bytes: Uint8Array): OpenAiRequest | undefined {
    const fields = this.#scanner.scan(bytes, kind === "chat");
    if (fields === undefined) return undefined;
    const { plain } = fields;
    try {
      const model = readModel(plain, true);
      const tokensMax =
        optionalCount(plain, "max_completion_tokens") ?? optionalCount(plain, "max_tokens");
      const texts = new LoadedTexts(this.#scanner.json.text, bytes);
      const prompt = kind === "chat" ? chatOf(texts, fields) : promptOf(texts, fields);
      if (prompt === undefined) return undefined;
      const { session } = readSession(plain);
      const { stream } = readStream(plain);
      const choices = choicesOf(plain);
      return {
        kind,
        model,
        tokensMax,
        ...(session === undefined ? undefined : { session }),
        ...(stream === undefined ? undefined : { stream }),
        ...(choices > 1 ? { choices } : undefined),
        prompt,
      };
    } catch (error) {
      // Which of several faults is named is for the judge to say.
      if (error instanceof MeshError) return undefined;
      throw error;
    }
  }
}

/** Texts of a body that a scanner has read. */
class LoadedTexts implements BodyTexts {
  readonly bytes: Uint8Array;
  readonly #scanner: TextScanner;

  constructor(scanner: TextScanner, bytes: Uint8Array) {
    this.#scanner = scanner;
    this.bytes = bytes;
  }

  unescape({ start, end }: ScannedText): Uint8Array {
    return this.#loaded().unescape(start, end);
  }

  holds({ start, end }: ScannedText, needle: Uint8Array): boolean {
    return this.#loaded().holds(start, end, needle);
  }

  /** The scanner with this body: it may have read another one since. */
  #loaded(): TextScanner {
    if (this.#scanner.bytes !== this.bytes) this.#scanner.load(this.bytes);
    return this.#scanner;
  }
}

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

function promptOf(texts: BodyTexts, { prompt }: ScannedFields): OpenAiPrompt | undefined {
  if (prompt === undefined) return undefined;
  const { bytes } = texts;
  const text: ScannedPrompt = { bytes, texts, text: prompt, whole: () => spelled(bytes, prompt) };
  return { kind: "scanned_text", text };
}

function chatOf(texts: BodyTexts, fields: ScannedFields): OpenAiPrompt | undefined {
  const { bytes } = texts;
  const { plain, messages, messagesValue, tools } = fields;
  if (messages === undefined || messagesValue === undefined) return undefined;
  const kwargs = plain["chat_template_kwargs"];
  if (kwargs !== undefined && kwargs !== null && !isObject(kwargs)) return undefined;
  const options = {
    addGenerationPrompt: optionalFlag(plain, "add_generation_prompt", true),
    continueFinalMessage: optionalFlag(plain, "continue_final_message", false),
    templateKwargs: isObject(kwargs) ? kwargs : {},
  };
  if (fields.multimodal) return { kind: "load_only", reason: "multimodal" };
  if (typeof plain["chat_template"] === "string") {
    return { kind: "load_only", reason: "custom_template" };
  }
  const parse = (of: { readonly start: number; readonly end: number }): unknown =>
    JSON.parse(decoder.decode(bytes.subarray(of.start, of.end)));
  const chat: ScannedChat = {
    bytes,
    texts,
    messages,
    tools,
    ...options,
    whole: () => ({
      messages: parse(messagesValue) as readonly Readonly<Record<string, unknown>>[],
      tools: tools === undefined ? undefined : (parse(tools) as readonly unknown[]),
      ...options,
    }),
  };
  return { kind: "scanned_chat", chat };
}
