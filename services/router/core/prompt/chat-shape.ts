import type { ContentFormat } from "../../../shared/core/chat-messages.ts";
import {
  isScannedText,
  type ScannedChat,
  type ScannedMessage,
  type ScannedText,
  type ScannedValue,
} from "../openai/scanned-body.ts";

/** Texts up to this size are plain values for templates, save those of `content`; bytes. */
export const plainSizeMax = 32;

/** Most names, and most options of templates, that are numbered. */
const namesMax = 256;
/** Longest text of a template's options, UTF-16 units. */
const kwargsSizeMax = 512;

/** What stands where a value may be. */
const mark = { absent: 0, empty: 1, text: 2, list: 3, plain: 4, value: 5, end: 6 } as const;

/**
 * All of a chat that a template sees except its texts, as numbers: two chats of one shape differ in nothing but what their
 * texts say. Values that are no texts stand in it by hashes of 96 bits (`TextScanner`).
 */
export class ChatShape {
  /** The shape; of its cells `size` count. */
  cells = new Int32Array(256);
  size = 0;
  /** Hash of the shape. */
  hash = 0;
  /** The chat's texts, in their order. */
  readonly texts: ScannedText[] = [];
  readonly #names = new Map<string, number>();
  readonly #asText: boolean;

  /** `contentFormat`: what templates get as `content`. */
  constructor(contentFormat: ContentFormat) {
    this.#asText = contentFormat === "string";
  }

  /** Takes a chat in. Returns false for one that has no shape: its texts are put together first, or it has too many names. */
  take(chat: ScannedChat): boolean {
    this.size = 0;
    this.hash = 0;
    this.texts.length = 0;
    const { messages, tools, templateKwargs } = chat;
    let kwargs = 0;
    if (!isEmpty(templateKwargs)) {
      const text = JSON.stringify(templateKwargs);
      kwargs = text.length > kwargsSizeMax ? -1 : this.#name(text);
    }
    if (kwargs < 0) return false;
    this.#put(kwargs);
    this.#put(chat.addGenerationPrompt ? 1 : 0);
    if (tools === undefined) this.#put(mark.absent);
    else this.#putValue(tools);
    for (const message of messages) if (!this.#message(message)) return false;
    return true;
  }

  #message({ role, content, more }: ScannedMessage): boolean {
    const name = this.#name(role);
    if (name < 0) return false;
    this.#put(name);
    if (content === undefined) this.#put(mark.absent);
    else if (!isList(content)) this.#putText(content);
    else {
      if (content.length > 1 && (this.#asText || role === "tool")) return false;
      this.#put(mark.list);
      for (const text of content) this.#putText(text);
      this.#put(mark.end);
    }
    if (more === undefined) return true;
    for (const [field, value] of more) {
      const number = this.#name(field);
      if (number < 0) return false;
      this.#put(mark.value);
      this.#put(number);
      if (isScannedText(value) && value.end - value.start > plainSizeMax) this.#putText(value);
      else this.#putValue(value);
    }
    this.#put(mark.end);
    return true;
  }

  #putText(text: ScannedText): void {
    if (text.end === text.start) this.#put(mark.empty);
    else {
      this.#put(mark.text);
      this.texts.push(text);
    }
  }

  #putValue(value: ScannedValue | ScannedText): void {
    this.#put(isScannedText(value) ? mark.plain : mark.value);
    this.#put(value.end - value.start);
    this.#put(value.lo);
    this.#put(value.hi);
    this.#put(value.check);
  }

  /** A number for a name, at least 1; −1 when there are too many. */
  #name(name: string): number {
    let number = this.#names.get(name);
    if (number === undefined) {
      if (this.#names.size >= namesMax) return -1;
      number = this.#names.size + 1;
      this.#names.set(name, number);
    }
    return number;
  }

  #put(cell: number): void {
    if (this.size === this.cells.length) {
      const larger = new Int32Array(2 * this.size);
      larger.set(this.cells);
      this.cells = larger;
    }
    this.cells[this.size++] = cell;
    const h = Math.imul(this.hash ^ cell, 0x9e3779b1);
    this.hash = h ^ (h >>> 15);
  }
}

function isEmpty(object: object): boolean {
  for (const name in object) if (Object.hasOwn(object, name)) return false;
  return true;
}

/** Whether content is a list of texts. */
export function isList(
  content: ScannedText | readonly ScannedText[],
): content is readonly ScannedText[] {
  return Array.isArray(content);
}
