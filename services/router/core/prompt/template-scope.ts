import type { LiteralText, Part } from "./rendered-parts.ts";
import { Callable, giveUp, type Value } from "./template-values.ts";

/** A node of a template's syntax tree, as the template library parses it. */
export interface TemplateNode {
  readonly type: string;
  readonly [member: string]: unknown;
}

/** Variables of a scope by slot; `unset` where the scope has none. */
export interface Scope {
  readonly values: (Value | typeof unset)[];
  readonly parent: Scope | undefined;
}

/** What a variable is that a scope does not have. */
export const unset: unique symbol = Symbol("unset");

/** An expression, compiled. */
export type Expression = (scope: Scope) => Value;
/** How a statement ended: by reaching its end, or by `break` or `continue`. */
export type Ending = 0 | 1 | 2;
/** A statement, compiled; it adds what it prints. */
export type Statement = (scope: Scope, out: Part[]) => Ending;

/** Numbers of variables, by their names. */
export class Slots {
  readonly #slots = new Map<string, number>();

  /** The number of a variable, which it gets when it has none. */
  slot(name: string): number {
    let slot = this.#slots.get(name);
    if (slot === undefined) {
      slot = this.#slots.size;
      this.#slots.set(name, slot);
    }
    return slot;
  }

  /** A scope without variables. */
  scope(parent: Scope | undefined): Scope {
    return { values: new Array<Value | typeof unset>(this.#slots.size).fill(unset), parent };
  }

  /** The number of a variable that the template has. */
  known(name: string): number | undefined {
    return this.#slots.get(name);
  }
}

/** Longest text made while rendering that is compared with what the template spells, UTF-16 units. */
const literalSizeMax = 4096;

/** Texts with added tokens that a template spells, cut at these. */
export class SpelledTexts {
  readonly #literals = new Map<string, LiteralText>();
  readonly #cutText: (text: string) => LiteralText | undefined;

  /** `cut` cuts a text at the added tokens in it; undefined when there are none. */
  constructor(cut: (text: string) => LiteralText | undefined) {
    this.#cutText = cut;
  }

  /** A text that the template spells. */
  spell(text: string): LiteralText | string {
    const cut = this.#literals.get(text) ?? this.#cutText(text);
    if (cut === undefined) return text;
    this.#literals.set(text, cut);
    return cut;
  }

  /** A text made while rendering, cut when the template spells it too. */
  literalOf(text: string): LiteralText | string {
    return text.length > literalSizeMax ? text : (this.#literals.get(text) ?? text);
  }
}

/** A macro; its variables are looked up where it is called, as the library does. */
export class Macro extends Callable {
  readonly run: (scope: Scope, args: readonly Value[], named: ReadonlyMap<string, Value>) => Value;

  constructor(
    run: (scope: Scope, args: readonly Value[], named: ReadonlyMap<string, Value>) => Value,
  ) {
    super(giveUp);
    this.run = run;
  }
}

/** The operator of a unary or binary expression. */
export function operatorOf(node: TemplateNode): string {
  return (node["operator"] as { readonly value: string }).value;
}
