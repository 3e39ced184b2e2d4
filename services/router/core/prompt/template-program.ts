import { Rope, type LiteralText, type Part } from "./rendered-parts.ts";
import { ExpressionCompiler } from "./template-expressions.ts";
import { namespaceMaker } from "./template-functions.ts";
import { printed } from "./template-methods.ts";
import {
  Macro,
  operatorOf,
  Slots,
  SpelledTexts,
  type Expression,
  type Scope,
  type Statement,
  type TemplateNode,
} from "./template-scope.ts";
import type { TemplateText } from "./template-text.ts";
import {
  giveUp,
  isList,
  isPlain,
  isTrue,
  LoopState,
  Namespace,
  simplest,
  textOf,
  type Value,
} from "./template-values.ts";

/**
 * A chat template compiled to functions that put the parts of a prompt in a row and never look at the characters of the
 * request's texts more than the template asks to. It does what the template library does (`chat-template.ts`), which is
 * the judge: whatever is not done here, errors among it, makes `run` give up.
 */
export class TemplateProgram {
  readonly #slots = new Slots();
  readonly #texts: SpelledTexts;
  readonly #expressions: ExpressionCompiler;
  readonly #namespaceSlot: number;
  readonly #body: Statement;
  #constants: Scope["values"];
  #fixed: ReadonlyMap<string, Value> = new Map();

  /**
   * `cut` cuts a text at the added tokens in it; undefined when there are none. `specialTokens` are texts that the template
   * gets as variables.
   */
  constructor(
    program: { readonly body: readonly unknown[] },
    cut: (text: string) => LiteralText | undefined,
    specialTokens: readonly string[] = [],
  ) {
    this.#texts = new SpelledTexts(cut);
    this.#expressions = new ExpressionCompiler(this.#slots, this.#texts);
    for (const text of specialTokens) this.#texts.spell(text);
    this.#namespaceSlot = this.#slots.slot("namespace");
    this.#body = this.#block(program.body as readonly TemplateNode[]);
    this.#constants = this.#slots.scope(undefined).values;
    this.setConstants({}, this.#fixed);
  }

  /** Variables that are the same for every prompt; others do not replace those of `fixed`. */
  setConstants(defaults: Readonly<Record<string, Value>>, fixed: ReadonlyMap<string, Value>): void {
    const { values } = this.#slots.scope(undefined);
    values[this.#namespaceSlot] = namespaceMaker;
    for (const [name, value] of [...Object.entries(defaults), ...fixed]) {
      const slot = this.#slots.known(name);
      if (slot !== undefined) values[slot] = value;
    }
    this.#constants = values;
    this.#fixed = fixed;
  }

  /** The parts of a prompt. Throws `NotRendered` when the library has to render it. */
  run(
    kwargs: Readonly<Record<string, unknown>>,
    variables: Readonly<Record<string, Value>>,
  ): Part[] {
    const scope: Scope = { values: this.#constants.slice(), parent: undefined };
    for (const name of Object.keys(kwargs)) {
      if (!this.#fixed.has(name)) this.#assign(scope, name, kwargs[name] as Value);
    }
    for (const name of Object.keys(variables)) this.#assign(scope, name, variables[name]);
    const out: Part[] = [];
    // A break outside a loop is an error.
    if (this.#body(scope, out) !== 0) giveUp();
    return out;
  }

  #assign(scope: Scope, name: string, value: Value): void {
    const slot = this.#slots.known(name);
    if (slot !== undefined) scope.values[slot] = value;
  }

  #block(nodes: readonly TemplateNode[]): Statement {
    const statements = nodes
      .filter((node) => node.type !== "Comment")
      .map((node) => this.#statement(node));
    const [only] = statements;
    if (statements.length === 1 && only !== undefined) return only;
    return (scope, out) => {
      for (const statement of statements) {
        const ending = statement(scope, out);
        if (ending !== 0) return ending;
      }
      return 0;
    };
  }

  #statement(node: TemplateNode): Statement {
    switch (node.type) {
      case "If":
        return this.#if(node);
      case "For":
        return this.#for(node);
      case "Set":
        return this.#set(node);
      case "Macro":
        return this.#macro(node);
      case "Break":
        return () => 1;
      case "Continue":
        return () => 2;
      default:
        return this.#output(node);
    }
  }

  /** A block's text as a value. */
  #capture(nodes: readonly TemplateNode[]): Expression {
    const block = this.#block(nodes);
    return (scope) => {
      const out: Part[] = [];
      if (block(scope, out) !== 0) giveUp();
      return simplest(out);
    };
  }

  #if(node: TemplateNode): Statement {
    const condition = this.#expressions.compile(node["test"]);
    const body = this.#block(node["body"] as readonly TemplateNode[]);
    const alternate = this.#block(node["alternate"] as readonly TemplateNode[]);
    return (scope, out) => (isTrue(condition(scope)) ? body(scope, out) : alternate(scope, out));
  }

  /** Where values go: one variable, or several for a list. */
  #target(value: unknown): ((scope: Scope, value: Value) => void) | undefined {
    const node = value as TemplateNode;
    if (node.type === "Identifier") {
      const slot = this.#slots.slot(node["value"] as string);
      return (scope, item) => {
        scope.values[slot] = item;
      };
    }
    if (node.type !== "TupleLiteral") return undefined;
    const names = node["value"] as readonly TemplateNode[];
    if (names.some((name) => name.type !== "Identifier")) return undefined;
    const slots = names.map((name) => this.#slots.slot(name["value"] as string));
    return (scope, item) => {
      if (!isList(item) || item.length !== slots.length) return giveUp();
      slots.forEach((slot, i) => {
        scope.values[slot] = item[i];
      });
    };
  }

  #for(node: TemplateNode): Statement {
    const source = node["iterable"] as TemplateNode;
    const selects = source.type === "SelectExpression";
    const iterable = this.#expressions.compile(selects ? source["lhs"] : source);
    const condition = selects ? this.#expressions.compile(source["test"]) : undefined;
    const assign = this.#target(node["loopvar"]);
    const body = this.#block(node["body"] as readonly TemplateNode[]);
    const otherwise = this.#block(node["defaultBlock"] as readonly TemplateNode[]);
    const loopSlot = this.#slots.slot("loop");
    if (assign === undefined) return giveUp;
    return (outer, out) => {
      const scope = this.#slots.scope(outer);
      const all = iterable(scope);
      let items = isPlain(all) ? Object.keys(all) : all;
      if (!isList(items)) return giveUp();
      if (condition !== undefined) {
        items = items.filter((item) => {
          const inner = this.#slots.scope(scope);
          assign(inner, item);
          return isTrue(condition(inner));
        });
      }
      const loop = new LoopState(items);
      let ran = false;
      for (let i = 0; i < items.length; i++) {
        loop.index0 = i;
        scope.values[loopSlot] = loop;
        assign(scope, items[i]);
        const before = out.length;
        const ending = body(scope, out);
        if (ending === 0) ran = true;
        else {
          // The library drops what a round has printed before it leaves it.
          out.length = before;
          if (ending === 1) break;
        }
      }
      return ran ? 0 : otherwise(scope, out);
    };
  }

