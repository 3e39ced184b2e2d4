import type { StrippedEnds } from "../../../shared/core/chat-template-text.ts";
import {
  Needle,
  type MadeText,
  type PromptText,
  type TextAnswer,
  type TextQuestion,
} from "./prompt-text.ts";

/** Most questions that are told apart. A template asks as many as it spells; others are made of what a request says. */
const questionsMax = 256;

/** Finds something out about a text. */
type Asker = (text: PromptText) => TextAnswer;

/** The questions that a template asks, each once. */
export class TextQuestions {
  readonly #known = new Map<string, TextQuestion>();

  /** The question of a name, which says all that the asker depends on; `undefined` when there are too many. */
  of(name: string, makeAsker: () => Asker): TextQuestion | undefined {
    let question = this.#known.get(name);
    if (question === undefined && this.#known.size < questionsMax) {
      question = { id: this.#known.size, find: makeAsker() };
      this.#known.set(name, question);
    }
    return question;
  }
}

/** One question to a text while a prompt was rendered, and the answer. Texts are named by numbers (`TemplateText.slot`). */
export interface TextStep {
  readonly slot: number;
  readonly question: TextQuestion;
  /** The answer, with numbers for texts. */
  readonly expected: boolean | null | "" | { readonly length: number } | SlotAnswer;
}

/** An answer that is a text, or several: their numbers, "" for nothing. */
export interface SlotAnswer {
  readonly slots: readonly (number | "")[];
  readonly isList: boolean;
}

/** What a template has asked of the texts of a request, in its order: all that its rendering depends on besides their shape. */
export class Recording {
  readonly questions: TextQuestions;
  readonly steps: TextStep[] = [];
  /** The texts by their numbers: those of the request, then what was made of them. */
  readonly texts: PromptText[];
  /** Whether the steps tell everything. */
  isComplete = true;

  constructor(questions: TextQuestions, texts: readonly PromptText[]) {
    this.questions = questions;
    this.texts = [...texts];
  }

  /** A text that is put together for this request alone: no plan can be made of such a recording. */
  foreign(text: PromptText): TemplateText {
    this.isComplete = false;
    return this.#next(text);
  }

  #next(text: PromptText): TemplateText {
    return new TemplateText(this, this.texts.push(text) - 1, text);
  }

  /** Asks a text. */
  ask(
    text: TemplateText,
    name: string,
    makeAsker: () => Asker,
  ): boolean | number | null | TemplateText | "" | readonly (TemplateText | "")[] {
    const question = this.questions.of(name, makeAsker);
    const answer = question === undefined ? makeAsker()(text.text) : text.text.answer(question);
    if (question === undefined) this.isComplete = false;
    const step = (expected: TextStep["expected"]): void => {
      if (question !== undefined) this.steps.push({ slot: text.slot, question, expected });
    };
    if (typeof answer === "number") step({ length: answer });
    else if (typeof answer === "boolean" || answer === null || answer === "") step(answer);
    else {
      const isList = Array.isArray(answer);
      const made = (isList ? answer : [answer]) as readonly MadeText[];
      const texts = made.map((one) => (one === "" ? one : this.#next(one)));
      step({ slots: texts.map((one) => (one === "" ? one : one.slot)), isList });
      return isList ? texts : (texts[0] as TemplateText);
    }
    return answer;
  }
}

/**
 * A text of a request, never empty, as a template sees it: something that it can ask, but whose characters it cannot look at.
 * What it asks is recorded, so that another request whose texts answer alike is known to be rendered alike.
 */
export class TemplateText {
  /** Its number among the texts of the recording. */
  readonly slot: number;
  readonly text: PromptText;
  readonly #recording: Recording;

  constructor(recording: Recording, slot: number, text: PromptText) {
    this.#recording = recording;
    this.slot = slot;
    this.text = text;
  }

  /** Whether the text is `other`. */
  equals(other: string): boolean {
    return this.#recording.ask(
      this,
      `equals ${other}`,
      asker((t, needle) => t.equals(needle), other),
    ) as boolean;
  }

  /** Whether the text begins with `start`. */
  startsWith(start: string): boolean {
    return this.#recording.ask(
      this,
      `starts ${start}`,
      asker((t, needle) => t.startsWith(needle), start),
    ) as boolean;
  }

  /** Whether the text ends with `end`. */
  endsWith(end: string): boolean {
    return this.#recording.ask(
      this,
      `ends ${end}`,
      asker((t, needle) => t.endsWith(needle), end),
    ) as boolean;
  }

  /** Whether `part` is somewhere in the text. */
  includes(part: string): boolean {
    return this.#recording.ask(
      this,
      `holds ${part}`,
      asker((t, needle) => t.includes(needle), part),
    ) as boolean;
  }

  /** Its length, UTF-16 units. */
  get length(): number {
    return this.#recording.ask(this, "length", () => (t) => t.string().length) as number;
  }

  /** See `PromptText.stripped`. */
  stripped(ends: StrippedEnds, characters?: string): TemplateText | "" {
    const name = characters === undefined ? ends : `${ends} of ${characters}`;
    return this.#recording.ask(this, name, () => (t) => t.stripped(ends, characters)) as
      TemplateText | "";
  }

  /** See `PromptText.replaced`. */
  replaced(old: string, by: string, replace: (text: string) => string): TemplateText | "" {
    const name = `replaces ${JSON.stringify([old, by])}`;
    return this.#recording.ask(
      this,
      name,
      asker((t, needle) => t.replaced(needle, replace), old),
    ) as TemplateText | "";
  }

  /** See `PromptText.split`. */
  split(separator: string): readonly (TemplateText | "")[] | null {
    const name = `split ${separator}`;
    return this.#recording.ask(
      this,
      name,
      asker((t, needle) => t.split(needle), separator),
    ) as readonly (TemplateText | "")[] | null;
  }

  /** The text that `make`, of this name, makes of this one. */
  made(name: string, make: (text: string) => string): TemplateText | "" {
    return this.#recording.ask(this, `made ${name}`, () => (t) => t.made(make)) as
      TemplateText | "";
  }
}

/** Asks about another text, which is prepared once. */
function asker(ask: (text: PromptText, needle: Needle) => TextAnswer, text: string): () => Asker {
  return () => {
    const needle = new Needle(text);
    return (asked) => ask(asked, needle);
  };
}
