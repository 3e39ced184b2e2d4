import { strip, type StrippedEnds } from "../../../shared/core/chat-template-text.ts";
import { spelled, type BodyTexts, type ScannedText } from "../openai/scanned-body.ts";

const encoder = new TextEncoder();

/** A text of a request, or what a template spells. */
export type PiecePart = PromptText | string;

/** Token ids of a piece of a prompt that no token reaches out of, by the parts it is made of. */
export interface Piece {
  readonly parts: readonly PiecePart[];
  readonly ids: Uint32Array;
}

/** What keeps an account of the memory that a text's notes take. */
export interface TextAccount {
  /** More bytes are held by the text. */
  grow(bytes: number): void;
}

/** Memory of an answer and of a text that is made of another, bytes; estimates. */
const answerBytes = 16;
const madeBytes = 300;

/** What is found out about a text: a truth, a length, a text made of it, or several of these; null for too many. */
export type TextAnswer = boolean | number | null | MadeText | readonly MadeText[];

/** A text made of another, "" when nothing is left of it. */
export type MadeText = PromptText | "";

/** Something that templates ask of texts. The same question is the same object. */
export interface TextQuestion {
  readonly id: number;
  readonly find: (text: PromptText) => TextAnswer;
}

/**
 * A text of a request, never empty, that templates handle without looking at its characters: the text itself or what a
 * template made of it, such as the same without white space at its ends. Two objects are different texts; the same text
 * of later requests is the same object as long as it is remembered.
 */
export class PromptText {
  static #count = 0;
  /** Its number; no other text has it, nor ever gets it. */
  readonly id = PromptText.#count++;
  /** Makes the text, when it is made of others. */
  readonly #make: (() => string) | undefined;
  readonly #account: TextAccount;
  /** What has been found out, by the numbers of questions. */
  readonly #answers: (TextAnswer | undefined)[] = [];
  /** Texts that begin with this one, by what follows. */
  #joins: Map<string, PromptText> | undefined;
  /** Pieces that begin with this text, or whose first text it is. */
  readonly pieces: Piece[] = [];
  #texts: BodyTexts | undefined;
  #spelled: ScannedText | undefined;

  private constructor(account: TextAccount, make?: () => string) {
    this.#account = account;
    this.#make = make;
  }

  /** A text of a body; `bind` says where it is. */
  static of(account: TextAccount): PromptText {
    return new PromptText(account);
  }

  /** Says where this text can be read in the request at hand. */
  bind(texts: BodyTexts, spelled: ScannedText): void {
    this.#texts = texts;
    this.#spelled = spelled;
  }

  /** Lets go of the request's body. */
  unbind(): void {
    this.#texts = undefined;
    this.#spelled = undefined;
  }

  /**
   * The text as UTF-8, in memory that is used again with the next call; undefined when it is to be read as a string: because it
   * is made of others, or may hold half a surrogate pair, which the text beside it may complete.
   */
  utf8(): Uint8Array | undefined {
    const texts = this.#texts;
    const at = this.#spelled;
    if (texts === undefined || at === undefined || at.surrogates) return undefined;
    return at.escaped ? texts.unescape(at) : texts.bytes.subarray(at.start, at.end);
  }

