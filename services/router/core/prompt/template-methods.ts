import { strip, type StrippedEnds } from "../../../shared/core/chat-template-text.ts";
import { Rope } from "./rendered-parts.ts";
import { TemplateText } from "./template-text.ts";
import {
  giveUp,
  isEqual,
  isList,
  isPlain,
  isText,
  isTrue,
  LoopState,
  Namespace,
  plainText,
  textOf,
  toJson,
  type Value,
} from "./template-values.ts";

/** Python's `str.title`, as the template library has it. */
function titleCase(text: string): string {
  return text.replace(/\b\w/g, (c) => c.toUpperCase());
}

/** Operations that take a text and give one, without arguments. */
const textToText = new Map<string, (text: string) => string>([
  ["upper", (t) => t.toUpperCase()],
  ["lower", (t) => t.toLowerCase()],
  ["title", titleCase],
  ["capitalize", (t) => t.charAt(0).toUpperCase() + t.slice(1)],
]);

function applied(value: string | TemplateText | Rope, name: string): Value {
  const make = textToText.get(name);
  if (make === undefined) return giveUp();
  return value instanceof TemplateText ? value.made(name, make) : make(plainText(value));
}

/** What `strip`, `lstrip`, `rstrip` and `trim` give (see `callStripHelpers`). */
export function stripped(value: Value, ends: StrippedEnds, characters: Value): Value {
  if (!isText(value)) return giveUp();
  if (typeof characters !== "string" && characters !== undefined && characters !== null) {
    return giveUp();
  }
  return value instanceof TemplateText
    ? value.stripped(ends, characters ?? undefined)
    : strip(plainText(value), ends, characters ?? undefined);
}

function startsOrEnds(value: string | TemplateText | Rope, name: string, args: readonly Value[]) {
  const [wanted] = args;
  if (args.length !== 1 || typeof wanted !== "string") return giveUp();
  const text = value instanceof TemplateText ? value : plainText(value);
  return name === "startswith" ? text.startsWith(wanted) : text.endsWith(wanted);
}

function split(value: string | TemplateText | Rope, args: readonly Value[]): Value {
  const [separator] = args;
  if (args.length !== 1 || typeof separator !== "string" || separator === "") return giveUp();
  return value instanceof TemplateText
    ? (value.split(separator) ?? giveUp())
    : plainText(value).split(separator);
}

