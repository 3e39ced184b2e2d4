import { MeshError } from "../errors.ts";

/** Where a row stands, for messages: the file's name as the caller gave it and the 1-based line. */
export interface RowPlace {
  readonly file: string;
  readonly line: number;
}

/** `invalid_request` that names file, line and field. */
export function rowError(place: RowPlace, field: string, problem: string): MeshError {
  return new MeshError(
    "invalid_request",
    `${place.file}:${String(place.line)}: ${field} ${problem}`,
    { field },
  );
}

/** A JSON object, or an error that says what stands there instead. */
export function parseRow(text: string, place: RowPlace): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw rowError(place, "row", `is not JSON: ${(error as Error).message}`);
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw rowError(place, "row", "must be a JSON object");
  }
  return value as Readonly<Record<string, unknown>>;
}

function show(value: unknown): string {
  if (value === undefined) return "is missing";
  const text = JSON.stringify(value);
  return `is ${text.length > 40 ? `${text.slice(0, 40)}…` : text}`;
}

/** A finite number of at least `min`. */
export function numberField(
  row: Readonly<Record<string, unknown>>,
  field: string,
  min: number,
  place: RowPlace,
): number {
  const value = row[field];
  if (typeof value !== "number" || !Number.isFinite(value) || value < min) {
    throw rowError(place, field, `${show(value)}; it must be a number of at least ${String(min)}`);
  }
  return value;
}

/** A whole number of at least `min` that a double holds exactly. */
export function wholeField(
  row: Readonly<Record<string, unknown>>,
  field: string,
  min: number,
  place: RowPlace,
): number {
  const value = row[field];
  if (!Number.isSafeInteger(value) || (value as number) < min) {
    throw rowError(
      place,
      field,
      `${show(value)}; it must be a whole number of at least ${String(min)}`,
    );
  }
  return value as number;
}

/** A text that is not empty. */
export function textField(
  row: Readonly<Record<string, unknown>>,
  field: string,
  place: RowPlace,
): string {
  const value = row[field];
  if (typeof value !== "string" || value === "") {
    throw rowError(place, field, `${show(value)}; it must be a text that is not empty`);
  }
  return value;
}

/** A list of whole numbers of at least 0. */
export function wholeListField(
  row: Readonly<Record<string, unknown>>,
  field: string,
  place: RowPlace,
): readonly number[] {
  const value = row[field];
  if (!Array.isArray(value)) {
    throw rowError(place, field, `${show(value)}; it must be a list of whole numbers`);
  }
  for (let i = 0; i < value.length; i++) {
    const item: unknown = value[i];
    if (!Number.isSafeInteger(item) || (item as number) < 0) {
      throw rowError(
        place,
        `${field}[${String(i)}]`,
        `${show(item)}; it must be a whole number of at least 0`,
      );
    }
  }
  return value as readonly number[];
}
