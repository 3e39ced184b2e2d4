import type { TemplateText } from "./template-text.ts";

/** A text that the template itself spells, cut at the added tokens in it. */
export class LiteralText {
  readonly text: string;
  /** What lies between added tokens, and the tokens: a token follows every text but the last one. */
  readonly texts: readonly string[];
  readonly tokens: readonly number[];

  constructor(text: string, texts: readonly string[], tokens: readonly number[]) {
    this.text = text;
    this.texts = texts;
    this.tokens = tokens;
  }
}

/** A part of a prompt: what the template spells, a text of the request, or anything else as it is. */
export type Part = LiteralText | TemplateText | string;

/** Several parts in a row, as a value of a template. */
export class Rope {
  readonly parts: readonly Part[];

  constructor(parts: readonly Part[]) {
    this.parts = parts;
  }
}
