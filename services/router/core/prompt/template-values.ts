import { LiteralText, Rope, type Part } from "./rendered-parts.ts";
import { TemplateText } from "./template-text.ts";

/**
 * Thrown when a template does something that is not done here. The template library then renders the whole prompt, or says
 * what is wrong with it. One object for all, because it only changes the path.
 */
export class NotRendered extends Error {}

const notRendered = new NotRendered("left to the template library");

/** Gives up on this rendering. */
export function giveUp(): never {
  throw notRendered;
}

/** A mutable object of a template (`namespace()`). */
export class Namespace {
  readonly values = new Map<string, Value>();
}

/** The variable `loop`. */
export class LoopState {
  index0 = 0;
  readonly items: readonly Value[];

  constructor(items: readonly Value[]) {
    this.items = items;
  }

  /** A member of the variable. */
  get(name: string): Value {
    const { index0, items } = this;
    switch (name) {
      case "index":
        return index0 + 1;
      case "index0":
        return index0;
      case "revindex":
        return items.length - index0;
      case "revindex0":
        return items.length - index0 - 1;
      case "first":
        return index0 === 0;
      case "last":
        return index0 === items.length - 1;
      case "length":
        return items.length;
      case "previtem":
        return index0 > 0 ? items[index0 - 1] : undefined;
      case "nextitem":
        return index0 < items.length - 1 ? items[index0 + 1] : undefined;
      default:
        return giveUp();
    }
  }
}

/** Something a template can call. */
export class Callable {
  readonly call: (args: readonly Value[], named: ReadonlyMap<string, Value>) => Value;

  constructor(call: (args: readonly Value[], named: ReadonlyMap<string, Value>) => Value) {
    this.call = call;
  }
}

/** A value of JSON or of the template itself. */
export type Value =
  | undefined
  | null
  | boolean
  | number
  | string
  | TemplateText
  | Rope
  | readonly Value[]
  | ValueObject
  | Namespace
  | LoopState
  | Callable;

/** An object of JSON. */
export interface ValueObject {
  readonly [name: string]: Value;
}

/** Whether a value is a plain object. */
export function isPlain(value: Value): value is ValueObject {
  return (
    typeof value === "object" &&
    value !== null &&
    !Array.isArray(value) &&
    !(value instanceof TemplateText) &&
    !(value instanceof Rope) &&
    !(value instanceof Namespace) &&
    !(value instanceof LoopState) &&
    !(value instanceof Callable)
  );
}

/** Whether a value is a list. */
export function isList(value: Value): value is readonly Value[] {
  return Array.isArray(value);
}

/** Whether a value is any kind of text. */
export function isText(value: Value): value is string | TemplateText | Rope {
  return typeof value === "string" || value instanceof TemplateText || value instanceof Rope;
}

/** Python's idea of truth, as the template library has it. */
export function isTrue(value: Value): boolean {
  switch (typeof value) {
    case "string":
      return value !== "";
    case "boolean":
      return value;
    case "number":
      return value !== 0 && !Number.isNaN(value);
    case "undefined":
      return false;
    default:
  }
  if (value === null) return false;
  if (isList(value)) return value.length > 0;
  if (value instanceof Rope) {
    return value.parts.some((part) =>
      part instanceof LiteralText ? part.text !== "" : part !== "",
    );
  }
  return isPlain(value) ? Object.keys(value).length > 0 : true;
}

function primitive(value: Value): value is string | number | boolean | null | undefined {
  return value === null || typeof value !== "object";
}

/** `==` of the template library, which is JavaScript's for everything but objects. */
export function isEqual(left: Value, right: Value): boolean {
  if (primitive(left) && primitive(right)) return left == right;
  if (left === null || left === undefined || right === null || right === undefined) return false;
  if (left instanceof TemplateText && typeof right === "string") return equalsText(left, right);
  if (right instanceof TemplateText && typeof left === "string") return equalsText(right, left);
  return giveUp();
}

