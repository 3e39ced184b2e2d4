import type { JsonScanner } from "../../../shared/core/json-scan/json-scanner.ts";
import { notScanned } from "../../../shared/core/json-scan/text-scanner.ts";

/** Most fields of an object that is scanned. */
const fieldsMax = 1_024;

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** One field of an object: its name as it is meant, and where its value is. */
export interface ScannedField {
  readonly name: string;
  /** First byte of the value and the one behind it. */
  readonly from: number;
  readonly to: number;
}

/** A JSON object in UTF-8 bytes, its fields found and nothing else read. */
export class ScannedObject {
  readonly bytes: Uint8Array;
  readonly fields: readonly ScannedField[];
  /** Index of its first and of its last brace. */
  readonly open: number;
  readonly close: number;

  constructor(
    bytes: Uint8Array,
    fields: readonly ScannedField[],
    braces: { readonly open: number; readonly close: number },
  ) {
    this.bytes = bytes;
    this.fields = fields;
    this.open = braces.open;
    this.close = braces.close;
  }

  /** The field of this name; the last one where it occurs more than once, which is the one that engines take. */
  find(name: string): ScannedField | undefined {
    for (let i = this.fields.length - 1; i >= 0; i--) {
      const field = this.fields[i] as ScannedField;
      if (field.name === name) return field;
    }
    return undefined;
  }

  /** Whether it has a field of this name that is not null. */
  has(name: string): boolean {
    return this.value(name) !== null;
  }

  /** The parsed value of a field; null when there is none. For small values. */
  value(name: string): unknown {
    const field = this.find(name);
    return field === undefined ? null : (JSON.parse(this.text(field)) as unknown);
  }

  /** The bytes of a value as text. */
  text(field: ScannedField): string {
    return decoder.decode(this.bytes.subarray(field.from, field.to));
  }

  /** The text of a field of this name; `undefined` when there is none. */
  raw(name: string): string | undefined {
    const field = this.find(name);
    return field === undefined ? undefined : this.text(field);
  }
}

/**
 * Finds the fields of the object at `from`, whose bytes `json` has loaded. Names are read with their escapes, so that no
 * spelling hides one. `undefined` for anything that is no object, malformed, nested too deep or of too many fields.
 */
export function scanObject(json: JsonScanner, from: number): ScannedObject | undefined {
  const { bytes } = json.text;
  const open = json.space(from);
  if (bytes[open] !== 0x7b) return undefined;
  const fields: ScannedField[] = [];
  let at = json.space(open + 1);
  if (bytes[at] === 0x7d) return new ScannedObject(bytes, fields, { open, close: at });
  for (;;) {
    if (bytes[at] !== 0x22 || fields.length === fieldsMax) return undefined;
    const quote = json.text.text(at + 1);
    if (quote === notScanned) return undefined;
    const name = json.text.escaped
      ? (JSON.parse(decoder.decode(bytes.subarray(at, quote + 1))) as string)
      : decoder.decode(bytes.subarray(at + 1, quote));
    const value = json.colon(quote + 1);
    if (value === notScanned) return undefined;
    const end = json.value(value);
    if (end === notScanned) return undefined;
    fields.push({ name, from: value, to: end });
    at = json.space(end);
    if (bytes[at] === 0x7d) return new ScannedObject(bytes, fields, { open, close: at });
    if (bytes[at] !== 0x2c) return undefined;
    at = json.space(at + 1);
  }
}

/** Finds the fields of a text that is one object and nothing else; `bytes` are well-formed UTF-8. */
export function scanDocument(json: JsonScanner, bytes: Uint8Array): ScannedObject | undefined {
  json.load(bytes);
  const object = scanObject(json, 0);
  if (object === undefined || json.space(object.close + 1) !== bytes.length) return undefined;
  return object;
}

/** The first element of the array that a field holds, when that is an object. Loads the object's bytes again. */
export function scanFirst(
  json: JsonScanner,
  object: ScannedObject,
  name: string,
): ScannedObject | undefined {
  const field = object.find(name);
  if (field === undefined || object.bytes[field.from] !== 0x5b) return undefined;
  json.load(object.bytes);
  return scanObject(json, field.from + 1);
}

/** The object that a field holds. Loads the object's bytes again. */
export function scanField(
  json: JsonScanner,
  object: ScannedObject,
  name: string,
): ScannedObject | undefined {
  const field = object.find(name);
  if (field === undefined) return undefined;
  json.load(object.bytes);
  return scanObject(json, field.from);
}