  #set(node: TemplateNode): Statement {
    const given = node["value"] as TemplateNode | null;
    const value =
      given === null
        ? this.#capture(node["body"] as readonly TemplateNode[])
        : this.#expressions.compile(given);
    const assignee = node["assignee"] as TemplateNode;
    if (assignee.type === "MemberExpression") {
      const object = this.#expressions.compile(assignee["object"]);
      const property = assignee["property"] as TemplateNode;
      if (property.type !== "Identifier" || assignee["computed"] === true) return giveUp;
      const name = property["value"] as string;
      return (scope) => {
        const found = value(scope);
        const target = object(scope);
        if (!(target instanceof Namespace)) return giveUp();
        target.values.set(name, found);
        return 0;
      };
    }
    const assign = this.#target(assignee);
    if (assign === undefined) return giveUp;
    return (scope) => {
      assign(scope, value(scope));
      return 0;
    };
  }

  #macro(node: TemplateNode): Statement {
    const name = (node["name"] as TemplateNode)["value"] as string;
    const slot = this.#slots.slot(name);
    const parameters = (node["args"] as readonly TemplateNode[]).map((parameter) => {
      const key = (
        parameter.type === "Identifier" ? parameter : (parameter["key"] as TemplateNode)
      )["value"] as string;
      return {
        key,
        slot: this.#slots.slot(key),
        fallback:
          parameter.type === "Identifier"
            ? undefined
            : this.#expressions.compile(parameter["value"]),
      };
    });
    const usesSpecial = namesOf(node["body"]).some((used) =>
      ["caller", "kwargs", "varargs"].includes(used),
    );
    if (usesSpecial) return giveUp;
    const body = this.#capture(node["body"] as readonly TemplateNode[]);
    const call = (
      caller: Scope,
      args: readonly Value[],
      named: ReadonlyMap<string, Value>,
    ): Value => {
      const scope = this.#slots.scope(caller);
      if (args.length > parameters.length) return giveUp();
      let used = 0;
      const missing: typeof parameters = [];
      parameters.forEach((parameter, i) => {
        let value: Value;
        if (i < args.length) value = args[i];
        else if (named.has(parameter.key)) {
          value = named.get(parameter.key);
          used++;
        } else if (parameter.fallback !== undefined) missing.push(parameter);
        scope.values[parameter.slot] = value;
      });
      if (used < named.size) return giveUp();
      for (const { slot: at, fallback } of missing) scope.values[at] = fallback?.(scope);
      return body(scope);
    };
    return (scope) => {
      scope.values[slot] = new Macro(call);
      return 0;
    };
  }

  #output(node: TemplateNode): Statement {
    const emitters = this.#emitters(node);
    if (emitters !== undefined) {
      return (scope, out) => {
        for (const emit of emitters) {
          if (typeof emit !== "function") out.push(emit);
          else this.#print(textOf(emit(scope)), out);
        }
        return 0;
      };
    }
    const value = this.#expressions.compile(node);
    return (scope, out) => {
      this.#print(printed(value(scope)), out);
      return 0;
    };
  }

  #print(text: string | TemplateText | Rope, out: Part[]): void {
    if (text instanceof Rope) for (const part of text.parts) out.push(part);
    else if (text !== "") out.push(typeof text === "string" ? this.#texts.literalOf(text) : text);
  }

  /** The operands of `"text" + a + b …`, whose values are printed one after the other; undefined for anything else. */
  #emitters(node: TemplateNode): (LiteralText | string | Expression)[] | undefined {
    if (node.type === "StringLiteral") {
      const text = node["value"] as string;
      return text === "" ? [] : [this.#texts.spell(text)];
    }
    if (node.type !== "BinaryExpression" || operatorOf(node) !== "+") return undefined;
    const left = this.#emitters(node["left"] as TemplateNode);
    if (left === undefined) return undefined;
    const right = node["right"] as TemplateNode;
    return [...left, ...(this.#emitters(right) ?? [this.#expressions.compile(right)])];
  }
}

function namesOf(value: unknown): string[] {
  if (Array.isArray(value)) return value.flatMap(namesOf);
  if (typeof value !== "object" || value === null) return [];
  const node = value as TemplateNode;
  const own = node.type === "Identifier" ? [node["value"] as string] : [];
  return [...own, ...Object.values(node).flatMap(namesOf)];
}
