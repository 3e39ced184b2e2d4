import type { ScannedObject } from "./scanned-object.ts";

/** A field to set, its value as JSON. */
export interface FieldEdit {
  readonly name: string;
  readonly json: string;
}

const encoder = new TextEncoder();

interface Splice {
  readonly from: number;
  readonly to: number;
  readonly bytes: Uint8Array;
}

/**
 * The object with some fields set: values that are there are replaced where they are, in every place where the name
 * occurs, and what is not there is put before the last brace. All other bytes stay as they came, so that no engine reads
 * anything of the rest differently, and no name that is set occurs twice with two values.
 */
export function editObject(object: ScannedObject, edits: readonly FieldEdit[]): Uint8Array {
  const splices: Splice[] = [];
  let added = "";
  for (const { name, json } of edits) {
    let isThere = false;
    for (const field of object.fields) {
      if (field.name !== name) continue;
      isThere = true;
      splices.push({ from: field.from, to: field.to, bytes: encoder.encode(json) });
    }
    if (!isThere) added += `,${JSON.stringify(name)}:${json}`;
  }
  if (added !== "") {
    const text = object.fields.length === 0 ? added.slice(1) : added;
    splices.push({ from: object.close, to: object.close, bytes: encoder.encode(text) });
  }
  return splice(object, splices);
}

function splice(object: ScannedObject, splices: Splice[]): Uint8Array {
  const { bytes, open, close } = object;
  splices.sort((a, b) => a.from - b.from);
  let size = close + 1 - open;
  for (const { from, to, bytes: by } of splices) size += by.length - (to - from);
  const out = new Uint8Array(size);
  let read = open;
  let written = 0;
  for (const { from, to, bytes: by } of splices) {
    out.set(bytes.subarray(read, from), written);
    written += from - read;
    out.set(by, written);
    written += by.length;
    read = to;
  }
  out.set(bytes.subarray(read, close + 1), written);
  return out;
}
