import { strip, type StrippedEnds } from "../../../shared/core/chat-template-text.ts";
import { spelled, type BodyTexts, type ScannedText } from "../openai/scanned-body.ts";

const encoder = new TextEncoder();

/** A text that others are compared with. */
export class Needle {
  readonly text: string;
  /** Its UTF-8; undefined when it has none. */
  readonly bytes: Uint8Array | undefined;
  /** The longest part of it that JSON spells as it is. */
  readonly plain: Uint8Array;

  constructor(text: string) {
    this.text = text;
    this.bytes = text.isWellFormed() ? encoder.encode(text) : undefined;
    this.plain = encoder.encode(longestPlain(text));
  }
}

/** A text of a request, or what a template spells. */
export type PiecePart = PromptText | string;

/** Token ids of a piece of a prompt that no token reaches out of, by the parts it is made of. */
export interface Piece {
  readonly parts: readonly PiecePart[];
  /** Where the ids are (`TokenRing`), and how many. */
  place: number;
  readonly count: number;
}

/** What remembers texts, and keeps an account of the memory that is held by each. */
export interface TextKeeper {
  /** More bytes are held by the text of this number. */
  grow(number: number, bytes: number): void;
}

/** Memory of a list of answers, of a piece and of a text that is made of another, bytes; estimates. */
const answersBytes = 80;
const pieceBytes = 120;
const madeBytes = 300;
/** Truths about so many questions take no memory of their own. */
const truthsMax = 31;
const noPieces: readonly Piece[] = [];

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
  /** The text that this one is made of in the end. */
  readonly #origin: PromptText;
  readonly #keeper: TextKeeper;
  /** Its number with its keeper; negative when that has let go of it. */
  number = -1;
  /** Which of the first questions have been answered with a truth, and which with true: a bit each. */
  #asked = 0;
  #truths = 0;
  /** Other answers, by the numbers of questions. */
  #answers: (TextAnswer | undefined)[] | undefined;
  /** Texts that begin with this one, by what follows. */
  #joins: Map<string, PromptText> | undefined;
  /** Pieces that begin with this text, or whose first text it is. */
  pieces: readonly Piece[] = noPieces;
  #texts: BodyTexts | undefined;
  #spelled: ScannedText | undefined;

  private constructor(keeper: TextKeeper, origin?: PromptText, make?: () => string) {
    this.#keeper = keeper;
    this.#origin = origin ?? this;
    this.#make = make;
  }

  /** A text of a body; `bind` says where it is. */
  static of(keeper: TextKeeper): PromptText {
    return new PromptText(keeper);
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
  known({ id }: TextQuestion): TextAnswer | undefined {
    if (id < truthsMax && ((this.#asked >>> id) & 1) === 1)
      return ((this.#truths >>> id) & 1) === 1;
    return this.#answers?.[id];
  }

  /** What is asked, found out once. */
  answer(question: TextQuestion): TextAnswer {
    const known = this.known(question);
    if (known !== undefined) return known;
    const { id } = question;
    const found = question.find(this);
    if (typeof found === "boolean" && id < truthsMax) {
      this.#asked |= 1 << id;
      if (found) this.#truths |= 1 << id;
      return found;
    }
    if (this.#answers === undefined) {
      this.#answers = [];
      this.#grow(answersBytes);
    }
    while (this.#answers.length <= id) this.#answers.push(undefined);
    this.#answers[id] = found;
    const made = Array.isArray(found) ? found.length : found instanceof PromptText ? 1 : 0;
    this.#grow(madeBytes * made);
    return found;
  }

  /** Whether the text is `other`. */
  equals(other: Needle): boolean {
    const literal = this.#literal(other);
    if (literal !== undefined) {
      const { at, wanted } = literal;
      const size = at.end - at.start;
      // No character takes more than six bytes for one of its own.
      if (size > 6 * wanted.length || (!at.escaped && size !== wanted.length)) return false;
    }
    return this.string() === other.text;
  }

  /** Whether the text begins with `start`. */
  startsWith(start: Needle): boolean {
    const literal = this.#literal(start);
    if (literal === undefined) return this.string().startsWith(start.text);
    const { bytes, at, wanted } = literal;
    for (let i = 0; i < wanted.length; i++) {
      const byte = at.start + i < at.end ? bytes[at.start + i] : undefined;
      if (byte === 0x5c) return this.string().startsWith(start.text);
      if (byte !== wanted[i]) return false;
    }
    return true;
  }

  /** Whether the text ends with `end`. */
  endsWith(end: Needle): boolean {
    const literal = this.#literal(end);
    if (literal === undefined) return this.string().endsWith(end.text);
    const { bytes, at, wanted } = literal;
    const first = at.end - wanted.length;
    // An escape may reach into these bytes.
    for (let i = Math.max(at.start, first - escapeReach); i < at.end; i++) {
      if (bytes[i] === 0x5c) return this.string().endsWith(end.text);
    }
    if (first < at.start) return false;
    return wanted.every((byte, i) => bytes[first + i] === byte);
  }

  /** Whether `part` is somewhere in the text. */
  includes(part: Needle): boolean {
    return this.#mayHold(part) && this.string().includes(part.text);
  }

  /** The text without some characters, or white space, at its start, its end or both: see `strip`. */
  stripped(ends: StrippedEnds, characters?: string): MadeText {
    if (!this.#mayStrip(ends, characters)) return this;
    return this.made((text) => strip(text, ends, characters));
  }

  /** The text with `old`, which is not empty, replaced as `replace` does. */
  replaced(old: Needle, replace: (text: string) => string): MadeText {
    return this.#mayHold(old) ? this.made(replace) : this;
  }

  /** The texts between separators, which are not empty; null when there are too many to keep. */
  split(needle: Needle): readonly MadeText[] | null {
    if (!this.#mayHold(needle)) return [this];
    const separator = needle.text;
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
    const joined = new PromptText(this.#keeper, this.#origin, () =>
      texts.map((text) => (text === "" ? "" : text.string())).join(separator),
    );
    this.#joins ??= new Map();
    this.#joins.set(key, joined);
    this.#grow(madeBytes + key.length);
    return joined;
  }

  /** Remembers the tokens of a piece that begins with this text. */
  learn(piece: Piece): void {
    this.pieces = [...this.pieces, piece];
    this.#grow(pieceBytes + 8 * piece.parts.length);
  }

  #grow(bytes: number): void {
    const { number } = this.#origin;
    if (number >= 0) this.#keeper.grow(number, bytes);
  }

  #madeOf(text: string, made: string, make: (text: string) => string): MadeText {
    if (made === text) return this;
    return made === "" ? "" : new PromptText(this.#keeper, this.#origin, () => make(this.string()));
  }

  /** Where it is spelled, with the spelled bytes of a needle to compare; undefined when only its characters tell. */
  #literal({
    bytes: wanted,
  }: Needle): { bytes: Uint8Array; at: ScannedText; wanted: Uint8Array } | undefined {
    const bytes = this.#texts?.bytes;
    const at = this.#spelled;
    if (bytes === undefined || at === undefined || wanted === undefined) return undefined;
    return { bytes, at, wanted };
  }

  /** False when a needle is certainly nowhere in the text. */
  #mayHold(part: Needle): boolean {
    const literal = this.#literal(part);
    const texts = this.#texts;
    if (literal === undefined || texts === undefined || part.text === "") return true;
    const { at, wanted } = literal;
    if (!at.escaped) return texts.holds(at, wanted);
    // Characters that are spelled as they are, unless with a code.
    if (part.plain.length === 0 || texts.holds(at, unicodeEscape)) return true;
    return texts.holds(at, part.plain);
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