  /** The text, decoded anew with every call. */
  string(): string {
    if (this.#make !== undefined) return this.#make();
    const texts = this.#texts;
    const at = this.#spelled;
    if (texts === undefined || at === undefined) throw new Error("the text is of no request");
    return spelled(texts.bytes, at);
  }

  /** What has been found out before; `undefined` for nothing. */
  known(question: TextQuestion): TextAnswer | undefined {
    return this.#answers[question.id];
  }

  /** What is asked, found out once. */
  answer(question: TextQuestion): TextAnswer {
    const known = this.#answers[question.id];
    if (known !== undefined) return known;
    const found = question.find(this);
    while (this.#answers.length <= question.id) this.#answers.push(undefined);
    this.#answers[question.id] = found;
    const made = typeof found === "object" ? madeBytes : 0;
    this.#account.grow(answerBytes + made * (Array.isArray(found) ? found.length : 1));
    return found;
  }

  /** Whether the text is `other`. */
  equals(other: string): boolean {
    const literal = this.#literal(other);
    if (literal !== undefined) {
      const { at, wanted } = literal;
      const size = at.end - at.start;
      // No character takes more than six bytes for one of its own.
      if (size > 6 * wanted.length || (!at.escaped && size !== wanted.length)) return false;
    }
    return this.string() === other;
  }

  /** Whether the text begins with `start`. */
  startsWith(start: string): boolean {
    const literal = this.#literal(start);
    if (literal === undefined) return this.string().startsWith(start);
    const { bytes, at, wanted } = literal;
    for (let i = 0; i < wanted.length; i++) {
      const byte = at.start + i < at.end ? bytes[at.start + i] : undefined;
      if (byte === 0x5c) return this.string().startsWith(start);
      if (byte !== wanted[i]) return false;
    }
    return true;
  }

  /** Whether the text ends with `end`. */
  endsWith(end: string): boolean {
    const literal = this.#literal(end);
    if (literal === undefined) return this.string().endsWith(end);
    const { bytes, at, wanted } = literal;
    const first = at.end - wanted.length;
    // An escape may reach into these bytes.
    for (let i = Math.max(at.start, first - escapeReach); i < at.end; i++) {
      if (bytes[i] === 0x5c) return this.string().endsWith(end);
    }
    if (first < at.start) return false;
    return wanted.every((byte, i) => bytes[first + i] === byte);
  }

  /** Whether `part` is somewhere in the text. */
  includes(part: string): boolean {
    return this.#mayHold(part) && this.string().includes(part);
  }

  /** The text without some characters, or white space, at its start, its end or both: see `strip`. */
  stripped(ends: StrippedEnds, characters?: string): MadeText {
    if (!this.#mayStrip(ends, characters)) return this;
    return this.made((text) => strip(text, ends, characters));
  }

  /** The text with `old`, which is not empty, replaced as `replace` does. */
  replaced(old: string, replace: (text: string) => string): MadeText {
    return this.#mayHold(old) ? this.made(replace) : this;
  }

  /** The texts between separators, which are not empty; null when there are too many to keep. */
  split(separator: string): readonly MadeText[] | null {
    if (!this.#mayHold(separator)) return [this];
    const text = this.string();
    if (text.split(separator, partsMax + 1).length > partsMax) return null;
    const cut = (t: string, i: number): string => t.split(separator)[i] ?? "";
    return text.split(separator).map((part, i) => this.#madeOf(text, part, (t) => cut(t, i)));
  }

  /** The text that `make` makes of this one. */
  made(make: (text: string) => string): MadeText {
    const text = this.string();
    return this.#madeOf(text, make(text), make);
  }

  /** This text followed by others, with `separator` between each two. The same texts joined are the same one. */
  joined(others: readonly MadeText[], separator: string): PromptText {
    const key = others.map((other) => (other === "" ? "" : String(other.id))).join(separator);
    const known = this.#joins?.get(key);
    if (known !== undefined) return known;
    const texts = [this, ...others];
    const joined = new PromptText(this.#account, () =>
      texts.map((text) => (text === "" ? "" : text.string())).join(separator),
    );
    this.#joins ??= new Map();
    this.#joins.set(key, joined);
    this.#account.grow(madeBytes + key.length);
    return joined;
  }

  /** Remembers the tokens of a piece that begins with this text. */
  learn(piece: Piece): void {
    this.pieces.push(piece);
    this.#account.grow(madeBytes + 4 * piece.ids.length + 16 * piece.parts.length);
  }

  #madeOf(text: string, made: string, make: (text: string) => string): MadeText {
    if (made === text) return this;
    return made === "" ? "" : new PromptText(this.#account, () => make(this.string()));
  }

  /** Where it is spelled, with the spelled bytes of `text` to compare; undefined when only its characters tell. */
  #literal(text: string): { bytes: Uint8Array; at: ScannedText; wanted: Uint8Array } | undefined {
    const bytes = this.#texts?.bytes;
    const at = this.#spelled;
    if (bytes === undefined || at === undefined || !text.isWellFormed()) return undefined;
    return { bytes, at, wanted: encoder.encode(text) };
  }

  /** False when `part` is certainly nowhere in the text. */
  #mayHold(part: string): boolean {
    const literal = this.#literal(part);
    const texts = this.#texts;
    if (literal === undefined || texts === undefined || part === "") return true;
    const { at, wanted } = literal;
    if (!at.escaped) return texts.holds(at, wanted);
    // Characters that are spelled as they are, unless with a code.
    const plain = longestPlain(part);
    if (plain === "" || texts.holds(at, unicodeEscape)) return true;
    return texts.holds(at, encoder.encode(plain));
  }

  /** False when certainly nothing is stripped. */
  #mayStrip(ends: StrippedEnds, characters: string | undefined): boolean {
    const bytes = this.#texts?.bytes;
    const at = this.#spelled;
    if (bytes === undefined || at === undefined) return true;
    // Neither white space, nor part of an escape or of a longer character.
    const stays = (byte: number): boolean =>
      byte > 0x20 &&
      byte < 0x7f &&
      byte !== 0x5c &&
      characters?.includes(String.fromCharCode(byte)) !== true;
    if (ends !== "rstrip" && !stays(bytes[at.start] as number)) return true;
    if (ends === "lstrip") return false;
    if (!stays(bytes[at.end - 1] as number)) return true;
    const reach = bytes.subarray(Math.max(at.start, at.end - 1 - escapeReach), at.end);
    return reach.includes(0x5c);
  }
}

/** Most texts that one is split into. */
const partsMax = 64;
/** How many bytes of an escape follow its backslash. */
const escapeReach = 5;
const unicodeEscape = encoder.encode("\\u");

/** The longest run of characters that JSON spells as they are, save those that may have a backslash. */
function longestPlain(text: string): string {
  const runs = text.match(/[ !#-.0-[\]-~]+/g) ?? [];
  return runs.reduce((longest, run) => (run.length > longest.length ? run : longest), "");
}
