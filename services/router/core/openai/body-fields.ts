import { MeshError } from "../../../shared/core/errors.ts";

/** A JSON object, as a body is one. */
export type Body = Readonly<Record<string, unknown>>;

/** Refuses a request for what one of its fields holds. */
export function refuse(field: string, message: string): never {
  throw new MeshError("invalid_request", `${field}: ${message}`, { field });
}

/** Whether a value is a JSON object. */
export function isObject(value: unknown): value is Body {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A whole number of at least 1, or nothing; anything else is refused. */
export function optionalCount(body: Body, field: string): number | undefined {
  const value = body[field];
  if (value === undefined || value === null) return undefined;
  if (typeof value !== "number" || !Number.isInteger(value) || value < 1) {
    refuse(field, `must be a whole number of at least 1, got ${JSON.stringify(value)}`);
  }
  return value;
}

/** A truth, `fallback` for none; anything else is refused. */
export function optionalFlag(body: Body, field: string, fallback: boolean): boolean {
  const value = body[field];
  if (value === undefined || value === null) return fallback;
  if (typeof value !== "boolean") refuse(field, "must be true or false");
  return value;
}

/** The model that a body names; refused when it is no name, or absent though `required`. */
export function readModel(body: Body, required: boolean): string | undefined {
  const model = body["model"];
  if (model === undefined || model === null) {
    if (required) refuse("model", "is required");
    return undefined;
  }
  if (typeof model !== "string" || model === "") refuse("model", "must be a non-empty string");
  return model;
}

/** A session is a hint, so that anything but text counts as none. */
export function readSession(body: Body): { readonly session?: string } {
  for (const field of ["prompt_cache_key", "user"]) {
    const value = body[field];
    if (typeof value === "string" && value !== "") return { session: value };
  }
  return {};
}

/** Engines read some other values as truths too, so that those leave it open. */
export function readStream(body: Body): { readonly stream?: boolean } {
  const value = body["stream"] ?? false;
  return typeof value === "boolean" ? { stream: value } : {};
}

/** Most answers to one request that are believed. */
const choicesMax = 1_024;

/** How many answers are asked for, each with a decode of its own; nothing for one, or for what is no number. */
export function readChoices(body: Body): { readonly choices?: number } {
  const value = choicesOf(body);
  return value > 1 ? { choices: value } : {};
}

/** As `readChoices`, 1 where nothing says otherwise. */
export function choicesOf(body: Body): number {
  return Math.min(Math.max(countOf(body["n"]), countOf(body["best_of"])), choicesMax);
}

function countOf(value: unknown): number {
  return typeof value === "number" && Number.isInteger(value) ? value : 1;
}

/** Whether a list holds token ids and nothing else. */
export function isTokenList(value: readonly unknown[]): value is readonly number[] {
  return value.every(
    (id) => typeof id === "number" && Number.isInteger(id) && id >= 0 && id < 2 ** 32,
  );
}