function equalsText(text: TemplateText, other: string): boolean {
  return other !== "" && text.equals(other);
}

/** The text of a value where it is printed or joined to a text. */
export function textOf(value: Value): string | TemplateText | Rope {
  if (isText(value)) return value;
  if (typeof value === "number" || typeof value === "boolean") return String(value);
  return giveUp();
}

/** `+` where one side is a text, and `~`. */
export function joined(left: Part | Rope, right: Part | Rope): string | Rope {
  if (typeof left === "string" && typeof right === "string") return left + right;
  const parts: Part[] = [];
  for (const side of [left, right]) {
    if (side instanceof Rope) parts.push(...side.parts);
    else if (side !== "") parts.push(side);
  }
  return new Rope(parts);
}

/** A rope as the simplest value that it is. */
export function simplest(parts: readonly Part[]): string | TemplateText | Rope {
  const [first] = parts;
  if (first === undefined) return "";
  if (parts.length === 1 && !(first instanceof LiteralText)) return first;
  if (parts.some((part) => part instanceof TemplateText)) return new Rope(parts);
  const text = parts.map(characters).join("");
  return parts.some((part) => part instanceof LiteralText && part.tokens.length > 0)
    ? new Rope(parts)
    : text;
}

function characters(part: Part): string {
  if (part instanceof TemplateText) return giveUp();
  return part instanceof LiteralText ? part.text : part;
}

/** Characters of a value that has no text of the request in it. */
export function plainText(value: Value): string {
  if (typeof value === "string") return value;
  return value instanceof Rope ? value.parts.map(characters).join("") : giveUp();
}

/** `in` of the template library. */
export function isIn(left: Value, right: Value): boolean {
  if (right === undefined) return false;
  if (left === undefined || left === null || right === null) return giveUp();
  if (isList(right)) {
    return right.some((item) => {
      if (primitive(item) && primitive(left)) return item === left;
      if (isText(item) && isText(left)) return isEqual(item, left);
      return giveUp();
    });
  }
  if (left instanceof Rope || typeof left !== "string") return giveUp();
  if (right instanceof TemplateText) {
    return left === "" || right.includes(left);
  }
  if (typeof right === "string" || right instanceof Rope) return plainText(right).includes(left);
  return isPlain(right) ? Object.hasOwn(right, left) : giveUp();
}

const jsonTexts = new WeakMap<object, string>();

/** The filter `tojson` without options: Python's separators. */
export function toJson(value: Value): string {
  if (typeof value !== "object" || value === null) {
    return value === undefined ? "null" : JSON.stringify(value);
  }
  const known = jsonTexts.get(value);
  if (known !== undefined) return known;
  let text: string;
  if (isList(value)) text = `[${value.map(toJson).join(", ")}]`;
  else if (isPlain(value)) {
    const entries = Object.entries(value);
    text = `{${entries.map(([name, v]) => `${JSON.stringify(name)}: ${toJson(v)}`).join(", ")}}`;
  } else return giveUp();
  jsonTexts.set(value, text);
  return text;
}

/** `list[start:stop:step]`. */
export function sliced<T>(
  items: readonly T[],
  start: number | undefined,
  stop: number | undefined,
  step = 1,
): T[] {
  const { length } = items;
  if (step === 0) return [];
  const bound = (at: number, low: number, high: number): number =>
    at < 0 ? Math.max(length + at, low) : Math.min(at, high);
  const result: T[] = [];
  if (step > 0) {
    const to = bound(stop ?? length, 0, length);
    for (let i = bound(start ?? 0, 0, length); i < to; i += step) result.push(items[i] as T);
  } else {
    const to = stop === undefined ? -1 : bound(stop, -1, length - 1);
    for (let i = bound(start ?? length - 1, -1, length - 1); i > to; i += step) {
      result.push(items[i] as T);
    }
  }
  return result;
}
