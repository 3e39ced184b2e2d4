import { spelled, type ScannedText } from "../openai/scanned-body.ts";

/** Token ids of a piece of a prompt that no token reaches out of, by the parts it is made of. */
export interface Piece {
  readonly parts: readonly Part[];
  readonly ids: Uint32Array;
}

/** What keeps an account of the memory that a text's notes take. */
export interface TextAccount {
  /** More bytes are held by the text. */
  grow(bytes: number): void;
}

/** Memory of a note beside what it says, bytes; an estimate. */
const noteBytes = 120;

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
  readonly #notes = new Map<string, unknown>();
  /** Pieces that begin with this text, or whose first text it is. */
  readonly pieces: Piece[] = [];
  #bytes: Uint8Array | undefined;
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
  bind(bytes: Uint8Array, spelled: ScannedText): void {
    this.#bytes = bytes;
    this.#spelled = spelled;
  }

  /** Lets go of the request's body. */
  unbind(): void {
    this.#bytes = undefined;
    this.#spelled = undefined;
  }

  /** Where the text is spelled in the body, for a text that is not made of another; undefined otherwise. */
  get spelled(): { readonly bytes: Uint8Array; readonly at: ScannedText } | undefined {
    const bytes = this.#bytes;
    const at = this.#spelled;
    return bytes === undefined || at === undefined ? undefined : { bytes, at };
  }

  /** The text, decoded anew with every call. */
  string(): string {
    if (this.#make !== undefined) return this.#make();
    const bytes = this.#bytes;
    const at = this.#spelled;
    if (bytes === undefined || at === undefined) throw new Error("the text is of no request");
    return spelled(bytes, at);
  }

  /** What `find` says about the text, remembered under `key`: a truth or a number. */
  note<T extends boolean | number>(key: string, find: (text: string) => T): T {
    const known = this.#notes.get(key);
    if (known !== undefined) return known as T;
    const found = find(this.string());
    this.#remember(key, found);
    return found;
  }

  /** The text that `make` makes of this one, remembered under `key`; this one when it is the same, "" when empty. */
  made(key: string, make: (text: string) => string): PromptText | "" {
    const known = this.#notes.get(key);
    if (known !== undefined) return known as PromptText | "";
    const text = this.string();
    const made = this.#madeOf(text, make(text), make);
    this.#remember(key, made);
    return made;
  }

  /** As `made`, for several texts. */
  madeList(key: string, split: (text: string) => string[]): readonly (PromptText | "")[] {
    const known = this.#notes.get(key);
    if (known !== undefined) return known as readonly (PromptText | "")[];
    const text = this.string();
    const made = split(text).map((part, i) => this.#madeOf(text, part, (t) => split(t)[i] ?? ""));
    this.#remember(key, made);
    return made;
  }

  /** This text followed by others (texts or ""), with `separator` between each two. */
  joined(others: readonly (PromptText | "")[], separator: string): PromptText {
    const ids = others.map((other) => (other === "" ? "" : String(other.id)));
    const key = `join ${separator} ${ids.join()}`;
    const known = this.#notes.get(key);
    if (known !== undefined) return known as PromptText;
    const texts = [this, ...others];
    const made = new PromptText(this.#account, () =>
      texts.map((text) => (text === "" ? "" : text.string())).join(separator),
    );
    this.#remember(key, made);
    return made;
  }

  /** Remembers the tokens of a piece that begins with this text. */
  learn(piece: Piece): void {
    this.pieces.push(piece);
    this.#account.grow(noteBytes + 4 * piece.ids.length + 16 * piece.parts.length);
  }

  #madeOf(text: string, made: string, make: (text: string) => string): PromptText | "" {
    if (made === text) return this;
    return made === "" ? "" : new PromptText(this.#account, () => make(this.string()));
  }

  #remember(key: string, value: unknown): void {
    this.#notes.set(key, value);
    this.#account.grow(noteBytes + key.length);
  }
}

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
export type Part = LiteralText | PromptText | string;

/** Several parts in a row, as a value of a template. */
export class Rope {
  readonly parts: readonly Part[];

  constructor(parts: readonly Part[]) {
    this.parts = parts;
  }
}
