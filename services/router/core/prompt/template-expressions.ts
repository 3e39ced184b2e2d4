import { strippedEndsOf } from "../../../shared/core/chat-template.ts";
import type { Part, Rope } from "./rendered-parts.ts";
import {
  applyFilter,
  applyFilterCall,
  callMethod,
  memberOf,
  stripped,
  test,
} from "./template-methods.ts";
import {
  Macro,
  operatorOf,
  unset,
  type Expression,
  type Scope,
  type Slots,
  type SpelledTexts,
  type TemplateNode,
} from "./template-scope.ts";
import {
  Callable,
  giveUp,
  isEqual,
  isIn,
  isList,
  isText,
  isTrue,
  joined,
  sliced,
  textOf,
  type Value,
} from "./template-values.ts";

/** Compiles the expressions of a template to functions. */
export class ExpressionCompiler {
  readonly #slots: Slots;
  readonly #texts: SpelledTexts;

  constructor(slots: Slots, texts: SpelledTexts) {
    this.#slots = slots;
    this.#texts = texts;
  }

  /** Compiles an expression; none is `undefined`. */
  compile(value: unknown): Expression {
    if (value === undefined || value === null) return () => undefined;
    const node = value as TemplateNode;
    switch (node.type) {
      case "StringLiteral": {
        const text = node["value"] as string;
        this.#texts.spell(text);
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
        const items = (node["value"] as readonly unknown[]).map((item) => this.compile(item));
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
        const condition = this.compile(node[ternary ? "condition" : "test"]);
        const then = this.compile(node[ternary ? "trueExpr" : "lhs"]);
        const otherwise = this.compile(ternary ? node["falseExpr"] : undefined);
        return (scope) => (isTrue(condition(scope)) ? then(scope) : otherwise(scope));
      }
      default:
        return () => giveUp();
    }
  }

  #variable(name: string): Expression {
    const slot = this.#slots.slot(name);
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
      ([key, value]) => [this.compile(key), this.compile(value)] as const,
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
    const object = this.compile(node["object"]);
    const property = node["property"] as TemplateNode;
    if (node["computed"] !== true) {
      const name = property["value"] as string;
      return property.type === "Identifier"
        ? (scope) => memberOf(object(scope), name)
        : () => giveUp();
    }
    if (property.type === "SliceExpression") {
      const bounds = ["start", "stop", "step"].map((bound) => this.compile(property[bound]));
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
    const index = this.compile(property);
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
        named.push([name, this.compile(node["value"])]);
      } else if (node.type === "SpreadExpression" || node.type === "KeywordSpreadExpression") {
        return giveUp;
      } else positional.push(this.compile(node));
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
      const object = this.compile(callee["object"]);
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
    const target = this.compile(callee);
    return (scope) => {
      const { args, named } = read(scope);
      const found = target(scope);
      if (found instanceof Macro) return found.run(scope, args, named);
      return found instanceof Callable ? found.call(args, named) : giveUp();
    };
  }

  #unary(node: TemplateNode): Expression {
    const argument = this.compile(node["argument"]);
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
    const left = this.compile(node["left"]);
    const rightNode = node["right"] as TemplateNode;
    if (operator === "in" || operator === "not in") {
      const isTuple = rightNode.type === "TupleLiteral";
      const right = this.compile(isTuple ? { ...rightNode, type: "ArrayLiteral" } : rightNode);
      const wanted = operator === "in";
      return (scope) => isIn(left(scope), right(scope)) === wanted;
    }
    const right = this.compile(rightNode);
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
    return typeof text === "string" && text !== "" ? this.#texts.literalOf(text) : text;
  }

  #sum(node: TemplateNode): Expression {
    const left = this.compile(node["left"]);
    const right = this.compile(node["right"]);
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
    const operand = this.compile(node["operand"]);
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
    const operand = this.compile(node["operand"]);
    const named = node["test"] as TemplateNode;
    const name = named["value"] as string;
    const negate = node["negate"] === true;
    return (scope) => test(operand(scope), name) !== negate;
  }
}

const noNames: ReadonlyMap<string, Value> = new Map();

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
