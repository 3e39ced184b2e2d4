import { MeshError } from "../../../shared/core/errors.ts";
import { readOpenAiRequest, type OpenAiRequest } from "./openai-request.ts";
import { reservedFields } from "../../../shared/core/reserved-fields.ts";

/** A field of the outermost object, as far as its text is there. */
interface VisibleField {
  readonly key: string;
  /** Its value when that is a string and whole. */
  readonly text: string | undefined;
}

/** Index of the quote that ends the string beginning at `start`; −1 when it is cut off. */
function stringEnd(text: string, start: number): number {
  for (let i = start + 1; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c === 92) i++;
    else if (c === 34) return i;
  }
  return -1;
}

function skipSpace(text: string, from: number): number {
  let i = from;
  while (/\s/.test(text.charAt(i))) i++;
  return i;
}

/** The text of a JSON string with its quotes; `undefined` when it has illegal escapes. */
function unquote(literal: string): string | undefined {
  try {
    return JSON.parse(literal) as string;
  } catch {
    return undefined;
  }
}

/** Fields of the outermost object in order, up to where the text ends. Linear in its length. */
function* visibleFields(text: string): Generator<VisibleField> {
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c === 123 || c === 91) depth++;
    else if (c === 125 || c === 93) depth--;
    if (c !== 34) continue;
    const end = stringEnd(text, i);
    if (end < 0) return;
    const colon = skipSpace(text, end + 1);
    if (depth === 1 && text.charAt(colon) === ":") {
      const key = unquote(text.slice(i, end + 1));
      const start = skipSpace(text, colon + 1);
      const valueEnd = text.charAt(start) === '"' ? stringEnd(text, start) : -1;
      const value = valueEnd < 0 ? undefined : unquote(text.slice(start, valueEnd + 1));
      if (key !== undefined) yield { key, text: value };
    }
    i = end;
  }
}

function isWhole(bytes: Uint8Array): boolean {
  try {
    JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    return true;
  } catch {
    return false;
  }
}

/**
 * Reads a body whose rest may pass unseen (Envoy's BUFFERED_PARTIAL). One that is whole after all, because only
 * trailers follow, is read like any other, with the same refusals. Of a part the model is read when it is there;
 * reserved fields that are visible are refused, those further on cannot be seen.
 */
export function readTruncatedRequest(path: string, bytes: Uint8Array): OpenAiRequest {
  if (isWhole(bytes)) return readOpenAiRequest(path, bytes);
  let model: string | undefined;
  for (const { key, text } of visibleFields(new TextDecoder("utf-8").decode(bytes))) {
    if (reservedFields.has(key)) {
      throw new MeshError(
        "invalid_request",
        `${key}: is reserved for the mesh itself and cannot be set by a client; leave it out`,
        { field: key },
      );
    }
    if (key === "model") model = text;
  }
  return {
    kind: "other",
    model,
    tokensMax: undefined,
    prompt: { kind: "load_only", reason: "body_truncated" },
  };
}
