import { z } from "zod";
import { closestName } from "../core/suggestion.ts";

/** One thing wrong with a settings tree, at the key that a person must change. */
export interface ConfigProblem {
  /** From the root of the section: keys of maps, indices of lists. */
  readonly path: readonly PropertyKey[];
  /** What is wrong and what is accepted; begins after "path: ". */
  readonly text: string;
}

/** Longest text of a given value in a message; more is cut. */
const shownCharsMax = 120;

/**
 * Turns what the schema found into messages for people: each unknown key at its own path with the known ones, the
 * likeliest first; wrong types and values with what is accepted and what was given. In the schema's order.
 */
export function configProblems(
  schema: z.ZodType,
  tree: unknown,
  issues: readonly z.core.$ZodIssue[],
): ConfigProblem[] {
  return issues.flatMap((issue) => problemsOf(schema, tree, issue, issue.path));
}

/** "unknown key", the key most likely meant, and all known ones with that one first. */
export function unknownKeyText(key: string, known: readonly string[]): string {
  const near = closestName(key, known);
  if (near === undefined) return `unknown key "${key}"; known: ${known.join(", ")}`;
  const others = known.filter((name) => name !== near);
  return `unknown key "${key}"; did you mean "${near}"? known: ${[near, ...others].join(", ")}`;
}

function problemsOf(
  schema: z.ZodType,
  tree: unknown,
  issue: z.core.$ZodIssue,
  path: readonly PropertyKey[],
): ConfigProblem[] {
  const value = valueAt(tree, path);
  const accepted = schemasAt(schema, path);
  if (issue.code === "unrecognized_keys") {
    const known = accepted.flatMap((one) => (one instanceof z.ZodObject ? keysOf(one) : []));
    return issue.keys.map((key) => {
      const text = unknownKeyText(key, [...new Set(known)]);
      return { path: [...path, key], text: `${text}${shown(valueAt(tree, [...path, key]))}` };
    });
  }
  if (issue.code === "invalid_union") {
    // A map given where a map is one of the choices is meant as that one: its own problems say more.
    const branch = isMap(value)
      ? issue.errors.find((inner) => inner.every((one) => !isWholeTypeWrong(one)))
      : undefined;
    if (branch !== undefined) {
      return branch.flatMap((inner) => problemsOf(schema, tree, inner, [...path, ...inner.path]));
    }
  }
  return [{ path, text: `${describe(issue, accepted)}${shown(value)}` }];
}

function describe(issue: z.core.$ZodIssue, accepted: readonly z.ZodType[]): string {
  switch (issue.code) {
    case "too_small":
      return `must be ${issue.inclusive === false ? "more than" : "at least"} ${countOf(issue.origin, issue.minimum)}`;
    case "too_big":
      return `must be ${issue.inclusive === false ? "less than" : "at most"} ${countOf(issue.origin, issue.maximum)}`;
    case "invalid_type":
    case "invalid_union":
    case "invalid_value": {
      const texts = [...new Set(accepted.map(acceptedText))].filter((text) => text !== "");
      return texts.length === 0 ? issue.message : `must be ${texts.join(", or ")}`;
    }
    default:
      return issue.message;
  }
}

function countOf(origin: string, bound: number | bigint): string {
  if (origin === "string") return `${bound.toString()} characters long`;
  return origin === "array" ? `${bound.toString()} long` : bound.toString();
}

/** What a value of this type may be, in words; empty when the type says too little. */
function acceptedText(schema: z.ZodType): string {
  if (schema instanceof z.ZodEnum) {
    return `one of ${schema.options.map((option) => JSON.stringify(option)).join(", ")}`;
  }
  if (schema instanceof z.ZodLiteral) {
    return [...schema.values].map((value) => JSON.stringify(value)).join(", ");
  }
  if (schema instanceof z.ZodObject) return `a map with the keys ${keysOf(schema).join(", ")}`;
  if (schema instanceof z.ZodRecord) return "a map";
  if (schema instanceof z.ZodArray) return "a list";
  if (schema instanceof z.ZodBoolean) return "true or false";
  if (schema instanceof z.ZodNumber) return numberText(schema);
  if (schema instanceof z.ZodString || schema instanceof z.ZodURL) return "a text";
  return "";
}

function numberText(schema: z.ZodNumber): string {
  const { minValue, maxValue, format } = schema;
  const excludes = (bound: number): boolean =>
    (schema.def.checks ?? []).some((check) => {
      const { value, inclusive } = check._zod.def as { value?: unknown; inclusive?: unknown };
      return value === bound && inclusive === false;
    });
  const bounds: string[] = [];
  if (isBound(minValue))
    bounds.push(`${excludes(minValue) ? "more than" : "at least"} ${minValue}`);
  if (isBound(maxValue)) bounds.push(`${excludes(maxValue) ? "less than" : "at most"} ${maxValue}`);
  const kind = format?.includes("int") === true ? "a whole number" : "a number";
  return bounds.length === 0 ? kind : `${kind}, ${bounds.join(" and ")}`;
}

/** Whether a limit was chosen, and is not what every whole number has. */
function isBound(value: number | null): value is number {
  return value !== null && Math.abs(value) < Number.MAX_SAFE_INTEGER;
}

function keysOf(schema: z.ZodObject): string[] {
  return Object.keys(schema.shape);
}

/** The types that a path leads to, without their defaults; several at a union, none when it leads nowhere. */
function schemasAt(schema: z.ZodType, path: readonly PropertyKey[]): z.ZodType[] {
  let found = choices(schema);
  for (const key of path) {
    found = found.flatMap((one) => {
      if (one instanceof z.ZodObject) {
        const inner = (one.shape as Readonly<Record<PropertyKey, z.ZodType>>)[key];
        return inner === undefined ? [] : choices(inner);
      }
      if (one instanceof z.ZodArray) return choices(one.element as z.ZodType);
      return one instanceof z.ZodRecord ? choices(one.valueType as z.ZodType) : [];
    });
  }
  return found;
}

function choices(schema: z.ZodType): z.ZodType[] {
  if (
    schema instanceof z.ZodDefault ||
    schema instanceof z.ZodPrefault ||
    schema instanceof z.ZodOptional ||
    schema instanceof z.ZodNullable ||
    schema instanceof z.ZodReadonly
  ) {
    return choices(schema.unwrap() as z.ZodType);
  }
  if (schema instanceof z.ZodPipe) return choices(schema.in as z.ZodType);
  if (schema instanceof z.ZodUnion) {
    return schema.options.flatMap((option) => choices(option as z.ZodType));
  }
  return [schema];
}

function isWholeTypeWrong(issue: z.core.$ZodIssue): boolean {
  return issue.path.length === 0 && issue.code !== "unrecognized_keys";
}

function isMap(value: unknown): boolean {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function valueAt(tree: unknown, path: readonly PropertyKey[]): unknown {
  let node = tree;
  for (const key of path) {
    if (typeof node !== "object" || node === null) return undefined;
    node = (node as Record<PropertyKey, unknown>)[key];
  }
  return node;
}

function shown(value: unknown): string {
  if (value === undefined) return "";
  const text = JSON.stringify(value);
  return `, got ${text.length > shownCharsMax ? `${text.slice(0, shownCharsMax)}…` : text}`;
}
