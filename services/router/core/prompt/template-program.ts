import { strippedEndsOf } from "../../../shared/core/chat-template.ts";
import { Rope, type LiteralText, type Part } from "./rendered-parts.ts";
import type { TemplateText } from "./template-text.ts";
import {
  applyFilter,
  applyFilterCall,
  callMethod,
  memberOf,
  printed,
  stripped,
  test,
} from "./template-methods.ts";
import {
  Callable,
  giveUp,
  isEqual,
  isIn,
  isList,
  isPlain,
  isText,
  isTrue,
  joined,
  LoopState,
  Namespace,
  simplest,
  sliced,
  textOf,
  type Value,
} from "./template-values.ts";

/** A node of a template's syntax tree, as the template library parses it. */
export interface TemplateNode {
  readonly type: string;
  readonly [member: string]: unknown;
}

/** Variables of a scope by slot; `unset` where the scope has none. */
interface Scope {
  readonly values: (Value | typeof unset)[];
  readonly parent: Scope | undefined;
}

const unset = Symbol("unset");

type Expression = (scope: Scope) => Value;
/** How a statement ended: by reaching its end, or by `break` or `continue`. */
type Ending = 0 | 1 | 2;
type Statement = (scope: Scope, out: Part[]) => Ending;

/** Longest text made while rendering that is compared with what the template spells, UTF-16 units. */
const literalSizeMax = 4096;

/** Most items that `range` makes. */
const rangeLengthMax = 100_000;

/**
 * A chat template compiled to functions that put the parts of a prompt in a row and never look at the characters of the
 * request's texts more than the template asks to. It does what the template library does (`chat-template.ts`), which is
 * the judge: whatever is not done here, errors among it, makes `run` give up.
 */
export class TemplateProgram {
  readonly #slots = new Map<string, number>();
  readonly #namespaceSlot: number;
  readonly #body: Statement;
  #constants: Scope["values"];
  #fixed: ReadonlyMap<string, Value> = new Map();
  /** Texts with added tokens that the template spells, and those of its special tokens. */
  readonly #literals = new Map<string, LiteralText>();
  readonly #cutText: (text: string) => LiteralText | undefined;

