import type { JsonObject } from "../request-body.ts";

/**
 * Digits of a non-negative integer field, exact also beyond 2^53, where a parsed number is not: those are found again in
 * the body's text (the last field of this name, as parsers take it). Undefined for anything else.
 */
export function exactInteger(value: unknown, field: string, bytes: Buffer): string | undefined {
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0) return undefined;
  if (Number.isSafeInteger(value)) return String(value);
  const pattern = new RegExp(`"${field}"\\s*:\\s*(\\d{1,20})\\s*[,}\\]]`, "g");
  let digits: string | undefined;
  for (const match of bytes.toString("latin1").matchAll(pattern)) digits = match[1];
  return digits;
}

/** Whether a value can be connected to as a TCP port: an integer from 1 to 65,535. */
export function isPort(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value > 0 && value < 65_536;
}

/** An integer written into JSON digit by digit; `digits` come from `exactInteger`. */
export function rawInteger(digits: string): unknown {
  return (JSON as unknown as { rawJSON: (text: string) => unknown }).rawJSON(
    digits.replace(/^0+(?=\d)/, ""),
  );
}

/** An object field's object field and so on; undefined when any is missing. */
export function numberAt(body: JsonObject, ...path: readonly string[]): number | undefined {
  let value: unknown = body;
  for (const field of path) {
    if (typeof value !== "object" || value === null) return undefined;
    value = (value as JsonObject)[field];
  }
  return typeof value === "number" ? value : undefined;
}
