/** A text of a body as it is spelled there: a JSON string literal without its quotes, and a hash of it. */
export interface ScannedText {
  /** First byte of the literal. */
  readonly start: number;
  /** Index of the closing quote. */
  readonly end: number;
  readonly escaped: boolean;
  /** Whether it spells surrogates with escapes, so that half a pair may stand alone. */
  readonly surrogates: boolean;
  /** Keyed hash of the bytes, 96 bits (`TextScanner`). */
  readonly lo: number;
  readonly hi: number;
  readonly check: number;
}

/** A value of a body that is not read further, and a hash of its bytes. */
export interface ScannedValue {
  readonly start: number;
  /** Index behind its last byte. */
  readonly end: number;
  readonly lo: number;
  readonly hi: number;
  readonly check: number;
}

/** One message of a chat. */
export interface ScannedMessage {
  readonly role: string;
  /** One text, the texts of its parts, or nothing. */
  readonly content: ScannedText | readonly ScannedText[] | undefined;
  /** Other fields that a template may see, by name; `undefined` for none. */
  readonly more: ReadonlyMap<string, ScannedValue | ScannedText> | undefined;
}

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** The text that a literal of a body spells. */
export function spelled(bytes: Uint8Array, text: ScannedText): string {
  if (!text.escaped) return decoder.decode(bytes.subarray(text.start, text.end));
  return JSON.parse(decoder.decode(bytes.subarray(text.start - 1, text.end + 1))) as string;
}

/** Whether a value is a text. */
export function isScannedText(value: ScannedValue | ScannedText): value is ScannedText {
  return "escaped" in value;
}

/** Reads texts of a body without making strings of them. */
export interface BodyTexts {
  readonly bytes: Uint8Array;
  /** What a literal that spells no surrogates stands for, as UTF-8 in memory that is used again with the next call. */
  unescape(text: ScannedText): Uint8Array;
  /** Whether a literal is spelled with these bytes somewhere; at least one byte. */
  holds(text: ScannedText, needle: Uint8Array): boolean;
}

/** A chat as a scan found it. It is bound to the bytes of its request and read before these are used for another. */
export interface ScannedChat {
  readonly bytes: Uint8Array;
  readonly texts: BodyTexts;
  readonly messages: readonly ScannedMessage[];
  readonly tools: ScannedValue | undefined;
  readonly addGenerationPrompt: boolean;
  readonly continueFinalMessage: boolean;
  readonly templateKwargs: Readonly<Record<string, unknown>>;
  /** The same chat as values. */
  whole(): ChatPrompt;
}

/** A prompt as a scan found it, bound to the bytes of its request. */
export interface ScannedPrompt {
  readonly bytes: Uint8Array;
  readonly texts: BodyTexts;
  readonly text: ScannedText;
  /** The same prompt as a text. */
  whole(): string;
}

/** What a chat template takes. */
export interface ChatPrompt {
  readonly messages: readonly Readonly<Record<string, unknown>>[];
  readonly tools: readonly unknown[] | undefined;
  readonly addGenerationPrompt: boolean;
  readonly continueFinalMessage: boolean;
  readonly templateKwargs: Readonly<Record<string, unknown>>;
}