function replaced(value: string | TemplateText | Rope, args: readonly Value[]): Value {
  const [old, by] = args;
  if (args.length !== 2 || typeof old !== "string" || typeof by !== "string" || old === "") {
    return giveUp();
  }
  // By whole characters, so that half a surrogate pair is not found inside one.
  const pattern = new RegExp(old.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gu");
  const replace = (text: string): string => text.replaceAll(pattern, () => by);
  return value instanceof TemplateText
    ? value.replaced(old, by, replace)
    : replace(plainText(value));
}

/** `value.name(args)`. */
export function callMethod(
  value: Value,
  name: string,
  args: readonly Value[],
  named: ReadonlyMap<string, Value>,
): Value {
  if (named.size > 0) return giveUp();
  if (isText(value)) {
    switch (name) {
      case "startswith":
      case "endswith":
        return startsOrEnds(value, name, args);
      case "split":
        return split(value, args);
      case "replace":
        return replaced(value, args);
      default:
        return applied(value, name);
    }
  }
  if (!isPlain(value) || Object.hasOwn(value, name)) return giveUp();
  switch (name) {
    case "get": {
      const [key, fallback] = args;
      if (typeof key !== "string" || args.length > 2) return giveUp();
      if (Object.hasOwn(value, key)) return value[key];
      return args.length === 2 ? fallback : null;
    }
    case "items":
      return Object.entries(value);
    case "keys":
      return Object.keys(value);
    case "values":
      return Object.values(value);
    default:
      return giveUp();
  }
}

/** Members that objects of the template library have of themselves. */
const objectMembers: ReadonlySet<string> = new Set(["get", "items", "keys", "values", "dictsort"]);
const textMembers: ReadonlySet<string> = new Set([
  ...textToText.keys(),
  "strip",
  "lstrip",
  "rstrip",
  "startswith",
  "endswith",
  "split",
  "replace",
]);

/** `value.name`, where it is not called. */
export function memberOf(value: Value, name: string): Value {
  if (isPlain(value)) {
    if (Object.hasOwn(value, name)) return value[name];
    return objectMembers.has(name) ? giveUp() : undefined;
  }
  if (isList(value)) return name === "length" ? value.length : undefined;
  if (value instanceof Namespace) return value.values.get(name);
  if (isText(value)) {
    if (name === "length") return lengthOf(value);
    return textMembers.has(name) ? giveUp() : undefined;
  }
  if (value instanceof LoopState) return value.get(name);
  if (value === null || typeof value !== "object") return undefined;
  return giveUp();
}

/** The filter `length`. */
export function lengthOf(value: Value): number {
  if (value instanceof TemplateText) return value.length;
  if (typeof value === "string" || value instanceof Rope) return plainText(value).length;
  if (isList(value)) return value.length;
  return isPlain(value) ? Object.keys(value).length : giveUp();
}

/** A filter without arguments. */
export function applyFilter(value: Value, name: string): Value {
  if (name === "safe") return value;
  if (name === "tojson") return toJson(value);
  if (name === "length") return lengthOf(value);
  if (isList(value)) {
    switch (name) {
      case "list":
        return value;
      case "first":
        return value.length === 0 ? giveUp() : value[0];
      case "last":
        return value.length === 0 ? giveUp() : value.at(-1);
      case "reverse":
        return value.toReversed();
      default:
        return giveUp();
    }
  }
  if (isText(value)) {
    if (name === "string" || name === "join") return value;
    return applied(value, name);
  }
  if (isPlain(value) && !Object.hasOwn(value, name)) {
    if (name === "items" || name === "keys" || name === "values") {
      return callMethod(value, name, [], new Map());
    }
  }
  return giveUp();
}

/** A filter with arguments. */
export function applyFilterCall(
  value: Value,
  name: string,
  args: readonly Value[],
  named: ReadonlyMap<string, Value>,
): Value {
  switch (name) {
    case "tojson":
      return jsonWith(value, args, named);
    case "default": {
      const flag = args[1] ?? named.get("boolean") ?? false;
      if (typeof flag !== "boolean") return giveUp();
      return value === undefined || (flag && !isTrue(value))
        ? args.length > 0
          ? args[0]
          : ""
        : value;
    }
    case "join": {
      const separator = args[0] ?? named.get("separator") ?? "";
      if (!isList(value) || typeof separator !== "string") return giveUp();
      return value.map((item) => (typeof item === "string" ? item : giveUp())).join(separator);
    }
    case "selectattr":
    case "rejectattr":
      return selected(value, name === "selectattr", args, named);
    case "replace":
      return isText(value) && named.size === 0 ? replaced(value, args) : giveUp();
    default:
      return giveUp();
  }
}

function selected(
  value: Value,
  select: boolean,
  args: readonly Value[],
  named: ReadonlyMap<string, Value>,
): Value {
  const [attribute, testName, wanted] = args;
  if (!isList(value) || named.size > 0 || typeof attribute !== "string") return giveUp();
  return value.filter((item) => {
    if (!isPlain(item)) return giveUp();
    if (!Object.hasOwn(item, attribute)) return !select;
    const found = item[attribute];
    let holds: boolean;
    if (testName === undefined) holds = isTrue(found);
    else if (testName === "equalto" || testName === "eq" || testName === "==") {
      if (testName === "==" || !isText(found) || typeof wanted !== "string") return giveUp();
      holds = isEqual(found, wanted);
    } else if (typeof testName === "string" && wanted === undefined) holds = test(found, testName);
    else return giveUp();
    return holds === select;
  });
}

/** `value is name`. */
export function test(value: Value, name: string): boolean {
  switch (name) {
    case "defined":
      return value !== undefined;
    case "undefined":
      return value === undefined;
    case "none":
      return value === null;
    case "string":
      return isText(value);
    case "boolean":
      return typeof value === "boolean";
    case "true":
      return value === true;
    case "false":
      return value === false;
    case "number":
      return typeof value === "number";
    case "integer":
      return Number.isInteger(value);
    case "iterable":
      return isList(value) || isText(value);
    case "mapping":
      return isPlain(value) || value instanceof LoopState;
    case "sequence":
      return isList(value) || isText(value) || test(value, "mapping");
    case "odd":
    case "even":
      if (!Number.isInteger(value)) return giveUp();
      return ((value as number) % 2 !== 0) === (name === "odd");
    default:
      return giveUp();
  }
}

/** `tojson` with options: only the width of an indent is read here. */
function jsonWith(value: Value, args: readonly Value[], named: ReadonlyMap<string, Value>): Value {
  if (args.length > 0) return giveUp();
  for (const [name, option] of named) {
    if (name === "ensure_ascii" && option === false) continue;
    if (name === "indent" && typeof option === "number" && option > 0) continue;
    return giveUp();
  }
  const indent = named.get("indent");
  return typeof indent === "number" ? indented(value, " ".repeat(indent), "\n") : toJson(value);
}

const indentedTexts = new WeakMap<object, Map<string, string>>();

function indented(value: Value, step: string, line: string): string {
  if (typeof value !== "object" || value === null) return toJson(value);
  const known = line === "\n" ? indentedTexts.get(value)?.get(step) : undefined;
  if (known !== undefined) return known;
  const inner = line + step;
  let items: string[];
  let brackets: readonly [string, string];
  if (isList(value)) {
    items = value.map((item) => indented(item, step, inner));
    brackets = ["[", "]"];
  } else if (isPlain(value)) {
    items = Object.entries(value).map(
      ([name, v]) => `${JSON.stringify(name)}: ${indented(v, step, inner)}`,
    );
    brackets = ["{", "}"];
  } else return giveUp();
  const text =
    items.length === 0
      ? brackets.join("")
      : `${brackets[0]}${inner}${items.join(`,${inner}`)}${line}${brackets[1]}`;
  if (line === "\n") {
    const texts = indentedTexts.get(value) ?? new Map<string, string>();
    texts.set(step, text);
    indentedTexts.set(value, texts);
  }
  return text;
}

/** What a value looks like where it is printed; nothing for none. */
export function printed(value: Value): string | TemplateText | Rope {
  return value === undefined || value === null ? "" : textOf(value);
}
