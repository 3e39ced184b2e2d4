import { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import { NameTable } from "../../../shared/core/json-scan/name-table.ts";
import { notScanned } from "../../../shared/core/json-scan/text-scanner.ts";
import { reservedFields } from "../../../shared/core/reserved-fields.ts";
import type { ScannedMessage, ScannedText, ScannedValue } from "./scanned-body.ts";

/** Fields whose value is taken as it is; all are small. */
const plainFields: ReadonlySet<string> = new Set([
  "model",
  "max_tokens",
  "max_completion_tokens",
  "add_generation_prompt",
  "continue_final_message",
  "chat_template_kwargs",
  "chat_template",
  "prompt_cache_key",
  "user",
  "stream",
  "n",
  "best_of",
]);

/** Fields of a message that a template may see, besides role and content. */
const messageFields: ReadonlySet<string> = new Set([
  "tool_calls",
  "tool_call_id",
  "name",
  "reasoning",
  "reasoning_content",
  "tools",
]);

/** Longest role that is read, bytes. */
const roleSizeMax = 32;

/** Names that mean something: fields, common roles and kinds of parts. */
const names: ReadonlySet<string> = new Set([
  ...plainFields,
  ...messageFields,
  ...reservedFields,
  ...["messages", "tools", "prompt", "role", "content", "type", "text", "refusal", "input_text"],
  ...["system", "developer", "user", "assistant", "tool"],
]);

/** What a scan found. */
export interface ScannedFields {
  /** Values of small fields that mean something, by name. */
  readonly plain: Readonly<Record<string, unknown>>;
  readonly messages: readonly ScannedMessage[] | undefined;
  /** Where `messages` is. */
  readonly messagesValue: ScannedValue | undefined;
  /** Whether a message has content that is not text. */
  readonly multimodal: boolean;
  /** `tools`, when it is a list that is not empty. */
  readonly tools: ScannedValue | undefined;
  /** `prompt`, when it is a text. */
  readonly prompt: ScannedText | undefined;
}

const textPartTypes: ReadonlySet<string> = new Set(["text", "input_text"]);

/**
 * Reads a request's body in one pass over its bytes, without a string of it. It takes what clients commonly send and
 * answers `undefined` for everything else, whether wrong or only unusual: reserved fields, repeated ones, names with
 * escapes, unknown shapes, malformed JSON. The full parser (`openai-request.ts`) judges those.
 */
export class BodyScanner {
  readonly json: JsonScanner;
  readonly #isUtf8: (bytes: Uint8Array) => boolean;
  readonly #names = new NameTable(names);
  #multimodal = false;

  /** `isUtf8`: whether bytes are well-formed UTF-8; for `key` and `simdSizeMax` see `TextScanner`. */
  constructor(key: Int32Array, isUtf8: (bytes: Uint8Array) => boolean, simdSizeMax?: number) {
    this.json = new JsonScanner(key, simdSizeMax);
    this.#isUtf8 = isUtf8;
  }

  /** Reads a body; `chat` says whether messages are looked for, or else a prompt. */
  scan(bytes: Uint8Array, chat: boolean): ScannedFields | undefined {
    if (!this.#isUtf8(bytes)) return undefined;
    const { json } = this;
    json.load(bytes);
    this.#multimodal = false;
    const plain: Record<string, unknown> = {};
    let messages: readonly ScannedMessage[] | undefined;
    let messagesValue: ScannedValue | undefined;
    let tools: ScannedValue | undefined;
    let toolsSeen = false;
    let prompt: ScannedText | undefined;
    let at = json.space(0);
    if (bytes[at] !== 0x7b) return undefined;
    at = json.space(at + 1);
    if (bytes[at] === 0x7d) return undefined;
    for (;;) {
      const name = this.#name(at);
      if (name === undefined) return undefined;
      at = json.colon(this.#nameEnd);
      if (at < 0) return undefined;
      const start = at;
      if (reservedFields.has(name)) return undefined;
      if (plainFields.has(name)) {
        at = json.value(at, 1);
        if (at < 0 || Object.hasOwn(plain, name)) return undefined;
        plain[name] = json.scalar(start, at);
      } else if (chat && name === "messages") {
        if (messages !== undefined) return undefined;
        messages = this.#messages(at);
        if (messages === undefined) return undefined;
        at = this.#valueEnd;
        messagesValue = { start, end: at, lo: 0, hi: 0, check: 0 };
      } else if (chat && name === "tools") {
        if (toolsSeen) return undefined;
        toolsSeen = true;
        at = json.value(at, 1);
        if (at < 0) return undefined;
        if (bytes[start] === 0x5b) {
          if (bytes[json.space(start + 1)] !== 0x5d) tools = this.#hashed(start, at);
        } else if (bytes[start] !== 0x6e) return undefined;
      } else if (!chat && name === "prompt") {
        if (prompt !== undefined || bytes[at] !== 0x22) return undefined;
        prompt = this.#text(at);
        if (prompt === undefined) return undefined;
        at = prompt.end + 1;
      } else {
        at = json.value(at, 1);
        if (at < 0) return undefined;
      }
      at = json.space(at);
      if (bytes[at] === 0x7d) break;
      if (bytes[at] !== 0x2c) return undefined;
      at = json.space(at + 1);
    }
    if (json.space(at + 1) !== bytes.length) return undefined;
    return { plain, messages, messagesValue, multimodal: this.#multimodal, tools, prompt };
  }

  /** Index behind the name read last, its quote included. */
  #nameEnd = 0;
  /** Index behind the list read last. */
  #valueEnd = 0;

  /** A name that means something, "" for any other, `undefined` for an unusual one. */
  #name(at: number): string | undefined {
    const name = this.#names.read(this.json.text.bytes, at);
    this.#nameEnd = this.#names.end;
    return name;
  }

  /** A role, which may be any short one. */
  #role(at: number): string | undefined {
    const name = this.#name(at);
    if (name !== "") return name;
    const { bytes } = this.json.text;
    const end = this.#nameEnd - 1;
    if (end - at - 1 > roleSizeMax || end === at + 1) return undefined;
    let role = "";
    for (let i = at + 1; i < end; i++) {
      const byte = bytes[i] as number;
      if (byte >= 0x80) return undefined;
      role += String.fromCharCode(byte);
    }
    return role;
  }

  /** The text whose opening quote is at `at`. */
  #text(at: number): ScannedText | undefined {
    const { text } = this.json;
    const end = text.hashedText(at + 1);
    if (end < 0) return undefined;
    const { escaped, surrogates, lo, hi, check } = text;
    return { start: at + 1, end, escaped, surrogates, lo, hi, check };
  }

  #hashed(start: number, end: number): ScannedValue {
    const { text } = this.json;
    text.hashRange(start, end);
    const { lo, hi, check } = text;
    return { start, end, lo, hi, check };
  }

  /** The messages of the list at `from`, at least one. */
  #messages(from: number): readonly ScannedMessage[] | undefined {
    const { json } = this;
    const { bytes } = json.text;
    if (bytes[from] !== 0x5b) return undefined;
    const messages: ScannedMessage[] = [];
    let at = json.space(from + 1);
    for (;;) {
      if (bytes[at] !== 0x7b) return undefined;
      const message = this.#message(at + 1);
      if (message === undefined) return undefined;
      messages.push(message);
      at = json.space(this.#messageEnd);
      if (bytes[at] === 0x5d) break;
      if (bytes[at] !== 0x2c) return undefined;
      at = json.space(at + 1);
    }
    this.#valueEnd = at + 1;
    return messages;
  }

  /** Index behind the message read last. */
  #messageEnd = 0;

  #message(from: number): ScannedMessage | undefined {
    const { json } = this;
    const { bytes } = json.text;
    let role: string | undefined;
    let content: ScannedMessage["content"];
    let contentSeen = false;
    let more: Map<string, ScannedValue | ScannedText> | undefined;
    let at = json.space(from);
    for (;;) {
      const name = this.#name(at);
      if (name === undefined) return undefined;
      at = json.colon(this.#nameEnd);
      if (at < 0) return undefined;
      if (name === "role") {
        if (role !== undefined) return undefined;
        role = this.#role(at);
        if (role === undefined) return undefined;
        at = this.#nameEnd;
      } else if (name === "content") {
        if (contentSeen) return undefined;
        contentSeen = true;
        const byte = bytes[at];
        if (byte === 0x22) {
          const text = this.#text(at);
          if (text === undefined) return undefined;
          content = text;
          at = text.end + 1;
        } else if (byte === 0x5b) {
          content = this.#parts(at);
          if (content === undefined) return undefined;
          at = this.#partsEnd;
        } else if (byte === 0x6e) at = json.value(at, 3);
        else return undefined;
      } else if (messageFields.has(name)) {
        more ??= new Map<string, ScannedValue | ScannedText>();
        if (more.has(name)) return undefined;
        const value = this.#field(at);
        if (value === undefined) return undefined;
        more.set(name, value);
        at = "escaped" in value ? value.end + 1 : value.end;
      } else at = json.value(at, 3);
      if (at < 0) return undefined;
      at = json.space(at);
      if (bytes[at] === 0x7d) break;
      if (bytes[at] !== 0x2c) return undefined;
      at = json.space(at + 1);
    }
    this.#messageEnd = at + 1;
    return role === undefined ? undefined : { role, content, more };
  }

  #field(at: number): ScannedValue | ScannedText | undefined {
    if (this.json.text.bytes[at] === 0x22) return this.#text(at);
    const end = this.json.value(at, 3);
    return end < 0 ? undefined : this.#hashed(at, end);
  }

  /** Index behind the list of parts read last. */
  #partsEnd = 0;

  /** The texts of a list of parts. Parts of other kinds are noted as such and left out. */
  #parts(from: number): readonly ScannedText[] | undefined {
    const { json } = this;
    const { bytes } = json.text;
    const texts: ScannedText[] = [];
    let at = json.space(from + 1);
    if (bytes[at] === 0x5d) {
      this.#partsEnd = at + 1;
      return texts;
    }
    for (;;) {
      if (bytes[at] !== 0x7b) return undefined;
      at = this.#part(at + 1, texts);
      if (at < 0) return undefined;
      at = json.space(at);
      if (bytes[at] === 0x5d) break;
      if (bytes[at] !== 0x2c) return undefined;
      at = json.space(at + 1);
    }
    this.#partsEnd = at + 1;
    return texts;
  }

  /** Reads one part and adds its text to `texts`. */
  #part(from: number, texts: ScannedText[]): number {
    const { json } = this;
    const { bytes } = json.text;
    let type: string | undefined;
    let text: ScannedText | undefined;
    let at = json.space(from);
    for (;;) {
      const name = this.#name(at);
      if (name === undefined) return notScanned;
      at = json.colon(this.#nameEnd);
      if (at < 0) return notScanned;
      if (name === "type") {
        if (type !== undefined) return notScanned;
        type = this.#name(at);
        if (type === undefined) return notScanned;
        at = this.#nameEnd;
      } else if (name === "text" && bytes[at] === 0x22) {
        if (text !== undefined) return notScanned;
        text = this.#text(at);
        if (text === undefined) return notScanned;
        at = text.end + 1;
      } else if (name === "text" || name === "refusal") return notScanned;
      else {
        at = json.value(at, 5);
        if (at < 0) return notScanned;
      }
      at = json.space(at);
      if (bytes[at] === 0x7d) break;
      if (bytes[at] !== 0x2c) return notScanned;
      at = json.space(at + 1);
    }
    if (type === undefined || type === "refusal") return notScanned;
    if (!textPartTypes.has(type)) this.#multimodal = true;
    else if (text === undefined) return notScanned;
    else texts.push(text);
    return at + 1;
  }
}