  /**
   * `cut` cuts a text at the added tokens in it; undefined when there are none. `specialTokens` are texts that the template
   * gets as variables.
   */
  constructor(
    program: { readonly body: readonly unknown[] },
    cut: (text: string) => LiteralText | undefined,
    specialTokens: readonly string[] = [],
  ) {
    this.#cutText = cut;
    for (const text of specialTokens) this.#spell(text);
    this.#namespaceSlot = this.#slot("namespace");
    this.#body = this.#block(program.body as readonly TemplateNode[]);
    this.#constants = this.#scope(undefined).values;
    this.setConstants({}, this.#fixed);
  }

  /** Variables that are the same for every prompt; others do not replace those of `fixed`. */
  setConstants(defaults: Readonly<Record<string, Value>>, fixed: ReadonlyMap<string, Value>): void {
    const { values } = this.#scope(undefined);
    values[this.#namespaceSlot] = namespaceMaker;
    for (const [name, value] of [...Object.entries(defaults), ...fixed]) {
      const slot = this.#slots.get(name);
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
    const slot = this.#slots.get(name);
    if (slot !== undefined) scope.values[slot] = value;
  }

  /** A text that the template spells. */
  #spell(text: string): LiteralText | string {
    const cut = this.#literals.get(text) ?? this.#cutText(text);
    if (cut === undefined) return text;
    this.#literals.set(text, cut);
    return cut;
  }

  /** A text made while rendering, cut when the template spells it too. */
  #literalOf(text: string): LiteralText | string {
    return text.length > literalSizeMax ? text : (this.#literals.get(text) ?? text);
  }

  #slot(name: string): number {
    let slot = this.#slots.get(name);
    if (slot === undefined) {
      slot = this.#slots.size;
      this.#slots.set(name, slot);
    }
    return slot;
  }

  #scope(parent: Scope | undefined): Scope {
    return { values: new Array<Value | typeof unset>(this.#slots.size).fill(unset), parent };
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
    const condition = this.#expression(node["test"]);
    const body = this.#block(node["body"] as readonly TemplateNode[]);
    const alternate = this.#block(node["alternate"] as readonly TemplateNode[]);
    return (scope, out) => (isTrue(condition(scope)) ? body(scope, out) : alternate(scope, out));
  }

  /** Where values go: one variable, or several for a list. */
  #target(value: unknown): ((scope: Scope, value: Value) => void) | undefined {
    const node = value as TemplateNode;
    if (node.type === "Identifier") {
      const slot = this.#slot(node["value"] as string);
      return (scope, item) => {
        scope.values[slot] = item;
      };
    }
    if (node.type !== "TupleLiteral") return undefined;
    const names = node["value"] as readonly TemplateNode[];
    if (names.some((name) => name.type !== "Identifier")) return undefined;
    const slots = names.map((name) => this.#slot(name["value"] as string));
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
    const iterable = this.#expression(selects ? source["lhs"] : source);
    const condition = selects ? this.#expression(source["test"]) : undefined;
    const assign = this.#target(node["loopvar"]);
    const body = this.#block(node["body"] as readonly TemplateNode[]);
    const otherwise = this.#block(node["defaultBlock"] as readonly TemplateNode[]);
    const loopSlot = this.#slot("loop");
    if (assign === undefined) return giveUp;
    return (outer, out) => {
      const scope = this.#scope(outer);
      const all = iterable(scope);
      let items = isPlain(all) ? Object.keys(all) : all;
      if (!isList(items)) return giveUp();
      if (condition !== undefined) {
        items = items.filter((item) => {
          const inner = this.#scope(scope);
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
        : this.#expression(given);
    const assignee = node["assignee"] as TemplateNode;
    if (assignee.type === "MemberExpression") {
      const object = this.#expression(assignee["object"]);
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
    const slot = this.#slot(name);
    const parameters = (node["args"] as readonly TemplateNode[]).map((parameter) => {
      const key = (
        parameter.type === "Identifier" ? parameter : (parameter["key"] as TemplateNode)
      )["value"] as string;
      return {
        key,
        slot: this.#slot(key),
        fallback:
          parameter.type === "Identifier" ? undefined : this.#expression(parameter["value"]),
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
      const scope = this.#scope(caller);
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
    const value = this.#expression(node);
    return (scope, out) => {
      this.#print(printed(value(scope)), out);
      return 0;
    };
  }

  #print(text: string | TemplateText | Rope, out: Part[]): void {
    if (text instanceof Rope) for (const part of text.parts) out.push(part);
    else if (text !== "") out.push(typeof text === "string" ? this.#literalOf(text) : text);
  }

  /** The operands of `"text" + a + b …`, whose values are printed one after the other; undefined for anything else. */
  #emitters(node: TemplateNode): (LiteralText | string | Expression)[] | undefined {
    if (node.type === "StringLiteral") {
      const text = node["value"] as string;
      return text === "" ? [] : [this.#spell(text)];
    }
    if (node.type !== "BinaryExpression" || operatorOf(node) !== "+") return undefined;
    const left = this.#emitters(node["left"] as TemplateNode);
    if (left === undefined) return undefined;
    const right = node["right"] as TemplateNode;
    return [...left, ...(this.#emitters(right) ?? [this.#expression(right)])];
  }

  #expression(value: unknown): Expression {
    if (value === undefined || value === null) return () => undefined;
    const node = value as TemplateNode;
    switch (node.type) {
      case "StringLiteral": {
        const text = node["value"] as string;
        this.#spell(text);
        return () => text;
      }
      case "IntegerLiteral": {
        const number = node["value"] as number;
        return () => number;
      }
      case "Identifier":
        return this.#variable(node["value"] as string);
      case "ArrayLiteral":
      case "TupleLiteral": {
        const items = (node["value"] as readonly unknown[]).map((item) => this.#expression(item));
        // The library tells a tuple from a list; where that matters, it has to render.
        return node.type === "ArrayLiteral"
          ? (scope) => items.map((item) => item(scope))
          : () => giveUp();
      }
      case "ObjectLiteral":
        return this.#object(node);
      case "MemberExpression":
        return this.#member(node);
      case "CallExpression":
        return this.#call(node);
      case "UnaryExpression":
        return this.#unary(node);
      case "BinaryExpression":
        return this.#binary(node);
      case "FilterExpression":
        return this.#filter(node);
      case "TestExpression":
        return this.#test(node);
      case "SelectExpression":
      case "Ternary": {
        const ternary = node.type === "Ternary";
        const condition = this.#expression(node[ternary ? "condition" : "test"]);
        const then = this.#expression(node[ternary ? "trueExpr" : "lhs"]);
        const otherwise = this.#expression(ternary ? node["falseExpr"] : undefined);
        return (scope) => (isTrue(condition(scope)) ? then(scope) : otherwise(scope));
      }
      default:
        return () => giveUp();
    }
  }

  #variable(name: string): Expression {
    const slot = this.#slot(name);
    return (scope) => {
      for (let at: Scope | undefined = scope; at !== undefined; at = at.parent) {
        const value = at.values[slot];
        if (value !== unset) return value;
      }
      return undefined;
    };
  }

  #object(node: TemplateNode): Expression {
    const entries = [...(node["value"] as ReadonlyMap<unknown, unknown>)].map(
      ([key, value]) => [this.#expression(key), this.#expression(value)] as const,
    );
    return (scope) => {
      const object: Record<string, Value> = {};
      for (const [key, value] of entries) {
        const name = key(scope);
        // The order of such names differs between objects here and there.
        if (typeof name !== "string" || /^\d|^__proto__$/.test(name)) return giveUp();
        object[name] = value(scope);
      }
      return object;
    };
  }

  #member(node: TemplateNode): Expression {
    const object = this.#expression(node["object"]);
    const property = node["property"] as TemplateNode;
    if (node["computed"] !== true) {
      const name = property["value"] as string;
      return property.type === "Identifier"
        ? (scope) => memberOf(object(scope), name)
        : () => giveUp();
    }
    if (property.type === "SliceExpression") {
      const bounds = ["start", "stop", "step"].map((bound) => this.#expression(property[bound]));
      return (scope) => {
        const list = object(scope);
        const [start, stop, step] = bounds.map((bound) => {
          const at = bound(scope);
          return at === undefined || Number.isInteger(at) ? (at as number | undefined) : giveUp();
        });
        if (isList(list)) return sliced(list, start, stop, step);
        return typeof list === "string"
          ? sliced(Array.from(list), start, stop, step).join("")
          : giveUp();
      };
    }
    const index = this.#expression(property);
    return (scope) => {
      const container = object(scope);
      const at = index(scope);
      if (typeof at === "string") return memberOf(container, at);
      if (typeof at !== "number" || !Number.isInteger(at)) return giveUp();
      if (isList(container) || typeof container === "string") return container.at(at);
      return giveUp();
    };
  }

  #arguments(nodes: readonly TemplateNode[]): (scope: Scope) => {
    readonly args: readonly Value[];
    readonly named: ReadonlyMap<string, Value>;
  } {
    const positional: Expression[] = [];
    const named: (readonly [string, Expression])[] = [];
    for (const node of nodes) {
      if (node.type === "KeywordArgumentExpression") {
        const name = (node["key"] as TemplateNode)["value"] as string;
        named.push([name, this.#expression(node["value"])]);
      } else if (node.type === "SpreadExpression" || node.type === "KeywordSpreadExpression") {
        return giveUp;
      } else positional.push(this.#expression(node));
    }
    if (new Set(named.map(([name]) => name)).size < named.length) return giveUp;
    if (named.length === 0) {
      return (scope) => ({ args: positional.map((value) => value(scope)), named: noNames });
    }
    return (scope) => ({
      args: positional.map((value) => value(scope)),
      named: new Map(named.map(([name, value]) => [name, value(scope)])),
    });
  }

  #call(node: TemplateNode): Expression {
    const callee = node["callee"] as TemplateNode;
    const read = this.#arguments(node["args"] as readonly TemplateNode[]);
    const property = callee["property"] as TemplateNode | undefined;
    if (callee.type === "MemberExpression") {
      if (callee["computed"] === true || property?.type !== "Identifier") return () => giveUp();
      const object = this.#expression(callee["object"]);
      const name = property["value"] as string;
      return (scope) => {
        const { args, named } = read(scope);
        return callMethod(object(scope), name, args, named);
      };
    }
    const ends = strippedEndsOf(String(callee["value"]));
    if (callee.type === "Identifier" && ends !== undefined) {
      return (scope) => {
        const [text, characters] = read(scope).args;
        return stripped(text, ends, characters);
      };
    }
    const target = this.#expression(callee);
    return (scope) => {
      const { args, named } = read(scope);
      const found = target(scope);
      if (found instanceof Macro) return found.run(scope, args, named);
      return found instanceof Callable ? found.call(args, named) : giveUp();
    };
  }

  #unary(node: TemplateNode): Expression {
    const argument = this.#expression(node["argument"]);
    switch (operatorOf(node)) {
      case "not":
        return (scope) => !isTrue(argument(scope));
      case "-":
        return (scope) => {
          const value = argument(scope);
          return typeof value === "number" && value !== 0 ? -value : giveUp();
        };
      default:
        return () => giveUp();
    }
  }

  #binary(node: TemplateNode): Expression {
    const operator = operatorOf(node);
    const left = this.#expression(node["left"]);
    const rightNode = node["right"] as TemplateNode;
    if (operator === "in" || operator === "not in") {
      const isTuple = rightNode.type === "TupleLiteral";
      const right = this.#expression(isTuple ? { ...rightNode, type: "ArrayLiteral" } : rightNode);
      const wanted = operator === "in";
      return (scope) => isIn(left(scope), right(scope)) === wanted;
    }
    const right = this.#expression(rightNode);
    switch (operator) {
      case "and":
        return (scope) => {
          const value = left(scope);
          return isTrue(value) ? right(scope) : value;
        };
      case "or":
        return (scope) => {
          const value = left(scope);
          return isTrue(value) ? value : right(scope);
        };
      case "==":
        return (scope) => isEqual(left(scope), right(scope));
      case "!=":
        return (scope) => !isEqual(left(scope), right(scope));
      case "+":
        return this.#sum(node);
      case "~":
        return (scope) => joined(this.#cut(left(scope)), this.#cut(right(scope)));
      case "-":
        return numeric(left, right, (a, b) => a - b);
      case "*":
        return numeric(left, right, (a, b) => a * b);
      case "%":
        return numeric(left, right, (a, b) => a % b);
      case "<":
        return numeric(left, right, (a, b) => a < b);
      case ">":
        return numeric(left, right, (a, b) => a > b);
      case "<=":
        return numeric(left, right, (a, b) => a <= b);
      case ">=":
        return numeric(left, right, (a, b) => a >= b);
      default:
        return () => giveUp();
    }
  }

  /** A text to be joined, with what the template spells cut at its added tokens. */
  #cut(value: Value): Part | Rope {
    const text = textOf(value);
    return typeof text === "string" && text !== "" ? this.#literalOf(text) : text;
  }

  #sum(node: TemplateNode): Expression {
    const left = this.#expression(node["left"]);
    const right = this.#expression(node["right"]);
    return (scope) => {
      const a = left(scope);
      const b = right(scope);
      if (Number.isInteger(a) && Number.isInteger(b)) return (a as number) + (b as number);
      if (typeof a === "number" && typeof b === "number") return giveUp();
      if (isList(a) && isList(b)) return [...a, ...b];
      return isText(a) || isText(b) ? joined(this.#cut(a), this.#cut(b)) : giveUp();
    };
  }

  #filter(node: TemplateNode): Expression {
    const operand = this.#expression(node["operand"]);
    const filter = node["filter"] as TemplateNode;
    if (filter.type === "Identifier") {
      const name = filter["value"] as string;
      return (scope) => applyFilter(operand(scope), name);
    }
    const callee = filter["callee"] as TemplateNode | undefined;
    if (callee?.type !== "Identifier") return () => giveUp();
    const name = callee["value"] as string;
    const read = this.#arguments(filter["args"] as readonly TemplateNode[]);
    return (scope) => {
      const value = operand(scope);
      const { args, named } = read(scope);
      return applyFilterCall(value, name, args, named);
    };
  }

  #test(node: TemplateNode): Expression {
    const operand = this.#expression(node["operand"]);
    const named = node["test"] as TemplateNode;
    const name = named["value"] as string;
    const negate = node["negate"] === true;
    return (scope) => test(operand(scope), name) !== negate;
  }
}

const noNames: ReadonlyMap<string, Value> = new Map();

/** A macro; its variables are looked up where it is called, as the library does. */
class Macro extends Callable {
  readonly run: (scope: Scope, args: readonly Value[], named: ReadonlyMap<string, Value>) => Value;

  constructor(
    run: (scope: Scope, args: readonly Value[], named: ReadonlyMap<string, Value>) => Value,
  ) {
    super(giveUp);
    this.run = run;
  }
}

function operatorOf(node: TemplateNode): string {
  return (node["operator"] as { readonly value: string }).value;
}

function numeric(
  left: Expression,
  right: Expression,
  combine: (a: number, b: number) => number | boolean,
): Expression {
  return (scope) => {
    const a = left(scope);
    const b = right(scope);
    if (!Number.isInteger(a) || !Number.isInteger(b)) return giveUp();
    const result = combine(a as number, b as number);
    return Number.isNaN(result) ? giveUp() : result;
  };
}

function namesOf(value: unknown): string[] {
  if (Array.isArray(value)) return value.flatMap(namesOf);
  if (typeof value !== "object" || value === null) return [];
  const node = value as TemplateNode;
  const own = node.type === "Identifier" ? [node["value"] as string] : [];
  return [...own, ...Object.values(node).flatMap(namesOf)];
}

const namespaceMaker = new Callable((args, named) => {
  if (args.length > 0) return giveUp();
  const namespace = new Namespace();
  for (const [name, value] of named) namespace.values.set(name, value);
  return namespace;
});

/** The functions that a template may call, apart from those that make it fail. */
export const templateFunctions: ReadonlyMap<string, Value> = new Map<string, Value>([
  ["true", true],
  ["True", true],
  ["false", false],
  ["False", false],
  ["none", null],
  ["None", null],
  [
    "range",
    new Callable((args, named) => {
      if (named.size > 0 || args.length === 0 || args.length > 3) return giveUp();
      const bounds = args.map((bound) => (Number.isInteger(bound) ? (bound as number) : giveUp()));
      const [start, stop, step] =
        bounds.length === 1
          ? [0, bounds[0] ?? 0, 1]
          : [bounds[0] ?? 0, bounds[1] ?? 0, bounds[2] ?? 1];
      const length = step === 0 ? 0 : Math.max(0, Math.ceil((stop - start) / step));
      if (length > rangeLengthMax) return giveUp();
      return Array.from({ length }, (_, i) => start + i * step);
    }),
  ],
  ["raise_exception", new Callable(giveUp)],
  // Whoever gives the time makes every prompt new at each tick: left to the library.
  ["strftime_now", new Callable(giveUp)],
]);
